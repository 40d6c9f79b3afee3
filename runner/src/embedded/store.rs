//! State: keys, transactions, leases, watches.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use redb::{ReadableTable, WriteTransaction};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::disk::{Changed, Disk, Fault, Work, in_time, lock};
use super::history::History;
use super::leases::{LASTING, Leases};
use super::rows::{self, KV, LEASED, LEASES};
use crate::ports::{
    Change, Changes, Entry, Granted, Host, LeaseId, Listing, Op, Store, StoreError, Txn, TxnReply,
};

/// When the keys of an ended lease could not be removed, they are tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// The shortest lease.
const SHORTEST: Duration = Duration::from_secs(1);

/// The store.
pub(super) struct FileStore {
    disk: Arc<Disk>,
    shared: Arc<Shared>,
    host: Arc<dyn Host>,
}

/// What is not on disk.
struct Shared {
    history: History,
    leases: Mutex<Leases>,
    /// Says that a lease was added, so that who sleeps until the next one runs out wakes up.
    granted: watch::Sender<()>,
}

impl std::fmt::Debug for FileStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileStore").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl FileStore {
    /// Voids the leases of earlier processes, but for those that outlive them.
    pub(super) async fn open(disk: Arc<Disk>, host: &Arc<dyn Host>) -> Result<Self, Fault> {
        let (wall, now) = (host.now().0, Instant::now());
        let (revision, lasting) = disk.write(move |txn| void_leases(txn, wall)).await?;
        let mut leases = Leases::default();
        for (id, ttl, left) in lasting {
            leases.add(id, ttl, now + left);
        }
        let shared = Shared {
            history: History::after(revision),
            leases: Mutex::new(leases),
            granted: watch::Sender::new(()),
        };
        Ok(Self { disk, shared: Arc::new(shared), host: Arc::clone(host) })
    }

    /// Forgets the history before a revision, as a cluster's store may at any time.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn compact(&self, revision: i64) {
        self.shared.history.compact(revision);
    }

    /// Ends the leases that have run out.
    fn end_due(&self) {
        end_due(&self.disk, &self.shared);
    }

    fn error(&self, fault: Fault) -> StoreError {
        match fault {
            Fault::Io(cause) => StoreError::Unreachable { at: self.disk.name(), cause },
            Fault::Unreadable(cause) => StoreError::Unreadable(cause),
        }
    }

    /// Writes when a lease that outlives the process ends.
    async fn keep(&self, lease: LeaseId, ttl: Duration) -> Result<(), StoreError> {
        let row = (millis(ttl), self.host.now().0.saturating_add(millis(ttl)));
        let kept = self.disk.write(move |txn| {
            txn.open_table(LEASES)?.insert(lease.0, row)?;
            Ok(((), Changed::Yes))
        });
        kept.await.map_err(|fault| self.error(fault))
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

fn end_due(disk: &Arc<Disk>, shared: &Arc<Shared>) {
    let due = lock(&shared.leases).end_due(Instant::now());
    if !due.is_empty() {
        disk.submit(Box::new(End {
            leases: due,
            shared: Arc::clone(shared),
            made: None,
            reply: None,
        }));
    }
}

#[async_trait]
impl Store for FileStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.end_due();
        let key = key.to_owned();
        let read = self.disk.read(move |txn| rows::entry(&txn.open_table(KV)?, &key));
        read.await.map_err(|fault| self.error(fault))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.end_due();
        let prefix = prefix.to_owned();
        let read = self.disk.read(move |txn| rows::listing(txn, &prefix));
        let (revision, entries) = read.await.map_err(|fault| self.error(fault))?;
        Ok(Listing { entries, revision })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        self.end_due();
        if txn.ops.is_empty() {
            let read = self.disk.read(move |look| {
                let (meta, kv) = (look.open_table(rows::META)?, look.open_table(KV)?);
                Ok(TxnReply {
                    committed: rows::holds(&kv, &txn)?,
                    revision: rows::revision(&meta)?,
                    reads: rows::reads(&kv, &txn.reads)?,
                })
            });
            return read.await.map_err(|fault| self.error(fault));
        }
        let mut keys = BTreeSet::new();
        for op in &txn.ops {
            let (Op::Put { key, .. } | Op::Delete { key }) = op;
            if !keys.insert(key.as_str()) {
                return Err(StoreError::Refused(format!("{key} is changed twice at once")));
            }
        }
        let (reply, answer) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        self.disk.submit(Box::new(Transact { txn, shared, made: None, reply }));
        match in_time(answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(Refusal::Gone(lease))) => Err(StoreError::LeaseGone(lease)),
            Ok(Err(Refusal::Fault(fault))) | Err(fault) => Err(self.error(fault)),
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        let ttl = ttl.max(SHORTEST);
        // An id of 63 random bits is not met again.
        let lease = LeaseId(i64::try_from(rand::random::<u64>() >> 1).unwrap_or(1).max(1));
        if ttl >= LASTING {
            self.keep(lease, ttl).await?;
        }
        lock(&self.shared.leases).add(lease, ttl, Instant::now() + ttl);
        self.shared.granted.send_replace(());
        Ok(Granted { lease, ttl })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.end_due();
        let now = Instant::now();
        let ttl =
            lock(&self.shared.leases).renew(lease, now).ok_or(StoreError::LeaseGone(lease.0))?;
        if ttl >= LASTING {
            self.keep(lease, ttl).await?;
        }
        Ok(ttl)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        if !lock(&self.shared.leases).end(lease) {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let end = End { leases: vec![lease], shared, made: None, reply: Some(reply) };
        self.disk.submit(Box::new(end));
        in_time(answer).await.and_then(|outcome| outcome).map_err(|fault| self.error(fault))
    }

    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Changes, StoreError> {
        let watch = Watch {
            disk: Arc::clone(&self.disk),
            shared: Arc::clone(&self.shared),
            latest: self.shared.history.subscribe(),
            granted: self.shared.granted.subscribe(),
            prefix: prefix.to_owned(),
            from: from_revision,
            ready: VecDeque::new(),
            ended: false,
        };
        drop(self.shared.history.since(from_revision, prefix)?);
        Ok(stream::unfold(watch, Watch::next).boxed())
    }
}

