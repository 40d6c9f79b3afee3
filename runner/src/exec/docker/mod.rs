//! Runs steps that have an image of their own in containers of a Docker engine, over its Engine
//! API.
//!
//! This executor keeps no images: a step starts from its image and leaves only files. Steps that
//! build on each other's images run on podman.
//!
//! | file | duty |
//! |---|---|
//! | `engine` `fault` | the engine: its connection, what it can do, and its errors |
//! | `wire` `look` | the engine's socket, for calls that bollard does not cover |
//! | `create` `work_dir` | the settings of a container, and its working directory |
//! | `step` `output` `stop` | one step, from its creation to its proven end |
//! | `image` | inspecting and pulling images |
//! | `secrets` | secrets passed to a step in memory |
//! | `files` | artifacts copied out |
//! | `remains` | containers that a lost worker left running |
//! | `remove` | removal, always by label and never from memory |

mod create;
mod engine;
mod fault;
mod files;
mod image;
mod look;
mod output;
mod remains;
mod remove;
mod secrets;
mod step;
mod stop;
mod wire;
mod work_dir;

use std::sync::Arc;

use async_trait::async_trait;
use protocol::id::{Epoch, RunId};
use protocol::pipeline::Step;

pub use engine::{Docker, Options};
pub use remains::WorkerContainers;

use crate::exec::job::volumes_of;
use crate::ports::{
    ByteStream, EngineInfo, ExecError, Gate, LeftoverRun, LogSink, RunScope, StepOutcome, StepSpec,
    Steps, StopSignal, Workspace,
};

/// The engine's name in nodes and events.
pub const NAME: &str = "docker";
#[async_trait]
impl Steps for Docker {
    async fn info(&self) -> Result<EngineInfo, ExecError> {
        let client = self.client().await;
        let client = client.map_err(|error| self.failed("asking what it is", &error))?;
        let limits_refused = client.limits().err();
        Ok(EngineInfo {
            id: client.id.clone(),
            executor: NAME,
            checkpoints: false,
            limits_refused,
            warning: None,
        })
    }

    fn rejects(&self, step: &Step, network: Option<&str>) -> Option<String> {
        let network = network.map(|text| self.access.network(step.name.as_str(), text));
        if let Some(why) = network.and_then(Result::err) {
            return Some(why);
        }
        match volumes_of(step) {
            Ok(volumes) => {
                volumes.iter().find_map(|name| self.volume_rejected(step.name.as_str(), name))
            }
            Err(why) => Some(why),
        }
    }

    async fn run_step(
        &self,
        run: &RunScope,
        _on: &Workspace,
        step: &StepSpec,
        gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError> {
        Box::pin(self.step(run, step, gate, &*out, stop)).await
    }

    async fn discard(&self, _run: &RunScope, left: Workspace) {
        if let Workspace::Lone { id } = left {
            self.soon(id);
        }
    }

    async fn export(
        &self,
        _run: &RunScope,
        left: &Workspace,
        path: &str,
    ) -> Result<ByteStream, ExecError> {
        self.pack(left, path).await
    }

    async fn clear(&self, run: &RunId) -> Result<(), ExecError> {
        self.end_containers(run, Epoch(i64::MAX)).await
    }

    async fn destroy(&self, run: &RunId) -> Result<(), ExecError> {
        self.end_containers(run, Epoch(i64::MAX)).await
    }

    async fn leftovers(&self) -> Result<Vec<LeftoverRun>, ExecError> {
        self.runs_left().await
    }

    async fn answers(&self) -> Result<(), ExecError> {
        let pinged = self.wire.open("/_ping").await;
        pinged.map(drop).map_err(|error| self.failed("ping", &error))
    }

    async fn end(&self, run: &RunScope) -> Result<(), ExecError> {
        self.end_containers(&run.run, run.epoch).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_named() {
        let docker = Docker::connect(Options::new("unix:///nowhere/docker.sock")).unwrap();
        let error = docker.info().await.unwrap_err();
        assert!(matches!(error, ExecError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("unix:///nowhere/docker.sock"), "{error}");
    }
}
