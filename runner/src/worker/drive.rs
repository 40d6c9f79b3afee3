//! Drives one run: tells the rules what happened, and does what they say. Nothing else decides.

use std::sync::Arc;

use futures::future::BoxFuture;
use protocol::pipeline::{Cmd, Pipeline, Step};
use protocol::run::{Cause, StepRecord, StepStatus};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Shared;
use super::emitter::Emitter;
use super::gone::Gone;
use super::lease::Held;
use super::ledger::{Also, Ledger, WriteError};
use super::output::Output;
use super::push::{Push, Pushes};
use super::step::{self, Done};
use super::watchdog::waits;
use crate::ports::{
    ExecError, Gate, LogSink, LoggerFeed, RunScope, StepSpec, StopLevel, StopSignal, Workspace,
};
use crate::rules::env;
use crate::rules::run::{Effect, Exited, Input, Run, Timer};

/// One run in the hands of this worker.
pub(super) struct Drive {
    pub(super) shared: Arc<Shared>,
    pub(super) run: Run,
    pub(super) ledger: Ledger,
    pub(super) emitter: Arc<Emitter>,
    pub(super) feed: Option<Arc<dyn LoggerFeed>>,
    pub(super) scope: RunScope,
    pub(super) stop: StopSignal,
    pub(super) inputs: mpsc::UnboundedReceiver<Input>,
    /// For facts of its own.
    pub(super) tell: mpsc::UnboundedSender<Input>,
    pub(super) pushes: Pushes,
    pub(super) held: Held,
    /// The slot; free when it is dropped.
    pub(super) slot: Option<OwnedSemaphorePermit>,
    /// What goes on at the moment: one thing at a time.
    pub(super) doing: Option<JoinHandle<Done>>,
    pub(super) progress: Progress,
}

/// What the steps so far have left.
#[derive(Default)]
pub(super) struct Progress {
    /// The workspace of the next step.
    workspace: Option<Workspace>,
    /// What the step that just ran left.
    left: Option<Workspace>,
    gate: Option<oneshot::Sender<bool>>,
    timers: Vec<(Timer, Instant)>,
    /// So many steps stand in the record with their end.
    closed: usize,
}

impl Progress {
    /// That of a run whose first steps an earlier owner has seen to their end.
    pub(super) fn after(steps: &[StepRecord]) -> Self {
        Self { closed: steps.iter().take_while(has_ended).count(), ..Self::default() }
    }
}

fn has_ended(step: &&StepRecord) -> bool {
    step.status != StepStatus::Started
}

/// What follows on the orders of one fact.
#[derive(Debug, PartialEq, Eq)]
enum Performed {
    GoOn,
    Finish,
    Release,
}

enum Next {
    Input(Input),
    Done(Done),
    Lost,
}

impl Drive {
    /// Drives the run to its end, or until it is lost.
    pub(super) async fn drive(mut self, first: Vec<Effect>) {
        let run_id = self.scope.run.clone();
        let ended = if self.run.record().status.is_ended() && first.is_empty() {
            self.conclude().await.map_err(Gone::Write)
        } else {
            self.drive_to_its_end(first).await
        };
        if let Err(cause) = ended {
            self.abandon().await;
            if let Some(lost) = self.let_go_of(cause).await {
                self.shared.put_lost(lost);
            }
        }
        self.shared.roster.strike(&run_id);
    }

    async fn drive_to_its_end(&mut self, first: Vec<Effect>) -> Result<(), Gone> {
        let mut effects = first;
        loop {
            match self.perform(effects).await? {
                Performed::GoOn => {}
                Performed::Finish => return Ok(self.finish().await?),
                Performed::Release => return Ok(self.release().await?),
            }
            let input = match self.next().await {
                Next::Input(input) => input,
                Next::Done(Done::NotOurs) => return Err(Gone::Write(WriteError::InDoubt)),
                Next::Done(Done::EngineAway(why)) => return Err(Gone::Engine(why)),
                Next::Done(done) => self.input_of(done),
                Next::Lost => return Err(Gone::Write(WriteError::Lost)),
            };
            effects = self.run.on(self.shared.ports.host.now(), input);
        }
    }

