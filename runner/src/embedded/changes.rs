//! Changes of the store, applied in transactions of the file.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use redb::{ReadableTable, WriteTransaction};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::disk::{Changed, Fault, WriteWork};
use super::memory::Shared;
use super::rows::{self, KV, LEASED, LEASES};
use crate::ports::{Change, Entry, LeaseId, Op, Txn, TxnReply};

/// The delay after a failed removal of the keys of an ended lease.
const RETRY: Duration = Duration::from_secs(1);

/// Why a transaction failed.
pub(super) enum Refusal {
    /// A lease does not exist.
    Gone(i64),
    /// The disk reported an error.
    Fault(Fault),
}

/// The result of a transaction, valid once it is committed.
struct TransactionResult {
    answer: Result<TxnReply, Refusal>,
    changes: Vec<Change>,
}

/// A transaction that waits to be committed.
pub(super) struct Transact {
    txn: Txn,
    shared: Arc<Shared>,
    made: Option<TransactionResult>,
    reply: oneshot::Sender<Result<TxnReply, Refusal>>,
}

impl Transact {
    /// Creates a transaction and the receiver of its reply.
    pub(super) fn new(
        txn: Txn,
        shared: Arc<Shared>,
    ) -> (Box<Self>, oneshot::Receiver<Result<TxnReply, Refusal>>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Self { txn, shared, made: None, reply }), answer)
    }
}

impl WriteWork for Transact {
    fn apply(&mut self, write: &WriteTransaction) -> Result<Changed, redb::Error> {
        let gone = {
            let (leases, now) = (self.shared.leases.lock(), Instant::now());
            let mut needed = self.txn.ops.iter().filter_map(Op::lease);
            needed.find(|lease| leases.ttl(*lease, now).is_none()).map(|lease| lease.0)
        };
        if let Some(lease) = gone {
            self.made =
                Some(TransactionResult { answer: Err(Refusal::Gone(lease)), changes: Vec::new() });
            return Ok(Changed::No);
        }
        let mut kv = write.open_table(KV)?;
        let mut revision = rows::revision(&write.open_table(rows::META)?)?;
        let committed = rows::holds(&kv, &self.txn)?;
        let mut changes = Vec::new();
        if committed {
            let mut leased = write.open_table(LEASED)?;
            for op in &self.txn.ops {
                changes.extend(change(&mut kv, &mut leased, op, revision + 1)?);
            }
        }
        let changed = if changes.is_empty() { Changed::No } else { Changed::Yes };
        if changed == Changed::Yes {
            revision += 1;
            rows::set_revision(write, revision)?;
        }
        let reads = rows::reads(&kv, &self.txn, committed)?;
        self.made = Some(TransactionResult {
            answer: Ok(TxnReply { committed, revision, reads }),
            changes,
        });
        Ok(changed)
    }

    fn end(self: Box<Self>, outcome: Result<(), Fault>) {
        let answer = match (outcome, self.made) {
            (Ok(()), Some(TransactionResult { answer, changes })) => {
                if let (Ok(reply), false) = (&answer, changes.is_empty()) {
                    self.shared.history.push(reply.revision, changes);
                }
                answer
            }
            (Ok(()), None) => Err(Refusal::Fault(Fault::Io("nothing was done".into()))),
            (Err(fault), _) => Err(Refusal::Fault(fault)),
        };
        // The caller may have dropped the receiver.
        drop(self.reply.send(answer));
    }
}

