//! Renews the marks that keep the IDs of open runs from being accepted twice.

use std::sync::Arc;
use std::time::Duration;

use protocol::names;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::shared::{SEEN_FOR, Shared};
use super::watchdog::{beat, waits};
use crate::ports::{Expect, StoreError, Txn};

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
