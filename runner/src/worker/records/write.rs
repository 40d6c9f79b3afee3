//! The parts of a transaction that concern the keys of a run.

use protocol::id::{NodeId, RunId};

use super::encode::owner_value;
use super::key::RunKey;
use crate::ports::{Expect, LeaseId, Txn};

/// Reads, conditions and writes of a run's keys, which can be combined in one transaction.
pub(in crate::worker) trait RunTxn: Sized {
    /// Reads keys of a run.
    fn read_keys(self, run: &RunId, keys: &[RunKey]) -> Self;

    /// Reads keys of a run if a condition fails.
    fn read_keys_otherwise(self, run: &RunId, keys: &[RunKey]) -> Self;

    /// Requires that a key of a run does not exist.
    fn require_absent(self, run: &RunId, key: RunKey) -> Self;

    /// Requires that a run is open. Otherwise it has been released for good.
    fn require_open(self, run: &RunId) -> Self;

    /// Requires that the record was last modified at this revision.
    fn require_record(self, run: &RunId, revision: i64) -> Self;

    /// Requires that a run has no owner, and makes this node its owner under this lease. The
    /// revision of the transaction is the epoch.
    fn create_owner(self, run: &RunId, node: &NodeId, lease: LeaseId) -> Self;

    /// Writes the record, as returned by [`fitting`](super::fitting) or [`json`](super::json).
    fn put_record(self, run: &RunId, record: Vec<u8>) -> Self;

    /// Writes the record of an ended run, which the store keeps for the time of this lease.
    fn put_ended_record(self, run: &RunId, record: Vec<u8>, lease: LeaseId) -> Self;

    /// Writes the definition.
    fn put_definition(self, run: &RunId, definition: Vec<u8>) -> Self;

    /// Keeps the definition of an ended run for the time of this lease.
    fn expire_definition(self, run: &RunId, lease: LeaseId) -> Self;

    /// Opens a run. `open` is the JSON of [`Open`](protocol::run::Open).
    fn put_open(self, run: &RunId, open: Vec<u8>) -> Self;

    /// Keeps the run ID from being accepted again for the time of this lease.
    fn put_seen(self, run: &RunId, lease: LeaseId) -> Self;

    /// Records a stop. `stop` is the JSON of [`StopEntry`](protocol::run::StopEntry).
    fn put_stop(self, run: &RunId, stop: Vec<u8>) -> Self;

    /// Records a stop of an unknown run, which is forgotten with this lease.
    fn put_early_stop(self, run: &RunId, stop: Vec<u8>, lease: LeaseId) -> Self;

    /// Deletes the stop.
    fn delete_stop(self, run: &RunId) -> Self;

    /// Deletes the owner key, so that another worker can claim the run.
    fn delete_owner(self, run: &RunId) -> Self;

    /// Releases an ended run for good: deletes its owner key, its open key and its stop.
    fn close(self, run: &RunId) -> Self;

    /// Deletes the record of an ended run, and its definition. The mark of the run ID stays.
    fn delete_ended_record(self, run: &RunId) -> Self;
}

impl RunTxn for Txn {
    fn read_keys(self, run: &RunId, keys: &[RunKey]) -> Self {
        keys.iter().fold(self, |txn, key| txn.read(key.of(run)))
    }

    fn read_keys_otherwise(self, run: &RunId, keys: &[RunKey]) -> Self {
        keys.iter().fold(self, |txn, key| txn.read_otherwise(key.of(run)))
    }

    fn require_absent(self, run: &RunId, key: RunKey) -> Self {
        self.when(key.of(run), Expect::Absent)
    }

    fn require_open(self, run: &RunId) -> Self {
        self.when(RunKey::Open.of(run), Expect::Present)
    }

    fn require_record(self, run: &RunId, revision: i64) -> Self {
        self.when(RunKey::Record.of(run), Expect::ModifiedAt(revision))
    }

    fn create_owner(self, run: &RunId, node: &NodeId, lease: LeaseId) -> Self {
        self.require_absent(run, RunKey::Owner).put_leased(
            RunKey::Owner.of(run),
            owner_value(node, lease),
            lease,
        )
    }

    fn put_record(self, run: &RunId, record: Vec<u8>) -> Self {
        self.put(RunKey::Record.of(run), record)
    }

    fn put_ended_record(self, run: &RunId, record: Vec<u8>, lease: LeaseId) -> Self {
        self.put_leased(RunKey::Record.of(run), record, lease)
    }

    fn put_definition(self, run: &RunId, definition: Vec<u8>) -> Self {
        self.put(RunKey::Definition.of(run), definition)
    }

    fn expire_definition(self, run: &RunId, lease: LeaseId) -> Self {
        self.attach(RunKey::Definition.of(run), lease)
    }

    fn put_open(self, run: &RunId, open: Vec<u8>) -> Self {
        self.put(RunKey::Open.of(run), open)
    }

    fn put_seen(self, run: &RunId, lease: LeaseId) -> Self {
        self.put_leased(RunKey::Seen.of(run), Vec::new(), lease)
    }

    fn put_stop(self, run: &RunId, stop: Vec<u8>) -> Self {
        self.put(RunKey::Stop.of(run), stop)
    }

    fn put_early_stop(self, run: &RunId, stop: Vec<u8>, lease: LeaseId) -> Self {
        self.put_leased(RunKey::Stop.of(run), stop, lease)
    }

    fn delete_stop(self, run: &RunId) -> Self {
        self.delete(RunKey::Stop.of(run))
    }

    fn delete_owner(self, run: &RunId) -> Self {
        self.delete(RunKey::Owner.of(run))
    }

    fn close(self, run: &RunId) -> Self {
        // In this order, so that a watch of both prefixes never sees an open run without an owner.
        self.delete_owner(run).delete(RunKey::Open.of(run)).delete_stop(run)
    }

    fn delete_ended_record(self, run: &RunId) -> Self {
        self.delete(RunKey::Record.of(run)).delete(RunKey::Definition.of(run))
    }
}
