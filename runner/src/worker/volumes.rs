//! Removes shared volumes, least recently used first, while the engine's disk is too full. No run
//! owns a shared volume, so nothing else removes it.

use tracing::warn;

use super::bases;
use super::images_in_use::ImagesInUse;
use super::shared::Shared;
use crate::ports::ExecError;

/// Removes unused volumes until the disk has room. Keeps every volume that an open run names.
pub(super) async fn make_room(shared: &Shared) {
    let _guard = shared.room.sweeping.lock().await;
    if let Err(cause) = remove_unused(shared).await {
        warn!(%cause, "the volumes that steps share are not removed");
    }
}

async fn remove_unused(shared: &Shared) -> Result<(), ExecError> {
    let executor = &shared.ports.executor;
    if bases::has_room(shared).await? {
        return Ok(());
    }
    let mut references = ImagesInUse::default();
    for name in executor.shared_volumes().await? {
        // A run might have started since the last removal.
        if let Err(cause) = references.look(shared).await {
            warn!(%cause, "the volumes that steps share are kept, because the open runs cannot be read");
            return Ok(());
        }
        if references.has_volume(&name) {
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
