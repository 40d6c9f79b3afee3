//! How a run is let go that cannot be driven any further here.

use protocol::run::Cause;
use tracing::{error, warn};

use super::Lost;
use super::drive::Drive;
use super::launch::release;
use super::ledger::WriteError;

/// Why a drive ends before its run does.
pub(super) enum Gone {
    Write(WriteError),
    /// The engine is away, and with it whatever runs there.
    Engine(String),
}

impl From<WriteError> for Gone {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}

impl Drive {
    /// Lets go of the run, so that somebody can go on with it; what this worker itself has to do for
    /// that.
    pub(super) async fn let_go_of(&self, cause: Gone) -> Option<Lost> {
        let run = self.scope.run.clone();
        match cause {
            Gone::Engine(why) => {
                warn!(run.id = %run, cause = why, "the run is let go until the engine is well");
                self.shared.room.engine_went(Some(self.scope.clone()));
                // Without a word of a hand-over: it counts as a loss, or a run that is the end of each
                // engine would be tried for ever.
                release(&self.shared, self.ledger.claim(), &self.held.lost).await;
                None
            }
            Gone::Write(WriteError::Lost) => {
                warn!(run.id = %run, "the run is lost to this worker");
                Some(Lost::with_lease(run))
            }
            Gone::Write(WriteError::InDoubt) => {
                warn!(run.id = %run, "the run may be lost to this worker; it is let go");
                // Under this epoch nothing more may be said, whoever goes on.
                release(&self.shared, self.ledger.claim(), &self.held.lost).await;
                Some(Lost::with_lease(run))
            }
            Gone::Write(cause @ (WriteError::StopFound | WriteError::Refused(_))) => {
                error!(run.id = %run, %cause, "the run cannot be recorded; it is let go");
                release(&self.shared, self.ledger.claim(), &self.held.lost).await;
                let why = format!("it could not be recorded: {cause}");
                Some(Lost { run, cause: Cause::Engine, why })
            }
        }
    }
}
