//! Releases a run that this worker cannot drive any further.

use futures::StreamExt as _;
use protocol::run::Cause;
use tracing::{error, warn};

use super::completion::{Completed, Interrupted, Product};
use super::ledger::WriteError;
use super::state::Drive;
use crate::ports::{StopLevel, Workspace};
use crate::worker::lost::Lost;
use crate::worker::release::{prove_ended, release};

/// Why a drive ends before its run.
pub(super) enum DriveError {
    Write(WriteError),
    /// The engine is unavailable, and the run's steps with it.
    Engine(String),
}

impl From<WriteError> for DriveError {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}

impl From<Interrupted> for DriveError {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::OwnershipLost => Self::Write(WriteError::InDoubt),
            Interrupted::EngineUnreachable(why) => Self::Engine(why),
        }
    }
}

impl Drive {
    async fn prove_ended(&self) {
        prove_ended(&self.shared, &self.heartbeat, &self.scope).await;
    }

    async fn release(&self) {
        release(&self.shared, &self.heartbeat, self.ledger.claim(), &self.held.lost).await;
    }

    /// Abandons a run that this worker no longer owns: kills its steps, publishes nothing, and
    /// removes nothing that the next owner needs.
    pub(super) async fn abandon(&mut self) {
        // The executor verifies that the container is gone, within its own timeouts.
        let _waits = self.heartbeat.waits();
        self.signals.stop.raise(StopLevel::Kill);
        self.pushes.stop(&self.heartbeat).await;
        self.progress.steps.values_mut().for_each(|step| step.gate = None);
        self.shared.ports.events.discard(&self.scope.run, self.scope.epoch);
        let mut left: Vec<Workspace> = Vec::new();
        while let Some(done) = self.doing.next().await {
            if let Ok(Completed { product: Product::Exited(_, ran), .. }) = done {
                left.push(ran.workspace);
            }
        }
        left.extend(self.progress.steps.values_mut().filter_map(|step| step.left.take()));
        for left in left {
            self.shared.ports.executor.discard(&self.scope, left).await;
        }
    }

    /// Releases the run so that a worker can resume it. Returns what is left to do here.
    pub(super) async fn give_up_run(&self, cause: DriveError) -> Option<Lost> {
        let run = self.scope.run.clone();
        match cause {
            DriveError::Engine(why) => {
                warn!(run.id = %run, cause = why, "the run is let go until the engine is well");
                self.shared.room.engine_went(Some(self.scope.clone()));
                self.prove_ended().await;
                // Not recorded as a hand-over: it counts as a loss, so that a run that breaks every
                // engine is not retried forever.
                self.release().await;
                None
            }
            DriveError::Write(WriteError::Lost) => {
                warn!(run.id = %run, "the run is lost to this worker");
                self.prove_ended().await;
                Some(Lost::with_lease(run))
            }
            DriveError::Write(WriteError::InDoubt) => {
                warn!(run.id = %run, "the run may be lost to this worker; it is let go");
                self.prove_ended().await;
                // Nothing more may be published under this epoch, even if the run is resumed here.
                self.release().await;
                Some(Lost::with_lease(run))
            }
            DriveError::Write(
                cause
                @ (WriteError::StopFound | WriteError::PlacesChanged | WriteError::Refused(_)),
            ) => {
                error!(run.id = %run, %cause, "the run cannot be recorded; it is let go");
                self.release().await;
                let why = format!("it could not be recorded: {cause}");
                Some(Lost::new(run, Cause::Engine, why))
            }
        }
    }
}
