//! Sends starts, stops and pauses to the workers.

use protocol::command;
use protocol::id::{PipelineId, RegisteredName, RunId, StepName};
use protocol::names;
use protocol::pipeline::{Params, Pipeline, Vars};
use protocol::run::{NodeState, Parent, StepRecord};
use serde_json::{Map, Value, json};

use super::{Client, Error};
use crate::ports::{Message, Route};

/// The pipeline of a start.
#[derive(Debug, Clone, PartialEq)]
pub enum StartOf {
    /// A stored pipeline.
    Stored(PipelineId),
    /// A definition sent with the message.
    Inline(Box<Pipeline>),
}

/// A start.
#[derive(Debug, Clone, PartialEq)]
pub struct StartRequest {
    /// The pipeline.
    pub what: StartOf,
    /// The run id. A second start with the same id is ignored.
    pub run: RunId,
    /// Variables that override the pipeline's.
    pub vars: Vars,
    /// Values for templates, which override the variables.
    pub params: Params,
    /// The registered logger that receives the run's text.
    pub logger: Option<RegisteredName>,
    /// The partition of the pipeline's wait list. `None` is the empty partition.
    pub partition: Option<String>,
    /// The ended run whose committed steps it takes over.
    pub parent: Option<Parent>,
}

impl StartRequest {
    fn message(&self) -> Result<Message, Error> {
        let mut body = Map::new();
        body.insert("run-id".into(), json!(self.run));
        let definition = match &self.what {
            StartOf::Stored(_) => None,
            StartOf::Inline(pipeline) => Some(&**pipeline),
        };
        if let Some(why) = command::too_large(definition, &self.vars, &self.params) {
            return Err(Error::TooLarge(why));
        }
        match &self.what {
            StartOf::Stored(id) => {
                body.insert("group".into(), json!(id.group()));
                body.insert("name".into(), json!(id.name()));
            }
            StartOf::Inline(pipeline) => {
                body.insert("pipeline".into(), json!(pipeline));
            }
        }
        if !self.vars.is_empty() {
            body.insert("vars".into(), json!(self.vars));
        }
        if !self.params.is_empty() {
            body.insert("params".into(), json!(self.params));
        }
        if let Some(logger) = &self.logger {
            body.insert("logger".into(), json!(logger));
        }
        if let Some(partition) = &self.partition {
            body.insert("partition".into(), json!(partition));
        }
        if let Some(parent) = &self.parent {
            body.insert("parent".into(), json!(parent));
        }
        Ok(message(command::START, self.run.to_string(), body))
    }
}

fn message(kind: &str, id: String, body: Map<String, Value>) -> Message {
    Message {
        kind: Some(kind.to_owned()),
        id: Some(id),
        headers: std::collections::BTreeMap::new(),
        body: Value::Object(body).to_string().into_bytes(),
    }
}

fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

impl Client {
    /// A new run id.
    #[must_use]
    pub fn new_run_id() -> RunId {
        RunId::from_uuid(uuid::Uuid::now_v7())
    }

    /// Sends a start. The broker has confirmed it when this returns.
    ///
    /// # Errors
    /// [`Error::Queue`] if the broker has not, or might not have, received it; [`Error::TooLarge`].
    pub async fn start(&self, start: &StartRequest) -> Result<(), Error> {
        let message = start.message()?;
        Ok(self.services.queue().await?.publish(Route::Jobs, message).await?)
    }

    /// The start of a new run from a committed step of an ended run. By default it continues after
    /// the last committed step.
    ///
    /// # Errors
    /// [`Error::UnknownRun`], [`Error::NoSuchStep`], or [`Error::NoRerun`] with the reason.
    pub async fn rerun(
        &self,
        of: &RunId,
        from: Option<StepName>,
        run: RunId,
    ) -> Result<StartRequest, Error> {
        let (start, last) = self.rerun_from(of, from, run).await?;
        let cannot = |why: String| Err(Error::NoRerun { run: of.clone(), why });
        if let (Some(last), StartOf::Inline(pipeline)) = (last, &start.what) {
            let nodes = self.nodes().await?.readable;
            let here = nodes.iter().any(|(_, node)| {
                let is_well =
                    node.state == NodeState::Ready && !node.engine_away && node.paused.is_none();
                is_well && Some(&node.engine) == last.engine.as_ref()
            });
            if pipeline.retention.is_none() {
                return cannot(format!(
                    "what step {} left went with its end: give the pipeline a `retention`",
                    last.name
                ));
            }
            if !here && last.digest.is_none() {
                return cannot(format!(
                    "what step {} left is on an engine where no worker is ready",
                    last.name
                ));
            }
        }
        Ok(start)
    }

    /// Like [`Self::rerun`], for a run whose images are on this host. No worker needs to be ready.
    ///
    /// # Errors
    /// Same as [`Self::rerun`].
    pub async fn rerun_here(
        &self,
        of: &RunId,
        from: Option<StepName>,
        run: RunId,
    ) -> Result<StartRequest, Error> {
        Ok(self.rerun_from(of, from, run).await?.0)
    }

