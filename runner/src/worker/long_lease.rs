//! Leases of days, for what outlives a run.

use std::time::Duration;

use tokio::sync::Mutex;

use crate::ports::{LeaseId, Ports, StoreError};

/// A lease of days that serves many keys: it is taken anew from time to time, so that a key put
/// under it lives for its time at least, and so that no claim waits for a lease of its own.
pub(super) struct LongLease {
    ttl: Duration,
    taken: Mutex<Option<(LeaseId, Duration)>>,
}

/// One long lease serves what is put in this time.
const LONG_LEASE_SERVES: Duration = Duration::from_secs(3600);

impl LongLease {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, taken: Mutex::new(None) }
    }

    pub(super) async fn current(&self, ports: &Ports) -> Result<LeaseId, StoreError> {
        let mut taken = self.taken.lock().await;
        let now = ports.host.since_boot();
        if let Some((lease, at)) = *taken
            && now.saturating_sub(at) < LONG_LEASE_SERVES
        {
            return Ok(lease);
        }
        let lease = ports.store.grant(self.ttl + LONG_LEASE_SERVES).await?.lease;
        *taken = Some((lease, now));
        Ok(lease)
    }

    /// The store knows it no more: the next one who asks takes another.
    pub(super) async fn forget(&self) {
        *self.taken.lock().await = None;
    }
}
