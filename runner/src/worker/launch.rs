//! Starts the drive of a claimed run.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use protocol::event::{Reason, Severity};
use protocol::id::RunId;
use protocol::names;
use protocol::pipeline::{ExecutorKind, Pipeline};
use protocol::run::{Cause, RunRecord};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::claim::Claimed;
use super::drive::{Drive, Progress};
use super::emitter::Emitter;
use super::gone::prove_ended;
use super::lease::HeldLease;
use super::ledger::{Ledger, Outbox};
use super::orphan::Orphan;
use super::output::Budget;
use super::push::Pushes;
use super::retry::Retry;
use super::roster::Handle;
use super::secrets::RunSecrets;
use super::verdict::Verdict;
use super::watchdog::{Failed, watched};
use super::{Lost, Shared};
use crate::ports::{Claim, LoggerFeed, RunScope, StopLevel, StopSignal, Txn};
use crate::rules::callback::NotifiedStages;
use crate::rules::env;
use crate::rules::run::{Effect, EventDraft, Input, Run, StopWhy};

/// A place in the roster, reserved before the claim.
#[must_use = "a place that is neither used nor cancelled keeps its run from ever being taken here"]
pub(super) struct Launch {
    shared: Arc<Shared>,
    run: RunId,
    stop: StopSignal,
    leave: StopSignal,
    inputs: mpsc::UnboundedReceiver<Input>,
    tell: mpsc::UnboundedSender<Input>,
}

/// A run claimed by this worker.
struct OwnedRun {
    claim: Claim,
    record: RunRecord,
    modified: i64,
    logger_url: Option<String>,
}

impl From<Orphan> for OwnedRun {
    fn from(orphan: Orphan) -> Self {
        let Orphan { claim, record, modified, logger_url, past: _ } = orphan;
        Self { claim, record, modified, logger_url }
    }
}

impl Launch {
    /// Enters the roster. Returns `None` if the run is there already.
    pub(super) fn enter(shared: &Arc<Shared>, run: &RunId) -> Option<Self> {
        let (sender, inputs) = mpsc::unbounded_channel();
        let stop = StopSignal::default();
        let leave = stop.part();
        let handle = Handle {
            inputs: sender.clone(),
            stop: stop.clone(),
            leave: leave.clone(),
            longest_grace: None,
        };
        let (shared, tell) = (Arc::clone(shared), sender);
        let entered = shared.roster.enter(run, handle);
        entered.then(|| Self { run: run.clone(), stop, leave, inputs, tell, shared })
    }

    /// Returns the place.
    pub(super) fn cancel(self) {
        self.shared.roster.remove(&self.run);
    }

    /// Drives a new run, and releases `slot` at its end. `named`: the sender chose the run ID.
    pub(super) fn drive_new(
        self,
        held: &HeldLease,
        claimed: Claimed,
        named: bool,
        slot: Option<OwnedSemaphorePermit>,
    ) {
        let Claimed { claim, record, modified, verdict, logger_url } = claimed;
        let now = self.shared.ports.host.now();
        let mine = OwnedRun { claim, record, modified, logger_url };
        let scheduled = scheduled(&self.run, named);
        let mut drive = self.into_drive(held, mine, slot);
        let mut first = vec![scheduled];
        first.extend(match verdict {
            Verdict::Run => drive.run.begin(now),
            Verdict::Resume(_) => drive.run.begin_after(now),
            Verdict::Refuse(cause, why) => drive.run.refuse(now, cause, &why),
            Verdict::Stop(why) => drive.run.stop_now(now, &why),
        });
        spawn(drive, first);
    }

    /// Resumes a run from an earlier owner.
    pub(super) fn resume(self, held: &HeldLease, orphan: Orphan, slot: OwnedSemaphorePermit) {
        let now = self.shared.ports.host.now();
        let (past, max_losses) = (orphan.past.clone(), self.shared.options.max_losses);
        let mut drive = self.into_drive(held, orphan.into(), Some(slot));
        let first = drive.run.resume(now, past, max_losses);
        spawn(drive, first);
    }

