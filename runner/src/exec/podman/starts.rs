//! Facts about the starts on an engine.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use protocol::id::RunId;

use super::call::Fault;

/// Whether the engine has an init program.
#[derive(Debug, Default)]
pub(super) struct Init {
    pub(super) missing: AtomicBool,
}

/// The runs with a start that was sent and not answered.
#[derive(Debug, Default)]
pub(super) struct Starts(Mutex<BTreeSet<RunId>>);

impl Starts {
    fn runs(&self) -> parking_lot::MutexGuard<'_, BTreeSet<RunId>> {
        // A panic elsewhere cannot leave the set in a broken state.
        self.0.lock()
    }

    pub(super) fn is_unanswered(&self, run: &RunId) -> bool {
        self.runs().contains(run)
    }

    /// Forgets a run after the engine answered that nothing of it is left.
    pub(super) fn forget(&self, run: &RunId) {
        self.runs().remove(run);
    }

    /// Records the outcome of a start.
    pub(super) fn note(&self, run: &RunId, started: &Result<(), Fault>) {
        match started {
            Err(Fault::Broken(_) | Fault::TimedOut(_) | Fault::Malformed(_)) => {
                self.runs().insert(run.clone());
            }
            // It was not sent, or the engine answered it.
            Ok(()) | Err(Fault::Unreachable(_) | Fault::Refused { .. }) => {}
        }
    }
}
