//! The state of a run's steps in this drive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::id::{StepName, StepPosition};
use protocol::run::{StepRecord, StepStatus};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::output::Output;
use crate::ports::{StepSecret, StopSignal, Workspace};
use crate::rules::run::Timer;

/// The state of a run's steps in this drive.
#[derive(Default)]
pub(super) struct Progress {
    /// The workspace from which the first steps start.
    pub(super) base: Option<Workspace>,
    /// The committed workspaces of steps, by position.
    pub(super) kept: BTreeMap<StepPosition, Workspace>,
    /// The steps that were started, by position.
    pub(super) steps: BTreeMap<StepPosition, RunningStep>,
    pub(super) timers: Vec<(Timer, Instant)>,
    /// Notices about steps that are not yet published.
    pub(super) notes: Vec<(Arc<Output>, String)>,
    /// The steps that are recorded as ended.
    pub(super) closed: BTreeSet<StepName>,
}

/// A step in progress.
#[derive(Default)]
pub(super) struct RunningStep {
    /// The workspace it starts from, if a resource was mounted into it.
    pub(super) on: Option<Workspace>,
    /// The workspace it left.
    pub(super) left: Option<Workspace>,
    pub(super) gate: Option<oneshot::Sender<bool>>,
    pub(super) output: Option<Arc<Output>>,
    pub(super) stop: StopSignal,
    /// The secrets that it receives.
    pub(super) secrets: Vec<StepSecret>,
}

impl Progress {
    /// Creates the progress of a run whose earlier owner completed some steps.
    pub(super) fn after(steps: &[StepRecord]) -> Self {
        Self { closed: ended(steps), ..Self::default() }
    }
}

/// Returns the steps that are recorded as ended.
pub(super) fn ended(steps: &[StepRecord]) -> BTreeSet<StepName> {
    let ended = steps.iter().filter(|step| step.status != StepStatus::Started);
    ended.map(|step| step.name.clone()).collect()
}
