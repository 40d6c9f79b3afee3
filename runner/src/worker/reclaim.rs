//! Ends the runs that this worker cannot continue.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::claimant::Claimant;
use super::launch::Launch;
use super::lease::HeldLease;
use super::lost::Lost;
use super::orphan::{Purpose, claim_orphan};
use super::records::{RunKey, has_ended};
use super::shared::Shared;
use super::watchdog::Heartbeat;
use crate::ports::StoreError;

/// The delay before a run is tried again whose drive has not yet ended.
const AGAIN: Duration = Duration::from_millis(500);

/// Claims and ends the runs that this worker cannot continue. They must not stay open without an
/// owner.
pub(super) async fn reclaim(shared: Arc<Shared>, heartbeat: Heartbeat, held: HeldLease) {
    let claimant = Claimant { shared: &shared, held: &held, heartbeat: &heartbeat };
    loop {
        // Runs stay on the list until they are completed. Rescue ignores runs on the list.
        let lost = shared.lost.entries();
        if lost.is_empty() {
            let _waits = heartbeat.waits();
            tokio::select! {
                biased;
                () = held.lost.cancelled() => return,
                () = shared.lost.added() => continue,
            }
        }
        let now = Instant::now();
        for lost in lost.iter().filter(|lost| lost.due <= now) {
            match reclaim_one(claimant, lost).await {
                Ok(true) => shared.lost.remove(lost),
                Ok(false) => shared.lost.delay(&lost.run, AGAIN),
                Err(cause) => {
                    let wait = shared.reclaims.next(&lost.run).max(AGAIN);
                    shared.lost.delay(&lost.run, wait);
                    warn!(
                        run.id = %lost.run,
                        %cause,
                        "run {} cannot be ended yet; it is tried again in {} s",
                        lost.run,
                        wait.as_secs_f32()
                    );
                }
            }
            heartbeat.beat();
        }
        let due = shared.lost.next_due();
        let _waits = heartbeat.waits();
        tokio::select! {
            biased;
            () = held.lost.cancelled() => return,
            () = shared.lost.added() => {}
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)) => {}
        }
    }
}

/// Returns false if the run's drive has not yet ended.
async fn reclaim_one(claimant: Claimant<'_>, lost: &Lost) -> Result<bool, StoreError> {
    let Claimant { shared, held, .. } = claimant;
    let run = &lost.run;
    let Some(record) = shared.ports.store.get(&RunKey::Record.of(run)).await? else {
        shared.reclaims.forget(run);
        return Ok(true);
    };
    let ended = has_ended(&record);
    if ended && shared.ports.store.get(&RunKey::Open.of(run)).await?.is_none() {
        shared.reclaims.forget(run);
        return Ok(true);
    }
    let Some(launch) = Launch::enter(shared, run) else { return Ok(false) };
    match claim_orphan(claimant, run, &record, Purpose::End).await {
        Ok(Some((owned, _))) => {
            if ended {
                launch.conclude(held, owned);
            } else {
                launch.end_lost(held, owned, lost.cause, &lost.why);
            }
            Ok(true)
        }
        Ok(None) => {
            launch.cancel();
            shared.reclaims.forget(run);
            Ok(true)
        }
        Err(cause) => {
            launch.cancel();
            Err(cause)
        }
    }
}
