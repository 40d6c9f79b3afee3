//! The keys of a run.

use protocol::id::RunId;
use protocol::names;

/// A key of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum RunKey {
    /// The run's record.
    Record,
    /// The definition of the run and the values of its start. Never rewritten.
    Definition,
    /// Exists while the run has an owner. Its create revision is the epoch.
    Owner,
    /// Exists until the run is released for good.
    Open,
    /// Exists if a stop of the run is recorded.
    Stop,
    /// The mark that keeps the run ID from being accepted again.
    Seen,
}

impl RunKey {
    /// Returns the name of this key of a run in the store.
    pub(in crate::worker) fn of(self, run: &RunId) -> String {
        match self {
            Self::Record => names::run_key(run),
            Self::Definition => names::definition_key(run),
            Self::Owner => names::owner_key(run),
            Self::Open => names::open_key(run),
            Self::Stop => names::stop_key(run),
            Self::Seen => names::seen_key(run),
        }
    }
}
