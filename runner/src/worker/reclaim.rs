//! Ends the runs that this worker could not go on with.

use std::sync::Arc;
use std::time::Duration;

use protocol::names;
use protocol::run::RunRecord;
use tracing::warn;

use super::launch::Launch;
use super::lease::Held;
use super::orphan::{Purpose, claim_orphan};
use super::watchdog::{beat, waits};
use super::{Lost, Shared};
use crate::ports::StoreError;

/// Takes again the runs that this worker could not go on with, and ends them: a run without an owner
/// must not stay open.
pub(super) async fn reclaim(shared: Arc<Shared>, held: Held) {
    loop {
        // Each stays on the list until it is done with: what stands there is left alone by the looks.
        let lost = shared.lost().clone();
        if lost.is_empty() {
            let _waits = waits();
            tokio::select! {
                biased;
                () = held.lost.cancelled() => return,
                () = shared.more_lost.notified() => continue,
            }
        }
        for lost in lost {
            match reclaim_one(&shared, &held, &lost).await {
                Ok(true) => shared.lost().retain(|other| other.run != lost.run),
                Ok(false) => {}
                Err(cause) => warn!(run.id = %lost.run, %cause, "a lost run waits"),
            }
            beat();
        }
        tokio::select! {
            biased;
            () = held.lost.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
        beat();
    }
}

/// `false`: its drive is not gone yet.
async fn reclaim_one(shared: &Arc<Shared>, held: &Held, lost: &Lost) -> Result<bool, StoreError> {
    let run = &lost.run;
    let Some(record) = shared.ports.store.get(&names::run_key(run)).await? else {
        return Ok(true);
    };
    let parsed = serde_json::from_slice::<RunRecord>(&record.value).ok();
    let ended = parsed.is_some_and(|record| record.status.is_ended());
    if ended && shared.ports.store.get(&names::open_key(run)).await?.is_none() {
        return Ok(true);
    }
    let Some(launch) = Launch::enter(shared, run) else { return Ok(false) };
    match claim_orphan(shared, held, run, &record, Purpose::End).await {
        Ok(Some(orphan)) => {
            if ended {
                launch.conclude(held, orphan);
            } else {
                launch.end_lost(held, orphan, lost.cause, &lost.why);
            }
            Ok(true)
        }
        Ok(None) => {
            launch.cancel();
            Ok(true)
        }
        Err(cause) => {
            launch.cancel();
            Err(cause)
        }
    }
}
