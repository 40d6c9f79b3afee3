//! The base images and volumes that runs name which have not ended.

use std::collections::{BTreeSet, HashMap};

use protocol::definition;
use protocol::id::RunId;
use protocol::names;
use protocol::pipeline::{Mount, MountSource};

use super::records::{RunKey, RunKeys, RunTxn as _};
use super::shared::Shared;
use crate::ports::{StoreError, Txn};

/// What each run that has not ended names. It never changes during a run.
#[derive(Debug, Default)]
pub(super) struct ImagesInUse(HashMap<RunId, Named>);

#[derive(Debug)]
struct Named {
    image: Option<String>,
    volumes: Vec<String>,
}

impl Named {
    fn of(record: &[u8], definition: Option<&[u8]>) -> Self {
        let mounts = definition::mounts_of(record, definition);
        let volumes = mounts.iter().filter_map(|text| match text.parse::<Mount>().ok()?.source {
            MountSource::Volume(name) => Some(name),
            MountSource::Path(_) => None,
        });
        Self { image: definition::image_of(record, definition), volumes: volumes.collect() }
    }
}

impl ImagesInUse {
    /// Reads the runs that are open now.
    pub(super) async fn look(&mut self, shared: &Shared) -> Result<(), StoreError> {
        let store = &shared.ports.store;
        let open = store.list(names::OPEN).await?.entries;
        let runs = open.iter().filter_map(|open| open.key.strip_prefix(names::OPEN)?.parse().ok());
        let runs: BTreeSet<RunId> = runs.collect();
        self.0.retain(|run, _| runs.contains(run));
        for run in runs {
            if self.0.contains_key(&run) {
                continue;
            }
            let look = Txn::new().read_keys(&run, &[RunKey::Record, RunKey::Definition]);
            let keys = RunKeys::of(&run, &store.txn(look).await?);
            let Some(record) = keys.record else { continue };
            let definition = keys.definition.as_ref().map(|definition| &*definition.value);
            self.0.insert(run, Named::of(&record.value, definition));
        }
        Ok(())
    }

    pub(super) fn images(&self) -> impl Iterator<Item = &str> {
        self.0.values().filter_map(|named| named.image.as_deref())
    }

    /// Whether a step of such a run mounts this volume. A name that an earlier step of its run fills
    /// in is not known.
    pub(super) fn has_volume(&self, name: &str) -> bool {
        self.0.values().any(|named| named.volumes.iter().any(|volume| volume == name))
    }
}
