//! The queue, store and events ports in one process, over one file.
//!
//! Acknowledged changes survive `kill -9`. Leases end with the process, like the workers that hold
//! them. Leases of an hour or more are expiry dates rather than signs of life, and remain.
//!
//! There is no background task. Calls and watches end expired leases, and the runtime's blocking
//! threads write to the file.

mod changes;
mod disk;
mod events;
mod health;
mod history;
mod leases;
mod memory;
mod node_queue;
mod queue;
mod rows;
mod store;
mod subscription;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protocol::id::{NodeId, RunId};

use crate::ports::{Events, Host, Queue, QueueError, Store, StoreError};

pub use disk::OpenError;
pub use health::cause_of;
pub use queue::DeadLetter;

/// Options of an embedded store.
#[derive(Clone)]
pub struct Options {
    /// The directory of the file. Without one, all data is in memory, and lost with the last
    /// handle.
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

/// The open file, which provides the ports.
#[derive(Debug, Clone)]
pub struct Embedded {
    store: Arc<store::FileStore>,
    events: Arc<events::FileEvents>,
    broker: Arc<queue::Broker>,
}

impl Embedded {
    /// Opens the file and recovers the state of an earlier process: ends its leases, makes
    /// unsettled messages available again, and moves the messages of its own queue to the shared
    /// queues.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another process has the file open.
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

    /// Returns why the file can no longer be written, if it cannot.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.store.failure()
    }

    /// Waits until the file can no longer be written, and returns the cause. Acknowledged writes
    /// are in the file.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub async fn failed(&self) -> String {
        self.store.failed().await
    }

    /// Closes the file once all pending writes are done, so that another process can open it. Calls
    /// of other handles fail afterwards.
    ///
    /// Without this call, the file is closed when the last handle is dropped, without any loss.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] if the file cannot be written.
    pub async fn close(self) -> Result<(), StoreError> {
        self.store.close().await
    }

    /// Returns the store.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::<store::FileStore>::clone(&self.store)
    }

    /// Returns the event stream.
    #[must_use]
    pub fn events(&self) -> Arc<dyn Events> {
        Arc::<events::FileEvents>::clone(&self.events)
    }

    /// Returns the queues. The node's own queue exists as long as the returned value.
    #[must_use]
    pub fn queue(&self, node: &NodeId) -> Arc<dyn Queue> {
        Arc::new(node_queue::NodeQueue::new(Arc::clone(&self.broker), node))
    }

    /// Returns the dead letters, oldest first.
    ///
    /// # Errors
    /// [`QueueError::Unreachable`] if the file cannot be read.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, QueueError> {
        self.broker.dead_letters().await
    }

    /// Waits until a start of a run is a dead letter because it was delivered too often. There is
    /// no event of that. Counts from the opening of the file.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub async fn start_exhausted(&self, run: &RunId) {
        self.broker.start_exhausted(run).await;
    }

    /// Removes a dead letter. Returns false if it does not exist.
    ///
    /// # Errors
    /// [`QueueError::Unreachable`] if the file cannot be written.
    pub async fn remove_dead_letter(&self, id: u64) -> Result<bool, QueueError> {
        self.broker.remove_dead_letter(id).await
    }

    /// Drops the history before a revision, which a cluster's store may do at any time.
    pub fn compact(&self, revision: i64) {
        self.store.compact(revision);
    }
}
