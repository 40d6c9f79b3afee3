//! Reads the keys of a run.

use protocol::definition::{self, Stored};
use protocol::id::{Epoch, NodeId, RunId};
use protocol::run::{OwnerEntry, RunRecord, Status};
use serde::Deserialize;

use super::encode::owner_value;
use super::key::RunKey;
use crate::ports::{Claim, Entry, LeaseId, StoreError, TxnReply};

/// A run that this worker has claimed.
pub(in crate::worker) struct Ownership {
    /// The proof of ownership.
    pub(in crate::worker) claim: Claim,
    /// The record as written by the claim.
    pub(in crate::worker) record: RunRecord,
    /// The revision of the record.
    pub(in crate::worker) modified: i64,
    /// The URL of the run's external logger.
    pub(in crate::worker) logger_url: Option<String>,
}

/// The keys of a run that a transaction has read, by name. A key that does not exist, or that the
/// transaction did not read, is `None`.
#[derive(Debug, Default)]
pub(in crate::worker) struct RunKeys {
    pub(in crate::worker) record: Option<Entry>,
    pub(in crate::worker) definition: Option<Entry>,
    pub(in crate::worker) owner: Option<Entry>,
    pub(in crate::worker) open: Option<Entry>,
    pub(in crate::worker) stop: Option<Entry>,
    pub(in crate::worker) seen: Option<Entry>,
}

impl RunKeys {
    /// Returns the keys of a run in the reply to a transaction.
    pub(in crate::worker) fn of(run: &RunId, reply: &TxnReply) -> Self {
        Self {
            record: entry(reply, &RunKey::Record.of(run)),
            definition: entry(reply, &RunKey::Definition.of(run)),
            owner: entry(reply, &RunKey::Owner.of(run)),
            open: entry(reply, &RunKey::Open.of(run)),
            stop: entry(reply, &RunKey::Stop.of(run)),
            seen: entry(reply, &RunKey::Seen.of(run)),
        }
    }

    /// Returns true if this node owns the run under this lease.
    pub(in crate::worker) fn is_owned_under(&self, node: &NodeId, lease: LeaseId) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.value == owner_value(node, lease))
    }

    /// Parses the record, if there is one.
    pub(in crate::worker) fn stored(&self, run: &RunId) -> Option<Result<Stored, StoreError>> {
        Some(read_record(run, self.record.as_ref()?, self.definition.as_ref()))
    }

    /// Parses the ownership of the run. Returns `None` if it has no owner or no record.
    pub(in crate::worker) fn ownership(
        &self,
        run: &RunId,
        logger_url: Option<String>,
    ) -> Result<Option<Ownership>, StoreError> {
        let (Some(owner), Some(entry)) = (&self.owner, &self.record) else { return Ok(None) };
        let record = read_record(run, entry, self.definition.as_ref())?.record;
        let modified = entry.mod_revision;
        let entry: OwnerEntry = serde_json::from_slice(&owner.value).map_err(|cause| {
            StoreError::Unreadable(format!("{} in the store: {cause}", RunKey::Owner.of(run)))
        })?;
        let epoch = Epoch(owner.create_revision);
        let claim = Claim { run: run.clone(), epoch, node: entry.node };
        Ok(Some(Ownership { claim, record, modified, logger_url }))
    }
}

/// Returns the entry of a key that a transaction has read.
pub(in crate::worker) fn entry(reply: &TxnReply, key: &str) -> Option<Entry> {
    reply.reads.iter().flatten().find(|entry| entry.key == key).cloned()
}

/// Reads a record together with the immutable definition of its run.
pub(in crate::worker) fn read_record(
    run: &RunId,
    record: &Entry,
    definition: Option<&Entry>,
) -> Result<Stored, StoreError> {
    let definition = definition.map(|definition| definition.value.as_slice());
    definition::read(&record.value, definition).map_err(|cause| {
        StoreError::Unreadable(format!("{} in the store: {cause}", RunKey::Record.of(run)))
    })
}

/// Returns true if the run has ended according to its record. Reads only the status, because a
/// record of a later version may contain unknown values.
pub(in crate::worker) fn has_ended(record: &Entry) -> bool {
    #[derive(Deserialize)]
    struct Standing {
        status: Status,
    }
    serde_json::from_slice::<Standing>(&record.value).is_ok_and(|it| it.status.is_ended())
}

/// Returns an error if the store's revision is below an epoch in a record. The store was then
/// restored from an older snapshot, and could issue that epoch again (docs/wire.md section 3).
pub(in crate::worker) fn not_restored(
    run: &RunId,
    record: &Entry,
    revision: i64,
) -> Result<(), StoreError> {
    match serde_json::from_slice::<RunRecord>(&record.value).ok().and_then(|record| record.epoch) {
        Some(Epoch(epoch)) if epoch > revision => {
            Err(StoreError::Restored { run: run.to_string(), epoch, revision })
        }
        Some(_) | None => Ok(()),
    }
}
