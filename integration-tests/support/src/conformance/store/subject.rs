//! The store under test, and what the tests do with it.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;

use crate::conformance::soon;
use runner::ports::{Change, Changes, Entry, Store, Txn};

/// A store under test.
pub struct StoreSubject {
    /// Prefix of every key, unique to this call, so that a store can be shared.
    pub prefix: String,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The same store through another node's adapter. May be the same value.
    pub other: Arc<dyn Store>,
    /// Compacts the store's history up to a revision, if the store supports that.
    pub compact: Option<Box<dyn Fn(i64) -> BoxFuture<'static, ()> + Send + Sync>>,
}

impl std::fmt::Debug for StoreSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreSubject").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// The result of a transaction that was checked.
pub(super) struct Seen {
    pub(super) revision: i64,
    pub(super) reads: Vec<Vec<Entry>>,
}

impl Seen {
    pub(super) fn entry(&self, position: usize) -> Option<&Entry> {
        self.reads[position].first()
    }
}

impl StoreSubject {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) async fn made(&self, txn: Txn) -> Seen {
        let reply = self.store.txn(txn).await.expect("a transaction is answered");
        assert!(reply.committed, "a transaction whose demands hold commits");
        Seen { revision: reply.revision, reads: reply.reads }
    }

    pub(super) async fn refused(&self, txn: Txn) -> Seen {
        let reply = self.store.txn(txn).await.expect("a transaction is answered");
        assert!(!reply.committed, "a transaction whose demands do not hold changes nothing");
        Seen { revision: reply.revision, reads: reply.reads }
    }

    pub(super) async fn get(&self, key: &str) -> Option<Entry> {
        let entry = self.store.get(key).await.expect("a key can be read");
        let seen = self.other.get(key).await.expect("a key can be read by another node");
        assert_eq!(entry, seen, "two nodes see the same");
        entry
    }

    pub(super) async fn names(&self, prefix: &str) -> Vec<String> {
        let listing = self.store.list(prefix).await.expect("a prefix can be listed");
        listing.entries.into_iter().map(|entry| entry.key).collect()
    }
}

pub(super) async fn next(changes: &mut Changes) -> Change {
    soon("the next change", changes.next()).await.expect("a watch continues").expect("a change")
}

/// Asserts that the next change deletes this key. Returns the revision.
pub(super) async fn gone(changes: &mut Changes, gone: &str) -> i64 {
    match next(changes).await {
        Change::Deleted { key, revision } if key == gone => revision,
        other @ (Change::Put(_) | Change::Deleted { .. }) => {
            panic!("{gone} is to go, but the watch saw {other:?}")
        }
    }
}
