//! Ends the runs that this worker cannot continue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::id::RunId;
use protocol::names;
use tokio::time::Instant;
use tracing::warn;

use super::launch::Launch;
use super::lease::HeldLease;
use super::orphan::{Purpose, claim_orphan};
use super::records::has_ended;
use super::watchdog::{beat, waits};
use super::{Lost, Shared};
use crate::ports::StoreError;

/// The delay before a run is tried again whose drive has not yet ended.
const AGAIN: Duration = Duration::from_millis(500);
/// The maximum delay between two attempts at the same run.
const LONGEST: Duration = Duration::from_secs(60);

/// How often runs were claimed again to be ended without success. Each attempt writes their
/// records, so the delay grows.
#[derive(Debug, Default)]
pub(super) struct Reclaims(Mutex<HashMap<RunId, u32>>);

impl Reclaims {
    /// Returns the delay before the next attempt at a run. The first attempt is made at once.
    pub(super) fn next(&self, run: &RunId) -> Duration {
        let mut tries = self.0.lock();
        let tries = tries.entry(run.clone()).or_default();
        let wait = match *tries {
            0 => Duration::ZERO,
            tries => AGAIN.saturating_mul(1 << (tries - 1).min(16)).min(LONGEST),
        };
        *tries = tries.saturating_add(1);
        wait
    }

    /// Resets a run that has ended or has another owner.
    pub(super) fn forget(&self, run: &RunId) {
        self.0.lock().remove(run);
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_does_not_end_is_tried_at_growing_intervals() {
        let (reclaims, run) = (Reclaims::default(), "r-1".parse().unwrap());
        let waits: Vec<u128> = (0..10).map(|_| reclaims.next(&run).as_millis()).collect();
        let expected = [0, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000];
        assert_eq!(waits, expected);
        reclaims.forget(&run);
        assert_eq!(reclaims.next(&run), Duration::ZERO);
    }
}
