//! Leases of several days, for keys that outlive a run.

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
}
