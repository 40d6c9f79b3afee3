//! The runs that this worker no longer drives although they have not ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::id::RunId;
use protocol::run::Cause;
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
}
