//! How a run ends, and what is said of it.

use protocol::event::Reason;
use protocol::run::{Cause, Status, StepStatus};
use protocol::time::Millis;

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
    pub(super) fn end_interrupted(
        &mut self,
        now: Millis,
        exit_code: Option<i32>,
    ) -> Option<Vec<Effect>> {
        match self.interrupted.clone()? {
            Interrupted::Stop(why) => Some(self.end_stopped(now, &why)),
            Interrupted::Timeout(timer) => {
                let limit = match timer {
                    Timer::Run => self.record.pipeline.as_ref().and_then(|p| p.timeout),
                    Timer::Step(position) => self.steps().get(position).and_then(|s| s.timeout),
                };
                let limit = limit.map_or_else(|| "its time".to_owned(), |limit| limit.to_string());
                let why = match timer {
                    Timer::Run => format!("the run took longer than {limit}"),
                    Timer::Step(position) => {
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

    fn end(&mut self, now: Millis, status: Status, cause: Option<Cause>, message: Option<String>) {
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
