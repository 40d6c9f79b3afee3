//! Reads and writes the keys of a run.

use protocol::budget::{CutSizes, MAX_RECORD_BYTES};
use protocol::definition::{self, Stored};
use protocol::id::{Epoch, NodeId, RunId};
use protocol::names;
use protocol::run::{OwnerEntry, RunRecord, Status};
use serde::Deserialize;
use tracing::warn;

use crate::ports::{Claim, Entry, LeaseId, StoreError, TxnReply};

/// A run that this worker has claimed.
pub(super) struct Ownership {
    /// The proof of ownership.
    pub(super) claim: Claim,
    /// The record as written by the claim.
    pub(super) record: RunRecord,
    /// The revision of the record.
    pub(super) modified: i64,
    /// The URL of the run's external logger.
    pub(super) logger_url: Option<String>,
}

/// The keys of a run that a transaction has read, by name. A key that does not exist, or that the
/// transaction did not read, is `None`.
#[derive(Debug, Default)]
pub(super) struct RunKeys {
    pub(super) record: Option<Entry>,
    pub(super) definition: Option<Entry>,
    pub(super) owner: Option<Entry>,
    pub(super) open: Option<Entry>,
    pub(super) stop: Option<Entry>,
    pub(super) seen: Option<Entry>,
}

impl RunKeys {
    /// Returns the keys of a run in the reply to a transaction.
    pub(super) fn of(run: &RunId, reply: &TxnReply) -> Self {
        Self {
            record: entry(reply, &names::run_key(run)),
            definition: entry(reply, &names::definition_key(run)),
            owner: entry(reply, &names::owner_key(run)),
            open: entry(reply, &names::open_key(run)),
            stop: entry(reply, &names::stop_key(run)),
            seen: entry(reply, &names::seen_key(run)),
        }
    }

    /// Returns true if this node owns the run under this lease.
    pub(super) fn is_owned_under(&self, node: &NodeId, lease: LeaseId) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.value == owner_value(node, lease))
    }

    /// Parses the record, if there is one.
    pub(super) fn stored(&self, run: &RunId) -> Option<Result<Stored, StoreError>> {
        Some(read_record(run, self.record.as_ref()?, self.definition.as_ref()))
    }

    /// Parses the ownership of the run. Returns `None` if it has no owner or no record.
    pub(super) fn ownership(
        &self,
        run: &RunId,
        logger_url: Option<String>,
    ) -> Result<Option<Ownership>, StoreError> {
        let (Some(owner), Some(entry)) = (&self.owner, &self.record) else { return Ok(None) };
        let record = read_record(run, entry, self.definition.as_ref())?.record;
        let modified = entry.mod_revision;
        let entry: OwnerEntry = serde_json::from_slice(&owner.value).map_err(|cause| {
            StoreError::Unreadable(format!("{} in the store: {cause}", names::owner_key(run)))
        })?;
        let epoch = Epoch(owner.create_revision);
        let claim = Claim { run: run.clone(), epoch, node: entry.node };
        Ok(Some(Ownership { claim, record, modified, logger_url }))
    }
}

/// Returns the entry of a key that a transaction has read.
pub(super) fn entry(reply: &TxnReply, key: &str) -> Option<Entry> {
    reply.reads.iter().flatten().find(|entry| entry.key == key).cloned()
}

/// Reads a record together with the immutable definition of its run.
pub(super) fn read_record(
    run: &RunId,
    record: &Entry,
    definition: Option<&Entry>,
) -> Result<Stored, StoreError> {
    let definition = definition.map(|definition| definition.value.as_slice());
    definition::read(&record.value, definition).map_err(|cause| {
        StoreError::Unreadable(format!("{} in the store: {cause}", names::run_key(run)))
    })
}

/// Returns true if the run has ended according to its record. Reads only the status, because a
/// record of a later version may contain unknown values.
pub(super) fn has_ended(record: &Entry) -> bool {
    #[derive(Deserialize)]
    struct Standing {
        status: Status,
    }
    serde_json::from_slice::<Standing>(&record.value).is_ok_and(|it| it.status.is_ended())
}

/// Returns an error if the store's revision is below an epoch in a record. The store was then
/// restored from an older snapshot, and could issue that epoch again (docs/wire.md section 3).
pub(super) fn not_restored(run: &RunId, record: &Entry, revision: i64) -> Result<(), StoreError> {
    match serde_json::from_slice::<RunRecord>(&record.value).ok().and_then(|record| record.epoch) {
        Some(Epoch(epoch)) if epoch > revision => {
            Err(StoreError::Restored { run: run.to_string(), epoch, revision })
        }
        Some(_) | None => Ok(()),
    }
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|cause| StoreError::Refused(cause.to_string()))
}

/// A store does not reject a record of this size because of its size.
pub(super) const SMALL_RECORD: usize = 16 * 1024;
/// The part of an etcd request that is available for a record and a definition, in bytes.
const REQUEST: usize = 1_440 * 1024;

/// Returns the JSON of a record, cut to fit into a request with `beside` more bytes.
pub(super) fn fitting(
    run: &RunId,
    record: &mut RunRecord,
    beside: usize,
) -> Result<Vec<u8>, StoreError> {
    let most = MAX_RECORD_BYTES.min(REQUEST.saturating_sub(beside));
    if let Some(CutSizes { messages, results, steps }) = record.cut_to(most) {
        warn!(
            run.id = %run,
            messages,
            results,
            steps,
            "the record of run {run} is too large for the store and was cut: {messages} messages, \
             {results} results and {steps} entries of steps"
        );
    }
    serde_json::to_vec(record).map_err(|cause| StoreError::Refused(cause.to_string()))
}

/// Returns the value of an owner key under a lease. A claim under an earlier lease of the same node
/// has a different value, and expires with that lease.
pub(super) fn owner_value(node: &NodeId, lease: LeaseId) -> Vec<u8> {
    let entry = OwnerEntry { node: node.clone(), lease: Some(format!("{:x}", lease.0)) };
    // Serializing a struct of strings cannot fail.
    serde_json::to_vec(&entry).unwrap_or_default()
}
