//! Shared state: keys, transactions, leases, watches. The shape is etcd's (`kv.proto`).

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use protocol::id::{Epoch, NodeId, RunId};
use protocol::names;
use thiserror::Error;

/// A key as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The revision at which the key came to be; a key that was deleted and made again has a new one.
    pub create_revision: i64,
    /// The revision of its last change.
    pub mod_revision: i64,
}

/// Keys under a prefix, all of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// In the order of the keys.
    pub entries: Vec<Entry>,
    /// The revision at which they were read: a watch from the next one misses nothing.
    pub revision: i64,
}

/// What a transaction demands of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// It is not there.
    Absent,
    /// It is there.
    Present,
    /// It is the one that was made at this revision.
    CreatedAt(i64),
    /// It has not changed since this revision.
    ModifiedAt(i64),
}

/// A demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Of which key.
    pub key: String,
    /// What.
    pub expect: Expect,
}

/// A change that a transaction makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The lease that it ends with.
        lease: Option<LeaseId>,
    },
    /// Removes a key; nothing where it is absent.
    Delete {
        /// The key.
        key: String,
    },
    /// Moves a key to a lease without sending its value again; does nothing if the key is absent.
    Attach {
        /// The key.
        key: String,
        /// The lease that it ends with from now on.
        lease: LeaseId,
    },
}

impl Op {
    /// The key that it changes.
    #[must_use]
    pub fn key(&self) -> &str {
        let (Self::Put { key, .. } | Self::Delete { key } | Self::Attach { key, .. }) = self;
        key
    }

    /// The same, to change it.
    pub fn key_mut(&mut self) -> &mut String {
        let (Self::Put { key, .. } | Self::Delete { key } | Self::Attach { key, .. }) = self;
        key
    }

    /// The lease that its key ends with.
    #[must_use]
    pub fn lease(&self) -> Option<LeaseId> {
        match self {
            Self::Put { lease, .. } => *lease,
            Self::Attach { lease, .. } => Some(*lease),
            Self::Delete { .. } => None,
        }
    }
}

/// Something that a transaction reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// One key.
    Key(String),
    /// Every key that begins so.
    Prefix(String),
}

/// A transaction: where every demand holds, every change is made, and then its reads; else its reads,
/// and then what it reads otherwise.
///
/// A key may be changed only once in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a transaction does nothing until it is given to the store"]
pub struct Txn {
    /// The demands.
    pub compares: Vec<Compare>,
    /// The changes.
    pub ops: Vec<Op>,
    /// What is read in any case.
    pub reads: Vec<Read>,
    /// What is read only where a demand did not hold: an answer need not bring back what was written.
    pub otherwise: Vec<Read>,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Demands something of a key.
    pub fn when(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.compares.push(Compare { key: key.into(), expect });
        self
    }

    /// Writes a key.
    pub fn put(mut self, key: impl Into<String>, value: Vec<u8>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value, lease: None });
        self
    }

    /// Writes a key that ends with a lease.
    pub fn put_leased(mut self, key: impl Into<String>, value: Vec<u8>, lease: LeaseId) -> Self {
        self.ops.push(Op::Put { key: key.into(), value, lease: Some(lease) });
        self
    }

    /// Removes a key.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Moves a key to a lease, and keeps its value.
    pub fn attach(mut self, key: impl Into<String>, lease: LeaseId) -> Self {
        self.ops.push(Op::Attach { key: key.into(), lease });
        self
    }

    /// Reads a key in any case.
    pub fn read(mut self, key: impl Into<String>) -> Self {
        self.reads.push(Read::Key(key.into()));
        self
    }

    /// Reads a key where a demand does not hold.
    pub fn read_otherwise(mut self, key: impl Into<String>) -> Self {
        self.otherwise.push(Read::Key(key.into()));
        self
    }

    /// Reads every key under a prefix in any case.
    pub fn read_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.reads.push(Read::Prefix(prefix.into()));
        self
    }
}

/// What came of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a transaction whose demands did not hold has changed nothing"]
pub struct TxnReply {
    /// Whether every demand held, and so every change was made.
    pub committed: bool,
    /// The store's revision after it.
    pub revision: i64,
    /// One list for each read that was made, in their order.
    pub reads: Vec<Vec<Entry>>,
}

impl TxnReply {
    /// The entry that the read at `position` found, for reads of one key.
    #[must_use]
    pub fn entry(&self, position: usize) -> Option<&Entry> {
        self.reads.get(position).and_then(|entries| entries.first())
    }
}

