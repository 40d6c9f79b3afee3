//! The life of one run: facts in, orders out. Late and doubled facts are expected and change nothing.

mod ending;
mod facts;
mod resume;
mod retry;

use protocol::event::Reason;
use protocol::id::{Epoch, NodeId, StepName};
use protocol::pipeline::{Pipeline, Step};
use protocol::run::{Cause, RunRecord, Status, StepRecord, StepStatus};
use protocol::time::{Millis, Stamp};

pub use facts::{Draft, Effect, Exited, Input, Kept, Past, StopWhy, Timer};
use facts::{Tried, about, emit, exit_words};
use resume::Resumption;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Claimed; `begin` was not called yet.
    Claimed,
    Preparing,
    /// Waits for what so many passed steps have left.
    Adopting(usize),
    Fetching(usize),
    Running(usize),
    /// The step has failed, and is tried again when its timer has run out.
    Waiting(usize),
    Uploading(usize),
    Committing(usize),
    /// The ending is decided, or the run is another worker's.
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Interrupted {
    Stop(StopWhy),
    Timeout(Timer),
    HandOver,
}

/// One run, in the hands of its owner.
#[derive(Debug)]
pub struct Run {
    record: RunRecord,
    epoch: Epoch,
    state: State,
    interrupted: Option<Interrupted>,
    last_exit: Exited,
    mounted: Vec<String>,
    step_began: Millis,
    /// Where an earlier owner had come to.
    resumption: Option<Resumption>,
    /// The steps that earlier owners began.
    tried: Vec<Tried>,
}

fn effects(list: impl Into<Vec<Effect>>) -> Vec<Effect> {
    list.into()
}

impl Run {
    /// A run that was just claimed.
    #[must_use]
    pub fn claimed(mut record: RunRecord, node: NodeId, epoch: Epoch) -> Self {
        record.node = Some(node);
        record.epoch = Some(epoch);
        Self {
            step_began: record.scheduled_at.0,
            record,
            epoch,
            state: State::Claimed,
            interrupted: None,
            last_exit: Exited::default(),
            mounted: Vec::new(),
            resumption: None,
            tried: Vec::new(),
        }
    }

    /// The record as it is now.
    #[must_use]
    pub fn record(&self) -> &RunRecord {
        &self.record
    }

    /// The record, for what is not decided here (the ending event, the last `seq`).
    pub fn record_mut(&mut self) -> &mut RunRecord {
        &mut self.record
    }

    /// Begins.
    #[must_use = "effects that are dropped never happen"]
    pub fn begin(&mut self, now: Millis) -> Vec<Effect> {
        if self.state != State::Claimed {
            return Vec::new();
        }
        if self.record.pipeline.is_none() {
            return self.end_without_definition(now);
        }
        self.state = State::Preparing;
        self.record.status = Status::Initializing;
        self.record.initiated_at = Some(now.into());
        let mut list = vec![Effect::Prepare, self.save()];
        let run = &self.record.run_id;
        list.push(emit(Reason::StartPipelineRun, format!("run {run} starts")));
        list.extend(self.image_pull());
        list.extend(self.run_timer(now));
        list
    }

    /// What is told before the base image is looked for, where there is one.
    fn image_pull(&self) -> Option<Effect> {
        let image = self.record.pipeline.as_ref()?.image.clone()?;
        let message = format!("run {} needs image {image}", self.record.run_id);
        Some(emit(Reason::ImagePull { image }, message))
    }

    /// The timer of the whole run, which began with its first owner.
    fn run_timer(&self, now: Millis) -> Option<Effect> {
        let timeout = self.record.pipeline.as_ref()?.timeout?.as_duration();
        let Stamp(began) = self.record.initiated_at?;
        let gone = u64::try_from(now.0 - began.0).unwrap_or(0);
        let left = timeout.saturating_sub(std::time::Duration::from_millis(gone));
        Some(Effect::SetTimer(Timer::Run, left))
    }

