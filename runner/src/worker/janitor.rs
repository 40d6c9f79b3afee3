//! Removes resources of runs that ended longer ago than their pipeline's `retention`, or whose
//! record is gone. Then removes base images above their limit, and outputs of runs whose record is
//! gone.
//!
//! An engine may have other users. The janitor only considers resources with the label of this
//! worker's store.

use std::sync::Arc;

use protocol::id::RunId;
use protocol::time::{Millis, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::bases;
use super::lease::Current;
use super::outputs;
use super::records::{RunKey, RunKeys, RunTxn as _};
use super::shared::Shared;
use super::watchdog::Heartbeat;
use crate::ports::{ExecError, StoreError, Txn};
use crate::rules::retention::is_past;

/// Sweeps periodically. The first sweep is delayed by one lease time, by which the fate of a
/// preceding worker is known.
pub(super) async fn run(
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    mut lease: Current,
    stop: CancellationToken,
) {
    // The loop waits for the engine, which may have much to remove.
    let _waits = heartbeat.waits();
    let spread = shared.ports.host.jitter(shared.options.lease_ttl);
    let mut pause = shared.options.lease_ttl + spread;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = shared.options.sweep;
        let held = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            held = lease.wait_for(Option::is_some) => match held {
                Ok(held) => held.clone(),
                Err(_) => return,
            },
        };
        let Some(held) = held else { continue };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = held.lost.cancelled() => {}
            () = sweep_all(&shared) => {}
        }
    }
}

async fn sweep_all(shared: &Shared) {
    sweep(shared).await;
    bases::keep_within_limit(shared).await;
    outputs::sweep(&*shared.ports.store, shared.ports.outputs.as_deref()).await;
}

/// Removes the resources of runs that are no longer needed, once.
pub(super) async fn sweep(shared: &Shared) {
    let _alone = shared.room.sweeping.lock().await;
    let executor = &shared.ports.executor;
    let left = match executor.leftovers().await {
        Ok(left) => left,
        Err(cause) => return warn!(%cause, "what is left of runs is not known"),
    };
    let ours = left.into_iter().filter(|left| left.cluster.as_deref() == Some(&*shared.cluster));
    for run in ours.map(|left| left.run) {
        match need(shared, &run).await {
            Ok(Need::Open | Need::Retained { .. }) => {}
            Ok(Need::None) => match executor.destroy(&run).await {
                Ok(()) => info!(run.id = %run, "what was left of run {run} is removed"),
                Err(cause @ ExecError::Unreachable { .. }) => {
                    // Each further removal would wait as long, and in vain.
                    return warn!(run.id = %run, %cause, "what is left of runs stays");
                }
                Err(cause) => warn!(run.id = %run, %cause, "what is left of run {run} stays"),
            },
            Err(cause) => warn!(run.id = %run, %cause, "what is left of run {run} stays"),
        }
    }
}

/// Gives up what ended runs left before the end of their `retention`, the oldest first, until the
/// engine's disk has room. Anyone who can start a run can demand any retention.
pub(super) async fn give_up_retained(shared: &Shared) {
    let _alone = shared.room.sweeping.lock().await;
    if let Err(cause) = give_up_lost(shared).await {
        warn!(%cause, "what is retained of ended runs stays");
    }
}

async fn give_up_lost(shared: &Shared) -> Result<(), ExecError> {
    let executor = &shared.ports.executor;
    if bases::has_room(shared).await? {
        return Ok(());
    }
    let left = executor.leftovers().await?.into_iter();
    let ours = left.filter(|left| left.cluster.as_deref() == Some(&*shared.cluster));
    let mut retained = Vec::new();
    for run in ours.map(|left| left.run) {
        match need(shared, &run).await {
            Ok(Need::Retained { ended }) => retained.push((ended.0, run)),
            Ok(Need::Open | Need::None) => {}
            Err(cause) => warn!(run.id = %run, %cause, "what is retained of run {run} stays"),
        }
    }
    retained.sort();
    for (_, run) in retained {
        executor.destroy(&run).await?;
        warn!(
            run.id = %run,
            "the images of run {run} are removed before the end of its retention because the container engine's disk is too full"
        );
        if bases::has_room(shared).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// Why resources of a run are kept.
enum Need {
    /// The run has not ended, or a worker still owns it.
    Open,
    /// The run has ended, and its `retention` has not.
    Retained {
        ended: Millis,
    },
    None,
}

/// Returns why resources of a run may still be needed. The engine was listed before, so each
/// listed run had a record at that time.
async fn need(shared: &Shared, run: &RunId) -> Result<Need, StoreError> {
    if shared.roster.has(run) {
        return Ok(Need::Open);
    }
    let look = [RunKey::Record, RunKey::Open, RunKey::Owner, RunKey::Definition];
    let look = Txn::new().read_keys(run, &look);
    let keys = RunKeys::of(run, &shared.ports.store.txn(look).await?);
    if keys.open.is_some() || keys.owner.is_some() {
        return Ok(Need::Open);
    }
    let Some(stored) = keys.stored(run) else { return Ok(Need::None) };
    let record = stored?.record;
    if !record.status.is_ended() {
        return Ok(Need::Open);
    }
    let retention = record.pipeline.as_ref().and_then(|pipeline| pipeline.retention);
    let (Some(retention), Some(Timestamp(ended))) = (retention, record.completed_at) else {
        return Ok(Need::None);
    };
    if is_past(ended, retention.as_duration(), shared.ports.host.now()) {
        return Ok(Need::None);
    }
    Ok(Need::Retained { ended })
}
