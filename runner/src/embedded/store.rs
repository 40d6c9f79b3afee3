//! State: keys, transactions, leases, watches.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::changes::{End, Refusal, Transact, void_leases};
use super::disk::{Changed, Disk, Fault, in_time};
use super::history::History;
use super::leases::{LASTING, Leases};
use super::memory::Shared;
use super::rows::{self, KV, LEASES};
use crate::ports::{
    Change, Changes, Entry, Granted, Host, LeaseId, Listing, Store, StoreError, Txn, TxnReply,
};

/// The minimum time to live of a lease.
const SHORTEST: Duration = Duration::from_secs(1);

/// The store in a file.
pub(super) struct FileStore {
    disk: Arc<Disk>,
    shared: Arc<Shared>,
    host: Arc<dyn Host>,
}

impl std::fmt::Debug for FileStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileStore").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl FileStore {
    /// Opens the store. Ends the leases of earlier processes, except those that outlive a process.
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

    pub(super) async fn close(&self) -> Result<(), StoreError> {
        self.disk.close().await.map_err(|fault| self.error(fault))
    }

    /// Returns why the file can no longer be written, if it cannot.
    pub(super) fn failure(&self) -> Option<String> {
        self.disk.failure()
    }

    /// Waits until the file can no longer be written, and returns the cause.
    pub(super) async fn failed(&self) -> String {
        self.disk.failed().await
    }

    /// Drops the history before a revision, which a cluster's store may do at any time.
    pub(super) fn compact(&self, revision: i64) {
        self.shared.history.compact(revision);
    }

    /// Ends the expired leases.
    fn end_due(&self) {
        end_due(&self.disk, &self.shared);
    }

    fn error(&self, fault: Fault) -> StoreError {
        match fault {
            Fault::Io(cause) => StoreError::Unreachable { at: self.disk.name(), cause },
            Fault::Unreadable(cause) => StoreError::Unreadable(cause),
        }
    }

    /// Stores the expiry of a lease that outlives the process.
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
    let due = shared.leases.lock().end_due(Instant::now());
    if !due.is_empty() {
        disk.submit(End::new(due, Arc::clone(shared)).0);
    }
}

#[async_trait]
impl Store for FileStore {
    async fn identity(&self) -> Result<String, StoreError> {
        let identity = self.disk.write(rows::identity).await.map_err(|fault| self.error(fault))?;
        Ok(format!("{identity:016x}"))
    }

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

    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Listing, StoreError> {
        self.end_due();
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let read = self.disk.read(move |txn| rows::page(txn, &prefix, after.as_deref(), most));
        let (revision, entries) = read.await.map_err(|fault| self.error(fault))?;
        Ok(Listing { entries, revision })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        self.end_due();
        if txn.ops.is_empty() {
            let read = self.disk.read(move |look| {
                let (meta, kv) = (look.open_table(rows::META)?, look.open_table(KV)?);
                let committed = rows::holds(&kv, &txn)?;
                let reads = rows::reads(&kv, &txn, committed)?;
                Ok(TxnReply { committed, revision: rows::revision(&meta)?, reads })
            });
            return read.await.map_err(|fault| self.error(fault));
        }
        let mut keys = BTreeSet::new();
        for op in &txn.ops {
            let key = op.key();
            if !keys.insert(key) {
                return Err(StoreError::Refused(format!("{key} is changed twice at once")));
            }
        }
        let (transact, answer) = Transact::new(txn, Arc::clone(&self.shared));
        self.disk.submit(transact);
        match in_time(answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(Refusal::Gone(lease))) => Err(StoreError::LeaseGone(lease)),
            Ok(Err(Refusal::Fault(fault))) | Err(fault) => Err(self.error(fault)),
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        let ttl = ttl.max(SHORTEST);
        // An ID of 63 random bits is unique in practice.
        let lease = LeaseId(i64::try_from(rand::random::<u64>() >> 1).unwrap_or(1).max(1));
        if ttl >= LASTING {
            self.keep(lease, ttl).await?;
        }
        self.shared.leases.lock().add(lease, ttl, Instant::now() + ttl);
        self.shared.granted.send_replace(());
        Ok(Granted { lease, ttl })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.end_due();
        let now = Instant::now();
        let ttl =
            self.shared.leases.lock().renew(lease, now).ok_or(StoreError::LeaseGone(lease.0))?;
        if ttl >= LASTING {
            self.keep(lease, ttl).await?;
        }
        Ok(())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        if !self.shared.leases.lock().end(lease) {
            return Ok(());
        }
        let (end, answer) = End::new(vec![lease], Arc::clone(&self.shared));
        self.disk.submit(end);
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

/// A watch.
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
            // Changes during the check below are seen in the next iteration.
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
            let deadline = self.shared.leases.lock().next_deadline();
            let due = async move {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            // `shared` owns both senders.
            tokio::select! {
                changed = self.latest.changed() => drop(changed),
                changed = self.granted.changed() => drop(changed),
                () = due => {}
            }
        }
    }
}
