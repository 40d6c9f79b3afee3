//! The task of a worker that claims a run.

use std::sync::Arc;

use super::lease::HeldLease;
use super::shared::Shared;
use super::watchdog::Heartbeat;

/// A task of this worker that claims runs.
#[derive(Clone, Copy)]
pub(super) struct Claimant<'a> {
    pub(super) shared: &'a Arc<Shared>,
    /// The lease to which its claims are attached.
    pub(super) held: &'a HeldLease,
    /// The heartbeat of the task.
    pub(super) heartbeat: &'a Heartbeat,
}