/// A lease's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// A lease as granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Its id.
    pub lease: LeaseId,
    /// The time to live that the store granted, which may be longer than what was asked for.
    pub ttl: Duration,
}

/// A change that a watch saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A key was written.
    Put(Entry),
    /// A key was removed, or ended with its lease.
    Deleted {
        /// The key.
        key: String,
        /// At which revision.
        revision: i64,
    },
}

/// Changes in the order of their revisions. After an `Err` nothing more comes: look again, and watch
/// from there.
pub type Changes = BoxStream<'static, Result<Change, StoreError>>;

/// Proof that this node owns a run: every write for it is compared with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The run.
    pub run: RunId,
    /// The create-revision of the owner key.
    pub epoch: Epoch,
    /// The owner.
    pub node: NodeId,
}

impl Claim {
    /// The same transaction, which commits only while this claim stands.
    pub fn fenced(&self, txn: Txn) -> Txn {
        txn.when(names::owner_key(&self.run), Expect::CreatedAt(self.epoch.0))
    }
}

/// What the store could not do.
#[derive(Debug, Error)]
pub enum StoreError {
    /// It does not answer. Whether a change was made is unknown.
    #[error("cannot reach the store at {at}: {cause}")]
    Unreachable {
        /// Its addresses, without credentials.
        at: String,
        /// What the connection said.
        cause: String,
    },
    /// The lease has run out or was revoked.
    #[error("lease {0:x} is gone")]
    LeaseGone(i64),
    /// The watch's revision is older than what the store keeps.
    #[error("the store no longer holds revision {asked}; the oldest is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: i64,
        /// The oldest one there is.
        oldest: i64,
    },
    /// User, password or certificate are not good for this.
    #[error(
        "the store at {at} refuses access: {cause}; check BOB_STORAGE_USER, BOB_STORAGE_PASSWORD and the certificates"
    )]
    Denied {
        /// Its addresses.
        at: String,
        /// What it said.
        cause: String,
    },
    /// It answers, but accepts no writes from anybody, for example because its database is full. Nothing
    /// was changed.
    #[error("the store at {at} refuses writes: {cause}")]
    WritesRefused {
        /// Its addresses, without credentials.
        at: String,
        /// What it said, and what to do about it.
        cause: String,
    },
    /// It said no to a request that would not fare better a second time.
    #[error("the store refuses a request: {0}")]
    Refused(String),
    /// It was restored from a snapshot that is older than what was written since: an epoch that was
    /// given out may be given out again.
    #[error(
        "the store is at revision {revision}, but run {run} was owned at revision {epoch}: it was \
         restored from an older snapshot; restore it with `etcdutl snapshot restore \
         --bump-revision 1000000000 --mark-compacted`, or remove the keys of that run"
    )]
    Restored {
        /// The run.
        run: String,
        /// Its epoch.
        epoch: i64,
        /// The store's revision.
        revision: i64,
    },
    /// Its file, or a value in it, cannot be read.
    #[error("the store holds something unreadable: {0}")]
    Unreadable(String),
}

impl StoreError {
    /// Whether the request itself is at fault, so that no later time, no other lease and no other
    /// login would have it taken.
    #[must_use]
    pub fn is_of_the_request(&self) -> bool {
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

    /// Whether the store refuses writes whatever they are: it is full, or this user must not write.
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

    /// Whether the same request may succeed later.
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

/// A name that no run and no node has.
const PROBE: &str = "-probe";

/// Where state is. Every call has a deadline of its own (a few seconds) and then ends in
/// [`StoreError::Unreachable`]; adapters reconnect by themselves, for ever.
///
/// # Cancel safety
/// Dropping the future of a call that changes something leaves it unknown whether it did.
#[async_trait]
pub trait Store: Send + Sync {
    /// What tells this store from every other, for as long as it keeps its history: all who share it
    /// get the same.
    async fn identity(&self) -> Result<String, StoreError>;

    /// Reads a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Reads every key that begins with `prefix`.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// Reads the first keys that begin with `prefix` and come after the key `after`, as many as
    /// `most`. One page that is not full is the last.
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

    /// Makes a transaction.
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError>;

    /// Asks whether writes are accepted, without a change: a transaction that writes where every worker
    /// writes, with a demand that never holds. A store checks its space and the user's permissions before
    /// the demands.
    ///
    /// # Errors
    /// The error of a write.
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

    /// Takes a lease of at least `ttl`.
    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError>;

    /// Renews a lease once, for the time that was granted, from when the store heard of it.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease, and every key with it. Done where it is gone already.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Follows every key that begins with `prefix`, from the changes of `from_revision` on.
    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Changes, StoreError>;
}
