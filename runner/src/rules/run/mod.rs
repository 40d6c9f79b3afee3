//! The life of one run: facts in, orders out. Late and repeated facts have no effect.

mod board;
mod ending;
mod facts;
mod joined;
mod resume;
mod retry;
mod room;
mod state;
mod steps;

use std::time::Duration;

use protocol::event::Reason;
use protocol::id::StepPosition;
use protocol::run::{Cause, Status};
use protocol::time::{Millis, Timestamp};

use board::{Broken, Stage};
pub use facts::{
    Broke, Effect, EventDraft, Exited, Input, KeptStep, PreviousOwner, StopWhy, Timer,
};
use facts::{Orders, effects, emit};
pub use joined::{joined, may_be_joined};
pub use state::Run;
use state::{Interrupted, Phase};

impl Run {
    /// Starts the run.
    #[must_use = "effects that are dropped never happen"]
    pub fn begin(&mut self, now: Millis) -> Vec<Effect> {
        if self.phase != Phase::Claimed {
            return Vec::new();
        }
        if self.record.pipeline.is_none() {
            return self.end_without_definition(now);
        }
        self.phase = Phase::Preparing;
        self.record.status = Status::Initializing;
        self.record.initiated_at = Some(now.into());
        let mut list = vec![Effect::Prepare, self.save()];
        let run = &self.record.run_id;
        list.push(emit(Reason::StartPipelineRun, format!("run {run} starts")));
        list.extend(self.image_pull());
        list.extend(self.run_timer(now));
        list
    }

    /// Returns the event that announces the pull of the base image, if there is one.
    fn image_pull(&self) -> Option<Effect> {
        let image = self.record.pipeline.as_ref()?.image.clone()?;
        let message = format!("run {} needs image {image}", self.record.run_id);
        Some(emit(Reason::ImagePull { image }, message))
    }

    /// Returns the timer of the whole run, counted from its start under the first owner.
    fn run_timer(&self, now: Millis) -> Option<Effect> {
        let timeout = self.record.pipeline.as_ref()?.timeout?.as_duration();
        let Timestamp(began) = self.record.initiated_at?;
        let gone = u64::try_from(now.0 - began.0).unwrap_or(0);
        let left = timeout.saturating_sub(std::time::Duration::from_millis(gone));
        Some(Effect::SetTimer(Timer::Run, left))
    }

    /// Ends a claimed run before any of its steps starts.
    #[must_use = "effects that are dropped never happen"]
    pub fn refuse(&mut self, now: Millis, cause: Cause, why: &str) -> Vec<Effect> {
        if self.phase == Phase::Ended {
            return Vec::new();
        }
        self.end_failed(now, cause, why)
    }

    /// Ends a run as stopped. The run was claimed only to stop it, or its ending found a stop.
    #[must_use = "effects that are dropped never happen"]
    pub fn stop_now(&mut self, now: Millis, why: &StopWhy) -> Vec<Effect> {
        self.end_stopped(now, why)
    }

    /// Processes a fact.
    #[must_use = "effects that are dropped never happen"]
    pub fn on(&mut self, now: Millis, input: Input) -> Vec<Effect> {
        match input {
            Input::StopAsked(why) => self.interrupt(now, Interrupted::Stop(why)),
            Input::HandOverAsked { grace } => self.hand_over(now, grace),
            Input::Expired(Timer::Retry(position)) => self.try_again(now, position),
            Input::Expired(Timer::Step(position)) => self.step_timed_out(position),
            Input::Expired(Timer::Run) => self.interrupt(now, Interrupted::Timeout),
            Input::Expired(Timer::HandOver(position)) => self.is_overdue(position),
            Input::Prepared => self.prepared(now),
            Input::Adopted { missing } => self.adopted(now, &missing),
            Input::Pushed { step, attempt, digest } => self.pushed(&step, attempt, digest),
            Input::Fetched(position) => self.fetched(now, position),
            Input::Exited(position, exited) => self.exited(now, position, exited),
            Input::Uploaded(position) => self.uploaded(now, position),
            Input::Committed { position, image, engine } => {
                self.committed(now, position, image, engine)
            }
            Input::Broke(None, broke) => self.broke_before_steps(now, &broke),
            Input::Broke(Some(position), broke) => self.step_broke(now, position, broke),
        }
    }