    async fn next(&mut self) -> Next {
        let _waits = waits();
        let timer = self.progress.timers.iter().min_by_key(|(_, at)| *at).copied();
        let expired = async {
            match timer {
                Some((timer, at)) => {
                    tokio::time::sleep_until(at).await;
                    timer
                }
                None => std::future::pending().await,
            }
        };
        let done = async {
            match &mut self.doing {
                Some(doing) => doing.await,
                None => std::future::pending().await,
            }
        };
        // Facts from outside go first: a stop must be known before the end that it brings about.
        tokio::select! {
            biased;
            () = self.held.lost.cancelled() => Next::Lost,
            Some(input) = self.inputs.recv() => Next::Input(input),
            done = done => {
                self.doing = None;
                Next::Done(done.unwrap_or_else(|cause| Done::Broke(
                    Cause::Engine,
                    format!("the worker's own code failed: {cause}"),
                    None,
                )))
            }
            timer = expired => {
                self.progress.timers.retain(|(other, _)| *other != timer);
                Next::Input(Input::Expired(timer))
            }
        }
    }

    fn input_of(&mut self, done: Done) -> Input {
        let progress = &mut self.progress;
        match done {
            Done::Prepared(workspace) => {
                progress.workspace = Some(workspace);
                Input::Prepared
            }
            Done::Adopted(workspace, steps) => {
                progress.workspace = Some(workspace);
                Input::Adopted(steps)
            }
            Done::ImageLost => Input::ImageLost,
            Done::Fetched(workspace) => {
                progress.workspace = Some(workspace);
                Input::Fetched
            }
            Done::Ran(ran, stdout_bytes, stderr_bytes) => {
                progress.left = Some(ran.left);
                let (code, oom) = (ran.exit.code, ran.exit.oom);
                Input::Exited(Exited { code, oom, stdout_bytes, stderr_bytes })
            }
            Done::Uploaded => Input::Uploaded,
            Done::Committed(workspace) => {
                let image = workspace.image().unwrap_or_default().to_owned();
                progress.workspace = Some(workspace);
                Input::Committed { image, engine: self.shared.engine.id.clone() }
            }
            // The drive has let go before it comes to these.
            Done::NotOurs => Self::let_go_before("the run is another owner's".to_owned()),
            Done::EngineAway(why) => Self::let_go_before(why),
            Done::Broke(cause, message, exit_code) => {
                Input::Broke { cause, message, exit_code, said: None }
            }
            Done::BrokeSaying(cause, message, exit_code, said) => {
                Input::Broke { cause, message, exit_code, said: Some(said) }
            }
        }
    }

    fn let_go_before(message: String) -> Input {
        Input::Broke { cause: Cause::Lost, message, exit_code: None, said: None }
    }

    /// Performs orders one after the other.
    async fn perform(&mut self, effects: Vec<Effect>) -> Result<Performed, WriteError> {
        for effect in effects {
            match effect {
                Effect::Save(mut record) => {
                    let (_, last_seq) = self.emitter.last().await;
                    // Fewer than at the last save, where one that had failed is begun again.
                    let ended = record.steps.iter().take_while(has_ended).count();
                    let closed = self.progress.closed.min(ended);
                    for record in [&mut *record, self.run.record_mut()] {
                        for step in record.steps.iter_mut().skip(closed) {
                            step.last_seq = last_seq;
                        }
                    }
                    self.ledger.save(&record, Also::Nothing).await?;
                    self.progress.closed = ended;
                }
                Effect::Emit(draft) => self.emitter.emit(draft).await,
                Effect::Prepare => {
                    let (shared, scope, stop) =
                        (Arc::clone(&self.shared), self.scope.clone(), self.stop.clone());
                    let again = self.run.record().attempt > 1;
                    self.begin(Box::pin(step::prepare(shared, scope, stop, again)));
                }
                Effect::Adopt(candidates) => {
                    let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
                    self.begin(Box::pin(step::adopt(shared, scope, candidates)));
                }
                Effect::Push(position) => self.push(position),
                Effect::Fetch(position) => self.fetch(position),
                Effect::Start(position) => self.start(position),
                Effect::OpenGate => {
                    if let Some(gate) = self.progress.gate.take() {
                        // Nobody waits where the container could not be made; that is a fact to come.
                        gate.send(true).ok();
                    }
                }
                Effect::Upload(position) => self.upload(position),
                Effect::Commit(position) => self.commit(position),
                Effect::Discard => {
                    if let Some(left) = self.progress.left.take() {
                        let _waits = waits();
                        self.shared.ports.executor.discard(&self.scope, left).await;
                    }
                }
                Effect::Interrupt => {
                    self.stop.raise(StopLevel::Stop { grace: self.shared.options.kill_grace });
                }
                Effect::SetTimer(timer, after) => {
                    self.progress.timers.push((timer, Instant::now() + after));
                }
                Effect::CancelTimer(timer) => {
                    self.progress.timers.retain(|(other, _)| *other != timer);
                }
                Effect::Finish => return Ok(Performed::Finish),
                Effect::Release => return Ok(Performed::Release),
            }
        }
        Ok(Performed::GoOn)
    }

