//! Who ends what a worker runs where the worker itself cannot any more.

use std::time::Duration;

/// Kills what a worker runs once its lease stands no more, also where the worker is frozen or dead.
pub trait Guard: Send + Sync {
    /// Says until when the lease stands for sure, by the clock of `Host::since_boot`. It does not
    /// wait. Once it has returned, nothing is killed before that time of what ran when it was
    /// called, unless an earlier time was over already.
    fn feed(&self, until: Duration);

    /// Nothing runs any more, and nothing will: there is nothing to guard.
    fn dismiss(&self);
}

/// Nobody does.
#[derive(Debug, Clone, Copy)]
pub struct Unguarded;

impl Guard for Unguarded {
    fn feed(&self, _until: Duration) {}

    fn dismiss(&self) {}
}