    fn prepared(&mut self, now: Millis) -> Vec<Effect> {
        if self.phase != Phase::Preparing {
            // The pull may complete at the same time as a stop.
            return Vec::new();
        }
        if let Some(ended) = self.end_interrupted(now) {
            return ended;
        }
        self.phase = Phase::Going;
        self.record.initialized_at.get_or_insert(Timestamp(now));
        if let Some(told) = self.resumed_events() {
            self.record.started_at.get_or_insert(Timestamp(now));
            return self.advance(now, told);
        }
        self.record.status = Status::Initialized.at_least(self.record.status);
        let mut list = effects([self.save()]);
        self.record.started_at.get_or_insert(Timestamp(now));
        let running =
            emit(Reason::PipelineRunning, format!("run {} is running", self.record.run_id));
        list.extend(self.advance(now, vec![running]));
        list
    }

    /// Starts the steps that may start, or ends the run. `first` is published after the write,
    /// before the events of these steps.
    fn advance(&mut self, now: Millis, first: Vec<Effect>) -> Vec<Effect> {
        self.record.status = Status::Running;
        let mut orders = Orders { told: first, ..Orders::default() };
        while !self.is_ending() && self.board.work.len() < self.at_once {
            let Some(position) = self.board.next() else { break };
            self.begin_step(now, position, &mut orders);
        }
        if self.board.work.is_empty() {
            self.come_to_its_end(now, orders)
        } else {
            orders.with(self.save())
        }
    }

    /// Stops the run, for a stop, a timeout or a hand-over. Steps in progress are asked to end;
    /// their exits are later facts.
    fn interrupt(&mut self, now: Millis, why: Interrupted) -> Vec<Effect> {
        if self.phase == Phase::Ended {
            return Vec::new();
        }
        let stop = matches!(why, Interrupted::Stop(_));
        // A stop outranks a timeout: the user sees that it was accepted, and the run is `stopped`.
        // Both outrank a hand-over.
        let rank = |why: &Interrupted| match why {
            Interrupted::HandOver => 1,
            Interrupted::Overdue(_) => 2,
            Interrupted::Timeout => 3,
            Interrupted::Stop(_) => 4,
        };
        if self.interrupted.as_ref().is_some_and(|before| rank(before) >= rank(&why)) {
            return Vec::new();
        }
        let mut list = Vec::new();
        if stop {
            let message = format!("run {} is being stopped", self.record.run_id);
            list.push(emit(Reason::PipelineStopping, message));
        }
        let interrupt = match why {
            Interrupted::HandOver => Effect::InterruptRepeatable,
            Interrupted::Stop(_) | Interrupted::Timeout | Interrupted::Overdue(_) => {
                Effect::Interrupt
            }
        };
        self.interrupted = Some(why);
        self.board.work.retain(|_, work| work.stage != Stage::Waiting);
        // No step has to end first.
        let idle = matches!(self.phase, Phase::Claimed | Phase::Going);
        if idle && self.board.work.is_empty() {
            list.extend(self.end_interrupted(now).unwrap_or_default());
        } else {
            list.insert(0, interrupt);
        }
        list
    }

    /// Hands the run over because the worker ends. Asks repeatable steps to end. A step that must
    /// not run twice may finish within its own kill-grace or `grace`, whichever is longer.
    fn hand_over(&mut self, now: Millis, grace: Duration) -> Vec<Effect> {
        let mut list = self.interrupt(now, Interrupted::HandOver);
        if list.contains(&Effect::InterruptRepeatable) {
            let going = self.board.work.keys().copied();
            let once = going.filter_map(|position| Some((position, self.step(position)?)));
            let once = once.filter(|(_, step)| !step.may_repeat());
            list.extend(once.map(|(position, step)| {
                let grace = step.kill_grace.map_or(grace, |own| own.as_duration().max(grace));
                Effect::SetTimer(Timer::HandOver(position), grace)
            }));
        }
        list
    }

    /// A step that must not run twice is still running, and the worker cannot wait any longer.
    fn is_overdue(&mut self, position: StepPosition) -> Vec<Effect> {
        if !self.is_handed_over() || self.may_repeat(position) {
            return Vec::new();
        }
        match self.at(position, Stage::Running) {
            Some(work) if work.broken.is_none() => {
                work.broken = Some(Broken::Overdue);
                effects([Effect::KillStep(position)])
            }
            // The step ended at the same time, or was asked to end before.
            Some(_) | None => Vec::new(),
        }
    }

    /// Records that the run ends because it is unknown whether a step took effect.
    fn note_overdue(&mut self, position: StepPosition) -> (Cause, String) {
        let why =
            "was still running when its worker ended: whether it took effect is not known, and \
                   it does not say `idempotent: true`"
                .to_owned();
        if let (Some(Interrupted::HandOver), Some(step)) =
            (&self.interrupted, self.step(position).map(|step| step.name.clone()))
        {
            self.interrupted = Some(Interrupted::Overdue(format!("step {step} {why}")));
        }
        (Cause::Lost, why)
    }
}

#[cfg(test)]
mod tests;