    /// Ends a claimed run at once, before anything of it was begun.
    #[must_use = "effects that are dropped never happen"]
    pub fn refuse(&mut self, now: Millis, cause: Cause, why: &str) -> Vec<Effect> {
        if self.state == State::Ended {
            return Vec::new();
        }
        self.end_failed(now, cause, why, None)
    }

    /// Ends a run as stopped that was claimed for nothing else, or whose ending found a stop.
    #[must_use = "effects that are dropped never happen"]
    pub fn stop_now(&mut self, now: Millis, why: &StopWhy) -> Vec<Effect> {
        self.end_stopped(now, why)
    }

    /// Takes a fact at a time.
    #[must_use = "effects that are dropped never happen"]
    pub fn on(&mut self, now: Millis, input: Input) -> Vec<Effect> {
        match input {
            Input::StopAsked(why) => self.interrupt(now, Interrupted::Stop(why)),
            Input::HandOverAsked => self.interrupt(now, Interrupted::HandOver),
            Input::ImageLost => self.image_lost(now),
            Input::Expired(Timer::Retry(position)) => self.try_again(now, position),
            Input::Expired(timer) => self.interrupt(now, Interrupted::Timeout(timer)),
            Input::Prepared => self.prepared(now),
            Input::Adopted(kept) => self.adopted(now, kept),
            Input::Pushed { step, attempt, digest } => self.pushed(&step, attempt, digest),
            Input::Fetched => self.fetched(now),
            Input::Exited(exited) => self.exited(now, exited),
            Input::Uploaded => self.uploaded(now),
            Input::Committed { image, engine } => self.committed(now, image, engine),
            Input::Broke { cause, message, exit_code, said } => {
                if let (State::Running(_), Some((stdout, stderr))) = (self.state, said) {
                    (self.last_exit.stdout_bytes, self.last_exit.stderr_bytes) = (stdout, stderr);
                }
                self.broke(now, cause, &message, exit_code)
            }
        }
    }

    fn save(&self) -> Effect {
        Effect::Save(Box::new(self.record.clone()))
    }

    fn steps(&self) -> &[Step] {
        self.record.pipeline.as_ref().map_or(&[], |pipeline: &Pipeline| &pipeline.steps)
    }

    fn prepared(&mut self, now: Millis) -> Vec<Effect> {
        if self.state != State::Preparing {
            // The end of a pull may cross a stop.
            return Vec::new();
        }
        if let Some(ended) = self.end_interrupted(now, None) {
            return ended;
        }
        self.record.status = Status::Initialized.at_least(self.record.status);
        self.record.initialized_at.get_or_insert(Stamp(now));
        let mut list = effects([self.save()]);
        self.record.started_at.get_or_insert(Stamp(now));
        let running =
            emit(Reason::PipelineRunning, format!("run {} is running", self.record.run_id));
        list.extend(self.next_step(now, 0, vec![running]));
        list
    }

    /// Orders for the step at `position`, or the end. `first` is published before its own events and
    /// after its save.
    fn next_step(&mut self, now: Millis, position: usize, first: Vec<Effect>) -> Vec<Effect> {
        self.record.status = Status::Running;
        let Some(step) = self.steps().get(position).cloned() else {
            let mut list = effects([self.save()]);
            list.extend(first);
            self.end_passed(now);
            list.push(Effect::Finish);
            return list;
        };
        match &step.needs_resource {
            Some(resource) if !self.mounted.contains(resource) => {
                self.state = State::Fetching(position);
                let message = format!("run {} fetches resource {resource}", self.record.run_id);
                let mut fetch = emit(Reason::ResourceFetch { resource: resource.clone() }, message);
                about(&mut fetch, &step.name, self.next_attempt(&step.name));
                let mut list = effects([self.save()]);
                list.extend(first);
                list.extend([fetch, Effect::Fetch(position)]);
                list
            }
            Some(_) | None => self.start(now, position, &step, first),
        }
    }

