//! Releases a run that this worker cannot drive any further.

use std::time::Duration;

use protocol::run::Cause;
use tracing::{debug, error, warn};

use super::drive::Drive;
use super::launch::release;
use super::ledger::WriteError;
use super::watchdog::waits;
use super::{Lost, Shared};
use crate::ports::{RunScope, STARTS_WITHIN};

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

/// The delay between attempts to verify that a run's steps have ended.
const AGAIN: Duration = Duration::from_secs(1);

/// Returns once the executor has proven that no step of the run is running here and none can start, or
/// after [`STARTS_WITHIN`], when no engine could still start one. Until then the run must keep its owner:
/// a worker on another engine cannot end what runs here.
pub(super) async fn prove_ended(shared: &Shared, scope: &RunScope) {
    let _waits = waits();
    let run = &scope.run;
    let began = shared.ports.host.since_boot();
    loop {
        let Err(cause) = shared.ports.executor.end(scope).await else { return };
        let elapsed = shared.ports.host.since_boot().saturating_sub(began);
        if elapsed >= STARTS_WITHIN {
            let seconds = elapsed.as_secs();
            error!(
                run.id = %run, %cause,
                "run {run} is released after {seconds} s without proof that its steps have ended: \
                 look for its containers on engine {}",
                shared.engine.id
            );
            return;
        }
        debug!(run.id = %run, %cause, "the steps of run {run} might still be running");
        tokio::time::sleep(AGAIN).await;
    }
}

impl Drive {
    async fn prove_ended(&self) {
        prove_ended(&self.shared, &self.scope).await;
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
                release(&self.shared, self.ledger.claim(), &self.held.lost).await;
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
                release(&self.shared, self.ledger.claim(), &self.held.lost).await;
                Some(Lost::with_lease(run))
            }
            DriveError::Write(cause @ (WriteError::StopFound | WriteError::Refused(_))) => {
                error!(run.id = %run, %cause, "the run cannot be recorded; it is let go");
                release(&self.shared, self.ledger.claim(), &self.held.lost).await;
                let why = format!("it could not be recorded: {cause}");
                Some(Lost::new(run, Cause::Engine, why))
            }
        }
    }
}
