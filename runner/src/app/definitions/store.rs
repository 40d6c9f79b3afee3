//! Writes loaded definitions to the store, and publishes the changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::event::{Event, Reason};
use protocol::id::{NodeId, PipelineId};
use protocol::names;
use tracing::warn;

use super::compare::{Change, Conflict, Entry, compare};
use super::loaded::Definition;
use crate::ports::{Events, EventsError, Expect, Host, Store, StoreError, Txn};

/// How often the changes are computed again while others change the same keys.
const TRIES: usize = 8;
/// How long the stream may take to confirm the events of all changes.
const EVENTS_WITHIN: Duration = Duration::from_secs(10);

/// Why definitions were not stored.
#[derive(Debug)]
pub(super) enum Rejected {
    /// Others hold their names. Nothing was changed.
    Conflicts(Vec<Conflict>),
    /// The store does not answer, or refuses a change.
    Store(StoreError),
    /// Others keep changing the same definitions.
    Contended,
}

impl From<StoreError> for Rejected {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The number of changed definitions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) created: usize,
    pub(super) changed: usize,
    pub(super) removed: usize,
}

/// The store of definitions.
#[derive(Clone)]
pub(super) struct Shelf {
    pub(super) store: Arc<dyn Store>,
    pub(super) events: Arc<dyn Events>,
    pub(super) host: Arc<dyn Host>,
    pub(super) node: NodeId,
}

impl Shelf {
    /// Makes the store hold these definitions of a source, and no others of it.
    pub(super) async fn apply(
        &self,
        loaded: &BTreeMap<PipelineId, Definition>,
        source: &str,
    ) -> Result<Applied, Rejected> {
        let (mut applied, mut events) = (Applied::default(), Vec::new());
        let done = self.change(loaded, source, &mut applied, &mut events).await;
        // Even if a later change failed.
        if !events.is_empty() {
            self.publish(events).await;
        }
        done.map(|()| applied)
    }

    async fn change(
        &self,
        loaded: &BTreeMap<PipelineId, Definition>,
        source: &str,
        applied: &mut Applied,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejected> {
        for _ in 0..TRIES {
            let stored = self.stored().await?;
            let changes = compare(loaded, &stored, source).map_err(Rejected::Conflicts)?;
            let mut is_contended = false;
            for change in changes {
                if self.commit(&change).await? {
                    events.push(self.event(&change));
                    match change {
                        Change::Create(..) => applied.created += 1,
                        Change::Replace(..) => applied.changed += 1,
                        Change::Remove(..) => applied.removed += 1,
                    }
                } else {
                    is_contended = true;
                }
            }
            if !is_contended {
                return Ok(());
            }
        }
        Err(Rejected::Contended)
    }

    /// Reads the stored definitions.
    async fn stored(&self) -> Result<BTreeMap<PipelineId, Entry>, StoreError> {
        let entries = self.store.list(names::PIPELINES).await?.entries;
        let entries = entries.into_iter().filter_map(|entry| {
            let (group, name) = entry.key.strip_prefix(names::PIPELINES)?.split_once(':')?;
            let id = PipelineId::new(group, name).ok()?;
            let stored = serde_json::from_slice(&entry.value).ok();
            Some((id, Entry { revision: entry.mod_revision, stored }))
        });
        Ok(entries.collect())
    }

    /// Returns false if another change came first.
    async fn commit(&self, change: &Change) -> Result<bool, StoreError> {
        let (id, expect, stored) = match change {
            Change::Create(id, stored) => (id, Expect::Absent, Some(stored)),
            Change::Replace(id, at, stored) => (id, Expect::ModifiedAt(*at), Some(stored)),
            Change::Remove(id, at) => (id, Expect::ModifiedAt(*at), None),
        };
        let key = names::pipeline_key(id);
        let txn = Txn::new().when(key.clone(), expect);
        let txn = match stored {
            Some(stored) => {
                let value = serde_json::to_vec(stored);
                txn.put(key, value.map_err(|cause| StoreError::Refused(cause.to_string()))?)
            }
            None => txn.delete(key),
        };
        Ok(self.store.txn(txn).await?.committed)
    }

    fn event(&self, change: &Change) -> Event {
        let (id, reason, text) = match change {
            Change::Create(id, stored) | Change::Replace(id, _, stored) => {
                let file = stored.file.as_deref().unwrap_or_default();
                let verb = if matches!(change, Change::Create(..)) { "created" } else { "changed" };
                (id, Reason::PipelineCreate, format!("pipeline {id} was {verb} from {file}"))
            }
            Change::Remove(id, _) => {
                let text = format!("pipeline {id} was deleted with its file");
                (id, Reason::PipelineDelete, text)
            }
        };
        let mut event = Event::new(self.host.now(), reason, text);
        event.node = Some(self.node.clone());
        event.group = Some(id.group().to_owned());
        event.name = Some(id.name().to_owned());
        event
    }

    /// Publishes the events of changes that are made already, as far as the stream accepts them in
    /// time.
    async fn publish(&self, events: Vec<Event>) {
        let publish = async {
            let mut last = None;
            for event in events {
                last = Some(self.events.emit(event).await?);
            }
            match last {
                Some(last) => self.events.confirmed(last).await,
                None => Ok::<_, EventsError>(()),
            }
        };
        match tokio::time::timeout(EVENTS_WITHIN, publish).await {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => warn!(%cause, "changes of definitions are not published"),
            Err(_elapsed) => {
                warn!(
                    "changes of definitions are published later: the stream does not accept events"
                );
            }
        }
    }
}