/// Someone who watches.
struct Watch {
    disk: Arc<Disk>,
    shared: Arc<Shared>,
    latest: watch::Receiver<i64>,
    granted: watch::Receiver<()>,
    prefix: String,
    from: i64,
    ready: VecDeque<Change>,
    ended: bool,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<Change, StoreError>, Self)> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some((Ok(change), self));
            }
            // What comes while we look is seen at the next turn.
            self.latest.mark_unchanged();
            self.granted.mark_unchanged();
            match self.shared.history.since(self.from, &self.prefix) {
                Ok((changes, from)) => (self.ready, self.from) = (changes.into(), from),
                Err(gone) => {
                    self.ended = true;
                    return Some((Err(gone), self));
                }
            }
            if !self.ready.is_empty() {
                continue;
            }
            end_due(&self.disk, &self.shared);
            let deadline = lock(&self.shared.leases).next_deadline();
            let due = async move {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            // Neither sender goes away: `shared` holds them.
            tokio::select! {
                changed = self.latest.changed() => drop(changed),
                changed = self.granted.changed() => drop(changed),
                () = due => {}
            }
        }
    }
}

/// Why a transaction was not made.
enum Refusal {
    Gone(i64),
    Fault(Fault),
}

/// What a transaction comes to, once it is committed.
struct Made {
    answer: Result<TxnReply, Refusal>,
    changes: Vec<Change>,
}

/// A transaction that waits for the disk.
struct Transact {
    txn: Txn,
    shared: Arc<Shared>,
    made: Option<Made>,
    reply: oneshot::Sender<Result<TxnReply, Refusal>>,
}

