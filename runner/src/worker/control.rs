//! Stops and pauses.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use protocol::command::{Disposition, Stop, Toggle};
use protocol::event::Reason;
use protocol::id::{PipelineId, RunId};
use protocol::names;
use protocol::run::{Open, StopEntry, StoredPipeline};
use protocol::time::Millis;
use tracing::warn;

use super::claimant::Claimant;
use super::launch::Launch;
use super::lease::HeldLease;
use super::orphan::{Purpose, claim_orphan};
use super::orphan_action::waits_for_admission;
use super::records::{RunKey, RunKeys, RunTxn as _, has_ended, json};
use super::retry::Retry;
use super::shared::Shared;
use super::watchdog::Heartbeat;
use crate::ports::{Change, Expect, StoreError, Txn};
use crate::rules::run::StopWhy;

/// Records a stop. The run's owner, which may be another worker, watches for it.
pub(super) async fn stop(claimant: Claimant<'_>, stop: &Stop) -> Result<Disposition, StoreError> {
    let Claimant { shared, heartbeat, .. } = claimant;
    let run = &stop.run_id;
    let entry = StopEntry {
        reason: stop.reason.clone(),
        replaced_by: None,
        by: shared.options.node.clone(),
        at: shared.ports.host.now().into(),
    };
    let value = json(&entry)?;
    loop {
        let look = [RunKey::Record, RunKey::Owner, RunKey::Stop, RunKey::Seen, RunKey::Open];
        let look = Txn::new().read_keys(run, &look);
        let keys = RunKeys::of(run, &shared.ports.store.txn(look).await?);
        heartbeat.beat();
        let Some(record) = &keys.record else {
            if keys.seen.is_some() {
                shared.ignored(heartbeat, Some(run), &format!("run {run} ended long ago")).await;
                return Ok(Disposition::Ack);
            }
            if remember_stop(shared, heartbeat, run, value.clone()).await? {
                return Ok(Disposition::Ack);
            }
            // The start arrived in between.
            continue;
        };
        if has_ended(record) {
            shared.ignored(heartbeat, Some(run), &format!("run {run} has ended already")).await;
            return Ok(Disposition::Ack);
        }
        if keys.stop.is_none() {
            let mut txn =
                Txn::new().require_record(run, record.mod_revision).put_stop(run, value.clone());
            if keys.open.as_ref().is_some_and(|open| waits_for_admission(&open.value)) {
                // If this worker dies before it ends the run, another one finds it.
                txn = txn.put_open(run, json(&Open::default())?);
            }
            if !shared.ports.store.txn(txn).await?.committed {
                continue;
            }
        }
        if keys.owner.is_none() {
            match end_orphan(claimant, run, &StopWhy::of_entry(entry.clone())).await {
                Ok(()) => {}
                // The stop is recorded. The next worker that can claim the run obeys it.
                Err(cause @ (StoreError::Restored { .. } | StoreError::Unreadable(_))) => {
                    warn!(
                        run.id = %run,
                        %cause,
                        "the stop of run {run} is recorded, and waits for a worker that can claim it"
                    );
                }
                Err(cause) => return Err(cause),
            }
        }
        return Ok(Disposition::Ack);
    }
}

/// Records a stop for a run that is not known. Returns false if the run has become known.
async fn remember_stop(
    shared: &Shared,
    heartbeat: &Heartbeat,
    run: &RunId,
    stop: Vec<u8>,
) -> Result<bool, StoreError> {
    let ports = &shared.ports;
    let lease = shared.stops.current(&*ports.store, &*ports.host).await?;
    let txn = Txn::new().require_absent(run, RunKey::Record).put_early_stop(run, stop, lease);
    let reply = shared.ports.store.txn(txn).await;
    if matches!(reply, Err(StoreError::LeaseGone(_))) {
        shared.stops.forget().await;
    }
    let is_recorded = reply?.committed;
    if is_recorded {
        let why =
            format!("run {run} is not known; if it is submitted within 24 h it is stopped at once");
        shared.ignored(heartbeat, Some(run), &why).await;
    }
    Ok(is_recorded)
}

/// Claims a run without an owner to end it. The receiver of the stop needs no free slot.
pub(super) async fn end_orphan(
    claimant: Claimant<'_>,
    run: &RunId,
    why: &StopWhy,
) -> Result<(), StoreError> {
    let Claimant { shared, held, .. } = claimant;
    let Some(record) = shared.ports.store.get(&RunKey::Record.of(run)).await? else {
        return Ok(());
    };
    let Some(launch) = Launch::enter(shared, run) else { return Ok(()) };
    match claim_orphan(claimant, run, &record, Purpose::End).await {
        Ok(Some((owned, _))) => {
            if owned.record.status.is_ended() {
                // Another worker recorded the ending but did not complete it.
                launch.conclude(held, owned);
            } else {
                launch.end_stopped(held, owned, why);
            }
            Ok(())
        }
        // The run has an owner now, which sees the stop.
        Ok(None) => {
            launch.cancel();
            Ok(())
        }
        Err(cause) => {
            launch.cancel();
            Err(cause)
        }
    }
}

