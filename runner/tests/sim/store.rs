//! An in-memory store that behaves like etcd: revisions, transactions, leases, watches, and a
//! journal of all writes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use protocol::names;
use runner::ports::{
    Change, Changes, Entry, Expect, Granted, LeaseId, Listing, Op, Read, Store, StoreError, Txn,
    TxnReply,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::plan::EffectSide;
use crate::sites::site_of;
use crate::world::{Broken, Process, Signal, World, lock};

/// A change.
#[derive(Debug, Clone)]
pub struct StoreChange {
    pub revision: i64,
    pub key: String,
    /// `None` if it was deleted.
    pub value: Option<Vec<u8>>,
}

struct Lease {
    ttl: Duration,
    ends: Instant,
}

#[derive(Default)]
struct Inner {
    revision: i64,
    kv: BTreeMap<String, (Entry, Option<LeaseId>)>,
    leases: BTreeMap<i64, Lease>,
    next_lease: i64,
    history: Vec<(i64, Change)>,
    compacted: i64,
    journal: Vec<StoreChange>,
    away_until: Option<Instant>,
    refuses_until: Option<Instant>,
}

/// The contents of the store.
pub struct State {
    inner: Mutex<Inner>,
    revision: Signal<i64>,
    /// Notified when a lease was added, so that the next expiry is computed again.
    granted: Notify,
}

impl Default for State {
    fn default() -> Self {
        Self { inner: Mutex::default(), revision: Signal::new(0), granted: Notify::new() }
    }
}

impl Inner {
    /// Whether it accepts writes. Like etcd, it always accepts deletions.
    fn accepts_writes(&self) -> Result<(), StoreError> {
        match self.refuses_until {
            Some(until) if until > Instant::now() => Err(StoreError::WritesRefused {
                at: "the store".into(),
                cause: "its database is full".into(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn holds(&self, key: &str, expect: Expect) -> bool {
        let entry = self.kv.get(key).map(|(entry, _)| entry);
        match (expect, entry) {
            (Expect::Absent, entry) => entry.is_none(),
            (Expect::Present, entry) => entry.is_some(),
            (Expect::CreatedAt(at), Some(entry)) => entry.create_revision == at,
            (Expect::ModifiedAt(at), Some(entry)) => entry.mod_revision == at,
            (Expect::CreatedAt(_) | Expect::ModifiedAt(_), None) => false,
        }
    }

    fn read(&self, read: &Read) -> Vec<Entry> {
        match read {
            Read::Key(key) => {
                self.kv.get(key).map(|(entry, _)| entry.clone()).into_iter().collect()
            }
            Read::Prefix(prefix) => self.listed(prefix),
        }
    }

    fn listed(&self, prefix: &str) -> Vec<Entry> {
        let from = self.kv.range(prefix.to_owned()..);
        from.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, (entry, _))| entry.clone())
            .collect()
    }

    fn put(&mut self, key: &str, value: Vec<u8>, lease: Option<LeaseId>) {
        let revision = self.revision;
        let create_revision = self.kv.get(key).map_or(revision, |(entry, _)| entry.create_revision);
        let key = key.to_owned();
        let entry = Entry {
            key: key.clone(),
            value: value.clone(),
            create_revision,
            mod_revision: revision,
        };
        self.history.push((revision, Change::Put(entry.clone())));
        self.kv.insert(key.clone(), (entry, lease));
        self.journal.push(StoreChange { revision, key, value: Some(value) });
    }

    fn delete(&mut self, key: &str) {
        if self.kv.remove(key).is_some() {
            let (revision, key) = (self.revision, key.to_owned());
            self.history.push((revision, Change::Deleted { key: key.clone(), revision }));
            self.journal.push(StoreChange { revision, key, value: None });
        }
    }

    fn end_lease(&mut self, lease: LeaseId) -> bool {
        if self.leases.remove(&lease.0).is_none() {
            return false;
        }
        let of_it = |entry: &(Entry, Option<LeaseId>)| entry.1 == Some(lease);
        let keys: Vec<String> = self
            .kv
            .values()
            .filter(|entry| of_it(entry))
            .map(|(entry, _)| entry.key.clone())
            .collect();
        if !keys.is_empty() {
            self.revision += 1;
        }
        for key in keys {
            self.delete(&key);
        }
        true
    }
}

impl State {
    fn told(&self) {
        let revision = lock(&self.inner).revision;
        self.revision.set(revision);
    }

    /// Ends leases when they expire, for the whole history.
    pub async fn end_leases(&self) {
        loop {
            let next = lock(&self.inner).leases.values().map(|lease| lease.ends).min();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.granted.notified() => {}
                () = due => {
                    let now = Instant::now();
                    let mut inner = lock(&self.inner);
                    let ended: Vec<i64> = inner.leases.iter()
                        .filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id).collect();
                    for lease in ended {
                        inner.end_lease(LeaseId(lease));
                    }
                    drop(inner);
                    self.told();
                }
            }
        }
    }

    fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        let mut inner = lock(&self.inner);
        if txn.ops.iter().any(|op| matches!(op, Op::Put { .. })) {
            inner.accepts_writes()?;
        }
        for op in &txn.ops {
            if let Some(lease) = op.lease()
                && !inner.leases.contains_key(&lease.0)
            {
                return Err(StoreError::LeaseGone(lease.0));
            }
        }
        let committed = txn.compares.iter().all(|demand| inner.holds(&demand.key, demand.expect));
        if committed {
            let changes = |op: &Op| match op {
                Op::Put { .. } => true,
                Op::Delete { key } | Op::Attach { key, .. } => inner.kv.contains_key(key),
            };
            if txn.ops.iter().any(changes) {
                inner.revision += 1;
            }
            for op in txn.ops {
                match op {
                    Op::Put { key, value, lease } => inner.put(&key, value, lease),
                    Op::Delete { key } => inner.delete(&key),
                    Op::Attach { key, lease } => {
                        let value = inner.kv.get(&key).map(|(entry, _)| entry.value.clone());
                        if let Some(value) = value {
                            inner.put(&key, value, Some(lease));
                        }
                    }
                }
            }
        }
        let otherwise = txn.otherwise.iter().filter(|_| !committed);
        let reads = txn.reads.iter().chain(otherwise).map(|read| inner.read(read)).collect();
        let reply = TxnReply { committed, revision: inner.revision, reads };
        drop(inner);
        self.told();
        Ok(reply)
    }

    /// The current keys under a prefix.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        lock(&self.inner).listed(prefix).into_iter().map(|entry| entry.key).collect()
    }

    pub fn value(&self, key: &str) -> Option<Vec<u8>> {
        lock(&self.inner).kv.get(key).map(|(entry, _)| entry.value.clone())
    }

    /// Registers an artifact store.
    pub fn register(&self, name: &str) {
        let value = format!(r#"{{"name":"{name}","url":"http://{name}"}}"#).into_bytes();
        let txn = Txn::new().put(format!("{}{name}", names::STORES), value);
        assert!(self.txn(txn).is_ok_and(|reply| reply.committed));
    }

    pub fn revision(&self) -> i64 {
        lock(&self.inner).revision
    }

    pub fn journal(&self) -> Vec<StoreChange> {
        lock(&self.inner).journal.clone()
    }

    pub fn go_away(&self, span: Duration) {
        lock(&self.inner).away_until = Some(Instant::now() + span);
    }

    pub fn refuse_writes(&self, span: Duration) {
        lock(&self.inner).refuses_until = Some(Instant::now() + span);
    }

    pub fn compact(&self) {
        let mut inner = lock(&self.inner);
        inner.compacted = inner.revision;
        inner.history.clear();
    }

    /// Ends the lease of a node's entry.
    pub fn end_lease_of(&self, node_key: &str) {
        let lease = lock(&self.inner).kv.get(node_key).and_then(|(_, lease)| *lease);
        if let Some(lease) = lease {
            lock(&self.inner).end_lease(lease);
        }
        self.told();
    }
}

/// The store as seen by one process.
pub struct Handle {
    pub process: Arc<Process>,
}

impl Handle {
    fn world(&self) -> &World {
        &self.process.world
    }

    fn gone(&self) -> StoreError {
        StoreError::Unreachable { at: "the store".into(), cause: "it does not answer".into() }
    }

    async fn before(&self, site: &str) -> Result<(), StoreError> {
        self.process.pass(site, EffectSide::Before).await.map_err(|Broken| self.gone())?;
        let away = lock(&self.world().store.inner).away_until;
        if away.is_some_and(|until| until > Instant::now()) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            self.process.lives().await;
            return Err(self.gone());
        }
        Ok(())
    }

    async fn after(&self, site: &str) -> Result<(), StoreError> {
        self.process.pass(site, EffectSide::After).await.map_err(|Broken| self.gone())
    }
}

