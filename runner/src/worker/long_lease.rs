//! Leases of several days, for keys that outlive a run.

use std::sync::Arc;
use std::time::Duration;

use protocol::names;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::watchdog::{beat, waits};
use super::{SEEN_FOR, Shared};
use crate::ports::{Expect, LeaseId, Ports, StoreError, Txn};

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
    pub(super) async fn current(&self, ports: &Ports) -> Result<LeaseId, StoreError> {
        let mut taken = self.taken.lock().await;
        let now = ports.host.since_boot();
        if let Some(taken) = &mut *taken
            && taken.left > 0
            && now.saturating_sub(taken.at) < SERVES
        {
            taken.left -= 1;
            return Ok(taken.lease);
        }
        let lease = ports.store.grant(self.ttl + SERVES).await?.lease;
        *taken = Some(LongLeaseState { lease, at: now, left: SERVES_KEYS - 1 });
        Ok(lease)
    }

    /// Drops the lease because the store no longer has it. The next caller takes another.
    pub(super) async fn forget(&self) {
        *self.taken.lock().await = None;
    }
}

/// Interval between renewals of the marks of open runs, well below their time to live.
const RENEWED_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Renews the marks that keep run IDs from being accepted twice, as long as their runs are open. A
/// run may take longer than the time to live of a mark.
pub(super) async fn renew_seen(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        {
            let _waits = waits();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RENEWED_EVERY) => {}
            }
        }
        if let Err(cause) = renew_once(&shared).await {
            // A mark lives for days, so the next round is early enough.
            warn!(%cause, days = SEEN_FOR.as_secs() / 86_400, "the marks of open runs are not renewed");
        }
    }
}

pub(super) async fn renew_once(shared: &Shared) -> Result<(), StoreError> {
    let open = shared.ports.store.list(names::OPEN).await?;
    for entry in open.entries {
        beat();
        let Some(Ok(run)) = entry.key.strip_prefix(names::OPEN).map(str::parse) else { continue };
        let seen = shared.seen.current(&shared.ports).await?;
        let txn = Txn::new().when(entry.key, Expect::Present).put_leased(
            names::seen_key(&run),
            Vec::new(),
            seen,
        );
        match shared.ports.store.txn(txn).await {
            // If the run has ended meanwhile, its last write has renewed the mark.
            Ok(_) => {}
            Err(cause @ StoreError::LeaseGone(_)) => {
                shared.seen.forget().await;
                return Err(cause);
            }
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}
