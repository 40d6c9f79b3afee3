//! The values of a run's keys, as the store keeps them.

use protocol::budget::{CutSizes, MAX_RECORD_BYTES};
use protocol::id::{NodeId, RunId};
use protocol::run::{OwnerEntry, RunRecord};
use tracing::warn;

use crate::ports::{LeaseId, StoreError};

pub(in crate::worker) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|cause| StoreError::Refused(cause.to_string()))
}

/// A store does not reject a record of this size because of its size.
pub(in crate::worker) const SMALL_RECORD: usize = 16 * 1024;
/// The part of an etcd request that is available for a record and a definition, in bytes.
const REQUEST: usize = 1_440 * 1024;

/// Returns the JSON of a record, cut to fit into a request with `beside` more bytes.
pub(in crate::worker) fn fitting(
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
pub(in crate::worker) fn owner_value(node: &NodeId, lease: LeaseId) -> Vec<u8> {
    let entry = OwnerEntry { node: node.clone(), lease: Some(format!("{:x}", lease.0)) };
    // Serializing a struct of strings cannot fail.
    serde_json::to_vec(&entry).unwrap_or_default()
}
