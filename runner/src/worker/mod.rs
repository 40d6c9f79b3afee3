//! Consumes commands, owns runs through a lease, drives them, and releases them.

mod admit;
mod answer;
mod bases;
mod callbacks;
mod claim;
mod claimant;
mod control;
mod drive;
#[cfg(test)]
mod fakes;
mod images_in_use;
mod intake;
mod janitor;
mod launch;
mod lease;
mod long_lease;
mod look;
mod loops;
mod lost;
mod marks;
mod node;
mod options;
mod orphan;
mod orphan_action;
mod outputs;
mod parent;
mod places;
mod promotion;
mod reclaim;
mod records;
mod release;
mod rescue;
mod retention;
mod retry;
mod room;
mod room_watch;
mod roster;
mod shared;
mod store_probe;
mod verdict;
mod volumes;
mod watchdog;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use protocol::event::Reason;
use tracing::warn;

pub use self::drive::RenderInline;
use self::loops::Loops;
pub use self::options::{Options, Shutdown};
pub use self::room::DiskOptions;
pub use self::shared::NewError;
use self::shared::{LAST_EVENTS, Shared};
pub use self::watchdog::OutOfOrder;
use crate::ports::{Guard, Ports, Unguarded};

/// How long an ending worker waits for the stream if the broker accepts no events. Unconfirmed events
/// are kept on disk.
const LAST_EVENTS_ANYWAY: Duration = Duration::from_millis(500);

/// A worker, ready to run.
pub struct Worker {
    shared: Arc<Shared>,
    guard: Arc<dyn Guard>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Worker {
    /// Checks the engine and the store, and creates a worker.
    ///
    /// # Errors
    /// [`NewError`] if one of them is not available.
    pub async fn new(ports: Ports, options: Options) -> Result<Self, NewError> {
        let shared = Shared::new(ports, options).await?;
        Ok(Self { shared: Arc::new(shared), guard: Arc::new(Unguarded) })
    }

    /// Sets the guard, which ends the worker's steps if the worker cannot.
    #[must_use]
    pub fn guarded(self, guard: Arc<dyn Guard>) -> Self {
        Self { guard, ..self }
    }

    /// Runs until the worker is asked to end and its runs have ended.
    ///
    /// # Errors
    /// [`OutOfOrder`] if a task of the worker stalls or panics. The lease is given up then.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), OutOfOrder> {
        let Self { shared, guard } = self;
        let loops = Loops::start(&shared, &guard, &shutdown);
        tokio::select! {
            biased;
            () = shared.watchdog.tripped() => loops.break_off(&shared, &shutdown).await,
            () = loops.end_in_order(&shared, &shutdown) => {}
        }
        // The guard ends what did not end in time.
        if shared.roster.ids().is_empty() {
            guard.dismiss();
        }
        let stopped =
            shared.event(Reason::RunnerStopped, format!("{} has ended", shared.options.node));
        let events = &shared.ports.events;
        let within = if events.problem().is_some() { LAST_EVENTS_ANYWAY } else { LAST_EVENTS };
        let confirmed = async { events.confirmed(events.emit(stopped).await?).await };
        if tokio::time::timeout(within, confirmed).await.is_err() {
            warn!("the stream has not confirmed the last events");
        }
        shared.watchdog.fault().map_or(Ok(()), Err)
    }
}
