//! When a failed step is retried.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use protocol::event::Reason;
use protocol::id::StepPosition;
use protocol::pipeline::{Backoff, RetryOn};
use protocol::run::{Cause, StepRecord, StepStatus};
use protocol::time::Millis;

use super::board::{Stage, StepProgress, StepState};
use super::facts::{Effect, Orders, Timer, about, emit};
use super::state::Run;

/// The default delay before the second attempt.
const DELAY: Duration = Duration::from_secs(1);
/// The maximum delay between attempts.
const LONGEST: Duration = Duration::from_secs(600);

impl Run {
    /// Returns the delay before a failed step's next attempt, or `None` if it is not retried.
    pub(super) fn delay_before_retry(&self, position: StepPosition) -> Option<Duration> {
        let step = self.step(position)?;
        let (retry, attempt) = (step.retry.as_ref()?, self.attempt(position));
        if attempt >= retry.attempts || !retry.on.contains(&RetryOn::Failure) {
            return None;
        }
        let first = retry.delay.map_or(DELAY, |delay| delay.as_duration());
        match retry.backoff {
            Backoff::Constant => return Some(first),
            Backoff::Exponential => {}
        }
        let doubled = first.saturating_mul(1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
        let whole = doubled.min(LONGEST.max(first));
        // Add up to a tenth, so that runs that failed together do not retry together.
        let mut hasher = DefaultHasher::new();
        (self.record.run_id.as_str(), position, attempt).hash(&mut hasher);
        let jitter = u32::try_from(hasher.finish() % 1_000).unwrap_or(0);
        Some(whole + whole / 10_000 * jitter)
    }

    /// Closes the failed attempt and waits for the next one.
    pub(super) fn wait_for_retry(
        &mut self,
        now: Millis,
        position: StepPosition,
        exit_code: i32,
        delay: Duration,
    ) -> Vec<Effect> {
        let failed = StepStatus::Failed;
        let completed = self.close_step_record(now, position, failed, Some(exit_code), None);
        if self.is_handed_over() {
            // The attempt failed by itself. The next owner retries it.
            self.board.set(position, StepState::Waiting);
            let mut list = vec![self.save()];
            list.extend(completed);
            list.extend(self.leave_when_idle(now));
            return list;
        }
        let Some(step) = self.record_of(position) else { return Vec::new() };
        let (name, next) = (step.name.clone(), step.attempt + 1);
        self.board.work.insert(position, StepProgress::new(Stage::Waiting, now));
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let message = format!(
            "step {name} of run {} is tried again in {delay:.1?}, as attempt {next}",
            self.record.run_id
        );
        let mut retry = emit(Reason::StepRetry { delay_ms }, message);
        about(&mut retry, &name, next);
        let mut list = vec![self.save()];
        list.extend(completed);
        list.extend([retry, Effect::SetTimer(Timer::Retry(position), delay)]);
        list
    }

    /// Starts the next attempt after the delay. A step's record describes only its last attempt.
    pub(super) fn try_again(&mut self, now: Millis, position: StepPosition) -> Vec<Effect> {
        if self.at(position, Stage::Waiting).is_none() {
            return Vec::new();
        }
        let Some(step) = self.step(position).cloned() else { return Vec::new() };
        let mut orders = Orders::default();
        self.start(now, position, &step, &mut orders);
        orders.with(self.save())
    }

    /// Returns the steps with a retry policy for losses that ran when their worker was lost, and
    /// whether each has attempts left.
    pub(super) fn lost_attempts(&self) -> Vec<(&StepRecord, bool)> {
        let steps = self.record.pipeline.as_ref().map_or(&[][..], |pipeline| &pipeline.steps);
        let started = |record: &&StepRecord| record.status == StepStatus::Started;
        let of = |record: &'_ StepRecord| {
            let retry = steps.iter().find(|step| step.name == record.name)?.retry.as_ref()?;
            retry.on.contains(&RetryOn::Lost).then_some(record.attempt < retry.attempts)
        };
        let lost = self.record.steps.iter().filter(started);
        lost.filter_map(|record| Some((record, of(record)?))).collect()
    }

    /// Returns the cause and the message after a step's last attempt failed.
    pub(super) fn exhausted(
        &self,
        position: StepPosition,
        (cause, why): (Cause, String),
    ) -> (Cause, String) {
        let retried = self.step(position).and_then(|step| step.retry.as_ref());
        match retried.filter(|r| r.attempts > 1 && r.on.contains(&RetryOn::Failure)) {
            Some(_) => {
                (Cause::RetriesExhausted, format!("{why}, at attempt {}", self.attempt(position)))
            }
            None => (cause, why),
        }
    }
}