    /// Ends an orphan as stopped.
    pub(super) fn end_stopped(self, held: &HeldLease, orphan: Orphan, why: &StopWhy) {
        let now = self.shared.ports.host.now();
        let mut drive = self.into_drive(held, orphan.into(), None);
        let first = drive.run.stop_now(now, why);
        spawn(drive, first);
    }

    /// Ends a run that this worker had lost as failed.
    pub(super) fn end_lost(self, held: &HeldLease, orphan: Orphan, cause: Cause, why: &str) {
        let now = self.shared.ports.host.now();
        let mut drive = self.into_drive(held, orphan.into(), None);
        let first = drive.run.refuse(now, cause, why);
        spawn(drive, first);
    }

    /// Completes a run whose ending is recorded.
    pub(super) fn conclude(self, held: &HeldLease, orphan: Orphan) {
        spawn(self.into_drive(held, orphan.into(), None), Vec::new());
    }

    fn into_drive(
        self,
        held: &HeldLease,
        mine: OwnedRun,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Drive {
        let Self { shared, run, stop, leave, inputs, tell } = self;
        let OwnedRun { claim, record, modified, logger_url } = mine;
        let owner = (claim.node.clone(), claim.epoch);
        let emitter = Arc::new(Emitter::new(
            Arc::clone(&shared.ports.events),
            Arc::clone(&shared.ports.host),
            &record,
            owner,
            held.lost.clone(),
            shared.leaving.clone(),
        ));
        let feed = logger_url.and_then(|url| match shared.ports.transfer.logger(&url, &run) {
            Ok(feed) => Some(Arc::from(feed) as Arc<dyn LoggerFeed>),
            Err(cause) => {
                warn!(run.id = %run, %cause, "the run's logger gets nothing");
                None
            }
        });
        let pipeline = record.pipeline.as_ref();
        shared.roster.drive(&run, pipeline.map(longest_grace).unwrap_or_default());
        let scope = RunScope {
            cluster: Arc::clone(&shared.cluster),
            run,
            epoch: claim.epoch,
            image: pipeline.and_then(|pipeline| pipeline.image.clone()).unwrap_or_default(),
            pull: pipeline.and_then(env::pull).unwrap_or(shared.options.pull),
            has_own_images: pipeline.is_some_and(has_own_images),
        };
        let (node, epoch) = (claim.node.clone(), claim.epoch);
        let progress = Progress::after(&record.steps);
        let store = Arc::clone(&shared.ports.store);
        let graph = pipeline.map(Pipeline::graph).unwrap_or_default();
        let at_once = steps_at_once(pipeline, shared.options.parallel_steps);
        let secrets = RunSecrets::of(&record);
        let written = record.steps.iter().map(|step| step.stdout_bytes + step.stderr_bytes);
        let budget = Budget::new(shared.options.log_limit, written.sum());
        let outbox = Outbox {
            told: NotifiedStages::of(&record),
            logs: shared.options.logs.clone(),
            host: Arc::clone(&shared.ports.host),
            inbox: Arc::clone(&shared.callbacks),
            mask: secrets.mask(),
        };
        Drive {
            run: Run::claimed(record, node, epoch, at_once),
            graph,
            ledger: Ledger::new(store, claim, modified, held.lost.clone(), outbox),
            emitter,
            feed,
            scope,
            stop,
            leave,
            inputs,
            tell,
            pushes: Pushes::default(),
            held: held.clone(),
            slot,
            doing: FuturesUnordered::new(),
            progress,
            secrets,
            budget,
            shared,
        }
    }
}

/// How many steps of a run with callbacks run at once at most. Each start and each end of such a step
/// adds an entry to the transaction that records it, and etcd accepts 128 operations in one.
const STEPS_WITH_CALLBACKS: usize = 48;

/// How many steps of a pipeline run at once: what the settings allow, and fewer if steps have
/// callbacks.
fn steps_at_once(pipeline: Option<&Pipeline>, limit: usize) -> usize {
    let calls_back = |pipeline: &Pipeline| pipeline.all_steps().any(|step| step.callback.is_some());
    if pipeline.is_some_and(calls_back) { limit.min(STEPS_WITH_CALLBACKS) } else { limit }
}

/// The longest kill-grace that a step of a pipeline asks for.
fn longest_grace(pipeline: &Pipeline) -> Duration {
    let steps = pipeline.all_steps();
    let graces = steps.filter_map(|step| step.kill_grace);
    graces.map(|grace| grace.as_duration()).max().unwrap_or_default()
}

fn has_own_images(pipeline: &Pipeline) -> bool {
    let mut steps = pipeline.steps.iter().chain(pipeline.on_error.as_deref());
    steps.any(|step| {
        matches!(step.executor, ExecutorKind::Docker) && step.with.contains_key("image")
    })
}

fn scheduled(run: &RunId, named: bool) -> Effect {
    let reason = Reason::PipelineRunScheduled { waiting: false };
    let (message, severity) = if named {
        (format!("run {run} was accepted"), None)
    } else {
        let message = format!(
            "run {run} was accepted from a message without run-id and message_id: a lost \
             acknowledgement can run it twice"
        );
        (message, Some(Severity::Warning))
    };
    Effect::Emit(EventDraft { reason, message, step: None, severity })
}

/// Spawns the drive. A live worker must not own a run that it does not drive.
///
/// If the drive panics, its run is released at once, to be claimed again and ended. If the drive
/// stalls, its run is released as if the worker had died.
fn spawn(drive: Drive, first: Vec<Effect>) {
    let (shared, scope) = (Arc::clone(&drive.shared), drive.scope.clone());
    let run = scope.run.clone();
    let (stop, claim) = (drive.stop.clone(), drive.ledger.claim().clone());
    let lost = drive.held.lost.clone();
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        let driven = Box::pin(drive.drive(first));
        let driven = watched(&shared.tasks, shared.watchdog.span(), driven).await;
        let Err(cause) = driven else { return };
        error!(run.id = %run, %cause, "the drive of run {run} is out of order; this is a fault of bob-runner");
        stop.raise(StopLevel::Kill);
        shared.ports.events.discard(&run, claim.epoch);
        let is_gone_on_with = match cause {
            Failed::StoodStill(_) => shared.options.rescue,
            // The next drive would panic too.
            Failed::Panicked(_) => false,
        };
        if !is_gone_on_with {
            // Added to the list before the release and kept in the roster until then. Otherwise
            // this worker's own rescue could find the run without an owner and resume it.
            let why = "its worker failed; the worker's log says how".to_owned();
            shared.put_lost(Lost::new(run.clone(), Cause::Engine, why));
        }
        prove_ended(&shared, &scope).await;
        release(&shared, &claim, &lost).await;
        shared.roster.remove(&run);
    });
}

/// Releases the claim, retrying until etcd answers. A worker must not own a run it is not driving.
/// If the lease is lost, the claim is too.
pub(super) async fn release(shared: &Shared, claim: &Claim, lost: &CancellationToken) {
    let run = &claim.run;
    let attempt = || async {
        let txn = claim.fenced(Txn::new().delete(names::owner_key(run)));
        match shared.ports.store.txn(txn).await {
            Ok(_) => ControlFlow::Break(()),
            Err(cause) if cause.is_invalid_request() => {
                warn!(run.id = %run, %cause, "run {run} is not released");
                ControlFlow::Break(())
            }
            Err(cause) => {
                warn!(run.id = %run, %cause, "run {run} is not released yet");
                ControlFlow::Continue(())
            }
        }
    };
    Retry::of_store(&*shared.ports.host).until(lost, attempt).await;
}
