//! State of the steps of a run, and which of them may start.

use std::collections::BTreeMap;

use protocol::pipeline::{Graph, Pipeline, Step, When};
use protocol::run::{RunRecord, StepRecord, StepStatus};
use protocol::time::Millis;

use super::facts::Exited;

/// The state of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
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

impl Standing {
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
pub(super) struct Work {
    pub(super) stage: Stage,
    pub(super) began: Millis,
    pub(super) exited: Exited,
    pub(super) broken: Option<Broken>,
}

impl Work {
    pub(super) fn new(stage: Stage, began: Millis) -> Self {
        Self { stage, began, exited: Exited::default(), broken: None }
    }
}

/// The steps of one run.
#[derive(Debug, Default)]
pub(super) struct Board {
    graph: Graph,
    standings: Vec<Standing>,
    whens: Vec<When>,
    on_image: Vec<bool>,
    /// The resource that each step mounts into its image, where its successors find it.
    resources: Vec<Option<String>>,
    /// The steps in progress, by position.
    pub(super) work: BTreeMap<usize, Work>,
}

impl Board {
    pub(super) fn of(pipeline: &Pipeline) -> Self {
        Self {
            graph: pipeline.graph(),
            standings: vec![Standing::Waiting; pipeline.steps.len()],
            whens: pipeline.steps.iter().map(|step| step.when).collect(),
            on_image: pipeline.steps.iter().map(Step::is_on_image).collect(),
            resources: pipeline.steps.iter().map(|step| step.needs_resource.clone()).collect(),
            work: BTreeMap::new(),
        }
    }

    /// Sets each step's state from the record of its run. No step is in progress then.
    pub(super) fn recorded(&mut self, record: &RunRecord) {
        let Some(pipeline) = &record.pipeline else { return };
        for (standing, step) in self.standings.iter_mut().zip(&pipeline.steps) {
            let of_it = record.steps.iter().find(|it| it.name == step.name);
            *standing = of_it.map_or(Standing::Waiting, |of_it| standing_of(of_it, step));
        }
    }

    /// Sets a step's state, and removes its work unless it is in progress. The `on-error` step has
    /// none.
    pub(super) fn set(&mut self, position: usize, standing: Standing) {
        if let Some(stands) = self.standings.get_mut(position) {
            *stands = standing;
        }
        if standing != Standing::Going {
            self.work.remove(&position);
        }
    }

    pub(super) fn standing(&self, position: usize) -> Standing {
        self.standings.get(position).copied().unwrap_or(Standing::Never)
    }

    /// Returns the number of passed steps.
    pub(super) fn passed(&self) -> usize {
        self.standings.iter().filter(|standing| **standing == Standing::Passed).count()
    }

    /// Returns the first step that may start. Marks steps that can never start.
    pub(super) fn next(&mut self) -> Option<usize> {
        loop {
            let mut changed = false;
            for position in 0..self.standings.len() {
                if self.standing(position) != Standing::Waiting {
                    continue;
                }
                let mut needs = self.graph.needs(position).iter().map(|at| self.standing(*at));
                let (ready, never) = match self.whens.get(position).copied().unwrap_or_default() {
                    When::Ended => (needs.all(Standing::is_over), false),
                    When::Passed => {
                        let stands: Vec<Standing> = needs.collect();
                        let failed = |it: &Standing| it.is_over() && *it != Standing::Passed;
                        (stands.iter().all(|it| *it == Standing::Passed), stands.iter().any(failed))
                    }
                };
                if ready {
                    return Some(position);
                }
                if never {
                    self.set(position, Standing::Never);
                    changed = true;
                }
            }
            if !changed {
                return None;
            }
        }
    }

    /// Returns the step whose image a step starts from: its nearest predecessor with an image.
    /// `None` means the base image.
    pub(super) fn begins_on(
        &self,
        position: usize,
        has_image: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut before = self.graph.begins_on(position);
        while let Some(at) = before.filter(|at| !has_image(*at)) {
            before = self.graph.begins_on(at);
        }
        before
    }

    /// Returns true if a step's resource is already in the image that it starts from.
    pub(super) fn is_mounted(&self, position: usize) -> bool {
        let wanted = self.resources.get(position).and_then(Option::as_ref);
        let mut before = self.graph.begins_on(position);
        while let Some(at) = before {
            if self.resources.get(at).and_then(Option::as_ref) == wanted {
                return true;
            }
            before = self.graph.begins_on(at);
        }
        false
    }

    /// Returns true if a step that is not over starts from the image of the step at `position`.
    pub(super) fn is_gone_on_from(&self, position: usize) -> bool {
        (0..self.standings.len()).any(|other| {
            let begins = self.graph.begins_on(other) == Some(position);
            let is_on_image = self.on_image.get(other).copied().unwrap_or_default();
            begins && is_on_image && !self.standing(other).is_over()
        })
    }
}

/// Returns the state of a recorded step that is not in progress.
pub(super) fn standing_of(record: &StepRecord, step: &Step) -> Standing {
    match record.status {
        StepStatus::Passed => Standing::Passed,
        StepStatus::Failed | StepStatus::Stopped => match record.cause {
            // The step was waiting for a retry.
            None => Standing::Waiting,
            Some(cause) if step.allows(cause) => Standing::Passed,
            Some(_) => Standing::Failed,
        },
        StepStatus::Pending | StepStatus::Started => Standing::Waiting,
    }
}
