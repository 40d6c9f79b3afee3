//! The guard ends a worker's steps if the worker itself cannot.

use std::time::Duration;

/// Kills what a worker runs once its lease has expired, even if the worker is frozen or dead.
pub trait Guard: Send + Sync {
    /// Extends the guaranteed validity of the lease to `until`, on the clock of `Host::since_boot`.
    /// Does not block. After it returns, nothing that was running at the call is killed before that
    /// time, unless an earlier deadline had already passed.
    fn feed(&self, until: Duration);

    /// Stops guarding. Nothing is running, and nothing will be started.
    fn dismiss(&self);
}

/// A guard that does nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unguarded;

impl Guard for Unguarded {
    fn feed(&self, _until: Duration) {}

    fn dismiss(&self) {}
}