    fn start(
        &mut self,
        now: Millis,
        position: usize,
        step: &Step,
        first: Vec<Effect>,
    ) -> Vec<Effect> {
        self.state = State::Running(position);
        self.step_began = now;
        self.last_exit = Exited::default();
        let attempt = self.next_attempt(&step.name);
        self.record.steps.push(StepRecord {
            name: step.name.clone(),
            status: StepStatus::Started,
            attempt,
            exit_code: None,
            image: None,
            engine: None,
            digest: None,
            epoch: Some(self.epoch),
            stdout_bytes: 0,
            stderr_bytes: 0,
            last_seq: None,
            started_at: Some(now.into()),
            completed_at: None,
        });
        let command = step.display();
        let message = format!("step {} of run {} starts", step.name, self.record.run_id);
        let mut started = emit(Reason::StepStarted { command, executor: "podman".into() }, message);
        about(&mut started, &step.name, attempt);
        let mut list = effects([Effect::Start(position), self.save()]);
        list.extend(first);
        list.extend([started, Effect::OpenGate]);
        if let Some(timeout) = step.timeout {
            list.push(Effect::SetTimer(Timer::Step(position), timeout.as_duration()));
        }
        list
    }

    fn fetched(&mut self, now: Millis) -> Vec<Effect> {
        let State::Fetching(position) = self.state else { return Vec::new() };
        if let Some(ended) = self.end_interrupted(now, None) {
            return ended;
        }
        let Some(step) = self.steps().get(position).cloned() else { return Vec::new() };
        self.mounted.extend(step.needs_resource.clone());
        self.start(now, position, &step, Vec::new())
    }

    fn exited(&mut self, now: Millis, exited: Exited) -> Vec<Effect> {
        let State::Running(position) = self.state else { return Vec::new() };
        self.last_exit = exited;
        let cancel = Effect::CancelTimer(Timer::Step(position));
        let interrupted = self.interrupted.is_some();
        if exited.code == 0 && !exited.oom && !interrupted {
            let Some(step) = self.steps().get(position).cloned() else { return Vec::new() };
            let Some(artifact) = &step.produces_artifact else {
                self.state = State::Committing(position);
                return effects([cancel, Effect::Commit(position)]);
            };
            self.state = State::Uploading(position);
            let message = format!(
                "run {} sends artifact {} to {}",
                self.record.run_id, artifact.name, artifact.store
            );
            let mut upload = emit(
                Reason::ArtifactUpload {
                    artifact: artifact.name.clone(),
                    store: artifact.store.clone(),
                },
                message,
            );
            about(&mut upload, &step.name, self.attempt());
            return effects([cancel, upload, Effect::Upload(position)]);
        }
        let mut list = vec![cancel, Effect::Discard];
        if self.is_handed_over() {
            // How a step ends that was stopped for this says nothing: it runs again.
            list.extend(self.release());
            return list;
        }
        if !interrupted && let Some(delay) = self.delay_before_retry(position) {
            list.extend(self.wait_for_retry(now, position, exited.code, delay));
            return list;
        }
        let status = if interrupted { StepStatus::Stopped } else { StepStatus::Failed };
        list.extend(self.close_and_end(now, position, status, Some(exited.code), |run| {
            let (cause, why) = run.exhausted(position, exit_words(exited));
            run.end_interrupted(now, Some(exited.code))
                .unwrap_or_else(|| run.end_failed(now, cause, &why, Some(exited.code)))
        }));
        list
    }

    fn uploaded(&mut self, now: Millis) -> Vec<Effect> {
        let State::Uploading(position) = self.state else { return Vec::new() };
        if self.interrupted.is_some() && !self.is_handed_over() {
            return self.abandon_step(now, position);
        }
        self.state = State::Committing(position);
        effects([Effect::Commit(position)])
    }

