//! The runs that this worker no longer drives although they have not ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::id::RunId;
use protocol::run::Cause;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The delay after the first attempt at a run. It doubles with each further attempt.
const FIRST: Duration = Duration::from_millis(500);
/// The maximum delay between two attempts at the same run.
const LONGEST: Duration = Duration::from_secs(60);

/// A run to be claimed again and ended.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub(super) run: RunId,
    pub(super) cause: Cause,
    pub(super) why: String,
    /// The time to claim it again.
    pub(super) due: Instant,
    /// Distinguishes this entry from a later one of the same run.
    pub(super) entry: Arc<()>,
}

impl Lost {
    pub(super) fn new(run: RunId, cause: Cause, why: String) -> Self {
        Self { run, cause, why, due: Instant::now(), entry: Arc::default() }
    }

    pub(super) fn with_lease(run: RunId) -> Self {
        Self::new(run, Cause::Lost, "its worker lost its lease".to_owned())
    }
}

/// The runs to be claimed again and ended: one entry for each run, until it is completed.
#[derive(Debug, Default)]
pub(super) struct LostRuns {
    entries: Mutex<Vec<Lost>>,
    added: Notify,
}

impl LostRuns {
    /// Adds an entry. Replaces an earlier one of the same run.
    pub(super) fn add(&self, lost: Lost) {
        {
            let mut entries = self.entries.lock();
            entries.retain(|other| other.run != lost.run);
            entries.push(lost);
        }
        self.added.notify_one();
    }

    /// Waits until an entry is added. Returns at once if one was added since the last call.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }

    /// Delays the next attempt at a run.
    pub(super) fn delay(&self, run: &RunId, wait: Duration) {
        let due = Instant::now() + wait;
        self.entries
            .lock()
            .iter_mut()
            .filter(|lost| lost.run == *run)
            .for_each(|lost| lost.due = due);
    }

    /// Removes a completed entry. A newer entry of the same run stays, because it is a later loss.
    pub(super) fn remove(&self, lost: &Lost) {
        self.entries.lock().retain(|other| !Arc::ptr_eq(&other.entry, &lost.entry));
    }

    /// Returns true if the run has an entry.
    pub(super) fn has(&self, run: &RunId) -> bool {
        self.entries.lock().iter().any(|lost| lost.run == *run)
    }

    /// Returns the entries.
    pub(super) fn entries(&self) -> Vec<Lost> {
        self.entries.lock().clone()
    }

    /// Returns the time of the next attempt at any of the runs.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.entries.lock().iter().map(|lost| lost.due).min()
    }
}

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
            tries => FIRST.saturating_mul(1 << (tries - 1).min(16)).min(LONGEST),
        };
        *tries = tries.saturating_add(1);
        wait
    }

    /// Resets a run that has ended or has another owner.
    pub(super) fn forget(&self, run: &RunId) {
        self.0.lock().remove(run);
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

    /// A run that is lost again while its last loss is being handled is not forgotten.
    #[test]
    fn a_newer_loss_of_a_run_is_not_dropped_with_an_older_one() {
        let (runs, run) = (LostRuns::default(), "r-1".parse::<RunId>().unwrap());
        let loss = |why: &str| Lost::new(run.clone(), Cause::Engine, why.to_owned());
        let older = loss("older");
        runs.add(older.clone());
        runs.add(loss("newer"));
        runs.remove(&older);
        assert!(runs.has(&run));
        assert!(runs.entries().iter().any(|lost| lost.why == "newer"));
    }
}
