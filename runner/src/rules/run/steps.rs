//! The stages of one step: resource, command, artifact, image.

use protocol::event::Reason;
use protocol::id::{StepName, StepPosition};
use protocol::pipeline::Step;
use protocol::run::{StepRecord, StepStatus};
use protocol::time::Millis;

use super::board::{Broken, Stage, StepProgress, StepState};
use super::facts::{Broke, Effect, Exited, Orders, Timer, about, effects, emit, exit_words};
use super::state::{Phase, Run};

impl Run {
    pub(super) fn begin_step(&mut self, now: Millis, position: StepPosition, orders: &mut Orders) {
        let Some(step) = self.step(position).cloned() else {
            return self.board.set(position, StepState::Never);
        };
        if let Err(why) = self.reserve(&step) {
            self.board.set(position, StepState::Failed);
            orders.then.extend(self.fail(None, why));
            return;
        }
        if step.is_join() {
            return self.pass_join(now, position, &step, orders);
        }
        self.board.set(position, StepState::Going);
        match &step.needs_resource {
            Some(resource) if !self.board.is_mounted(position) => {
                self.board.work.insert(position, StepProgress::new(Stage::Fetching, now));
                let message = format!("run {} fetches resource {resource}", self.record.run_id);
                let mut fetch = emit(Reason::ResourceFetch { resource: resource.clone() }, message);
                about(&mut fetch, &step.name, self.next_attempt(&step.name));
                orders.then.extend([fetch, Effect::Fetch(position)]);
            }
            Some(_) | None => self.start(now, position, &step, orders),
        }
    }

    /// Passes a step without a command, which exists only for other steps to need it.
    fn pass_join(&mut self, now: Millis, position: StepPosition, step: &Step, orders: &mut Orders) {
        self.put_record(now, step);
        self.board.work.insert(position, StepProgress::new(Stage::Running, now));
        let closed = self.close_step_record(now, position, StepStatus::Passed, None, None);
        orders.told.extend(closed);
        self.board.set(position, StepState::Passed);
    }

    /// Records a new attempt at a step. The record describes only the last attempt.
    fn put_record(&mut self, now: Millis, step: &Step) -> u32 {
        let attempt = self.next_attempt(&step.name);
        let record = StepRecord {
            name: step.name.clone(),
            status: StepStatus::Started,
            attempt,
            cause: None,
            message: None,
            exit_code: None,
            result: None,
            image: None,
            engine: None,
            digest: None,
            epoch: Some(self.epoch),
            stdout_bytes: 0,
            stderr_bytes: 0,
            last_seq: None,
            started_at: Some(now.into()),
            completed_at: None,
            rest: serde_json::Map::new(),
        };
        self.record.attempts.shift_remove(&step.name);
        match self.record.steps.iter_mut().find(|it| it.name == step.name) {
            Some(before) => *before = record,
            None => self.record.steps.push(record),
        }
        attempt
    }

    pub(super) fn start(
        &mut self,
        now: Millis,
        position: StepPosition,
        step: &Step,
        orders: &mut Orders,
    ) {
        let attempt = self.put_record(now, step);
        self.board.work.insert(position, StepProgress::new(Stage::Running, now));
        let command = step.display();
        let message = format!("step {} of run {} starts", step.name, self.record.run_id);
        let executor = step.executor.as_str().into();
        let mut started = emit(Reason::StepStarted { command, executor }, message);
        about(&mut started, &step.name, attempt);
        orders.starts.push(Effect::Start(position));
        orders.told.push(started);
        orders.then.push(Effect::OpenGate(position));
        if let Some(timeout) = step.timeout {
            orders.then.push(Effect::SetTimer(Timer::Step(position), timeout.as_duration()));
        }
    }

    pub(super) fn fetched(&mut self, now: Millis, position: StepPosition) -> Vec<Effect> {
        let Some(work) = self.at(position, Stage::Fetching) else { return Vec::new() };
        let broken = work.broken.is_some();
        if broken || self.is_ending() {
            self.board.set(position, StepState::Waiting);
            return self.advance(now, Vec::new());
        }
        let Some(step) = self.step(position).cloned() else { return Vec::new() };
        let mut orders = Orders::default();
        self.start(now, position, &step, &mut orders);
        orders.with(self.save())
    }

