//! Reads and writes the keys of a run.

use protocol::budget::{CutSizes, MAX_RECORD_BYTES};
use protocol::id::{NodeId, RunId};
use protocol::run::{OwnerEntry, RunRecord};
use tracing::warn;

use crate::ports::{Claim, LeaseId, StoreError};

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
