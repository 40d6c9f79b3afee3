//! Drives one run: reports facts to the rules and carries out their orders. Makes no decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use protocol::id::StepName;
use protocol::pipeline::{Graph, Pipeline, Step};
use protocol::run::{Cause, StepRecord, StepStatus};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::emitter::Emitter;
use super::gone::DriveError;
use super::job_log;
use super::lease::HeldLease;
use super::ledger::{Ledger, WriteError, WriteExtra};
use super::output::{Budget, Output};
use super::push::Pushes;
use super::secrets::RunSecrets;
use super::step::{self, Completion};
use super::watchdog::waits;
use crate::ports::{Exit, LoggerFeed, RunScope, StepSecret, StopLevel, StopSignal, Workspace};
use crate::rules::run::{Effect, EventDraft, Exited, Input, Run, Timer, joined, may_be_joined};

/// A run driven by this worker.
pub(super) struct Drive {
    pub(super) shared: Arc<Shared>,
    pub(super) run: Run,
    pub(super) ledger: Ledger,
    pub(super) emitter: Arc<Emitter>,
    pub(super) feed: Option<Arc<dyn LoggerFeed>>,
    pub(super) scope: RunScope,
    pub(super) stop: StopSignal,
    /// Raised by a hand-over, for steps that may run again. A part of `stop`.
    pub(super) leave: StopSignal,
    pub(super) inputs: mpsc::UnboundedReceiver<Input>,
    /// Sends facts to this drive.
    pub(super) tell: mpsc::UnboundedSender<Input>,
    pub(super) pushes: Pushes,
    pub(super) held: HeldLease,
    /// The slot, which is released on drop.
    pub(super) slot: Option<OwnedSemaphorePermit>,
    /// Operations in progress: for the step at a position, or for the whole run.
    pub(super) doing: FuturesUnordered<OperationEnd>,
    pub(super) graph: Graph,
    pub(super) progress: Progress,
    pub(super) secrets: RunSecrets,
    /// The output budget of the run's steps.
    pub(super) budget: Budget,
}

/// The completion of an operation.
type OperationEnd = Pin<Box<dyn Future<Output = (Option<usize>, Completion)> + Send + Sync>>;

/// What the run's steps have left so far.
#[derive(Default)]
pub(super) struct Progress {
    /// The workspace from which the first steps start.
    base: Option<Workspace>,
    /// The committed workspaces of steps, by position.
    pub(super) kept: BTreeMap<usize, Workspace>,
    /// The steps that were started, by position.
    pub(super) steps: BTreeMap<usize, RunningStep>,
    timers: Vec<(Timer, Instant)>,
    /// Notices about steps that are not yet published.
    notes: Vec<(Arc<Output>, String)>,
    /// The steps that are recorded as ended.
    closed: BTreeSet<StepName>,
}

/// A step in progress.
#[derive(Default)]
pub(super) struct RunningStep {
    /// The workspace it starts from, if a resource was mounted into it.
    on: Option<Workspace>,
    /// The workspace it left.
    pub(super) left: Option<Workspace>,
    pub(super) gate: Option<oneshot::Sender<bool>>,
    pub(super) output: Option<Arc<Output>>,
    pub(super) stop: StopSignal,
    pub(super) given: Vec<StepSecret>,
}

impl Progress {
    /// Creates the progress of a run whose earlier owner completed some steps.
    pub(super) fn after(steps: &[StepRecord]) -> Self {
        Self { closed: ended(steps), ..Self::default() }
    }
}

fn ended(steps: &[StepRecord]) -> BTreeSet<StepName> {
    let ended = steps.iter().filter(|step| step.status != StepStatus::Started);
    ended.map(|step| step.name.clone()).collect()
}

/// How many facts are joined into one write at most: etcd accepts 128 operations in a transaction, and
/// each fact can add a callback.
const MOST_JOINED: usize = 30;

