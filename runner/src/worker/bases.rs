//! Removes pulled base images, least recently used first, if they exceed their limit or the disk is
//! too full. Images of runs that have not ended are kept.

use std::collections::{BTreeSet, HashMap};

use protocol::definition;
use protocol::id::RunId;
use protocol::names;
use tracing::{info, warn};

use super::Shared;
use crate::ports::{BaseImage, ExecError, StoreError, Txn};

/// The condition that ends the removal.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// The images take at most this many bytes.
    Bytes(u64),
    /// Less than this percentage of the engine's disk is used.
    Below(u8),
}

/// The base image of each run that has not ended. It never changes during a run.
#[derive(Debug, Default)]
struct Wanted(HashMap<RunId, Option<String>>);

impl Wanted {
    /// Reads the runs that are open now.
    async fn look(&mut self, shared: &Shared) -> Result<(), StoreError> {
        let store = &shared.ports.store;
        let open = store.list(names::OPEN).await?.entries;
        let runs = open.iter().filter_map(|open| open.key.strip_prefix(names::OPEN)?.parse().ok());
        let runs: BTreeSet<RunId> = runs.collect();
        self.0.retain(|run, _| runs.contains(run));
        for run in runs {
            if self.0.contains_key(&run) {
                continue;
            }
            let look = Txn::new().read(names::run_key(&run)).read(names::definition_key(&run));
            let look = store.txn(look).await?;
            let Some(entry) = look.entry(0) else { continue };
            let definition = look.entry(1).map(|definition| definition.value.as_slice());
            self.0.insert(run, definition::image_of(&entry.value, definition));
        }
        Ok(())
    }

    fn images(&self) -> impl Iterator<Item = &str> {
        self.0.values().filter_map(Option::as_deref)
    }
}

/// Records which images were used, and removes images above the limit.
pub(super) async fn keep_within_limit(shared: &Shared) {
    let limit = match shared.options.disk.base_images_bytes {
        0 => u64::MAX,
        limit => limit,
    };
    shrink(shared, Until::Bytes(limit)).await;
}

/// Removes base images until the disk has room.
pub(super) async fn make_room(shared: &Shared) {
    shrink(shared, Until::Below(shared.options.disk.low)).await;
}

async fn shrink(shared: &Shared, until: Until) {
    let _alone = shared.room.sweeping.lock().await;
    let mut wanted = Wanted::default();
    if let Err(cause) = wanted.look(shared).await {
        return warn!(%cause, "base images stay, for it is not known which of them are wanted");
    }
    let mut used = shared.room.take_used();
    used.extend(wanted.images().map(str::to_owned));
    let bases = match shared.ports.executor.bases(&used, shared.ports.host.now()).await {
        Ok(bases) => bases,
        Err(cause) => {
            used.iter().for_each(|image| shared.room.uses(image));
            return warn!(%cause, "base images stay, for they cannot be listed");
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
        if let Err(cause) = wanted.look(shared).await {
            return warn!(%cause, "base images stay, for it is not known which of them are wanted");
        }
        if wanted.images().any(|image| base.answers_to(image)) {
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

async fn is_reached(shared: &Shared, until: Until, bytes: u64) -> Result<bool, ExecError> {
    match until {
        Until::Bytes(most) => Ok(bytes <= most),
        Until::Below(percent) => {
            let disk = shared.ports.executor.disk().await?;
            Ok(disk.is_none_or(|disk| disk.percent() < percent))
        }
    }
}

fn name(base: &BaseImage) -> &str {
    base.names.first().unwrap_or(&base.id)
}