#[async_trait]
impl Store for Handle {
    async fn identity(&self) -> Result<String, StoreError> {
        Ok("simulated".into())
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.before("get").await?;
        let found = lock(&self.world().store.inner).kv.get(key).map(|(entry, _)| entry.clone());
        self.after("get").await?;
        Ok(found)
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.before("get").await?;
        let listing = {
            let inner = lock(&self.world().store.inner);
            Listing { entries: inner.listed(prefix), revision: inner.revision }
        };
        self.after("get").await?;
        Ok(listing)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        let site = site_of(&txn);
        self.before(site).await?;
        let world = self.world();
        let reply = world.store.txn(txn)?;
        if site != "look" && site != "node" {
            let (number, committed) = (self.process.number, reply.committed);
            world.say(|| format!("w{number}: {site} committed={committed} at {}", reply.revision));
        }
        self.after(site).await?;
        Ok(reply)
    }

    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        self.before("grant").await?;
        let world = self.world();
        // The store can notice an expired lease late.
        let ends = Instant::now() + ttl + world.span(Duration::from_secs(2));
        let lease = {
            let mut inner = lock(&world.store.inner);
            inner.accepts_writes()?;
            inner.next_lease += 1;
            let id = inner.next_lease;
            inner.leases.insert(id, Lease { ttl, ends });
            LeaseId(id)
        };
        world.store.granted.notify_one();
        self.after("grant").await?;
        Ok(Granted { lease, ttl })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.before("keep-alive").await?;
        let world = self.world();
        let late = world.span(Duration::from_secs(2));
        let renewed = lock(&world.store.inner).leases.get_mut(&lease.0).map(|found| {
            found.ends = Instant::now() + found.ttl + late;
        });
        world.store.granted.notify_one();
        self.after("keep-alive").await?;
        renewed.ok_or(StoreError::LeaseGone(lease.0))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.before("revoke").await?;
        let world = self.world();
        lock(&world.store.inner).end_lease(lease);
        world.store.told();
        self.after("revoke").await
    }

    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Changes, StoreError> {
        self.before("watch").await?;
        let watch = Watch {
            process: Arc::clone(&self.process),
            prefix: prefix.to_owned(),
            from: from_revision,
            ready: VecDeque::new(),
            ended: false,
        };
        Ok(stream::unfold(watch, Watch::next).boxed())
    }
}

