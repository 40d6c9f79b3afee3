//! The worker's containers on its engines.

use protocol::id::NodeId;

use super::word::Word;
use crate::exec::podman::Seen;
use crate::exec::{docker, podman};
use crate::ports::ExecError;

/// The worker's containers on an engine.
#[derive(Debug)]
pub(super) enum Remains {
    Podman(podman::Remains),
    Docker(docker::Remains),
}

impl Remains {
    /// The containers on the engine that a message names. `None` for other messages.
    pub(super) fn of(worker: &NodeId, word: &Word) -> Result<Option<Self>, ExecError> {
        Ok(match word {
            Word::Engine(url) => Some(Self::Podman(podman::Remains::of(worker.clone(), url)?)),
            Word::Docker(url) => Some(Self::Docker(docker::Remains::of(worker.clone(), url)?)),
            Word::StandsUntil(_) | Word::Goodbye => None,
        })
    }

    pub(super) async fn look(&self) -> Result<Seen, ExecError> {
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
