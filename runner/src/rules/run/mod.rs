//! The life of one run: facts in, orders out. Late and doubled facts are expected and change nothing.

mod ending;
mod facts;

use protocol::event::{Reason, Severity};
use protocol::id::{Epoch, NodeId};
use protocol::pipeline::{Pipeline, Step};
use protocol::run::{Cause, RunRecord, Status, StepRecord, StepStatus};
use protocol::time::{Millis, Stamp};

pub use facts::{Draft, Effect, Exited, Input, StopWhy, Timer};
use facts::{about, emit, exit_words};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Claimed; `begin` was not called yet.
    Claimed,
    Preparing,
    Fetching(usize),
    Running(usize),
    Uploading(usize),
    Committing(usize),
    /// The ending is decided.
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Interrupted {
    Stop(StopWhy),
    Timeout(Timer),
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
        let Some(pipeline) = &self.record.pipeline else {
            return self.end_failed(now, Cause::UnknownPipeline, "the run has no definition", None);
        };
        let (image, timeout) = (pipeline.image.clone(), pipeline.timeout);
        self.state = State::Preparing;
        self.record.status = Status::Initializing;
        self.record.initiated_at = Some(now.into());
        let mut list = vec![Effect::Prepare, self.save()];
        let run = &self.record.run_id;
        list.push(emit(Reason::StartPipelineRun, format!("run {run} starts")));
        let message = format!("run {run} needs image {image}");
        list.push(emit(Reason::ImagePull { image }, message));
        if let Some(timeout) = timeout {
            list.push(Effect::SetTimer(Timer::Run, timeout.as_duration()));
        }
        list
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
            Input::Expired(timer) => self.interrupt(now, Interrupted::Timeout(timer)),
            Input::Prepared => self.prepared(now),
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
        self.record.status = Status::Initialized;
        self.record.initialized_at = Some(now.into());
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
                about(&mut fetch, &step.name, 1);
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
        let attempt = 1;
        self.record.steps.push(StepRecord {
            name: step.name.clone(),
            status: StepStatus::Started,
            attempt,
            exit_code: None,
            image: None,
            engine: None,
            digest: None,
            epoch: Some(self.epoch),
            last_seq: None,
            started_at: Some(now.into()),
            completed_at: None,
        });
        let command = step.cmd.display();
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
            about(&mut upload, &step.name, 1);
            return effects([cancel, upload, Effect::Upload(position)]);
        }
        let mut list = vec![cancel, Effect::Discard];
        let status = if interrupted { StepStatus::Stopped } else { StepStatus::Failed };
        list.extend(self.close_step(now, position, status, Some(exited.code), None));
        match self.end_interrupted(now, Some(exited.code)) {
            Some(ended) => list.extend(ended),
            None => {
                let (cause, why) = exit_words(exited);
                list.extend(self.end_failed(now, cause, &why, Some(exited.code)));
            }
        }
        list
    }

    fn uploaded(&mut self, now: Millis) -> Vec<Effect> {
        let State::Uploading(position) = self.state else { return Vec::new() };
        if self.interrupted.is_some() {
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
        if self.interrupted.is_some() {
            let mut list = vec![self.save()];
            list.extend(completed);
            list.extend(self.end_interrupted(now, None).unwrap_or_default());
            return list;
        }
        self.next_step(now, position + 1, completed.into_iter().collect())
    }

    fn broke(
        &mut self,
        now: Millis,
        cause: Cause,
        message: &str,
        exit_code: Option<i32>,
    ) -> Vec<Effect> {
        match self.state {
            State::Claimed | State::Ended => Vec::new(),
            State::Preparing | State::Fetching(_) => self
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
                list.extend(self.close_step(now, position, StepStatus::Failed, exit_code, None));
                list.extend(self.end_failed(now, cause, message, exit_code));
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
        let repeated = match (&self.interrupted, stop) {
            (Some(Interrupted::Stop(_)), _) | (Some(Interrupted::Timeout(_)), false) => true,
            (Some(Interrupted::Timeout(_)), true) | (None, _) => false,
        };
        if repeated {
            return Vec::new();
        }
        let mut list = Vec::new();
        if stop {
            let message = format!("run {} is being stopped", self.record.run_id);
            list.push(emit(Reason::PipelineStopping, message));
        }
        self.interrupted = Some(why);
        if self.state == State::Claimed {
            list.extend(self.end_interrupted(now, None).unwrap_or_default());
        } else {
            list.insert(0, Effect::Interrupt);
        }
        list
    }

    fn abandon_step(&mut self, now: Millis, position: usize) -> Vec<Effect> {
        let code = Some(self.last_exit.code).filter(|_| !matches!(self.state, State::Running(_)));
        let mut list = vec![Effect::Discard];
        list.extend(self.close_step(now, position, StepStatus::Stopped, code, None));
        list.extend(self.end_interrupted(now, None).unwrap_or_default());
        list
    }

    fn close_step(
        &mut self,
        now: Millis,
        position: usize,
        status: StepStatus,
        exit_code: Option<i32>,
        image: Option<String>,
    ) -> Vec<Effect> {
        let completed = self.close_step_record(now, position, status, exit_code, image);
        let mut list = vec![self.save()];
        list.extend(completed);
        list
    }

    /// Closes the record of the step that runs, and returns the event to publish after the save.
    fn close_step_record(
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
}

#[cfg(test)]
mod tests;