type KvTable<'txn> = redb::Table<'txn, &'static str, rows::KvRow>;
type LeasedTable<'txn> = redb::Table<'txn, (i64, &'static str), ()>;

/// Makes one change. Returns `None` if the key to be changed does not exist.
fn change(
    kv: &mut KvTable<'_>,
    leased: &mut LeasedTable<'_>,
    op: &Op,
    revision: i64,
) -> Result<Option<Change>, redb::Error> {
    match op {
        Op::Put { key, value, lease } => {
            let lease = lease.map_or(0, |lease| lease.0);
            put(kv, leased, (key, value.clone(), lease), revision).map(Some)
        }
        Op::Attach { key, lease } => {
            let value = kv.get(key.as_str())?.map(|row| row.value().3.to_vec());
            value.map(|value| put(kv, leased, (key, value, lease.0), revision)).transpose()
        }
        Op::Delete { key } => remove(kv, leased, key, revision),
    }
}

fn put(
    kv: &mut KvTable<'_>,
    leased: &mut LeasedTable<'_>,
    (key, value, lease): (&str, Vec<u8>, i64),
    revision: i64,
) -> Result<Change, redb::Error> {
    let before = kv.get(key)?.map(|row| (row.value().0, row.value().2));
    let create_revision = before.map_or(revision, |(created, _)| created);
    let old_lease = before.map_or(0, |(_, lease)| lease);
    if old_lease != 0 && old_lease != lease {
        leased.remove((old_lease, key))?;
    }
    if lease != 0 {
        leased.insert((lease, key), ())?;
    }
    kv.insert(key, (create_revision, revision, lease, value.as_slice()))?;
    let key = key.to_owned();
    Ok(Change::Put(Entry { key, value, create_revision, mod_revision: revision }))
}

fn remove(
    kv: &mut KvTable<'_>,
    leased: &mut LeasedTable<'_>,
    key: &str,
    revision: i64,
) -> Result<Option<Change>, redb::Error> {
    let Some(lease) = kv.remove(key)?.map(|row| row.value().2) else { return Ok(None) };
    if lease != 0 {
        leased.remove((lease, key))?;
    }
    Ok(Some(Change::Deleted { key: key.to_owned(), revision }))
}

/// Ended leases whose keys must be deleted.
pub(super) struct End {
    leases: Vec<LeaseId>,
    shared: Arc<Shared>,
    made: Option<(i64, Vec<Change>)>,
    reply: oneshot::Sender<Result<(), Fault>>,
}

impl End {
    /// Creates the deletion and the receiver of its result.
    pub(super) fn new(
        leases: Vec<LeaseId>,
        shared: Arc<Shared>,
    ) -> (Box<Self>, oneshot::Receiver<Result<(), Fault>>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Self { leases, shared, made: None, reply }), answer)
    }
}

impl WriteWork for End {
    fn apply(&mut self, txn: &WriteTransaction) -> Result<Changed, redb::Error> {
        let (made, changed) = end_leases(txn, &self.leases)?;
        self.made = Some(made);
        Ok(changed)
    }

    fn end(self: Box<Self>, outcome: Result<(), Fault>) {
        {
            let mut leases = self.shared.leases.lock();
            for lease in &self.leases {
                match &outcome {
                    Ok(()) => leases.forget(*lease),
                    Err(_) => leases.reschedule(*lease, Instant::now() + RETRY),
                }
            }
        }
        if let (Ok(()), Some((revision, changes))) = (&outcome, self.made)
            && !changes.is_empty()
        {
            self.shared.history.push(revision, changes);
        }
        // The caller may have dropped the receiver.
        drop(self.reply.send(outcome));
    }
}

/// Deletes leases and their keys in one revision.
fn end_leases(
    txn: &WriteTransaction,
    leases: &[LeaseId],
) -> Result<((i64, Vec<Change>), Changed), redb::Error> {
    let (mut kv, mut leased) = (txn.open_table(KV)?, txn.open_table(LEASED)?);
    let mut lasting = txn.open_table(LEASES)?;
    let revision = rows::revision(&txn.open_table(rows::META)?)?;
    let (mut changes, mut changed) = (Vec::new(), Changed::No);
    for lease in leases {
        if lasting.remove(lease.0)?.is_some() {
            changed = Changed::Yes;
        }
        for key in rows::keys_of(&leased, lease.0)? {
            changes.extend(remove(&mut kv, &mut leased, &key, revision + 1)?);
        }
    }
    if changes.is_empty() {
        return Ok(((revision, changes), changed));
    }
    rows::set_revision(txn, revision + 1)?;
    Ok(((revision + 1, changes), Changed::Yes))
}

/// Leases that outlive a process: ID, time to live, and remaining time.
pub(super) type LongLeases = Vec<(LeaseId, Duration, Duration)>;

/// Ends the leases of earlier processes. Returns those that outlive a process.
pub(super) fn void_leases(
    txn: &WriteTransaction,
    wall: i64,
) -> Result<((i64, LongLeases), Changed), redb::Error> {
    let mut lasting = LongLeases::new();
    for row in txn.open_table(LEASES)?.iter()? {
        let (id, row) = row?;
        let (ttl, ends) = row.value();
        if let Some(left) = u64::try_from(ends.saturating_sub(wall)).ok().filter(|left| *left > 0) {
            let ttl = Duration::from_millis(u64::try_from(ttl).unwrap_or_default());
            // Setting the clock back must not extend a lease beyond its time to live.
            lasting.push((LeaseId(id.value()), ttl, Duration::from_millis(left).min(ttl)));
        }
    }
    let mut void = BTreeSet::new();
    for row in txn.open_table(LEASED)?.iter()? {
        void.insert(row?.0.value().0);
    }
    for row in txn.open_table(LEASES)?.iter()? {
        void.insert(row?.0.value());
    }
    for (id, _, _) in &lasting {
        void.remove(&id.0);
    }
    let void: Vec<LeaseId> = void.into_iter().map(LeaseId).collect();
    let ((revision, _), changed) = end_leases(txn, &void)?;
    Ok(((revision, lasting), changed))
}
