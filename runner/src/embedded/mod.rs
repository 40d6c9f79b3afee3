//! The ports of queue, store and events in one process, over one file.
//!
//! What was answered survives `kill -9`. Leases end with the process, as the workers that hold them
//! do, but for those of an hour or more: they are no sign of life but a date.
//!
//! Nothing runs in the background: leases run out when somebody looks or watches, and what is to be
//! written is worked off by the runtime's blocking threads.

mod changes;
mod disk;
mod events;
mod health;
mod history;
mod leases;
mod queue;
mod rows;
mod store;
mod subscription;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protocol::id::NodeId;

use crate::ports::{Events, Host, Message, Queue, QueueError, Store, StoreError};

pub use disk::OpenError;
pub use health::cause_of;

/// How an embedded store is opened.
#[derive(Clone)]
pub struct Options {
    /// Where its file is; without one everything is in memory, and ends with the last handle.
    pub dir: Option<PathBuf>,
    /// How long events are kept.
    pub event_retention: Duration,
    /// The clock.
    pub host: Arc<dyn Host>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// A message that was dead-lettered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its place in the queue.
    pub id: u64,
    /// The message as it came, with the headers `x-first-death-reason` and `x-first-death-queue`.
    pub message: Message,
}

/// The open file, and what can be had of it.
#[derive(Debug, Clone)]
pub struct Embedded {
    store: Arc<store::FileStore>,
    events: Arc<events::FileEvents>,
    broker: Arc<queue::Broker>,
}

impl Embedded {
    /// Opens the file, and sets right what an earlier process left: its leases are void, what it had
    /// not settled waits again, and what lay in its own queue lies in the shared ones.
    ///
    /// # Errors
    /// [`OpenError::InUse`] where another process has it open.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let disk = disk::Disk::open(options.dir).await?;
        let opened = async {
            rows::make_tables(&disk).await?;
            let store = store::FileStore::open(Arc::clone(&disk), &options.host).await?;
            let broker = queue::Broker::open(Arc::clone(&disk)).await?;
            let events = events::FileEvents::open(
                Arc::clone(&disk),
                Arc::clone(&options.host),
                options.event_retention,
            )
            .await?;
            Ok(Self { store: Arc::new(store), events: Arc::new(events), broker: Arc::new(broker) })
        };
        opened.await.map_err(|fault| match fault {
            disk::Fault::Io(cause) => {
                let cause = disk.failure().unwrap_or(cause);
                OpenError::Io { path: disk.name(), kind: std::io::ErrorKind::Other, cause }
            }
            disk::Fault::Unreadable(cause) => OpenError::Unreadable { path: disk.name(), cause },
        })
    }

    /// Why the file can no longer be written, if it cannot.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.store.failure()
    }

    /// Resolves when the file can no longer be written, with the cause. Acknowledged writes are in it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failed(&self) -> String {
        self.store.failed().await
    }

    /// Closes the file once everything that was asked for is written: another process can open it
    /// when this returns. Every other handle fails from then on. Without it the file is closed with
    /// the last handle, and nothing is lost either.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] where the file cannot be written.
    pub async fn close(self) -> Result<(), StoreError> {
        self.store.close().await
    }

    /// Where state is.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::<store::FileStore>::clone(&self.store)
    }

    /// Where events go.
    #[must_use]
    pub fn events(&self) -> Arc<dyn Events> {
        Arc::<events::FileEvents>::clone(&self.events)
    }

    /// Where commands wait. The node's own queue is there as long as this value.
    #[must_use]
    pub fn queue(&self, node: &NodeId) -> Arc<dyn Queue> {
        Arc::new(queue::NodeQueue::new(Arc::clone(&self.broker), node))
    }

    /// What was dead-lettered, oldest first.
    ///
    /// # Errors
    /// [`QueueError::Unreachable`] where the file cannot be read.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, QueueError> {
        self.broker.dead_letters().await
    }

    /// Removes a dead letter; `false` where it is not there any more.
    ///
    /// # Errors
    /// [`QueueError::Unreachable`] where the file cannot be written.
    pub async fn remove_dead_letter(&self, id: u64) -> Result<bool, QueueError> {
        self.broker.remove_dead_letter(id).await
    }

    /// Forgets the history before a revision, as a cluster's store may at any time.
    #[cfg(any(test, feature = "testing"))]
    pub fn compact(&self, revision: i64) {
        self.store.compact(revision);
    }
}