/// What follows on the orders of one fact.
#[derive(Debug, PartialEq, Eq)]
enum Performed {
    Resume,
    Finish,
    Release,
}

enum Next {
    Input(Input),
    Done(Option<usize>, Completion),
    Lost,
}

impl Drive {
    /// Drives the run until it ends or is lost.
    pub(super) async fn drive(mut self, first: Vec<Effect>) {
        let run_id = self.scope.run.clone();
        let ended = if self.run.record().status.is_ended() && first.is_empty() {
            self.conclude().await.map_err(DriveError::Write)
        } else {
            self.drive_to_its_end(first).await
        };
        if ended.is_ok() {
            self.shared.reclaims.forget(&run_id);
        }
        if let Err(cause) = ended {
            // The remaining work needs no slot.
            self.slot = None;
            self.abandon().await;
            if let Some(lost) = self.give_up_run(cause).await {
                self.shared.put_lost(lost);
            }
        }
        self.report_dropped().await;
        self.shared.roster.remove(&run_id);
    }

    async fn drive_to_its_end(&mut self, first: Vec<Effect>) -> Result<(), DriveError> {
        self.recall_secrets().await;
        let mut effects = first;
        loop {
            match self.perform(effects).await? {
                Performed::Resume => {}
                Performed::Finish => return Ok(self.finish().await?),
                Performed::Release => return Ok(self.release().await?),
            }
            effects = self.follow().await?;
        }
    }

    /// Waits for a fact and returns the orders for it and all other pending facts. Steps that end
    /// together share one write of the record.
    async fn follow(&mut self) -> Result<Vec<Effect>, DriveError> {
        let mut lists = Vec::new();
        let mut next = Some(self.next().await);
        while let Some(fact) = next {
            let input = match fact {
                Next::Input(input) => input,
                Next::Done(_, Completion::OwnershipLost) => {
                    return Err(DriveError::Write(WriteError::InDoubt));
                }
                Next::Done(_, Completion::EngineAway(why)) => return Err(DriveError::Engine(why)),
                Next::Done(at, done) => self.input_of(at, done),
                Next::Lost => return Err(DriveError::Write(WriteError::Lost)),
            };
            let list = self.run.on(self.shared.ports.host.now(), input);
            let goes_on = may_be_joined(&list);
            lists.push(list);
            for (output, note) in std::mem::take(&mut self.progress.notes) {
                output.note(&note).await;
            }
            let joins = goes_on && lists.len() < MOST_JOINED;
            next = if joins { self.next().now_or_never() } else { None };
        }
        Ok(joined(lists))
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
        // Facts from outside come first: a stop must be known before the exit that it causes.
        tokio::select! {
            biased;
            () = self.held.lost.cancelled() => Next::Lost,
            Some(input) = self.inputs.recv() => Next::Input(input),
            Some((at, done)) = self.doing.next() => Next::Done(at, done),
            timer = expired => {
                self.progress.timers.retain(|(other, _)| *other != timer);
                Next::Input(Input::Expired(timer))
            }
        }
    }

