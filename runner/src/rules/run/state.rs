//! The state of a run under its current owner. The other files of this module change it.

use std::collections::BTreeSet;

use protocol::id::{Epoch, NodeId, StepName, StepPosition};
use protocol::pipeline::{FailureMode, Step};
use protocol::run::{Cause, RunRecord, StepRecord};

use super::board::{Board, Stage, StepProgress};
use super::facts::{Effect, PreviousOwner, StopWhy};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Claimed; `begin` has not been called.
    Claimed,
    Preparing,
    /// Waits for the checkpoints of earlier owners.
    Adopting,
    /// Steps are in progress.
    Going,
    /// The ending is decided, or the run was released.
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Interrupted {
    Stop(StopWhy),
    Timeout,
    HandOver,
    /// The hand-over failed because a step that must not run twice did not finish in time. Holds
    /// the message the run ends with.
    Overdue(String),
}

/// The failure that the run will end with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failing {
    pub(super) cause: Cause,
    pub(super) said: String,
}

/// The progress of the previous owner or of a parent run.
#[derive(Debug, Clone, Default)]
pub(super) struct Resumption {
    /// The previous owner, or `None` if the steps are a parent run's.
    pub(super) past: Option<PreviousOwner>,
    /// The highest `seq` in the previous owner's record.
    pub(super) seq: Option<u64>,
    /// The positions of the checkpoints that are available.
    pub(super) had: BTreeSet<StepPosition>,
    /// Whether the image of a passed step is gone.
    pub(super) image_lost: bool,
    /// The steps that run again.
    pub(super) repeats: Vec<StepName>,
}

/// An upper bound on the size of the record. Each change adds its maximum size. The record is
/// measured only when the bound reaches the limit.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) used: Option<usize>,
}

/// A run under its current owner.
#[derive(Debug)]
pub struct Run {
    pub(super) record: RunRecord,
    pub(super) epoch: Epoch,
    pub(super) phase: Phase,
    pub(super) board: Board,
    /// The maximum number of steps in progress.
    pub(super) at_once: usize,
    pub(super) interrupted: Option<Interrupted>,
    /// The first failure that will end the run.
    pub(super) failing: Option<Failing>,
    /// The progress of an earlier owner.
    pub(super) resumption: Option<Resumption>,
    pub(super) room: Room,
}

impl Run {
    /// Creates a run that was just claimed, with at most `at_once` steps in progress.
    #[must_use]
    pub fn claimed(mut record: RunRecord, node: NodeId, epoch: Epoch, at_once: usize) -> Self {
        record.node = Some(node);
        record.epoch = Some(epoch);
        let board = record.pipeline.as_ref().map(Board::of).unwrap_or_default();
        Self {
            record,
            epoch,
            phase: Phase::Claimed,
            board,
            at_once: at_once.max(1),
            interrupted: None,
            failing: None,
            resumption: None,
            room: Room::default(),
        }
    }

    /// Returns the current record.
    #[must_use]
    pub fn record(&self) -> &RunRecord {
        &self.record
    }

    /// Returns the record, to set fields that are not decided here (ending event, last `seq`).
    pub fn record_mut(&mut self) -> &mut RunRecord {
        &mut self.record
    }

    pub(super) fn save(&self) -> Effect {
        Effect::Save(Box::new(self.record.clone()))
    }

    pub(super) fn step(&self, position: StepPosition) -> Option<&Step> {
        self.record.pipeline.as_ref()?.step(position)
    }

    /// Returns the work in progress for a step.
    pub(super) fn stage(&mut self, position: StepPosition) -> Option<&mut StepProgress> {
        self.board.work.get_mut(&position)
    }

    /// Returns the work of a step if it is at that stage.
    pub(super) fn at(&mut self, position: StepPosition, stage: Stage) -> Option<&mut StepProgress> {
        self.stage(position).filter(|work| work.stage == stage)
    }

    pub(super) fn record_of(&mut self, position: StepPosition) -> Option<&mut StepRecord> {
        let step = self.record.pipeline.as_ref()?.step(position)?;
        self.record.steps.iter_mut().rev().find(|it| it.name == step.name)
    }

    pub(super) fn is_fail_fast(&self) -> bool {
        let mode = self.record.pipeline.as_ref().map(|pipeline| pipeline.failure);
        mode.unwrap_or_default() == FailureMode::FailFast
    }

    /// Returns true if no further steps may start.
    pub(super) fn is_ending(&self) -> bool {
        self.interrupted.is_some() || (self.failing.is_some() && self.is_fail_fast())
    }

    /// Returns true if the step may run again when its outcome is unknown.
    pub(super) fn may_repeat(&self, position: StepPosition) -> bool {
        self.step(position).is_none_or(Step::may_repeat)
    }

    /// Returns true if the step was asked to end together with its run. A hand-over lets a step
    /// that must not run twice finish, and its exit counts as its result.
    pub(super) fn is_interrupted(&self, position: StepPosition) -> bool {
        match self.interrupted {
            None => false,
            Some(Interrupted::HandOver | Interrupted::Overdue(_)) => self.may_repeat(position),
            Some(Interrupted::Stop(_) | Interrupted::Timeout) => true,
        }
    }

    /// Returns the number of the next attempt at a step.
    pub(super) fn next_attempt(&self, step: &StepName) -> u32 {
        let recorded = self.record.steps.iter().find(|record| record.name == *step);
        let last = recorded.map(|record| record.attempt);
        last.or_else(|| self.record.attempts.get(step).copied()).map_or(1, |last| last + 1)
    }

    /// Removes the records of steps that are to start again, and keeps the numbers of their attempts.
    /// Returns their names.
    pub(super) fn remove_records(&mut self, goes: impl Fn(&StepRecord) -> bool) -> Vec<StepName> {
        let records = std::mem::take(&mut self.record.steps);
        let (gone, left) = records.into_iter().partition::<Vec<_>, _>(goes);
        self.record.steps = left;
        let names = gone.iter().map(|record| record.name.clone()).collect();
        let attempts = gone.into_iter().map(|record| (record.name, record.attempt));
        self.record.attempts.extend(attempts);
        names
    }

    /// Returns the number of the current attempt at a step.
    #[must_use]
    pub fn attempt(&self, position: StepPosition) -> u32 {
        let name = self.step(position).map(|step| &step.name);
        let record = self.record.steps.iter().find(|it| Some(&it.name) == name);
        record.map_or(1, |record| record.attempt)
    }
}
