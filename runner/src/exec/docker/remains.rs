//! Containers that a dead or frozen worker left running.

use protocol::id::NodeId;
use protocol::names;

use super::look::{ContainerState, Listed};
use super::{Docker, Options};
use crate::exec::podman::ListedContainers;
use crate::ports::ExecError;

/// The containers of one worker on a Docker engine.
#[derive(Debug)]
pub struct WorkerContainers {
    docker: Docker,
    worker: NodeId,
}

fn seen(listed: Vec<Listed>) -> ListedContainers {
    let mut seen = ListedContainers::default();
    for container in listed.into_iter().filter(|container| container.run().is_some()) {
        match container.life() {
            ContainerState::Running => seen.running.push(container.id),
            ContainerState::NotStarted => seen.made += 1,
            ContainerState::Ended | ContainerState::Going => {}
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
        Ok(Self { docker: Docker::connect(Options::new(url))?, worker })
    }

    /// Lists the worker's containers.
    ///
    /// # Errors
    /// [`ExecError`] if the engine does not answer.
    pub async fn look(&self) -> Result<ListedContainers, ExecError> {
        let listed = self.docker.list(&format!("{}={}", names::LABEL_WORKER, self.worker)).await;
        listed.map(seen).map_err(|error| self.docker.failed("listing containers", &error))
    }

    /// Kills containers without grace. Containers that have ended or are gone are ignored.
    ///
    /// # Errors
    /// The last [`ExecError`], if some could not be killed.
    pub async fn kill(&self, ids: &[String]) -> Result<(), ExecError> {
        let kills = ids.iter().map(|id| self.docker.signal(id, "SIGKILL"));
        let killed = futures::future::join_all(kills).await;
        killed.into_iter().collect()
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
            { "Id": "runs", "Names": ["/bob-r-1-0"], "Labels": labels, "State": "running" },
            { "Id": "is made", "Names": ["/bob-r-1-1"], "Labels": labels, "State": "created" },
            { "Id": "has ended", "Names": ["/bob-r-1-2"], "Labels": labels, "State": "exited" },
            { "Id": "somebody's", "Names": ["/eager_lamport"], "Labels": labels, "State": "running" },
        ]);
        let seen = seen(serde_json::from_value(list).unwrap());
        assert_eq!(seen, ListedContainers { running: vec!["runs".into()], made: 1 });
    }
}