/// Pauses or unpauses a pipeline. The newest command wins.
pub(super) async fn toggle(
    shared: &Shared,
    heartbeat: &Heartbeat,
    toggle: &Toggle,
    pause: bool,
) -> Result<Disposition, StoreError> {
    let id = &toggle.pipeline;
    let key = names::pipeline_key(id);
    let word = if pause { "pause" } else { "unpause" };
    loop {
        heartbeat.beat();
        let Some(entry) = shared.ports.store.get(&key).await? else {
            shared.ignored(heartbeat, None, &format!("{word}: no pipeline {id} is stored")).await;
            return Ok(Disposition::Ack);
        };
        let mut stored: StoredPipeline = match serde_json::from_slice(&entry.value) {
            Ok(stored) => stored,
            Err(cause) => {
                // The command is sound, and no delivery of it can succeed here.
                let why = format!(
                    "{word}: pipeline {id} in the store cannot be read by this version: {cause}; apply \
                     it again"
                );
                warn!("{why}");
                shared.ignored(heartbeat, None, &why).await;
                return Ok(Disposition::Ack);
            }
        };
        // Where the sender does not say when, it is now, and not before what was said last: the
        // clocks of two workers differ.
        let now = shared.ports.host.now();
        let at = toggle.at.unwrap_or_else(|| stored.paused_at.map_or(now, |last| last.max(now)));
        if let Some(newest) = stored.paused_at
            && at < newest
        {
            let Millis(newest) = newest;
            let why = format!("{word} of pipeline {id} is older than the one of {newest}");
            shared.ignored(heartbeat, None, &why).await;
            return Ok(Disposition::Ack);
        }
        let changes = stored.paused != pause;
        stored.paused = pause;
        stored.paused_at = Some(at);
        let txn = Txn::new()
            .when(key.clone(), Expect::ModifiedAt(entry.mod_revision))
            .put(key.clone(), json(&stored)?);
        if !shared.ports.store.txn(txn).await?.committed {
            continue;
        }
        if changes {
            report_toggle(shared, heartbeat, id, pause).await;
        }
        return Ok(Disposition::Ack);
    }
}

/// Publishes that a pipeline was paused or unpaused.
async fn report_toggle(shared: &Shared, heartbeat: &Heartbeat, id: &PipelineId, pause: bool) {
    let (reason, message) = if pause {
        (Reason::PipelinePaused, format!("pipeline {id} is paused"))
    } else {
        (Reason::PipelineUnpaused, format!("pipeline {id} takes runs again"))
    };
    let mut event = shared.event(reason, message);
    event.group = Some(id.group().to_owned());
    event.name = Some(id.name().to_owned());
    shared.publish(heartbeat, event).await;
}

/// Notifies this worker's runs of recorded stops, whichever worker recorded them.
pub(super) async fn watch_stops(shared: Arc<Shared>, heartbeat: Heartbeat, held: HeldLease) {
    let (first, longest) = (Duration::from_millis(100), Duration::from_secs(2));
    let mut retry = Retry::new(&*shared.ports.host, &heartbeat, first, longest);
    loop {
        tokio::select! {
            biased;
            () = held.lost.cancelled() => return,
            watched = follow_stops(&shared, &heartbeat) => if let Err(cause) = watched {
                warn!(%cause, "stops are looked for anew");
            },
        }
        if retry.pause(&held.lost).await.is_break() {
            return;
        }
    }
}

async fn follow_stops(shared: &Shared, heartbeat: &Heartbeat) -> Result<(), StoreError> {
    let ask = |key: &str, value: &[u8]| {
        let Some(Ok(run)) = key.strip_prefix(names::STOPS).map(str::parse::<RunId>) else { return };
        let why =
            serde_json::from_slice(value).map_or(StopWhy::User { reason: None }, StopWhy::of_entry);
        shared.roster.ask_stop(&run, why, shared.options.kill_grace);
    };
    let look = shared.ports.store.list(names::STOPS).await?;
    for entry in &look.entries {
        ask(&entry.key, &entry.value);
    }
    let mut changes = shared.ports.store.watch(names::STOPS, look.revision + 1).await?;
    loop {
        let change = {
            let _waits = heartbeat.waits();
            changes.next().await
        };
        match change {
            Some(Ok(Change::Put(entry))) => ask(&entry.key, &entry.value),
            Some(Ok(Change::Deleted { .. })) => {}
            Some(Err(cause)) => return Err(cause),
            None => return Ok(()),
        }
    }
}
