//! Decides what a worker does with a run that has no owner.

use std::time::Duration;

use protocol::definition::Stored;
use protocol::id::RunId;
use protocol::names;
use protocol::pipeline::Pipeline;
use protocol::run::{NodeEntry, NodeState, Open, RunRecord, StepStatus, StopEntry};
use tokio::time::Instant;
use tracing::warn;

use super::lease::HeldLease;
use super::records::{RunKey, RunKeys, RunTxn as _, read_record};
use super::shared::Shared;
use crate::ports::{Entry, StoreError, Txn};
use crate::rules::quota::{self, MemoryFit};

/// The interval between scans for runs without an owner.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The head start of workers on the engine with the last image, if other workers can fetch it.
const THEIRS_FIRST: Duration = Duration::from_secs(1);
/// The delay before a run is tried again that needs more memory than is free.
const NO_MEMORY: Duration = Duration::from_secs(5);
/// The delay before a run is tried again if the engine's disk has no room.
const NO_ROOM: Duration = Duration::from_secs(1);

/// What to do with an orphan.
pub(super) enum OrphanAction {
    /// Nothing: it has an owner, or has ended.
    Settled,
    /// Publish the recorded ending and release the run.
    Ended(Entry),
    /// End it, because a stop is recorded.
    Stopped(StopEntry),
    /// Resume it.
    Open(Entry),
    /// Try again after this time, to give precedence to other workers.
    NotYet(Duration),
    /// Leave it to a worker of another version. Holds the message.
    NotForUs(String),
}

/// Reads the state of a run and decides what to do with it. `since`: when it was first seen without an
/// owner.
pub(super) async fn next_action(
    shared: &Shared,
    held: &HeldLease,
    run: &RunId,
    since: Instant,
) -> Result<OrphanAction, StoreError> {
    let look = [RunKey::Record, RunKey::Open, RunKey::Owner, RunKey::Stop, RunKey::Definition];
    let look = Txn::new().read_keys(run, &look);
    let keys = RunKeys::of(run, &shared.ports.store.txn(look).await?);
    let owned = keys.owner.is_some() && !keys.is_owned_under(&shared.options.node, held.lease);
    let (Some(entry), Some(open), false) = (&keys.record, &keys.open, owned) else {
        return Ok(OrphanAction::Settled);
    };
    if waits_for_admission(&open.value) {
        return Ok(OrphanAction::Settled);
    }
    let Stored { record, unknown_key, .. } = match read_record(run, entry, keys.definition.as_ref())
    {
        Ok(stored) => stored,
        Err(cause) => return Ok(OrphanAction::NotForUs(cause.to_string())),
    };
    if record.status.is_ended() {
        return Ok(OrphanAction::Ended(entry.clone()));
    }
    if let Some(stop) = &keys.stop {
        let unsaid = StopEntry {
            reason: None,
            replaced_by: None,
            by: shared.options.node.clone(),
            at: record.scheduled_at,
        };
        return Ok(OrphanAction::Stopped(serde_json::from_slice(&stop.value).unwrap_or(unsaid)));
    }
    if let Some(key) = unknown_key {
        return Ok(OrphanAction::NotForUs(format!(
            "its definition has the key `{key}`, which this version does not know"
        )));
    }
    if let Some(wait) = lacks(shared, record.pipeline.as_ref()) {
        return Ok(OrphanAction::NotYet(wait));
    }
    if let Some(wait) = is_for_others(shared, &record, since).await? {
        return Ok(OrphanAction::NotYet(wait));
    }
    // Otherwise every worker of an unavailable engine would claim the run and fail, and each
    // attempt would count as a loss.
    if let Err(cause) = shared.ports.executor.answers().await {
        warn!(run.id = %run, %cause, "run {run} waits for the engine");
        shared.room.engine_went(None);
        return Ok(OrphanAction::NotYet(NO_ROOM));
    }
    Ok(OrphanAction::Open(entry.clone()))
}

/// Returns how long this worker lacks what a run needs, if it lacks something.
fn lacks(shared: &Shared, pipeline: Option<&Pipeline>) -> Option<Duration> {
    if !shared.room.is_there() || shared.writes.refusal().is_some() {
        return Some(NO_ROOM);
    }
    let pipeline = pipeline?;
    if shared.missing_executor(pipeline).is_some() {
        return Some(LOOK_EVERY);
    }
    match quota::check_memory(pipeline, shared.ports.host.memory()) {
        MemoryFit::Now => None,
        MemoryFit::Later { .. } | MemoryFit::Never { .. } => Some(NO_MEMORY),
    }
}

/// Returns how long to leave a run to workers on another engine, if that has its last image.
async fn is_for_others(
    shared: &Shared,
    record: &RunRecord,
    since: Instant,
) -> Result<Option<Duration>, StoreError> {
    let passed = record.steps.iter().rev().find(|step| step.status == StepStatus::Passed);
    let Some((step, engine)) = passed.and_then(|step| Some((step, step.engine.as_ref()?))) else {
        return Ok(None);
    };
    if *engine == shared.engine.id {
        return Ok(None);
    }
    if step.digest.is_some() && shared.engine.checkpoints {
        // Workers on that engine need not fetch the image.
        let left = THEIRS_FIRST.saturating_sub(since.elapsed());
        return Ok((!left.is_zero()).then_some(left));
    }
    let ttl = shared.options.lease_ttl;
    let left = (ttl * 2).saturating_sub(since.elapsed());
    if !left.is_zero() {
        return Ok(Some(left));
    }
    let nodes = shared.ports.store.list(names::NODES).await?;
    let can = |node: &NodeEntry| {
        node.engine == *engine && node.state == NodeState::Ready && !node.engine_away
    };
    let there = nodes
        .entries
        .iter()
        .filter_map(|entry| serde_json::from_slice(&entry.value).ok())
        .any(|node| can(&node));
    Ok(there.then_some(ttl))
}

/// Returns true if the run waits in its pipeline's queue and needs no owner yet.
pub(super) fn waits_for_admission(open: &[u8]) -> bool {
    serde_json::from_slice::<Open>(open).is_ok_and(|open| open.waiting_in.is_some())
}
