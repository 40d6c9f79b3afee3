//! Shared state: keys, transactions, leases, watches. The model is etcd's (`kv.proto`).

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use protocol::id::{Epoch, NodeId, RunId};
use protocol::names;
use thiserror::Error;

/// A key with its value and revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The revision that created the key. A key that was deleted and created again has a new one.
    pub create_revision: i64,
    /// The revision of the last change.
    pub mod_revision: i64,
}

/// The keys with a prefix, read at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The entries, sorted by key.
    pub entries: Vec<Entry>,
    /// The revision of the read. A watch from the next revision misses no change.
    pub revision: i64,
}

/// A condition on a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists.
    Present,
    /// The key was created at this revision.
    CreatedAt(i64),
    /// The key was last modified at this revision.
    ModifiedAt(i64),
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// The condition.
    pub expect: Expect,
}

/// A change made by a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// The lease to attach, if any.
        lease: Option<LeaseId>,
    },
    /// Deletes a key. No effect if the key does not exist.
    Delete {
        /// The key.
        key: String,
    },
    /// Attaches a key to a lease and keeps its value. No effect if the key does not exist.
    Attach {
        /// The key.
        key: String,
        /// The new lease.
        lease: LeaseId,
    },
}

impl Op {
    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &str {
        let (Self::Put { key, .. } | Self::Delete { key } | Self::Attach { key, .. }) = self;
        key
    }

    /// Returns the key for modification.
    pub fn key_mut(&mut self) -> &mut String {
        let (Self::Put { key, .. } | Self::Delete { key } | Self::Attach { key, .. }) = self;
        key
    }

    /// Returns the lease that the key is attached to, if any.
    #[must_use]
    pub fn lease(&self) -> Option<LeaseId> {
        match self {
            Self::Put { lease, .. } => *lease,
            Self::Attach { lease, .. } => Some(*lease),
            Self::Delete { .. } => None,
        }
    }
}

/// A read of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// One key.
    Key(String),
    /// Every key with this prefix.
    Prefix(String),
}

/// A transaction. If all conditions hold, it makes its changes, then its reads. Otherwise it makes
/// its reads, then those in `otherwise`.
///
/// A transaction must not change a key more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a transaction does nothing until it is given to the store"]
pub struct Txn {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// The changes.
    pub ops: Vec<Op>,
    /// The reads made in either case.
    pub reads: Vec<Read>,
    /// The reads made only if a condition fails, so that a commit need not return what it wrote.
    pub otherwise: Vec<Read>,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition on a key.
    pub fn when(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.compares.push(Compare { key: key.into(), expect });
        self
    }

    /// Writes a key.
    pub fn put(mut self, key: impl Into<String>, value: Vec<u8>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value, lease: None });
        self
    }

    /// Writes a key attached to a lease.
    pub fn put_leased(mut self, key: impl Into<String>, value: Vec<u8>, lease: LeaseId) -> Self {
        self.ops.push(Op::Put { key: key.into(), value, lease: Some(lease) });
        self
    }

    /// Deletes a key.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Attaches a key to a lease and keeps its value.
    pub fn attach(mut self, key: impl Into<String>, lease: LeaseId) -> Self {
        self.ops.push(Op::Attach { key: key.into(), lease });
        self
    }

    /// Reads a key in either case.
    pub fn read(mut self, key: impl Into<String>) -> Self {
        self.reads.push(Read::Key(key.into()));
        self
    }

    /// Reads a key if a condition fails.
    pub fn read_otherwise(mut self, key: impl Into<String>) -> Self {
        self.otherwise.push(Read::Key(key.into()));
        self
    }

    /// Reads every key with a prefix in either case.
    pub fn read_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.reads.push(Read::Prefix(prefix.into()));
        self
    }
}

/// The result of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a transaction whose demands did not hold has changed nothing"]
pub struct TxnReply {
    /// Whether all conditions held and the changes were made.
    pub committed: bool,
    /// The store's revision after the transaction.
    pub revision: i64,
    /// The entries found by each read, in the order of the reads.
    pub reads: Vec<Vec<Entry>>,
}

impl TxnReply {
    /// Returns the entry found by the single-key read at `position`.
    #[must_use]
    pub fn entry(&self, position: usize) -> Option<&Entry> {
        self.reads.get(position).and_then(|entries| entries.first())
    }
}

/// The ID of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// A granted lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The lease's ID.
    pub lease: LeaseId,
    /// The granted time to live, which may be longer than requested.
    pub ttl: Duration,
}

/// A change reported by a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A key was written.
    Put(Entry),
    /// A key was deleted, or expired with its lease.
    Deleted {
        /// The key.
        key: String,
        /// The revision of the deletion.
        revision: i64,
    },
}

/// Changes in the order of their revisions. The stream ends after an `Err`: read again, and watch
/// from that revision.
pub type Changes = BoxStream<'static, Result<Change, StoreError>>;

/// Proof that this node owns a run. Every write for the run is fenced with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The run.
    pub run: RunId,
    /// The create revision of the owner key.
    pub epoch: Epoch,
    /// The owner.
    pub node: NodeId,
}

impl Claim {
    /// Adds the condition that this claim is still valid.
    pub fn fenced(&self, txn: Txn) -> Txn {
        txn.when(names::owner_key(&self.run), Expect::CreatedAt(self.epoch.0))
    }
}