    /// Converts the completion of an operation to a fact.
    fn input_of(&mut self, at: Option<usize>, done: Completion) -> Input {
        let mask = self.secrets.mask();
        let broke = |cause, message: String, exit_code, said| {
            let message = mask.text(&message);
            Input::Broke { at, cause, message, exit_code, said }
        };
        let position = at.unwrap_or_default();
        let progress = &mut self.progress;
        match done {
            Completion::Prepared(workspace) => {
                progress.base = Some(workspace);
                Input::Prepared
            }
            Completion::Adopted(had, missing) => {
                progress.kept.extend(had);
                Input::Adopted { missing }
            }
            Completion::Fetched(workspace) => {
                progress.steps.entry(position).or_default().on = Some(workspace);
                Input::Fetched(position)
            }
            Completion::Ran(ran, stdout_bytes, stderr_bytes) => {
                let step = progress.steps.entry(position).or_default();
                step.left = Some(ran.left);
                let Exit { code, oom } = ran.exit;
                if let Some(result) = ran.result
                    && let Err(why) = self.run.record_result(position, result)
                {
                    progress.notes.extend(step.output.clone().map(|output| (output, why)));
                }
                if code == 0 {
                    // Only the output of a failed step is needed later.
                    step.output = None;
                }
                Input::Exited(position, Exited { code, oom, stdout_bytes, stderr_bytes })
            }
            Completion::Uploaded => Input::Uploaded(position),
            Completion::Committed(workspace) => {
                let image = workspace.image().unwrap_or_default().to_owned();
                progress.kept.insert(position, workspace);
                let engine = self.shared.engine.id.clone();
                Input::Committed { position, image, engine }
            }
            Completion::Broke(cause, message, exit_code) => broke(cause, message, exit_code, None),
            Completion::BrokeSaying(cause, message, exit_code, said) => {
                broke(cause, message, exit_code, Some(said))
            }
            // `follow` has handled these and releases the run.
            Completion::OwnershipLost | Completion::EngineAway(_) => {
                broke(Cause::Lost, "the run is let go".to_owned(), None, None)
            }
        }
    }

