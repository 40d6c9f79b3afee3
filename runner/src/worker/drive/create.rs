//! Creates the drive of a claimed run.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use protocol::id::RunId;
use protocol::pipeline::Pipeline;
use protocol::run::RunRecord;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use super::emitter::Emitter;
use super::ledger::{Ledger, Outbox};
use super::output::Budget;
use super::progress::Progress;
use super::push::Pushes;
use super::run_secrets::RunSecrets;
use super::state::{Drive, Signals};
use crate::ports::{Claim, LoggerFeed, RunScope};
use crate::rules::callback::NotifiedStages;
use crate::rules::env;
use crate::rules::run::Run;
use crate::worker::lease::HeldLease;
use crate::worker::records::Ownership;
use crate::worker::shared::Shared;
use crate::worker::watchdog::Heartbeat;

/// A run that this worker has claimed, before it is driven.
pub(in crate::worker) struct ClaimedRun {
    pub(in crate::worker) shared: Arc<Shared>,
    pub(in crate::worker) signals: Signals,
    pub(in crate::worker) held: HeldLease,
    pub(in crate::worker) owned: Ownership,
    /// The slot, which is released at the run's end.
    pub(in crate::worker) slot: Option<OwnedSemaphorePermit>,
}

impl ClaimedRun {
    /// Returns the scope of the run for the executor.
    pub(super) fn scope(&self) -> RunScope {
        let Ownership { claim, record, .. } = &self.owned;
        scope(&self.shared, claim, record.pipeline.as_ref())
    }

    /// Creates the drive of the run, for the task with this heartbeat.
    pub(super) fn into_drive(self, heartbeat: Heartbeat) -> Drive {
        let scope = self.scope();
        let Self { shared, signals, held, owned, slot } = self;
        let Ownership { claim, record, modified, logger_url } = owned;
        let emitter = emitter(&shared, &held, &claim, &record);
        let feed = logger_url.and_then(|url| feed(&shared, &claim.run, &url));
        let pipeline = record.pipeline.as_ref();
        shared.roster.drive(&claim.run, pipeline.map(longest_grace).unwrap_or_default());
        let graph = pipeline.map(Pipeline::graph).unwrap_or_default();
        let at_once = steps_at_once(pipeline, shared.options.parallel_steps);
        let progress = Progress::after(&record.steps);
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
        let (node, epoch) = (claim.node.clone(), claim.epoch);
        let store = Arc::clone(&shared.ports.store);
        Drive {
            heartbeat,
            run: Run::claimed(record, node, epoch, at_once),
            graph,
            ledger: Ledger::new(store, claim, modified, held.lost.clone(), outbox),
            emitter,
            feed,
            scope,
            signals,
            pushes: Pushes::default(),
            held,
            slot,
            doing: FuturesUnordered::new(),
            progress,
            secrets,
            budget,
            shared,
        }
    }
}

fn emitter(shared: &Shared, held: &HeldLease, claim: &Claim, record: &RunRecord) -> Arc<Emitter> {
    Arc::new(Emitter::new(
        Arc::clone(&shared.ports.events),
        Arc::clone(&shared.ports.host),
        record,
        (claim.node.clone(), claim.epoch),
        held.lost.clone(),
        shared.leaving.clone(),
    ))
}

/// Opens the feed of the run's external logger.
fn feed(shared: &Shared, run: &RunId, url: &str) -> Option<Arc<dyn LoggerFeed>> {
    match shared.ports.transfer.logger(url, run) {
        Ok(feed) => Some(Arc::from(feed)),
        Err(cause) => {
            warn!(run.id = %run, %cause, "the run's logger gets nothing");
            None
        }
    }
}

fn scope(shared: &Shared, claim: &Claim, pipeline: Option<&Pipeline>) -> RunScope {
    RunScope {
        cluster: Arc::clone(&shared.cluster),
        run: claim.run.clone(),
        epoch: claim.epoch,
        image: pipeline.and_then(|pipeline| pipeline.image.clone()).unwrap_or_default(),
        pull: pipeline.and_then(env::pull).unwrap_or(shared.options.pull),
        has_own_images: pipeline.is_some_and(has_own_images),
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
    steps.any(|step| step.has_own_image())
}
