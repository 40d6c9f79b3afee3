//! Removes volumes that steps share, least recently used first, while the engine's disk is too full.
//! No run owns them, so nothing else removes them.

use tracing::warn;

use super::bases;
use super::shared::Shared;
use super::wanted::NamedByRuns;
use crate::ports::ExecError;

/// Removes unused volumes until the disk has room. Keeps those that a run names which has not ended.
pub(super) async fn make_room(shared: &Shared) {
    let _alone = shared.room.sweeping.lock().await;
    if let Err(cause) = shrink(shared).await {
        warn!(%cause, "volumes that steps share stay");
    }
}

async fn shrink(shared: &Shared) -> Result<(), ExecError> {
    let executor = &shared.ports.executor;
    if bases::has_room(shared).await? {
        return Ok(());
    }
    let mut wanted = NamedByRuns::default();
    for name in executor.shared_volumes().await? {
        // A run may have started in the meantime.
        if let Err(cause) = wanted.look(shared).await {
            warn!(%cause, "volumes that steps share stay, for the open runs cannot be read");
            return Ok(());
        }
        if wanted.has_volume(&name) {
            continue;
        }
        if executor.remove_shared_volume(&name).await? {
            warn!(
                volume = name,
                "volume {name}, which steps share, is removed because the container engine's disk is too full"
            );
        }
        if bases::has_room(shared).await? {
            return Ok(());
        }
    }
    Ok(())
}
