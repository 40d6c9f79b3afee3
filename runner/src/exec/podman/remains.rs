//! Containers that a worker left running, found by label and name because the caller does not know
//! the worker's runs. They are only killed: the next owner of the run removes them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use protocol::id::{NodeId, RunId};
use protocol::names;
use serde::Deserialize;

use super::api::ContainerState;
use super::call::EngineCall;
use super::create::run_of;
use super::http::Http;
use super::{Podman, path, processes};
use crate::ports::ExecError;

/// How many containers are killed concurrently.
const AT_A_TIME: usize = 4;
/// Does not wait for an unreachable engine, because the caller retries.
const PATIENCE: Duration = Duration::ZERO;
const WITHIN: Duration = Duration::from_secs(20);

/// The containers of one worker on an engine.
#[derive(Debug)]
pub struct WorkerContainers {
    http: Arc<Http>,
    worker: NodeId,
}

/// The containers seen in one listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListedContainers {
    /// The ids of running containers.
    pub running: Vec<String>,
    /// The number of containers not started yet. A start might be in progress.
    pub made: usize,
}

impl ListedContainers {
    /// Adds what was seen on another engine.
    #[must_use]
    pub fn and(mut self, more: Self) -> Self {
        self.running.extend(more.running);
        self.made += more.made;
        self
    }
}

/// A container in a listing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
    #[serde(default)]
    state: String,
}

impl Listed {
    /// Whether a worker created it for a step. A container that someone else starts on a committed
    /// image has its labels too, but not the name.
    fn is_of_a_step(&self) -> bool {
        let run = self.labels.as_ref().and_then(|labels| labels.get(names::LABEL_RUN));
        run.is_some_and(|run| {
            let begins = format!("bob-{run}-");
            self.names.iter().flatten().any(|name| name.starts_with(&begins))
        })
    }
}

fn seen(listed: Vec<Listed>) -> ListedContainers {
    let mut seen = ListedContainers::default();
    for container in listed.into_iter().filter(Listed::is_of_a_step) {
        match ContainerState::of(&container.state) {
            ContainerState::Running => seen.running.push(container.id),
            ContainerState::NotStarted => seen.made += 1,
            ContainerState::Ended => {}
        }
    }
    seen
}

impl WorkerContainers {
    /// Creates the view of a worker's containers on the engine at an address. Does not connect yet.
    ///
    /// # Errors
    /// [`ExecError::Unsupported`] if the address is invalid.
    pub fn of(worker: NodeId, url: &str) -> Result<Self, ExecError> {
        Ok(Self { http: Http::new(url)?, worker })
    }

    /// Lists the worker's containers.
    ///
    /// # Errors
    /// [`ExecError`] if the engine does not answer.
    pub async fn look(&self) -> Result<ListedContainers, ExecError> {
        let label = format!("{}={}", names::LABEL_WORKER, self.worker);
        let path = format!("/containers/json?all=true&{}", path::filter("label", &label));
        let ask = EngineCall { patience: PATIENCE, within: WITHIN, ..EngineCall::get(path) };
        let listed = async { self.http.call(ask).await?.good()?.json::<Option<Vec<Listed>>>() };
        let listed = listed.await.map_err(|fault| fault.at("listing containers", &self.http))?;
        Ok(seen(listed.unwrap_or_default()))
    }

    /// Kills the worker's containers by process id, for an engine on this host that does not
    /// answer. A start sent before can still be performed afterwards.
    ///
    /// # Errors
    /// [`ExecError::Engine`] if a process cannot be killed.
    pub async fn end_processes(&self) -> Result<usize, ExecError> {
        if !self.http.is_local() {
            return Ok(0);
        }
        let worker = &self.worker;
        let ours = watched()?.into_iter();
        let ours: Vec<_> =
            ours.filter(|it| run_of(&it.name).is_some() && it.is_of(worker)).collect();
        let count = ours.len();
        processes::end(ours).await.map_err(|cause| failed(&cause))?;
        Ok(count)
    }

    /// Kills containers without grace. Containers that have ended or are gone are ignored.
    ///
    /// # Errors
    /// The last [`ExecError`], if some could not be killed.
    pub async fn kill(&self, ids: &[String]) -> Result<(), ExecError> {
        let kill = async |id: &String| self.http.link().kill(id, "KILL", PATIENCE).await;
        let mut kills = futures::stream::iter(ids).map(kill).buffer_unordered(AT_A_TIME);
        let mut resisted = Ok(());
        while let Some(killed) = kills.next().await {
            if let Err(fault) = killed {
                resisted = Err(fault.at("killing a container", &self.http));
            }
        }
        resisted
    }
}

fn failed(cause: &std::io::Error) -> ExecError {
    ExecError::Engine {
        doing: "killing the process of a container".into(),
        cause: cause.to_string(),
    }
}

fn watched() -> Result<Vec<processes::Watched>, ExecError> {
    processes::watched().map_err(|cause| failed(&cause))
}

impl Podman {
    /// Kills a run's containers by process id, for an engine on this host that does not answer.
    pub(super) async fn end_processes(&self, run: &RunId) -> Result<(), ExecError> {
        let of_run = watched()?.into_iter().filter(|it| run_of(&it.name).as_ref() == Some(run));
        processes::end(of_run.collect()).await.map_err(|cause| failed(&cause))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_a_worker_started_for_a_step_is_seen() {
        let labels = json!({ "bob.run": "r-1", "bob.worker": "n" });
        let list = json!([
            { "Id": "runs", "Names": ["bob-r-1-0"], "Labels": labels, "State": "running" },
            { "Id": "is made", "Names": ["bob-r-1-1"], "Labels": labels, "State": "created" },
            { "Id": "has ended", "Names": ["bob-r-1-2"], "Labels": labels, "State": "exited" },
            { "Id": "somebody's", "Names": ["eager_lamport"], "Labels": labels, "State": "running" },
            { "Id": "another's", "Names": ["bob-r-2-0"], "Labels": null, "State": "running" },
            { "Id": "unnamed", "Names": null, "Labels": labels, "State": "running" },
        ]);
        let seen = seen(serde_json::from_value(list).unwrap());
        assert_eq!(seen, ListedContainers { running: vec!["runs".into()], made: 1 });
    }
}
