//! The state of the store in memory.

use parking_lot::Mutex;
use tokio::sync::watch;

use super::history::History;
use super::leases::Leases;

/// The state in memory.
pub(super) struct Shared {
    /// The latest changes.
    pub(super) history: History,
    /// The leases and their deadlines.
    pub(super) leases: Mutex<Leases>,
    /// Notified when a lease is added, because it may expire before the next deadline.
    pub(super) granted: watch::Sender<()>,
}