impl Work for Transact {
    fn apply(&mut self, write: &WriteTransaction) -> Result<Changed, redb::Error> {
        let gone = {
            let (leases, now) = (lock(&self.shared.leases), Instant::now());
            self.txn.ops.iter().find_map(|op| match op {
                Op::Put { lease: Some(lease), .. } if leases.ttl(*lease, now).is_none() => {
                    Some(lease.0)
                }
                Op::Put { .. } | Op::Delete { .. } => None,
            })
        };
        if let Some(lease) = gone {
            self.made = Some(Made { answer: Err(Refusal::Gone(lease)), changes: Vec::new() });
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
        let reads = rows::reads(&kv, &self.txn.reads)?;
        self.made = Some(Made { answer: Ok(TxnReply { committed, revision, reads }), changes });
        Ok(changed)
    }

    fn end(self: Box<Self>, outcome: Result<(), Fault>) {
        let answer = match (outcome, self.made) {
            (Ok(()), Some(Made { answer, changes })) => {
                if let (Ok(reply), false) = (&answer, changes.is_empty()) {
                    self.shared.history.push(reply.revision, changes);
                }
                answer
            }
            (Ok(()), None) => Err(Refusal::Fault(Fault::Io("nothing was done".into()))),
            (Err(fault), _) => Err(Refusal::Fault(fault)),
        };
        // Who asked may have gone.
        drop(self.reply.send(answer));
    }
}

type KvTable<'txn> = redb::Table<'txn, &'static str, rows::KvRow>;
type LeasedTable<'txn> = redb::Table<'txn, (i64, &'static str), ()>;

/// Makes one change; `None` where a key to be removed is not there.
fn change(
    kv: &mut KvTable<'_>,
    leased: &mut LeasedTable<'_>,
    op: &Op,
    revision: i64,
) -> Result<Option<Change>, redb::Error> {
    match op {
        Op::Put { key, value, lease } => {
            let lease = lease.map_or(0, |lease| lease.0);
            let before = kv.get(key.as_str())?.map(|row| (row.value().0, row.value().2));
            let create_revision = before.map_or(revision, |(created, _)| created);
            let old_lease = before.map_or(0, |(_, lease)| lease);
            if old_lease != 0 && old_lease != lease {
                leased.remove((old_lease, key.as_str()))?;
            }
            if lease != 0 {
                leased.insert((lease, key.as_str()), ())?;
            }
            kv.insert(key.as_str(), (create_revision, revision, lease, value.as_slice()))?;
            Ok(Some(Change::Put(Entry {
                key: key.clone(),
                value: value.clone(),
                create_revision,
                mod_revision: revision,
            })))
        }
        Op::Delete { key } => remove(kv, leased, key, revision),
    }
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

/// Leases that have ended, whose keys are to go.
struct End {
    leases: Vec<LeaseId>,
    shared: Arc<Shared>,
    made: Option<(i64, Vec<Change>)>,
    reply: Option<oneshot::Sender<Result<(), Fault>>>,
}

impl Work for End {
    fn apply(&mut self, txn: &WriteTransaction) -> Result<Changed, redb::Error> {
        let (made, changed) = end_leases(txn, &self.leases)?;
        self.made = Some(made);
        Ok(changed)
    }

    fn end(self: Box<Self>, outcome: Result<(), Fault>) {
        {
            let mut leases = lock(&self.shared.leases);
            for lease in &self.leases {
                match &outcome {
                    Ok(()) => leases.forget(*lease),
                    Err(_) => leases.due_again(*lease, Instant::now() + RETRY),
                }
            }
        }
        if let (Ok(()), Some((revision, changes))) = (&outcome, self.made)
            && !changes.is_empty()
        {
            self.shared.history.push(revision, changes);
        }
        if let Some(reply) = self.reply {
            // Who asked may have gone.
            drop(reply.send(outcome));
        }
    }
}

/// Removes leases and their keys, in one revision.
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

type Lasting = Vec<(LeaseId, Duration, Duration)>;

/// Ends what earlier processes held; what outlives them comes back with its time to live, and what
/// is left of it.
fn void_leases(
    txn: &WriteTransaction,
    wall: i64,
) -> Result<((i64, Lasting), Changed), redb::Error> {
    let mut lasting = Lasting::new();
    for row in txn.open_table(LEASES)?.iter()? {
        let (id, row) = row?;
        let (ttl, ends) = row.value();
        if let Some(left) = u64::try_from(ends.saturating_sub(wall)).ok().filter(|left| *left > 0) {
            let ttl = Duration::from_millis(u64::try_from(ttl).unwrap_or_default());
            // A clock that was set back does not make a lease longer than it was.
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
