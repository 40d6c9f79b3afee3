//! Transfers over HTTP: their settings and their state.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::clients::{Clients, SetupError};
use super::progress::Timeouts;
use super::spill::Room;
use crate::egress::Policy;

/// The settings of transfers.
#[derive(Debug, Clone)]
pub struct Options {
    /// The allowed addresses. Other people register services and choose the addresses of callbacks.
    pub policy: Policy,
    /// The directory for text that a logger has not accepted. It is created when needed.
    pub spill_dir: PathBuf,
    /// The maximum size of all loggers' text in it, in bytes.
    pub spill_bytes: u64,
}

/// Transfers over HTTP.
#[derive(Debug, Clone)]
pub struct Http {
    pub(super) clients: Clients,
    pub(super) timeouts: Timeouts,
    pub(super) room: Arc<Room>,
    /// The tasks of feeds. Each ends with its run.
    pub(super) tasks: TaskTracker,
}

impl Http {
    /// Creates transfers with the default timeouts.
    ///
    /// # Errors
    /// [`SetupError`] if the client cannot be created.
    pub fn new(options: Options) -> Result<Self, SetupError> {
        Self::with_timeouts(options, Timeouts::default())
    }

    /// Creates transfers with other timeouts.
    ///
    /// # Errors
    /// [`SetupError`] if the client cannot be created.
    pub fn with_timeouts(options: Options, timeouts: Timeouts) -> Result<Self, SetupError> {
        let clients = Clients::new(options.policy, timeouts)?;
        let room = Arc::new(Room::new(options.spill_dir, options.spill_bytes));
        Ok(Self { clients, timeouts, room, tasks: TaskTracker::new() })
    }
}
