//! Finds out when a store that refused writes accepts them again.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::shared::Shared;
use super::watchdog::Heartbeat;

/// The interval between probes of a store that refuses writes.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Probes a store that refuses writes until it accepts them, as long as the worker runs.
pub(super) async fn run(shared: Arc<Shared>, heartbeat: Heartbeat, stop: CancellationToken) {
    loop {
        {
            let _waits = heartbeat.waits();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = shared.writes.refused() => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PROBE_EVERY) => {}
            }
        }
        heartbeat.beat();
        if shared.ports.store.accepts_writes().await.is_ok() && shared.writes.set(None) {
            info!("the store accepts writes again, and work is taken");
        }
    }
}