    /// Carries out orders in sequence.
    async fn perform(&mut self, effects: Vec<Effect>) -> Result<Performed, WriteError> {
        for effect in effects {
            match effect {
                Effect::Save(mut record) => {
                    let (_, last_seq) = self.emitter.last().await;
                    // Steps that failed and were started again are no longer closed.
                    let ended = ended(&record.steps);
                    self.progress.closed.retain(|step| ended.contains(step));
                    for record in [&mut *record, self.run.record_mut()] {
                        record.last_seq = last_seq;
                        let open =
                            |step: &&mut StepRecord| !self.progress.closed.contains(&step.name);
                        for step in record.steps.iter_mut().filter(open) {
                            step.last_seq = last_seq;
                        }
                    }
                    self.ledger.save(&record, WriteExtra::Nothing).await?;
                    self.progress.closed = ended;
                }
                Effect::Emit(draft) => self.emit(draft).await,
                Effect::Prepare => {
                    let (shared, scope, stop) =
                        (Arc::clone(&self.shared), self.scope.clone(), self.leave.clone());
                    let again = self.run.record().attempt > 1;
                    self.begin(None, Box::pin(step::prepare(shared, scope, stop, again)));
                }
                Effect::Adopt(kept) => {
                    let (shared, scope, stop) =
                        (Arc::clone(&self.shared), self.scope.clone(), self.leave.clone());
                    self.begin(None, Box::pin(step::adopt(shared, scope, kept, stop)));
                }
                Effect::Push(position) => self.push(position),
                Effect::Fetch(position) => self.fetch(position),
                Effect::Start(position) => {
                    let secrets = self.look_up_secrets(position).await;
                    self.start(position, secrets);
                }
                Effect::OpenGate(position) => {
                    let gate = self.progress.steps.get_mut(&position);
                    if let Some(gate) = gate.and_then(|step| step.gate.take()) {
                        // There is no receiver if the container could not be created, which is a
                        // later fact.
                        gate.send(true).ok();
                    }
                }
                Effect::Upload(position) => self.upload(position),
                Effect::Commit(position) => self.commit(position),
                Effect::Discard(position) => {
                    let left = self.progress.steps.get_mut(&position);
                    if let Some(left) = left.and_then(|step| step.left.take()) {
                        let _waits = waits();
                        self.shared.ports.executor.discard(&self.scope, left).await;
                    }
                }
                Effect::Interrupt => {
                    self.stop.raise(StopLevel::Stop { grace: self.shared.options.kill_grace });
                }
                Effect::InterruptRepeatable => {
                    self.leave.raise(StopLevel::Stop { grace: self.shared.options.kill_grace });
                }
                Effect::InterruptStep(position) => {
                    let grace = self.shared.options.kill_grace;
                    self.raise(position, StopLevel::Stop { grace });
                }
                Effect::KillStep(position) => self.raise(position, StopLevel::Kill),
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
        Ok(Performed::Resume)
    }

    async fn emit(&self, draft: EventDraft) {
        let draft = self.masked(draft);
        job_log::progress(self.run.record(), &draft);
        self.emitter.emit(draft).await;
    }

    /// Starts an operation for a step or for the whole run.
    pub(super) fn begin(&mut self, at: Option<usize>, doing: BoxFuture<'static, Completion>) {
        let doing = self.shared.tasks.spawn(doing);
        let done = doing.map(move |done| {
            let failed = |cause| format!("the worker's own code failed: {cause}");
            (at, done.unwrap_or_else(|cause| Completion::Broke(Cause::Engine, failed(cause), None)))
        });
        self.doing.push(Box::pin(done));
    }

    pub(super) fn pipeline(&self) -> Option<&Pipeline> {
        self.run.record().pipeline.as_ref()
    }

    pub(super) fn step(&self, position: usize) -> Option<&Step> {
        self.pipeline()?.step(position)
    }

    pub(super) fn log_broken(&mut self, position: usize, what: &str) {
        // The rules only order what was started before. This reports a wrong order.
        let done = Completion::Broke(Cause::Engine, format!("nothing is there to {what}"), None);
        self.begin(Some(position), Box::pin(async move { done }));
    }

    /// Returns the workspace that a step starts from.
    pub(super) fn on(&self, position: usize) -> Option<Workspace> {
        let progress = &self.progress;
        if let Some(on) = progress.steps.get(&position).and_then(|step| step.on.clone()) {
            return Some(on);
        }
        if self.step(position).is_some_and(|step| !step.is_on_image()) {
            return Some(Workspace::None);
        }
        let mut before = self.graph.begins_on(position);
        while let Some(at) = before {
            if let Some(kept) = progress.kept.get(&at) {
                return Some(kept.clone());
            }
            // The step was allowed to fail, and left no image.
            before = self.graph.begins_on(at);
        }
        progress.base.clone()
    }

    /// Asks the step at a position to end.
    fn raise(&self, position: usize, level: StopLevel) {
        if let Some(step) = self.progress.steps.get(&position) {
            step.stop.raise(level);
        }
    }

    /// Creates the stop signal of an attempt. A hand-over raises it only if the step may run again.
    pub(super) fn stop_of(&mut self, position: usize) -> StopSignal {
        let may_repeat = self.step(position).is_none_or(Step::may_repeat);
        let stop = if may_repeat { self.leave.part() } else { self.stop.part() };
        self.progress.steps.entry(position).or_default().stop = stop.clone();
        stop
    }

    /// Writes a line to the run's external log.
    pub(super) fn log_line(&self, line: &str) {
        if let Some(feed) = &self.feed {
            feed.push(format!("[bob] {}\n", self.secrets.mask().text(line)).into());
        }
    }

    /// Abandons a run that this worker no longer owns: kills its steps, publishes nothing, and
    /// removes nothing that the next owner needs.
    async fn abandon(&mut self) {
        // The executor verifies that the container is gone, within its own timeouts.
        let _waits = waits();
        self.stop.raise(StopLevel::Kill);
        self.pushes.stop().await;
        self.progress.steps.values_mut().for_each(|step| step.gate = None);
        self.shared.ports.events.discard(&self.scope.run, self.scope.epoch);
        let mut left: Vec<Workspace> = Vec::new();
        while let Some((_, done)) = self.doing.next().await {
            if let Completion::Ran(ran, _, _) = done {
                left.push(ran.left);
            }
        }
        left.extend(self.progress.steps.values_mut().filter_map(|step| step.left.take()));
        for left in left {
            self.shared.ports.executor.discard(&self.scope, left).await;
        }
    }
}