    pub(super) fn exited(
        &mut self,
        now: Millis,
        position: StepPosition,
        exited: Exited,
    ) -> Vec<Effect> {
        let Some(work) = self.at(position, Stage::Running) else { return Vec::new() };
        work.exited = exited;
        let broken = work.broken;
        let Some(step) = self.step(position).cloned() else { return Vec::new() };
        let mut list = vec![Effect::CancelTimer(Timer::Step(position))];
        let is_interrupted = self.is_interrupted(position);
        let is_asked = is_interrupted || broken.is_some();
        let is_overdue = broken == Some(Broken::Overdue);
        // An overdue step may have ended before the kill. Its result counts then.
        let passed = exited.code == 0 && !exited.oom && (!is_asked || is_overdue);
        if passed {
            list.extend(self.keep(now, position, &step));
            return list;
        }
        if self.is_handed_over() && step.may_repeat() {
            // The exit of a step stopped for the hand-over is not a result: the step runs again.
            list.push(Effect::Discard(position));
            self.board.set(position, StepState::Waiting);
            list.extend(self.leave_when_idle(now));
            return list;
        }
        if !is_interrupted
            && !matches!(broken, Some(Broken::Beside | Broken::Overdue))
            && let Some(delay) = self.delay_before_retry(position)
        {
            list.push(Effect::Discard(position));
            list.extend(self.wait_for_retry(now, position, exited.code, delay));
            return list;
        }
        if !is_asked && step.allow_failure && step.is_on_image() {
            list.extend(self.keep(now, position, &step));
            return list;
        }
        list.push(Effect::Discard(position));
        let why = match broken {
            _ if is_interrupted => None,
            Some(Broken::Beside) => None,
            Some(Broken::Overdue) => Some(self.note_overdue(position)),
            Some(Broken::Timeout) => Some(self.too_long(position)),
            None => Some(self.exhausted(position, exit_words(exited, Some(&step)))),
        };
        let status = if is_asked { StepStatus::Stopped } else { StepStatus::Failed };
        list.extend(self.close(now, position, (status, Some(exited.code)), why));
        list
    }

    /// Keeps the artifact and the image of a step whose command exited by itself.
    fn keep(&mut self, now: Millis, position: StepPosition, step: &Step) -> Vec<Effect> {
        let Some(work) = self.stage(position) else { return Vec::new() };
        let well = work.exited.code == 0 && !work.exited.oom;
        let Some(artifact) = step.produces_artifact.as_ref().filter(|_| well) else {
            return self.keep_image(now, position, step);
        };
        work.stage = Stage::Uploading;
        let run = &self.record.run_id;
        let message = format!("run {run} sends artifact {} to {}", artifact.name, artifact.store);
        let (artifact, store) = (artifact.name.clone(), artifact.store.clone());
        let mut upload = emit(Reason::ArtifactUpload { artifact, store }, message);
        about(&mut upload, &step.name, self.attempt(position));
        effects([upload, Effect::Upload(position)])
    }

    fn keep_image(&mut self, now: Millis, position: StepPosition, step: &Step) -> Vec<Effect> {
        if step.is_on_image() {
            if let Some(work) = self.stage(position) {
                work.stage = Stage::Committing;
            }
            return effects([Effect::Commit(position)]);
        }
        let mut list = effects([Effect::Discard(position)]);
        list.extend(self.passed(now, position, None));
        list
    }

    pub(super) fn uploaded(&mut self, now: Millis, position: StepPosition) -> Vec<Effect> {
        let Some(work) = self.at(position, Stage::Uploading) else { return Vec::new() };
        if work.broken.is_some() || (self.interrupted.is_some() && !self.is_handed_over()) {
            return self.abandon_step(now, position);
        }
        let Some(step) = self.step(position).cloned() else { return Vec::new() };
        self.keep_image(now, position, &step)
    }

    pub(super) fn committed(
        &mut self,
        now: Millis,
        position: StepPosition,
        image: String,
        engine: String,
    ) -> Vec<Effect> {
        if self.at(position, Stage::Committing).is_none() {
            return Vec::new();
        }
        if let Some(record) = self.record_of(position) {
            record.engine = Some(engine);
        }
        self.passed(now, position, Some(image))
    }