    fn begin(&mut self, doing: BoxFuture<'static, Done>) {
        self.doing = Some(self.shared.tasks.spawn(doing));
    }

    fn pipeline(&self) -> Option<&Pipeline> {
        self.run.record().pipeline.as_ref()
    }

    fn step(&self, position: usize) -> Option<&Step> {
        self.pipeline()?.steps.get(position)
    }

    fn broke(&mut self, what: &str) {
        // The rules order only what they have seen begin; this keeps a wrong order from being silent.
        let done = Done::Broke(Cause::Engine, format!("nothing is there to {what}"), None);
        self.begin(Box::pin(async move { done }));
    }

    fn fetch(&mut self, position: usize) {
        let resource = self
            .step(position)
            .and_then(|step| self.pipeline()?.resource(step.needs_resource.as_deref()?))
            .cloned();
        let (Some(resource), Some(on)) = (resource, self.progress.workspace.clone()) else {
            return self.broke("fetch");
        };
        self.tell_logger(&format!("fetching and mounting resource {}", resource.name));
        let (shared, scope, stop) =
            (Arc::clone(&self.shared), self.scope.clone(), self.stop.clone());
        self.begin(Box::pin(step::fetch(shared, scope, on, resource, stop)));
    }

    fn start(&mut self, position: usize) {
        let options = &self.shared.options;
        let record = self.run.record();
        let (Some(pipeline), Some(on)) = (&record.pipeline, self.progress.workspace.clone()) else {
            return self.broke("start");
        };
        let Some(step) = pipeline.steps.get(position) else { return self.broke("start") };
        let limits = pipeline.quotas.as_ref().and_then(|quotas| quotas.limits.clone());
        let network = step.network.as_ref().or(pipeline.network.as_ref());
        let spec = StepSpec {
            name: step.name.clone(),
            position,
            attempt: self.attempt(),
            words: step.cmd.as_ref().map(Cmd::words).unwrap_or_default(),
            env: env::of_step(pipeline, &record.vars, step),
            work_dir: env::work_dir(step),
            network: network.or(options.network.as_ref()).cloned(),
            limits: limits.unwrap_or_default(),
        };
        let output = Arc::new(Output::new(
            Arc::clone(&self.emitter),
            self.feed.clone(),
            spec.name.clone(),
            spec.attempt,
        ));
        let (open, opened) = oneshot::channel();
        self.progress.gate = Some(open);
        let held = self.held.clone();
        let asked = (self.held.clone(), Arc::clone(&self.shared.ports.host));
        let stands = move || asked.0.stands(&*asked.1);
        let gate = Gate::new(async move { opened.await.unwrap_or(false) }, stands);
        let (shared, scope, stop) =
            (Arc::clone(&self.shared), self.scope.clone(), self.stop.clone());
        self.begin(Box::pin(async move {
            let in_time = {
                let output = Arc::clone(&output);
                shared.tasks.spawn(async move { output.publish_in_time().await })
            };
            let sink: Arc<dyn LogSink> = Arc::clone(&output) as Arc<dyn LogSink>;
            let executor = &shared.ports.executor;
            let ran = executor.run_step(&scope, &on, &spec, gate, sink, &stop).await;
            let (stdout, stderr) = output.finish().await;
            in_time.abort();
            // A worker that was held up sees the guard's killing before it sees that its lease is
            // lost; where it is, the drive hears of that first.
            held.settled(&*shared.ports.host).await;
            match ran {
                Ok(ran) => step::ended(&shared, &scope, ran, &stop, (stdout, stderr)).await,
                Err(ExecError::NotStarted) if stop.level() == StopLevel::Run => Done::NotOurs,
                Err(cause) => step::broke_saying(&shared, &cause, (stdout, stderr)).await,
            }
        }));
    }

