//! State of the steps of a run, and which of them may start.

use std::collections::{BTreeMap, HashMap};

use protocol::id::{StepName, StepPosition};
use protocol::pipeline::{Graph, Pipeline, Step, When};
use protocol::run::{RunRecord, StepRecord, StepStatus};
use protocol::time::Millis;

use super::facts::Exited;

/// The state of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepState {
    /// It has not started, or will start again.
    Waiting,
    /// It is in progress.
    Going,
    /// It has passed, or failed with a failure that the step allows.
    Passed,
    /// It has failed or was stopped.
    Failed,
    /// It will never start.
    Never,
}

impl StepState {
    fn is_over(self) -> bool {
        match self {
            Self::Passed | Self::Failed | Self::Never => true,
            Self::Waiting | Self::Going => false,
        }
    }
}

/// The activity of a step in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Fetching,
    Running,
    /// The attempt failed, and the step waits for its retry timer.
    Waiting,
    Uploading,
    Committing,
}

/// Why a single step was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// The step exceeded its timeout.
    Timeout,
    /// Another step has failed.
    Beside,
    /// It must not run twice, and was still running when the hand-over of its run was due.
    Overdue,
}

/// A step in progress.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepProgress {
    pub(super) stage: Stage,
    pub(super) began: Millis,
    pub(super) exited: Exited,
    pub(super) broken: Option<Broken>,
}

impl StepProgress {
    pub(super) fn new(stage: Stage, began: Millis) -> Self {
        Self { stage, began, exited: Exited::default(), broken: None }
    }
}

/// The steps of one run.
#[derive(Debug, Default)]
pub(super) struct Board {
    graph: Graph,
    standings: Vec<StepState>,
    whens: Vec<When>,
    on_image: Vec<bool>,
    /// The resource that each step mounts into its image, where its successors find it.
    resources: Vec<Option<String>>,
    /// The steps in progress, by position.
    pub(super) work: BTreeMap<StepPosition, StepProgress>,
}

impl Board {
    pub(super) fn of(pipeline: &Pipeline) -> Self {
        Self {
            graph: pipeline.graph(),
            standings: vec![StepState::Waiting; pipeline.steps.len()],
            whens: pipeline.steps.iter().map(|step| step.when).collect(),
            on_image: pipeline.steps.iter().map(Step::is_on_image).collect(),
            resources: pipeline.steps.iter().map(|step| step.needs_resource.clone()).collect(),
            work: BTreeMap::new(),
        }
    }

    /// Sets each step's state from the record of its run. No step is in progress then.
    pub(super) fn recorded(&mut self, record: &RunRecord) {
        let Some(pipeline) = &record.pipeline else { return };
        let records: HashMap<&StepName, &StepRecord> =
            record.steps.iter().map(|record| (&record.name, record)).collect();
        for (standing, step) in self.standings.iter_mut().zip(&pipeline.steps) {
            let recorded = records.get(&step.name);
            *standing = recorded.map_or(StepState::Waiting, |record| recorded_state(record, step));
        }
    }

    /// Sets a step's state, and removes its work unless it is in progress. The `on-error` step has
    /// none.
    pub(super) fn set(&mut self, position: StepPosition, standing: StepState) {
        if let Some(stands) = self.standings.get_mut(position.index()) {
            *stands = standing;
        }
        if standing != StepState::Going {
            self.work.remove(&position);
        }
    }

    pub(super) fn state(&self, position: StepPosition) -> StepState {
        self.standings.get(position.index()).copied().unwrap_or(StepState::Never)
    }

    /// Returns the number of passed steps.
    pub(super) fn passed(&self) -> usize {
        self.standings.iter().filter(|standing| **standing == StepState::Passed).count()
    }

    /// Returns the first step that may start. Marks steps that can never start.
    pub(super) fn next(&mut self) -> Option<StepPosition> {
        self.mark_never();
        self.graph.positions().find(|position| {
            let mut needs = self.graph.needs(*position).iter().map(|at| self.state(*at));
            self.state(*position) == StepState::Waiting
                && match self.when(*position) {
                    When::Ended => needs.all(StepState::is_over),
                    When::Passed => needs.all(|needed| needed == StepState::Passed),
                }
        })
    }

    /// Marks every step that can never start. One pass in topological order finds all of them.
    fn mark_never(&mut self) {
        for position in self.graph.in_order() {
            let mut needs = self.graph.needs(*position).iter().map(|at| self.state(*at));
            let is_never = self.state(*position) == StepState::Waiting
                && self.when(*position) == When::Passed
                && needs.any(|needed| needed.is_over() && needed != StepState::Passed);
            if is_never && let Some(standing) = self.standings.get_mut(position.index()) {
                *standing = StepState::Never;
            }
        }
    }

    fn when(&self, position: StepPosition) -> When {
        self.whens.get(position.index()).copied().unwrap_or_default()
    }

    /// Returns the step whose image each step starts from: its nearest predecessor with an image.
    /// `None` means the base image.
    pub(super) fn origins(
        &self,
        has_image: impl Fn(StepPosition) -> bool,
    ) -> Vec<Option<StepPosition>> {
        let mut origins = vec![None; self.standings.len()];
        for position in self.graph.in_order() {
            let before = self.graph.begins_on(*position);
            let origin =
                before.and_then(|at| if has_image(at) { before } else { origins[at.index()] });
            origins[position.index()] = origin;
        }
        origins
    }

    /// Returns true if a step's resource is already in the image that it starts from.
    pub(super) fn is_mounted(&self, position: StepPosition) -> bool {
        let wanted = self.resources.get(position.index()).and_then(Option::as_ref);
        let mut before = self.graph.begins_on(position);
        while let Some(at) = before {
            if self.resources.get(at.index()).and_then(Option::as_ref) == wanted {
                return true;
            }
            before = self.graph.begins_on(at);
        }
        false
    }

    /// Returns true if a step that is not over starts from the image of the step at `position`.
    pub(super) fn is_gone_on_from(&self, position: StepPosition) -> bool {
        self.graph.positions().any(|other| {
            let begins = self.graph.begins_on(other) == Some(position);
            let is_on_image = self.on_image.get(other.index()).copied().unwrap_or_default();
            begins && is_on_image && !self.state(other).is_over()
        })
    }
}

/// Returns the state of a recorded step that is not in progress.
pub(super) fn recorded_state(record: &StepRecord, step: &Step) -> StepState {
    match record.status {
        StepStatus::Passed => StepState::Passed,
        StepStatus::Failed | StepStatus::Stopped => match record.cause {
            // The step was waiting for a retry.
            None => StepState::Waiting,
            Some(cause) if step.allows(cause) => StepState::Passed,
            Some(_) => StepState::Failed,
        },
        StepStatus::Pending | StepStatus::Started => StepState::Waiting,
    }
}
