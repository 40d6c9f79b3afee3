//! Restricts a store to the keys with a prefix, so that tests can share one store. A worker acts on
//! every open run that it sees, so tests must not see each other's runs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use runner::ports::{
    Change, Changes, Entry, Granted, LeaseId, Listing, Read, Store, StoreError, Txn, TxnReply,
};

/// Adds a prefix to every key that it sends to the store, and removes it from every key that the
/// store returns.
pub struct PrefixedStore {
    store: Arc<dyn Store>,
    prefix: String,
}

impl std::fmt::Debug for PrefixedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrefixedStore").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl PrefixedStore {
    /// Restricts `store` to the keys with `prefix`.
    pub fn new(store: Arc<dyn Store>, prefix: impl Into<String>) -> Self {
        Self { store, prefix: prefix.into() }
    }

    fn add_prefix(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn strip_entry(&self, entry: Entry) -> Entry {
        Entry { key: strip_prefix(&self.prefix, &entry.key), ..entry }
    }
}

fn strip_prefix(prefix: &str, key: &str) -> String {
    key.strip_prefix(prefix).expect("the store returns only keys with the prefix").to_owned()
}

#[async_trait]
impl Store for PrefixedStore {
    async fn identity(&self) -> Result<String, StoreError> {
        Ok(format!("{} {}", self.store.identity().await?, self.prefix))
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let entry = self.store.get(&self.add_prefix(key)).await?;
        Ok(entry.map(|entry| self.strip_entry(entry)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let Listing { entries, revision } = self.store.list(&self.add_prefix(prefix)).await?;
        let entries = entries.into_iter().map(|entry| self.strip_entry(entry)).collect();
        Ok(Listing { entries, revision })
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnReply, StoreError> {
        for compare in &mut txn.compares {
            compare.key = self.add_prefix(&compare.key);
        }
        for op in &mut txn.ops {
            let key = op.key_mut();
            *key = self.add_prefix(key);
        }
        for read in txn.reads.iter_mut().chain(&mut txn.otherwise) {
            let (Read::Key(key) | Read::Prefix(key)) = read;
            *key = self.add_prefix(key);
        }
        let mut reply = self.store.txn(txn).await?;
        for entry in reply.reads.iter_mut().flatten() {
            entry.key = strip_prefix(&self.prefix, &entry.key);
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
        let changes = self.store.watch(&self.add_prefix(prefix), from_revision).await?;
        let store_prefix = self.prefix.clone();
        let changes = changes.map(move |change| {
            change.map(|change| match change {
                Change::Put(entry) => {
                    Change::Put(Entry { key: strip_prefix(&store_prefix, &entry.key), ..entry })
                }
                Change::Deleted { key, revision } => {
                    Change::Deleted { key: strip_prefix(&store_prefix, &key), revision }
                }
            })
        });
        Ok(changes.boxed())
    }
}
