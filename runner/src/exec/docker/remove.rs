//! Removal, always by label and never from memory.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::RemoveContainerOptionsBuilder;
use futures::StreamExt as _;
use protocol::id::{Epoch, RunId};
use protocol::names;
use tokio::time::Instant;

use super::{Docker, fault};
use crate::ports::{ExecError, LeftoverRun, Pauses};

/// How many containers of one run are removed concurrently.
const AT_A_TIME: usize = 4;
/// How long to retry the removal of a container.
const WITHIN: Duration = Duration::from_secs(60);
/// The pauses between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Docker {
    /// Removes a container, running or not, and its anonymous volumes. Returns once it is gone.
    pub(super) async fn remove(&self, id: &str) -> Result<(), Error> {
        let until = Instant::now() + WITHIN;
        let mut pauses = Pauses::doubling(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            let removed = self.client().await?.docker.remove_container(id, Some(options)).await;
            match removed {
                Ok(()) => return Ok(()),
                Err(error) if fault::is_gone(&error) => return Ok(()),
                // Another removal is in progress, or the engine is still busy with the container.
                Err(error) if fault::status(&error).is_some() && Instant::now() < until => {
                    tracing::debug!(container.id = id, %error, "removing once more");
                }
                Err(error) => return Err(error),
            }
            pauses.wait().await;
        }
    }

    /// Removes a container in the background. If that fails, it is removed at the end of its run.
    pub(super) fn soon(&self, id: String) {
        let docker = self.clone();
        drop(self.tasks.spawn(async move {
            if let Err(error) = docker.remove(&id).await {
                tracing::debug!(container.id = id, %error,
                    "cannot remove a container now; it is removed at the end of its run");
            }
        }));
    }

    /// Removes the containers that owners up to this epoch created for a run. This ends an earlier
    /// owner's work, and an owner that wakes up late cannot harm its successor's containers.
    pub(super) async fn end_containers(&self, run: &RunId, up_to: Epoch) -> Result<(), ExecError> {
        let failed = |error: Error| self.failed("removing what is left of a run", &error);
        let listed = self.list(&format!("{}={run}", names::LABEL_RUN)).await.map_err(failed)?;
        let theirs = listed.into_iter().filter(|container| !container.is_of_later(up_to));
        let mut removals = futures::stream::iter(theirs)
            .map(|container| async move { self.remove(&container.id).await })
            .buffer_unordered(AT_A_TIME);
        let mut resisted = Ok(());
        while let Some(removed) = removals.next().await {
            if let Err(error) = removed {
                resisted = Err(failed(error));
            }
        }
        resisted
    }

    /// The runs that still have containers.
    pub(super) async fn runs_left(&self) -> Result<Vec<LeftoverRun>, ExecError> {
        let listed = self.list(names::LABEL_RUN).await;
        let listed = listed.map_err(|error| self.failed("listing containers", &error))?;
        let mut left: BTreeMap<RunId, Option<String>> = BTreeMap::new();
        for container in &listed {
            let Some(run) = container.run() else { continue };
            let cluster = left.entry(run).or_default();
            *cluster = cluster.take().or_else(|| container.label(names::LABEL_CLUSTER).cloned());
        }
        Ok(left.into_iter().map(|(run, cluster)| LeftoverRun { run, cluster }).collect())
    }
}
