//! How steps and runs end, and what is said of it.

use protocol::event::{Reason, Severity};
use protocol::run::{Cause, Status, StepStatus};
use protocol::time::Millis;

use super::facts::{about, emit};
use super::{Draft, Effect, Interrupted, Run, State, StopWhy, Timer, effects};

/// The most bytes of a run's message: it stands in the record twice, and what it quotes, such as a
/// command or an engine's words, may be of any length.
const MESSAGE_BYTES: usize = 4096;

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES {
        let mut end = MESSAGE_BYTES;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message
}

impl Run {
    pub(super) fn abandon_step(&mut self, now: Millis, position: usize) -> Vec<Effect> {
        let code = Some(self.last_exit.code).filter(|_| !matches!(self.state, State::Running(_)));
        let mut list = vec![Effect::Discard];
        if self.is_handed_over() {
            list.extend(self.release());
            return list;
        }
        list.extend(self.close_and_end(now, position, StepStatus::Stopped, code, |run| {
            run.end_interrupted(now, None).unwrap_or_default()
        }));
        list
    }

    /// Closes a step that did not pass, and ends the run. The step's end is written first, with the
    /// cause of what follows: whoever takes the run up in between ends it so.
    pub(super) fn close_and_end(
        &mut self,
        now: Millis,
        position: usize,
        status: StepStatus,
        exit_code: Option<i32>,
        end: impl FnOnce(&mut Self) -> Vec<Effect>,
    ) -> Vec<Effect> {
        let completed = self.close_step_record(now, position, status, exit_code, None);
        let mut closed = Box::new(self.record.clone());
        let ended = end(self);
        closed.cause = self.record.cause;
        closed.message.clone_from(&self.record.message);
        let mut list = vec![Effect::Save(closed)];
        list.extend(completed);
        list.extend(ended);
        list
    }

    /// Closes the record of the step that runs, and returns the event to publish after the save.
    pub(super) fn close_step_record(
        &mut self,
        now: Millis,
        position: usize,
        status: StepStatus,
        exit_code: Option<i32>,
        image: Option<String>,
    ) -> Option<Effect> {
        let exited = self.last_exit;
        let name = self.steps().get(position)?.name.clone();
        let step = self.record.steps.last_mut().filter(|step| step.name == name)?;
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
                duration_ms: u64::try_from(now.0 - self.step_began.0).unwrap_or(0),
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

    pub(super) fn end_interrupted(
        &mut self,
        now: Millis,
        exit_code: Option<i32>,
    ) -> Option<Vec<Effect>> {
        match self.interrupted.clone()? {
            Interrupted::Stop(why) => Some(self.end_stopped(now, &why)),
            Interrupted::HandOver => Some(self.release()),
            Interrupted::Timeout(timer) => {
                let limit = match timer {
                    Timer::Run => self.record.pipeline.as_ref().and_then(|p| p.timeout),
                    Timer::Step(position) | Timer::Retry(position) => {
                        self.steps().get(position).and_then(|step| step.timeout)
                    }
                };
                let limit = limit.map_or_else(|| "its time".to_owned(), |limit| limit.to_string());
                let why = match timer {
                    Timer::Run => format!("the run took longer than {limit}"),
                    Timer::Step(position) | Timer::Retry(position) => {
                        let name = self.steps().get(position).map(|step| step.name.to_string());
                        format!("step {} took longer than {limit}", name.unwrap_or_default())
                    }
                };
                Some(self.end_failed(now, Cause::Timeout, &why, exit_code))
            }
        }
    }

    pub(super) fn end_passed(&mut self, now: Millis) {
        self.end(now, Status::Passed, None, None);
    }

    pub(super) fn end_stopped(&mut self, now: Millis, why: &StopWhy) -> Vec<Effect> {
        let said = match why {
            StopWhy::User { reason: Some(reason) } => format!("stopped by a user: {reason}"),
            StopWhy::User { reason: None } => "stopped by a user".to_owned(),
            StopWhy::Shutdown => "stopped because its worker ends".to_owned(),
        };
        self.end(now, Status::Stopped, Some(why.cause()), Some(said));
        effects([Effect::Finish])
    }

    pub(super) fn end_failed(
        &mut self,
        now: Millis,
        cause: Cause,
        why: &str,
        exit_code: Option<i32>,
    ) -> Vec<Effect> {
        let step = self.record.steps.last().filter(|step| step.status == StepStatus::Failed);
        let said = match (step, exit_code) {
            (Some(step), _) => format!("step {}: {why}", step.name),
            (None, _) => why.to_owned(),
        };
        self.end(now, Status::Failed, Some(cause), Some(said));
        effects([Effect::Finish])
    }

    pub(super) fn end_without_definition(&mut self, now: Millis) -> Vec<Effect> {
        self.end_failed(now, Cause::UnknownPipeline, "the run has no definition", None)
    }

    /// Ends it as an earlier owner had decided, who did not come to record it.
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
        self.state = State::Ended;
        self.record.status = status;
        self.record.cause = cause;
        self.record.message = message.map(shortened);
        self.record.completed_at = Some(now.into());
        // Of a step that its owner did not see to its end nothing more is known.
        let of_step =
            if status == Status::Stopped { StepStatus::Stopped } else { StepStatus::Failed };
        for step in self.record.steps.iter_mut().filter(|s| s.status == StepStatus::Started) {
            step.status = of_step;
            step.completed_at = Some(now.into());
        }
    }

    /// The ending event, once the ending is decided.
    #[must_use]
    pub fn ending(&self) -> Option<Draft> {
        let run = &self.record.run_id;
        let said = self.record.message.as_deref().unwrap_or("for no reason that was recorded");
        let cause = self.record.cause.unwrap_or(Cause::Engine);
        let failed = self.record.steps.last().filter(|step| step.status != StepStatus::Passed);
        let (reason, message) = match self.record.status {
            Status::Passed => (Reason::PipelineSuccessful, format!("run {run} passed")),
            Status::Failed => {
                // A command that ended well is not why the run failed.
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
        Some(Draft { reason, message, step, severity: None })
    }
}
