//! Leases of several days, for keys that outlive a run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::ports::{Host, LeaseId, Store, StoreError};

/// A lease of several days that is shared by many keys. It is replaced regularly, so that each key
/// lives for at least its time, and no claim has to wait for a lease.
pub(super) struct LongLease {
    ttl: Duration,
    taken: Mutex<Option<LongLeaseState>>,
}

struct LongLeaseState {
    lease: LeaseId,
    at: Duration,
    /// The number of keys that can still be attached.
    left: u32,
}

/// The time during which keys are attached to one lease.
const SERVES: Duration = Duration::from_secs(3600);
/// The maximum number of keys of one lease. etcd deletes them all in one step when the lease
/// expires, and blocks meanwhile.
const SERVES_KEYS: u32 = 1000;

impl LongLease {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, taken: Mutex::new(None) }
    }

    /// Returns the lease for one more key.
    pub(super) async fn current(
        &self,
        store: &dyn Store,
        host: &dyn Host,
    ) -> Result<LeaseId, StoreError> {
        let mut taken = self.taken.lock().await;
        let now = host.since_boot();
        if let Some(taken) = &mut *taken
            && taken.left > 0
            && now.saturating_sub(taken.at) < SERVES
        {
            taken.left -= 1;
            return Ok(taken.lease);
        }
        let lease = store.grant(self.ttl + SERVES).await?.lease;
        *taken = Some(LongLeaseState { lease, at: now, left: SERVES_KEYS - 1 });
        Ok(lease)
    }

    /// Drops the lease because the store no longer has it. The next caller takes another.
    pub(super) async fn forget(&self) {
        *self.taken.lock().await = None;
    }
}

/// The leases of the records of ended runs.
///
/// A lease only ensures that a record does not stay for ever. The worker in charge of
/// [retention](super::retention) removes it on time.
pub(super) struct RecordLeases {
    default: Duration,
    by_ttl: parking_lot::Mutex<BTreeMap<Duration, Arc<LongLease>>>,
}

const DAY: u64 = 24 * 3600;

impl RecordLeases {
    /// Records live for at least `default`.
    pub(super) fn new(default: Duration) -> Self {
        Self { default, by_ttl: parking_lot::Mutex::default() }
    }

    /// Returns the lease for a record that is kept for this period. The period is rounded up to
    /// whole days, because each one has a lease of its own.
    pub(super) fn lasting(&self, period: Option<Duration>) -> Arc<LongLease> {
        let ttl = match period {
            Some(period) if period > self.default => {
                let days = period.as_secs().div_ceil(DAY).max(1);
                Duration::from_secs(days * DAY).max(period)
            }
            Some(_) | None => self.default,
        };
        let mut leases = self.by_ttl.lock();
        Arc::clone(leases.entry(ttl).or_insert_with(|| Arc::new(LongLease::new(ttl))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::fakes::{MemoryStore, StoppedClock};

    #[tokio::test]
    async fn a_lease_of_days_serves_a_limited_number_of_keys() {
        let (store, seen) = (MemoryStore::default(), LongLease::new(Duration::from_secs(86_400)));
        let current = async || seen.current(&store, &StoppedClock).await.unwrap();
        let first = current().await;
        for key in 2..=1000 {
            assert_eq!(current().await, first, "key {key}");
        }
        assert_ne!(current().await, first);
    }

    #[tokio::test]
    async fn records_share_a_lease_that_lives_as_long_as_they_are_kept() {
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
        let (store, leases) =
            (MemoryStore::default(), RecordLeases::new(Duration::from_secs(7 * DAY)));
        let current =
            async |period| leases.lasting(period).current(&store, &StoppedClock).await.unwrap();
        let usual = current(None).await;
        assert_eq!(current(hours(1)).await, usual, "a safeguard need not be exact");
        let long = current(hours(8 * 24 - 5)).await;
        assert_ne!(long, usual);
        assert_eq!(current(hours(8 * 24)).await, long);
        assert_ne!(current(hours(8 * 24 + 1)).await, long);
    }
}