    fn committed(&mut self, now: Millis, image: String, engine: String) -> Vec<Effect> {
        let State::Committing(position) = self.state else { return Vec::new() };
        self.record.losses = 0;
        if let Some(step) = self.record.steps.last_mut() {
            step.engine = Some(engine);
        }
        let completed =
            self.close_step_record(now, position, StepStatus::Passed, Some(0), Some(image));
        let push = (position + 1 < self.steps().len()).then_some(Effect::Push(position));
        if self.interrupted.is_some() {
            let mut list = vec![self.save()];
            list.extend(completed);
            if self.is_handed_over() {
                list.extend(push);
            }
            list.extend(self.end_interrupted(now, None).unwrap_or_default());
            return list;
        }
        self.next_step(now, position + 1, completed.into_iter().chain(push).collect())
    }

    /// Notes where a step's image can be had, and writes it at once: an owner on another engine goes
    /// on from there.
    fn pushed(&mut self, step: &StepName, attempt: u32, digest: String) -> Vec<Effect> {
        let of_it = |record: &&mut StepRecord| {
            record.name == *step && record.attempt == attempt && record.status == StepStatus::Passed
        };
        let Some(record) = self.record.steps.iter_mut().find(of_it) else { return Vec::new() };
        record.digest = Some(digest);
        if self.state == State::Ended { Vec::new() } else { effects([self.save()]) }
    }

    fn broke(
        &mut self,
        now: Millis,
        cause: Cause,
        message: &str,
        exit_code: Option<i32>,
    ) -> Vec<Effect> {
        match self.state {
            State::Claimed | State::Waiting(_) | State::Ended => Vec::new(),
            State::Preparing | State::Adopting(_) | State::Fetching(_) => self
                .end_interrupted(now, None)
                .unwrap_or_else(|| self.end_failed(now, cause, message, None)),
            State::Running(position) | State::Uploading(position) | State::Committing(position) => {
                // The command itself has ended well where something after it broke.
                let after = !matches!(self.state, State::Running(_));
                let exit_code = exit_code.or_else(|| after.then_some(self.last_exit.code));
                let mut list = vec![Effect::CancelTimer(Timer::Step(position)), Effect::Discard];
                if self.interrupted.is_some() {
                    list.extend(self.abandon_step(now, position));
                    return list;
                }
                list.extend(self.close_and_end(
                    now,
                    position,
                    StepStatus::Failed,
                    exit_code,
                    |run| run.end_failed(now, cause, message, exit_code),
                ));
                list
            }
        }
    }

    /// A stop or a timeout. What is going on is asked to end; its end is a fact that comes later.
    fn interrupt(&mut self, now: Millis, why: Interrupted) -> Vec<Effect> {
        if self.state == State::Ended {
            return Vec::new();
        }
        if let Interrupted::Timeout(Timer::Step(position)) = why
            && self.state != State::Running(position)
        {
            // The timer crossed the step's end.
            return Vec::new();
        }
        let stop = matches!(why, Interrupted::Stop(_));
        // A stop outranks a timeout: the user is told that the stop was heard, and gets `stopped`.
        // Both outrank the wish that somebody else goes on.
        let rank = |why: &Interrupted| match why {
            Interrupted::HandOver => 1,
            Interrupted::Timeout(_) => 2,
            Interrupted::Stop(_) => 3,
        };
        if self.interrupted.as_ref().is_some_and(|before| rank(before) >= rank(&why)) {
            return Vec::new();
        }
        let mut list = Vec::new();
        if stop {
            let message = format!("run {} is being stopped", self.record.run_id);
            list.push(emit(Reason::PipelineStopping, message));
        }
        self.interrupted = Some(why);
        // Nothing goes on that would have to end first.
        if matches!(self.state, State::Claimed | State::Waiting(_)) {
            list.extend(self.end_interrupted(now, None).unwrap_or_default());
        } else {
            list.insert(0, Effect::Interrupt);
        }
        list
    }

    /// The attempt at a step that is begun next.
    fn next_attempt(&self, step: &StepName) -> u32 {
        self.tried.iter().find(|(name, _)| name == step).map_or(1, |(_, attempts)| attempts + 1)
    }

    /// The attempt at the step that runs.
    fn attempt(&self) -> u32 {
        self.record.steps.last().map_or(1, |step| step.attempt)
    }
}

#[cfg(test)]
mod tests;
