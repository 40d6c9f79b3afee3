//! A part of a shared store. A worker takes care of every open run that it sees, so two tests must
//! not see each other's runs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use runner::ports::{
    Change, Changes, Entry, Granted, LeaseId, Listing, Read, Store, StoreError, Txn, TxnReply,
};

/// A store that adds a prefix to all keys, invisible to its user.
pub struct Prefixed {
    store: Arc<dyn Store>,
    prefix: String,
}

impl std::fmt::Debug for Prefixed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefixed").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Prefixed {
    /// Creates the part of `store` below `prefix`.
    pub fn new(store: Arc<dyn Store>, prefix: impl Into<String>) -> Self {
        Self { store, prefix: prefix.into() }
    }

    fn outside(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn entry(&self, entry: Entry) -> Entry {
        Entry { key: inside(&self.prefix, &entry.key), ..entry }
    }
}

fn inside(prefix: &str, key: &str) -> String {
    key.strip_prefix(prefix).expect("a key below the prefix").to_owned()
}

#[async_trait]
impl Store for Prefixed {
    async fn identity(&self) -> Result<String, StoreError> {
        Ok(format!("{} {}", self.store.identity().await?, self.prefix))
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let found = self.store.get(&self.outside(key)).await?;
        Ok(found.map(|entry| self.entry(entry)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let Listing { entries, revision } = self.store.list(&self.outside(prefix)).await?;
        let entries = entries.into_iter().map(|entry| self.entry(entry)).collect();
        Ok(Listing { entries, revision })
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnReply, StoreError> {
        for compare in &mut txn.compares {
            compare.key = self.outside(&compare.key);
        }
        for op in &mut txn.ops {
            let key = op.key_mut();
            *key = self.outside(key);
        }
        for read in txn.reads.iter_mut().chain(&mut txn.otherwise) {
            let (Read::Key(key) | Read::Prefix(key)) = read;
            *key = self.outside(key);
        }
        let mut reply = self.store.txn(txn).await?;
        for entry in reply.reads.iter_mut().flatten() {
            entry.key = inside(&self.prefix, &entry.key);
        }
        Ok(reply)
    }

    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }

    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Changes, StoreError> {
        let changes = self.store.watch(&self.outside(prefix), from_revision).await?;
        let ours = self.prefix.clone();
        let seen = changes.map(move |change| {
            change.map(|change| match change {
                Change::Put(entry) => {
                    Change::Put(Entry { key: inside(&ours, &entry.key), ..entry })
                }
                Change::Deleted { key, revision } => {
                    Change::Deleted { key: inside(&ours, &key), revision }
                }
            })
        });
        Ok(seen.boxed())
    }
}