    /// Completes a step whose workspace is committed. Its command may have failed if that is
    /// allowed.
    fn passed(
        &mut self,
        now: Millis,
        position: StepPosition,
        image: Option<String>,
    ) -> Vec<Effect> {
        let Some(work) = self.stage(position) else { return Vec::new() };
        let exited = work.exited;
        let well = exited.code == 0 && !exited.oom;
        let status = if well { StepStatus::Passed } else { StepStatus::Failed };
        let why =
            (!well).then(|| self.exhausted(position, exit_words(exited, self.step(position))));
        let has_image = image.is_some();
        self.note_failure(position, why.as_ref());
        let completed = self.close_step_record(now, position, status, Some(exited.code), image);
        self.board.set(position, StepState::Passed);
        self.reset_losses_on_progress();
        let is_wanted = self.interrupted.is_none() || self.is_handed_over();
        let push = has_image && is_wanted && self.board.is_gone_on_from(position);
        let push = push.then_some(Effect::Push(position));
        self.advance(now, completed.into_iter().chain(push).collect())
    }

    /// Resets the count of losses if more steps have passed than ever before.
    fn reset_losses_on_progress(&mut self) {
        let passed = u32::try_from(self.board.passed()).unwrap_or(u32::MAX);
        if passed > self.record.furthest {
            self.record.furthest = passed;
            (self.record.losses, self.record.reclaims) = (0, 0);
        }
    }

    /// Records the digest of a step's checkpoint. Saved at once for an owner on another engine.
    pub(super) fn pushed(&mut self, step: &StepName, attempt: u32, digest: String) -> Vec<Effect> {
        let of_it = |record: &&mut StepRecord| {
            record.name == *step && record.attempt == attempt && record.image.is_some()
        };
        let Some(record) = self.record.steps.iter_mut().find(of_it) else { return Vec::new() };
        record.digest = Some(digest);
        if self.phase == Phase::Ended { Vec::new() } else { effects([self.save()]) }
    }

    /// An order for the whole run failed.
    pub(super) fn broke_before_steps(&mut self, now: Millis, broke: &Broke) -> Vec<Effect> {
        match self.phase {
            Phase::Claimed | Phase::Going | Phase::Ended => Vec::new(),
            Phase::Preparing | Phase::Adopting => self
                .end_interrupted(now)
                .unwrap_or_else(|| self.end_failed(now, broke.cause, &broke.message)),
        }
    }

    /// An order for a step failed.
    pub(super) fn step_broke(
        &mut self,
        now: Millis,
        position: StepPosition,
        broke: Broke,
    ) -> Vec<Effect> {
        let Broke { cause, message, exit_code, output_bytes } = broke;
        let why = (cause, message);
        let Some(work) = self.stage(position) else { return Vec::new() };
        if let (Stage::Running, Some((stdout, stderr))) = (work.stage, output_bytes) {
            (work.exited.stdout_bytes, work.exited.stderr_bytes) = (stdout, stderr);
        }
        let (stage, ended, broken) = (work.stage, work.exited.code, work.broken);
        let exit_code = match stage {
            Stage::Waiting => return Vec::new(),
            Stage::Fetching => {
                let is_asked = broken.is_some() || self.interrupted.is_some();
                let standing = if is_asked { StepState::Waiting } else { StepState::Failed };
                self.board.set(position, standing);
                let then = if is_asked { Vec::new() } else { self.fail(None, why) };
                let mut list = self.advance(now, Vec::new());
                list.extend(then);
                return list;
            }
            Stage::Running => exit_code,
            // If the failure came after the command, record the command's own exit code.
            Stage::Uploading | Stage::Committing => exit_code.or(Some(ended)),
        };
        let mut list = vec![Effect::CancelTimer(Timer::Step(position))];
        let why = match broken {
            Some(Broken::Overdue) if !self.is_interrupted(position) => self.note_overdue(position),
            Some(_) => {
                list.extend(self.abandon_step(now, position));
                return list;
            }
            None if self.is_interrupted(position) => {
                list.extend(self.abandon_step(now, position));
                return list;
            }
            None => why,
        };
        list.push(Effect::Discard(position));
        list.extend(self.close(now, position, (StepStatus::Failed, exit_code), Some(why)));
        list
    }

    /// The timeout of a step expired.
    pub(super) fn step_timed_out(&mut self, position: StepPosition) -> Vec<Effect> {
        if self.is_interrupted(position) {
            return Vec::new();
        }
        match self.at(position, Stage::Running) {
            Some(work) if work.broken.is_none() => {
                work.broken = Some(Broken::Timeout);
                effects([Effect::InterruptStep(position)])
            }
            // The step ended at the same time.
            Some(_) | None => Vec::new(),
        }
    }
}
