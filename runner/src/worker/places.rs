//! Reads and writes the wait list of a pipeline, which decides which of its runs have a place.
//!
//! Every function changes a list in memory. The change is written in the transaction that also accepts
//! or ends a run, so that no place is lost or given twice.

use protocol::id::{PipelineId, RunId};
use protocol::names;
use protocol::pipeline::Admission;
use protocol::run::Open;
use protocol::time::Millis;
use protocol::wait_list::WaitList;

use super::records::{RunTxn as _, entry, json};
use crate::ports::{Entry, Expect, Store, StoreError, Txn, TxnReply};
use crate::rules::admission::{self, Admitted, Refusal};

/// A wait list as it was read, with the changes that are not written yet.
#[derive(Debug, Clone)]
pub(super) struct Places {
    key: String,
    /// The revision of the list. `None` if it did not exist.
    modified: Option<i64>,
    list: WaitList,
    /// Waiting runs that have got a place.
    promoted: Vec<RunId>,
}

impl Places {
    /// Reads the list of a pipeline.
    pub(super) async fn read(store: &dyn Store, pipeline: &PipelineId) -> Result<Self, StoreError> {
        let key = names::wait_key(pipeline);
        match store.get(&key).await? {
            Some(entry) => Self::of(&entry),
            None => {
                Ok(Self { key, modified: None, list: WaitList::default(), promoted: Vec::new() })
            }
        }
    }

    /// Parses a stored list.
    pub(super) fn of(entry: &Entry) -> Result<Self, StoreError> {
        let list = serde_json::from_slice(&entry.value).map_err(|cause| {
            StoreError::Unreadable(format!("{} in the store: {cause}", entry.key))
        })?;
        let (key, modified) = (entry.key.clone(), Some(entry.mod_revision));
        Ok(Self { key, modified, list, promoted: Vec::new() })
    }

    /// Returns the list, with the changes.
    pub(super) fn list(&self) -> &WaitList {
        &self.list
    }

    /// Returns the runs that have got a place by these changes.
    pub(super) fn promoted(&self) -> &[RunId] {
        &self.promoted
    }

    /// Adds a new run. Waiting runs that are due come first.
    pub(super) fn offer(
        &mut self,
        policy: &Admission,
        run: &RunId,
        partition: &str,
        now: Millis,
    ) -> Result<Admitted, Refusal> {
        self.promote(now);
        let admitted = admission::offer(&mut self.list, policy, run, partition, now)?;
        // The new definition can have more places than the one before.
        self.promote(now);
        Ok(admitted)
    }

    /// Leaves out a promoted run that its own transaction opens.
    pub(super) fn without_promotion(mut self, run: &RunId) -> Self {
        self.promoted.retain(|promoted| promoted != run);
        self
    }

    /// Removes a run that ends, and gives its place to the next one.
    pub(super) fn end(&mut self, run: &RunId, now: Millis) {
        admission::remove(&mut self.list, run);
        self.promote(now);
    }

    /// Gives free places to the runs that are due. Returns true if that changed the list.
    pub(super) fn promote(&mut self, now: Millis) -> bool {
        let promoted = admission::promote(&mut self.list, now);
        let has_changed = !promoted.is_empty();
        self.promoted.extend(promoted);
        has_changed
    }

    /// Adds the changes to a transaction, which then fails if the list has changed since it was read.
    /// A promoted run is open from now on, so that any worker claims it.
    pub(super) fn write(&self, txn: Txn) -> Result<Txn, StoreError> {
        let unchanged = self.modified.map_or(Expect::Absent, Expect::ModifiedAt);
        let txn = txn.when(self.key.clone(), unchanged).read_otherwise(self.key.clone());
        let mut txn = if self.list.is_empty() {
            txn.delete(self.key.clone())
        } else {
            txn.put(self.key.clone(), json(&self.list)?)
        };
        for run in &self.promoted {
            txn = txn.put_open(run, json(&Open::default())?);
        }
        Ok(txn)
    }

    /// Returns true if the reply to a failed transaction shows that the list has changed since it was
    /// read.
    pub(super) fn are_outdated(&self, reply: &TxnReply) -> bool {
        let now = entry(reply, &self.key).map(|entry| entry.mod_revision);
        now != self.modified
    }
}