    fn upload(&mut self, position: usize) {
        let artifact = self.step(position).and_then(|step| step.produces_artifact.clone());
        let (Some(artifact), Some(left)) = (artifact, self.progress.left.clone()) else {
            return self.broke("upload");
        };
        self.tell_logger(&format!("uploading artifact {}", artifact.name));
        let record = self.run.record();
        let names = (record.group.clone(), record.name.clone());
        let artifact = (artifact, self.attempt());
        let (shared, scope, stop) =
            (Arc::clone(&self.shared), self.scope.clone(), self.stop.clone());
        self.begin(Box::pin(step::upload(shared, scope, left, names, artifact, stop)));
    }

    /// The attempt at the step that runs.
    fn attempt(&self) -> u32 {
        self.run.record().steps.last().map_or(1, |step| step.attempt)
    }

    /// A step that has ended, as far as its name goes.
    fn ended_step(&self, position: usize, attempt: u32) -> Option<StepSpec> {
        self.step(position).map(|step| StepSpec {
            name: step.name.clone(),
            position,
            attempt,
            words: Vec::new(),
            env: protocol::pipeline::Vars::new(),
            work_dir: None,
            network: None,
            limits: protocol::pipeline::Limits::default(),
        })
    }

    fn push(&mut self, position: usize) {
        let attempt = self.run.record().steps.get(position).map_or(1, |step| step.attempt);
        let spec = self.ended_step(position, attempt);
        if let (Some(step), Some(kept)) = (spec, self.progress.workspace.clone())
            && self.shared.engine.checkpoints
        {
            let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
            self.pushes.add(shared, Push { scope, kept, step, tell: self.tell.clone() });
        }
    }

    fn commit(&mut self, position: usize) {
        let spec = self.ended_step(position, self.attempt());
        let (Some(spec), Some(left)) = (spec, self.progress.left.take()) else {
            return self.broke("commit");
        };
        let (shared, scope) = (Arc::clone(&self.shared), self.scope.clone());
        self.begin(Box::pin(async move {
            match shared.ports.executor.checkpoint(&scope, left, &spec).await {
                Ok(workspace) => Done::Committed(workspace),
                Err(cause) => step::broke(&shared, &cause).await,
            }
        }));
    }

    /// A line of our own in the run's external log.
    pub(super) fn tell_logger(&self, line: &str) {
        if let Some(feed) = &self.feed {
            feed.push(format!("[bob] {line}\n").into());
        }
    }

    /// The run is not ours any more: kill what runs, publish nothing, remove nothing that a next
    /// owner needs.
    async fn abandon(&mut self) {
        // The executor proves the container gone; its own deadlines bound this.
        let _waits = waits();
        self.stop.raise(StopLevel::Kill);
        self.pushes.stop().await;
        self.progress.gate = None;
        self.shared.ports.events.discard(&self.scope.run, self.scope.epoch);
        if let Some(doing) = self.doing.take() {
            if let Ok(Done::Ran(ran, _, _)) = doing.await {
                self.progress.left = Some(ran.left);
            }
        }
        if let Some(left) = self.progress.left.take() {
            self.shared.ports.executor.discard(&self.scope, left).await;
        }
    }
}
