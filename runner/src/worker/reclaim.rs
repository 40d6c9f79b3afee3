//! Ends the runs that this worker cannot continue.

use std::sync::Arc;
use std::time::Duration;

use protocol::names;
use tokio::time::Instant;
use tracing::warn;

use super::launch::Launch;
use super::lease::HeldLease;
use super::lost::Lost;
use super::orphan::{Purpose, claim_orphan};
use super::records::has_ended;
use super::shared::Shared;
use super::watchdog::{beat, waits};
use crate::ports::StoreError;

/// The delay before a run is tried again whose drive has not yet ended.
const AGAIN: Duration = Duration::from_millis(500);

/// Claims and ends the runs that this worker cannot continue. They must not stay open without an
/// owner.
pub(super) async fn reclaim(shared: Arc<Shared>, held: HeldLease) {
    loop {
        // Runs stay on the list until they are completed. Rescue ignores runs on the list.
        let lost = shared.lost().clone();
        if lost.is_empty() {
            let _waits = waits();
            tokio::select! {
                biased;
                () = held.lost.cancelled() => return,
                () = shared.more_lost.notified() => continue,
            }
        }
        let now = Instant::now();
        for lost in lost.iter().filter(|lost| lost.due <= now) {
            match reclaim_one(&shared, &held, lost).await {
                Ok(true) => shared.forget_lost(lost),
                Ok(false) => shared.delay(&lost.run, AGAIN),
                Err(cause) => {
                    let wait = shared.reclaims.next(&lost.run).max(AGAIN);
                    shared.delay(&lost.run, wait);
                    warn!(
                        run.id = %lost.run,
                        %cause,
                        "run {} cannot be ended yet; it is tried again in {} s",
                        lost.run,
                        wait.as_secs_f32()
                    );
                }
            }
            beat();
        }
        let due = shared.lost().iter().map(|lost| lost.due).min();
        let _waits = waits();
        tokio::select! {
            biased;
            () = held.lost.cancelled() => return,
            () = shared.more_lost.notified() => {}
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)) => {}
        }
    }
}

/// Returns false if the run's drive has not yet ended.
async fn reclaim_one(
    shared: &Arc<Shared>,
    held: &HeldLease,
    lost: &Lost,
) -> Result<bool, StoreError> {
    let run = &lost.run;
    let Some(record) = shared.ports.store.get(&names::run_key(run)).await? else {
        shared.reclaims.forget(run);
        return Ok(true);
    };
    let ended = has_ended(&record);
    if ended && shared.ports.store.get(&names::open_key(run)).await?.is_none() {
        shared.reclaims.forget(run);
        return Ok(true);
    }
    let Some(launch) = Launch::enter(shared, run) else { return Ok(false) };
    match claim_orphan(shared, held, run, &record, Purpose::End).await {
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
