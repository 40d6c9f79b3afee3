//! Renews the marks that keep the IDs of open runs from being accepted twice.

use std::sync::Arc;
use std::time::Duration;

use protocol::names;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::long_lease::LongLease;
use super::records::RunTxn as _;
use super::shared::{SEEN_FOR, Shared};
use super::watchdog::Heartbeat;
use crate::ports::{Host, Store, StoreError, Txn};

/// Interval between renewals of the marks of open runs, well below their time to live.
const RENEWED_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Renews the marks that keep run IDs from being accepted twice, as long as their runs are open. A
/// run may take longer than the time to live of a mark.
pub(super) async fn renew_seen(shared: Arc<Shared>, heartbeat: Heartbeat, stop: CancellationToken) {
    loop {
        {
            let _waits = heartbeat.waits();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RENEWED_EVERY) => {}
            }
        }
        let ports = &shared.ports;
        let renewed = renew_once(&*ports.store, &*ports.host, &shared.seen, &heartbeat).await;
        if let Err(cause) = renewed {
            // A mark lives for days, so the next round is early enough.
            warn!(%cause, days = SEEN_FOR.as_secs() / 86_400, "the marks of open runs are not renewed");
        }
    }
}

async fn renew_once(
    store: &dyn Store,
    host: &dyn Host,
    seen: &LongLease,
    heartbeat: &Heartbeat,
) -> Result<(), StoreError> {
    let open = store.list(names::OPEN).await?;
    for entry in open.entries {
        heartbeat.beat();
        let Some(Ok(run)) = entry.key.strip_prefix(names::OPEN).map(str::parse) else { continue };
        let lease = seen.current(store, host).await?;
        let txn = Txn::new().require_open(&run).put_seen(&run, lease);
        match store.txn(txn).await {
            // If the run has ended meanwhile, its last write has renewed the mark.
            Ok(_) => {}
            Err(cause @ StoreError::LeaseGone(_)) => {
                seen.forget().await;
                return Err(cause);
            }
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use protocol::id::RunId;

    use super::*;
    use crate::worker::fakes::{MemoryStore, StoppedClock};

    /// A renewed mark outlives its earlier lease. The mark of an ended run is not renewed: its last
    /// write has set it.
    #[tokio::test]
    async fn the_mark_of_an_open_run_is_renewed() {
        let (store, [open, ended]) = (MemoryStore::default(), ["r-open", "r-ended"].map(run));
        let short = store.grant(Duration::from_secs(600)).await.unwrap().lease;
        let mut txn = Txn::new().put(names::open_key(&open), b"{}".to_vec());
        for run in [&open, &ended] {
            txn = txn.put_leased(names::seen_key(run), Vec::new(), short);
        }
        assert!(store.txn(txn).await.unwrap().committed);
        let seen = LongLease::new(SEEN_FOR);
        renew_once(&store, &StoppedClock, &seen, &Heartbeat::unwatched()).await.unwrap();
        store.revoke(short).await.unwrap();
        let is_there =
            async |run: &RunId| store.get(&names::seen_key(run)).await.unwrap().is_some();
        assert!(is_there(&open).await);
        assert!(!is_there(&ended).await, "a run that is not open has no mark to renew");
    }

    fn run(id: &str) -> RunId {
        id.parse().unwrap()
    }
}