/// Errors of the store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The store does not respond. Whether a change was made is unknown.
    #[error("cannot reach the store at {at}: {cause}")]
    Unreachable {
        /// The addresses, without credentials.
        at: String,
        /// The connection error.
        cause: String,
    },
    /// The lease has expired or was revoked.
    #[error("lease {0:x} is gone")]
    LeaseGone(i64),
    /// The watch's revision is older than the retained history.
    #[error("the store no longer holds revision {asked}; the oldest is {oldest}")]
    Compacted {
        /// The requested revision.
        asked: i64,
        /// The oldest retained revision.
        oldest: i64,
    },
    /// The user, password or certificate does not grant access.
    #[error(
        "the store at {at} refuses access: {cause}; check BOB_STORAGE_USER, BOB_STORAGE_PASSWORD and the certificates"
    )]
    Denied {
        /// The addresses, without credentials.
        at: String,
        /// The store's reply.
        cause: String,
    },
    /// The store responds but rejects all writes, for example because its database is full. Nothing
    /// was changed.
    #[error("the store at {at} refuses writes: {cause}")]
    WritesRefused {
        /// The addresses, without credentials.
        at: String,
        /// The store's reply, and how to fix it.
        cause: String,
    },
    /// The store rejected the request, and would reject it again.
    #[error("the store refuses a request: {0}")]
    Refused(String),
    /// The store was restored from a snapshot older than the last writes. It may issue the same
    /// epoch again.
    #[error(
        "the store is at revision {revision}, but run {run} was owned at revision {epoch}: it was \
         restored from an older snapshot; restore it with `etcdutl snapshot restore \
         --bump-revision 1000000000 --mark-compacted`, or remove the keys of that run"
    )]
    Restored {
        /// The run.
        run: String,
        /// The epoch of that run.
        epoch: i64,
        /// The store's current revision.
        revision: i64,
    },
    /// The store's file, or a value in it, is invalid.
    #[error("the store holds something unreadable: {0}")]
    Unreadable(String),
}

impl StoreError {
    /// Returns true if the request itself is at fault, so that it fails at any time, with any lease
    /// and any user.
    #[must_use]
    pub fn is_invalid_request(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Unreadable(_) => true,
            Self::Unreachable { .. }
            | Self::LeaseGone(_)
            | Self::Compacted { .. }
            | Self::Denied { .. }
            | Self::WritesRefused { .. }
            | Self::Restored { .. } => false,
        }
    }

    /// Returns true if the store rejects all writes: it is full, or the user lacks the permission.
    #[must_use]
    pub fn refuses_writes(&self) -> bool {
        match self {
            Self::WritesRefused { .. } | Self::Denied { .. } => true,
            Self::Unreachable { .. }
            | Self::LeaseGone(_)
            | Self::Compacted { .. }
            | Self::Refused(_)
            | Self::Restored { .. }
            | Self::Unreadable(_) => false,
        }
    }

    /// Returns true if the same request may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::WritesRefused { .. } => true,
            Self::LeaseGone(_)
            | Self::Compacted { .. }
            | Self::Denied { .. }
            | Self::Refused(_)
            | Self::Unreadable(_)
            | Self::Restored { .. } => false,
        }
    }
}

/// A name that is not a valid run or node ID.
const PROBE: &str = "-probe";

/// Shared state of all workers. Every call has its own timeout of a few seconds and then fails with
/// [`StoreError::Unreachable`]. Adapters reconnect by themselves, without limit.
///
/// # Cancel safety
/// If the future of a modifying call is dropped, whether the change was made is unknown.
#[async_trait]
pub trait Store: Send + Sync {
    /// Returns an ID that distinguishes this store from every other. All clients see the same ID.
    /// It is stable as long as the store keeps its history.
    async fn identity(&self) -> Result<String, StoreError>;

    /// Reads a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Reads every key that begins with `prefix`.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// Reads up to `most` keys that begin with `prefix` and sort after the key `after`. A page with
    /// fewer keys is the last one.
    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Listing, StoreError> {
        let mut listing = self.list(prefix).await?;
        listing.entries.retain(|entry| after.is_none_or(|after| entry.key.as_str() > after));
        listing.entries.truncate(most);
        Ok(listing)
    }

    /// Executes a transaction.
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError>;

    /// Checks that writes are accepted without making one. The transaction would write to every
    /// prefix that workers use, under a condition that never holds. A store checks its space and
    /// the user's permissions before the conditions.
    ///
    /// # Errors
    /// The error that a write would return.
    async fn accepts_writes(&self) -> Result<(), StoreError> {
        let places = [
            names::RUNS,
            names::DEFINITIONS,
            names::OPEN,
            names::OWNERS,
            names::STOPS,
            names::SEEN,
            names::NODES,
            names::CALLBACKS,
            names::PIPELINES,
        ];
        let never = format!("{}{PROBE}", names::NODES);
        let probe =
            places.into_iter().fold(Txn::new().when(never, Expect::Present), |probe, place| {
                let key = format!("{place}{PROBE}");
                probe.put(key.clone(), b"{}".to_vec()).read_otherwise(key)
            });
        self.txn(probe).await.map(drop)
    }

    /// Grants a lease of at least `ttl`.
    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError>;

    /// Renews a lease once, for its granted time, counted from the store's receipt of the request.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Revokes a lease and deletes its keys. Succeeds if the lease no longer exists.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Watches every key that begins with `prefix`, starting with the changes of `from_revision`.
    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Changes, StoreError>;
}
