//! How steps and runs end, and the messages about it.

use protocol::budget;
use protocol::event::{Reason, Severity};
use protocol::id::{StepName, StepPosition};
use protocol::pipeline::Step;
use protocol::run::{Cause, Status, StepRecord, StepStatus};
use protocol::time::Millis;

use super::board::{Broken, Stage, StepState};
use super::facts::{Effect, EventDraft, Orders, StopWhy, about, effects, emit};
use super::state::{Failing, Interrupted, Phase, Run};

/// The maximum size of a run's message. The record contains it twice, and text that it quotes, such
/// as a command or an engine's error, has no limit of its own.
const MESSAGE_BYTES: usize = 4096;

fn shortened(message: String) -> String {
    budget::shortened(message, MESSAGE_BYTES)
}

/// Prefix of the message about a step that exceeded its timeout.
const TOOK: &str = "took longer than";

impl Failing {
    /// Creates the failure of a step, or of the run if `step` is `None`.
    pub(super) fn new(step: Option<&StepName>, cause: Cause, why: &str) -> Self {
        let said = match step {
            Some(name) if why.starts_with(TOOK) => format!("step {name} {why}"),
            Some(name) if names(why, name) => why.to_owned(),
            Some(name) => format!("step {name}: {why}"),
            None => why.to_owned(),
        };
        Self { cause, said }
    }
}

/// Whether a sentence begins with the step that it is about.
fn names(why: &str, step: &StepName) -> bool {
    let rest = why.strip_prefix("step ").and_then(|rest| rest.strip_prefix(step.as_str()));
    rest.is_some_and(|rest| rest.starts_with([':', ' ']))
}

impl Run {
    /// Ends a step that was asked to end, alone or together with its run.
    pub(super) fn abandon_step(&mut self, now: Millis, position: StepPosition) -> Vec<Effect> {
        let Some(work) = self.stage(position) else { return Vec::new() };
        let (exited, broken) = (work.exited.code, work.broken);
        let code = (work.stage != Stage::Running).then_some(exited);
        let mut list = vec![Effect::Discard(position)];
        if self.is_handed_over() && self.may_repeat(position) {
            self.board.set(position, StepState::Waiting);
            list.extend(self.leave_when_idle(now));
            return list;
        }
        let why = (!self.is_interrupted(position) && broken == Some(Broken::Timeout))
            .then(|| self.too_long(position));
        list.extend(self.close(now, position, (StepStatus::Stopped, code), why));
        list
    }

    /// Closes a step that did not pass, and continues the run. `why` is the failure, or `None` if
    /// the step was asked to end.
    pub(super) fn close(
        &mut self,
        now: Millis,
        position: StepPosition,
        (status, exit_code): (StepStatus, Option<i32>),
        why: Option<(Cause, String)>,
    ) -> Vec<Effect> {
        let step = self.step(position);
        let cause = why.as_ref().map(|(cause, _)| *cause);
        let is_overdue = matches!(self.interrupted, Some(Interrupted::Overdue(_)));
        let is_allowed =
            !is_overdue && step.zip(cause).is_some_and(|(step, cause)| step.allows(cause));
        self.note_failure(position, why.as_ref());
        let completed = self.close_step_record(now, position, status, exit_code, None);
        let interrupts = match why {
            Some(_) if is_allowed => {
                self.board.set(position, StepState::Passed);
                Vec::new()
            }
            Some(why) => {
                self.board.set(position, StepState::Failed);
                self.fail(Some(position), why)
            }
            None => {
                self.board.set(position, StepState::Failed);
                Vec::new()
            }
        };
        let mut list = self.advance(now, completed.into_iter().collect());
        list.extend(interrupts);
        list
    }

    /// Records why a step failed.
    pub(super) fn note_failure(&mut self, position: StepPosition, why: Option<&(Cause, String)>) {
        self.count_message(why.map_or(0, |(_, message)| message.len().min(MESSAGE_BYTES)));
        if let (Some((cause, message)), Some(record)) = (why, self.record_of(position)) {
            record.cause = Some(*cause);
            record.message = Some(shortened(message.clone()));
        }
    }

    /// Marks the run as failing. In fail-fast mode, asks the other steps to end.
    pub(super) fn fail(
        &mut self,
        position: Option<StepPosition>,
        (cause, why): (Cause, String),
    ) -> Vec<Effect> {
        if self.failing.is_some() {
            return Vec::new();
        }
        let name = position.and_then(|position| self.step(position)).map(|step| step.name.clone());
        self.failing = Some(Failing::new(name.as_ref(), cause, &why));
        if !self.is_fail_fast() {
            return Vec::new();
        }
        let waiting = self.board.work.iter().filter(|(_, work)| work.stage == Stage::Waiting);
        let waiting: Vec<StepPosition> = waiting.map(|(position, _)| *position).collect();
        for position in waiting {
            self.board.set(position, StepState::Failed);
        }
        let mut interrupts = Vec::new();
        for (position, work) in &mut self.board.work {
            // A step that is being committed has passed.
            if work.stage != Stage::Committing && work.broken.is_none() {
                work.broken = Some(Broken::Beside);
                interrupts.push(Effect::InterruptStep(*position));
            }
        }
        interrupts
    }

