//! Removes pulled base images, least recently used first, if they exceed their limit or the disk is
//! too full. Images of runs that have not ended are kept.

use tracing::{info, warn};

use super::images_in_use::ImagesInUse;
use super::shared::Shared;
use crate::ports::{BaseImage, ExecError};

/// The condition that ends the removal.
#[derive(Debug, Clone, Copy)]
enum RemoveUntil {
    /// The images take at most this many bytes.
    Bytes(u64),
    /// Less than this percentage of the engine's disk is used.
    Below(u8),
}

/// Records which images were used, and removes images above the limit.
pub(super) async fn keep_within_limit(shared: &Shared) {
    let limit = match shared.options.disk.base_images_bytes {
        0 => u64::MAX,
        limit => limit,
    };
    shrink(shared, RemoveUntil::Bytes(limit)).await;
}

/// Removes base images until the disk has room.
pub(super) async fn make_room(shared: &Shared) {
    shrink(shared, RemoveUntil::Below(shared.options.disk.low)).await;
}

async fn shrink(shared: &Shared, until: RemoveUntil) {
    let _alone = shared.room.sweeping.lock().await;
    let mut in_use = ImagesInUse::default();
    if let Err(cause) = in_use.look(shared).await {
        return warn!(%cause, "base images stay, because it is unknown which of them runs use");
    }
    let mut used = shared.room.take_used();
    used.extend(in_use.images().map(str::to_owned));
    let bases = match shared.ports.executor.bases(&used, shared.ports.host.now()).await {
        Ok(bases) => bases,
        Err(cause) => {
            used.iter().for_each(|image| shared.room.note_use(image));
            return warn!(%cause, "base images stay, because they cannot be listed");
        }
    };
    let mut bytes: u64 = bases.iter().map(|base| base.bytes).sum();
    for base in bases.iter().filter(|base| !base.in_use) {
        match is_reached(shared, until, bytes).await {
            Ok(false) => {}
            Ok(true) => return,
            Err(cause) => return warn!(%cause, "base images stay"),
        }
        // A run may have started in the meantime.
        if let Err(cause) = in_use.look(shared).await {
            return warn!(%cause, "base images stay, because it is unknown which of them runs use");
        }
        if in_use.images().any(|image| base.answers_to(image)) {
            continue;
        }
        match shared.ports.executor.remove_base(base).await {
            Ok(true) => {
                bytes -= base.bytes;
                info!(
                    image.id = base.id,
                    image.bytes = base.bytes,
                    "base image {} is removed",
                    name(base)
                );
            }
            Ok(false) => {}
            Err(cause) => warn!(image.id = base.id, %cause, "base image {} stays", name(base)),
        }
    }
}

async fn is_reached(shared: &Shared, until: RemoveUntil, bytes: u64) -> Result<bool, ExecError> {
    match until {
        RemoveUntil::Bytes(most) => Ok(bytes <= most),
        RemoveUntil::Below(percent) => {
            let disk = shared.ports.executor.disk().await?;
            Ok(disk.is_none_or(|disk| disk.percent() < percent))
        }
    }
}

/// Whether the engine's disk is below the low watermark.
pub(super) async fn has_room(shared: &Shared) -> Result<bool, ExecError> {
    is_reached(shared, RemoveUntil::Below(shared.options.disk.low), 0).await
}

fn name(base: &BaseImage) -> &str {
    base.names.first().unwrap_or(&base.id)
}
