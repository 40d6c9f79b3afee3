//! The worker's containers on its engines.

use protocol::id::NodeId;

use super::message::GuardMessage;
use crate::exec::podman::ListedContainers;
use crate::exec::{docker, podman};
use crate::ports::ExecError;

/// The worker's containers on an engine.
#[derive(Debug)]
pub(super) enum WorkerContainers {
    Podman(podman::WorkerContainers),
    Docker(docker::WorkerContainers),
}

impl WorkerContainers {
    /// The containers on the engine that a message names. `None` for other messages.
    pub(super) fn of(worker: &NodeId, word: &GuardMessage) -> Result<Option<Self>, ExecError> {
        Ok(match word {
            GuardMessage::Engine(url) => {
                Some(Self::Podman(podman::WorkerContainers::of(worker.clone(), url)?))
            }
            GuardMessage::Docker(url) => {
                Some(Self::Docker(docker::WorkerContainers::of(worker.clone(), url)?))
            }
            GuardMessage::StandsUntil(_) | GuardMessage::Goodbye => None,
        })
    }

    pub(super) async fn look(&self) -> Result<ListedContainers, ExecError> {
        match self {
            Self::Podman(remains) => remains.look().await,
            Self::Docker(remains) => remains.look().await,
        }
    }

    /// Kills the worker's containers by process id, if the engine is on this host. Returns their
    /// number.
    pub(super) async fn end_processes(&self) -> Result<usize, ExecError> {
        match self {
            Self::Podman(remains) => remains.end_processes().await,
            // A Docker engine's processes belong to root.
            Self::Docker(_) => Ok(0),
        }
    }

    pub(super) async fn kill(&self, ids: &[String]) -> Result<(), ExecError> {
        match self {
            Self::Podman(remains) => remains.kill(ids).await,
            Self::Docker(remains) => remains.kill(ids).await,
        }
    }
}