    /// Ends the run, or starts its `on-error` step. No step is in progress, and none may start. The
    /// last step's end is written together with the run's cause. If the run is then taken over, its
    /// next owner ends it with that cause.
    pub(super) fn come_to_its_end(&mut self, now: Millis, mut orders: Orders) -> Vec<Effect> {
        if let Some((position, step)) = self.last_step() {
            self.start(now, position, &step, &mut orders);
            return orders.with(self.save());
        }
        let mut written = Box::new(self.record.clone());
        let ended = match (self.end_interrupted(now), self.failing.take()) {
            (Some(ended), _) => ended,
            (None, Some(Failing { cause, said })) => self.end_failed(now, cause, &said),
            (None, None) => {
                self.end(now, Status::Passed, None, None);
                effects([Effect::Finish])
            }
        };
        written.cause = self.record.cause;
        written.message.clone_from(&self.record.message);
        let mut list = orders.with(Effect::Save(written));
        list.extend(ended);
        list
    }

    /// Returns the `on-error` step if the run is about to fail and that step has not started.
    fn last_step(&self) -> Option<(StepPosition, Step)> {
        if self.failing.is_none() || self.interrupted.is_some() {
            return None;
        }
        let pipeline = self.record.pipeline.as_ref()?;
        let step = pipeline.on_error.as_deref()?;
        let is_begun = self.record.steps.iter().any(|record| record.name == step.name);
        (!is_begun).then(|| (pipeline.on_error_position(), step.clone()))
    }

    /// Returns the first failure that an earlier owner recorded.
    pub(super) fn earlier_failure(&self) -> Option<Failing> {
        let failed = self.failed_step()?;
        let (cause, why) = (failed.cause?, failed.message.as_deref().unwrap_or_default());
        Some(Failing::new(Some(&failed.name), cause, why))
    }

    /// Returns the first step that failed for good without being allowed to.
    #[must_use]
    pub fn failed_step(&self) -> Option<&StepRecord> {
        let steps = &self.record.pipeline.as_ref()?.steps;
        let counts = |record: &&StepRecord| {
            let may_not = |cause| {
                let step = steps.iter().find(|step| step.name == record.name);
                step.is_some_and(|step| !step.allows(cause))
            };
            // Check the cause first: few steps have one, and finding a step scans all of them.
            record.cause.is_some_and(may_not)
        };
        self.record.steps.iter().filter(counts).min_by_key(|record| record.completed_at)
    }

    /// Returns cause and message of a step that exceeded its timeout.
    pub(super) fn too_long(&self, position: StepPosition) -> (Cause, String) {
        let limit = self.step(position).and_then(|step| step.timeout);
        let limit = limit.map_or_else(|| "its time".to_owned(), |limit| limit.to_string());
        self.exhausted(position, (Cause::Timeout, format!("{TOOK} {limit}")))
    }

    /// Releases the run, or ends it, once no step is in progress.
    pub(super) fn leave_when_idle(&mut self, now: Millis) -> Vec<Effect> {
        if !self.board.work.is_empty() {
            return Vec::new();
        }
        self.end_interrupted(now).unwrap_or_default()
    }

    /// Closes the record of a step in progress, and returns the event to publish after the save.
    pub(super) fn close_step_record(
        &mut self,
        now: Millis,
        position: StepPosition,
        status: StepStatus,
        exit_code: Option<i32>,
        image: Option<String>,
    ) -> Option<Effect> {
        let (exited, began) = {
            let work = self.stage(position)?;
            (work.exited, work.began)
        };
        let name = self.step(position)?.name.clone();
        let step = self.record_of(position)?;
        step.status = status;
        step.exit_code = exit_code;
        step.image.clone_from(&image);
        step.completed_at = Some(now.into());
        (step.stdout_bytes, step.stderr_bytes) = (exited.stdout_bytes, exited.stderr_bytes);
        let attempt = step.attempt;
        let run = &self.record.run_id;
        let message = match (status, exit_code) {
            (StepStatus::Passed, _) => format!("step {name} of run {run} passed"),
            (StepStatus::Stopped, _) => format!("step {name} of run {run} was stopped"),
            (_, Some(0) | None) => format!("step {name} of run {run} failed"),
            (_, Some(code)) => format!("step {name} of run {run} failed with exit code {code}"),
        };
        let passed = status == StepStatus::Passed;
        let mut completed = emit(
            Reason::StepCompleted {
                exit_code,
                duration_ms: u64::try_from(now.0 - began.0).unwrap_or(0),
                stdout_bytes: exited.stdout_bytes,
                stderr_bytes: exited.stderr_bytes,
                image,
                repeated: false,
            },
            message,
        );
        about(&mut completed, &name, attempt);
        if let Effect::Emit(draft) = &mut completed {
            draft.severity = Some(if passed { Severity::Normal } else { Severity::Warning });
        }
        Some(completed)
    }