struct Watch {
    process: Arc<Process>,
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
            let seen = self.process.world.store.revision.get();
            let compacted = {
                let inner = lock(&self.process.world.store.inner);
                let begins = inner.history.partition_point(|(revision, _)| *revision < self.from);
                let new = inner.history.get(begins..).unwrap_or_default();
                self.ready = new
                    .iter()
                    .filter(|(_, change)| key_of(change).starts_with(&self.prefix))
                    .map(|(_, change)| change.clone())
                    .collect();
                let compacted = (self.from <= inner.compacted).then_some(inner.compacted);
                self.from = inner.revision + 1;
                compacted
            };
            if let Some(oldest) = compacted {
                self.ended = true;
                return Some((Err(StoreError::Compacted { asked: self.from, oldest }), self));
            }
            if self.ready.is_empty() {
                self.process.world.store.revision.wait_for(|now| now > seen).await;
            }
            // The change is late, or the connection broke.
            if self.process.pass("watch", EffectSide::After).await.is_err() {
                self.ended = true;
                let (at, cause) = ("the store".to_owned(), "the watch was interrupted".to_owned());
                return Some((Err(StoreError::Unreachable { at, cause }), self));
            }
        }
    }
}

fn key_of(change: &Change) -> &str {
    match change {
        Change::Put(entry) => &entry.key,
        Change::Deleted { key, .. } => key,
    }
}