    /// The start of a rerun, and the last step whose image it uses.
    async fn rerun_from(
        &self,
        of: &RunId,
        from: Option<StepName>,
        run: RunId,
    ) -> Result<(StartRequest, Option<StepRecord>), Error> {
        let known = self.run(of).await?;
        if let Some(step) = &from {
            known.check_step(step)?;
        }
        let record = known.record;
        let cannot = |why: String| Err(Error::NoRerun { run: of.clone(), why });
        if !record.status.is_ended() {
            return cannot(format!("it is {}; stop it first", record.status));
        }
        let Some(pipeline) = record.pipeline.clone() else {
            return cannot("its pipeline was not known".into());
        };
        let kept = match record.steps_to_inherit(from.as_ref()) {
            Ok(kept) => kept,
            Err(why) => return cannot(why.to_string()),
        };
        let last = kept.into_iter().rev().find(|step| step.image.is_some());
        let start = StartRequest {
            what: StartOf::Inline(Box::new(pipeline)),
            run,
            vars: record.vars,
            params: record.params,
            logger: record.logger,
            partition: None,
            parent: Some(Parent { run_id: of.clone(), from }),
        };
        Ok((start, last))
    }

    /// Sends a stop. The broker has confirmed it when this returns. `false` if the run is unknown;
    /// the workers then remember the stop for a later start.
    ///
    /// # Errors
    /// [`Error::Ended`], in which case nothing is sent, and [`Error::Queue`].
    pub async fn stop(&self, run: &RunId, reason: Option<&str>) -> Result<bool, Error> {
        // The store is needed only for the return value, so its errors do not prevent the stop.
        let known = match self.run(run).await {
            Ok(known) if known.record.status.is_ended() => {
                return Err(Error::Ended { run: run.clone(), status: known.record.status });
            }
            Err(Error::UnknownRun(_)) => false,
            Ok(_) | Err(_) => true,
        };
        let mut body = Map::new();
        body.insert("run-id".into(), json!(run));
        if let Some(reason) = reason {
            body.insert("reason".into(), json!(reason));
        }
        let message = message(command::STOP, new_id(), body);
        self.services.queue().await?.publish(Route::Control, message).await?;
        Ok(known)
    }

    /// Sends a pause or a resume of a pipeline. The broker has confirmed it when this returns.
    ///
    /// # Errors
    /// [`Error::UnknownPipeline`], in which case nothing is sent, and [`Error::Queue`].
    pub async fn pause(&self, pipeline: &PipelineId, paused: bool) -> Result<(), Error> {
        let stored = match self.services.store().await {
            Ok(store) => store.get(&names::pipeline_key(pipeline)).await.ok(),
            // The store is needed only for this check.
            Err(_) => None,
        };
        if let Some(None) = stored {
            return Err(Error::UnknownPipeline(pipeline.clone()));
        }
        let mut body = Map::new();
        body.insert("group".into(), json!(pipeline.group()));
        body.insert("name".into(), json!(pipeline.name()));
        body.insert("at".into(), json!(self.now()));
        let kind = if paused { command::PAUSE } else { command::UNPAUSE };
        let message = message(kind, new_id(), body);
        Ok(self.services.queue().await?.publish(Route::Control, message).await?)
    }
}

#[cfg(test)]
mod tests {
    use protocol::command::{Command, MAX_START_BYTES, RunIdSource, Target, decode};

    use super::*;

    fn start(what: StartOf) -> StartRequest {
        let vars = Vars::from_iter([("A".to_owned(), "1".to_owned())]);
        let run = "r-1".parse().unwrap();
        let params = json!({ "list": [1, "a"] }).as_object().cloned().unwrap();
        let logger = Some("logs".parse().unwrap());
        let partition = Some("main".to_owned());
        StartRequest { what, run, vars, params, logger, partition, parent: None }
    }

    fn pipeline(cmd: &str) -> Pipeline {
        let text = json!({ "group": "dev", "name": "x", "image": "i", "steps": [{ "cmd": cmd }] });
        let mut parsed = protocol::dialect::parse(None, text.to_string().as_bytes());
        parsed.pipelines.remove(0)
    }

    fn decoded(start: &StartRequest) -> protocol::command::Start {
        let message = start.message().unwrap();
        let read = decode(message.kind.as_deref(), message.id.as_deref(), &message.body);
        let Command::Start(start) = read.unwrap() else { panic!("this is not a start") };
        *start
    }

    #[test]
    fn a_start_is_decoded_by_workers() {
        let stored = decoded(&start(StartOf::Stored(PipelineId::new("dev", "x").unwrap())));
        assert_eq!(stored.target, Target::Stored(PipelineId::new("dev", "x").unwrap()));
        assert_eq!(stored.run_id, RunIdSource::Given("r-1".parse().unwrap()));
        assert_eq!(stored.vars.get("A").map(String::as_str), Some("1"));
        assert_eq!(stored.params["list"], json!([1, "a"]));
        assert_eq!(stored.logger.unwrap().as_str(), "logs");
        assert_eq!(stored.partition.as_deref(), Some("main"));
        let inline = decoded(&start(StartOf::Inline(Box::new(pipeline("echo hi")))));
        assert_eq!(inline.target, Target::Inline(Box::new(pipeline("echo hi"))));
    }

    #[test]
    fn a_start_that_no_worker_accepts_is_refused_by_the_client() {
        let mut huge = start(StartOf::Inline(Box::new(pipeline("x"))));
        huge.vars.insert("B".into(), "x".repeat(MAX_START_BYTES));
        assert!(matches!(huge.message(), Err(Error::TooLarge(_))));
    }
}