    pub(super) fn end_interrupted(&mut self, now: Millis) -> Option<Vec<Effect>> {
        match self.interrupted.clone()? {
            Interrupted::Stop(why) => Some(self.end_stopped(now, &why)),
            Interrupted::HandOver => Some(self.release()),
            Interrupted::Overdue(why) => Some(self.end_failed(now, Cause::Lost, &why)),
            Interrupted::Timeout => {
                let limit = self.record.pipeline.as_ref().and_then(|pipeline| pipeline.timeout);
                let limit = limit.map_or_else(|| "its time".to_owned(), |limit| limit.to_string());
                let why = format!("the run {TOOK} {limit}");
                Some(self.end_failed(now, Cause::Timeout, &why))
            }
        }
    }

    pub(super) fn end_stopped(&mut self, now: Millis, why: &StopWhy) -> Vec<Effect> {
        let said = match why {
            StopWhy::User { reason: Some(reason) } => format!("stopped by a user: {reason}"),
            StopWhy::User { reason: None } => "stopped by a user".to_owned(),
            StopWhy::Replaced { by } => format!("replaced by run {by} in the wait list"),
            StopWhy::Shutdown => "stopped because its worker ends".to_owned(),
        };
        self.end(now, Status::Stopped, Some(why.cause()), Some(said));
        effects([Effect::Finish])
    }

    pub(super) fn end_failed(&mut self, now: Millis, cause: Cause, why: &str) -> Vec<Effect> {
        self.end(now, Status::Failed, Some(cause), Some(why.to_owned()));
        effects([Effect::Finish])
    }

    pub(super) fn end_without_definition(&mut self, now: Millis) -> Vec<Effect> {
        self.end_failed(now, Cause::UnknownPipeline, "the run has no definition")
    }

    /// Ends the run as an earlier owner decided but did not record.
    pub(super) fn end_decided(&mut self, now: Millis, cause: Cause) -> Vec<Effect> {
        let stopped = matches!(cause, Cause::User | Cause::Replaced | Cause::Shutdown);
        let status = if stopped { Status::Stopped } else { Status::Failed };
        self.end(now, status, Some(cause), self.record.message.clone());
        effects([Effect::Finish])
    }

    pub(super) fn end(
        &mut self,
        now: Millis,
        status: Status,
        cause: Option<Cause>,
        message: Option<String>,
    ) {
        self.phase = Phase::Ended;
        self.board.work.clear();
        self.record.status = status;
        self.record.cause = cause;
        self.record.message = message.map(shortened);
        self.record.completed_at = Some(now.into());
        // If the owner died during a step, the step's outcome is unknown.
        let of_step =
            if status == Status::Stopped { StepStatus::Stopped } else { StepStatus::Failed };
        for step in self.record.steps.iter_mut().filter(|s| s.status == StepStatus::Started) {
            step.status = of_step;
            step.completed_at = Some(now.into());
        }
    }

    /// Returns the ending event, or `None` if the run has not ended.
    #[must_use]
    pub fn ending(&self) -> Option<EventDraft> {
        let run = &self.record.run_id;
        let said = self.record.message.as_deref().unwrap_or("for no reason that was recorded");
        let cause = self.record.cause.unwrap_or(Cause::Engine);
        let not_passed = |step: &&StepRecord| step.status != StepStatus::Passed;
        let failed = self.failed_step().or_else(|| self.record.steps.last().filter(not_passed));
        let (reason, message) = match self.record.status {
            Status::Passed => (Reason::PipelineSuccessful, format!("run {run} passed")),
            Status::Failed => {
                // A command that exited with 0 did not cause the failure.
                let exit_code = failed.and_then(|step| step.exit_code).filter(|code| *code != 0);
                (Reason::PipelineFailed { cause, exit_code }, format!("run {run} failed: {said}"))
            }
            Status::Stopped => (Reason::PipelineStopped { cause }, format!("run {run} was {said}")),
            Status::Pending | Status::Initializing | Status::Initialized | Status::Running => {
                return None;
            }
        };
        let step = failed
            .filter(|_| self.record.status == Status::Failed)
            .map(|step| (step.name.clone(), step.attempt));
        Some(EventDraft { reason, message, step, severity: None })
    }
}
