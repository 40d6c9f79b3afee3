//! The signs of life of a task, which the watchdog reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The heartbeat of one task. The task reports its progress with it, and the watchdog aborts the task
/// if it makes none.
///
/// All clones belong to the same task. A function that waits or retries borrows the heartbeat of the
/// task that calls it; another task gets a heartbeat of its own.
#[derive(Debug, Clone)]
pub(in crate::worker) struct Heartbeat(Arc<Signs>);

#[derive(Debug, Default)]
struct Signs {
    /// The number of live [`Waits`] guards.
    waiting: AtomicUsize,
    /// The number of signs of progress.
    beats: AtomicU64,
}

impl Heartbeat {
    /// Creates the heartbeat of a task that the watchdog watches.
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Creates a heartbeat for a task that has no watchdog. It has no effect.
    pub(in crate::worker) fn unwatched() -> Self {
        Self::new()
    }

    /// Reports progress, for example before a retry.
    pub(in crate::worker) fn beat(&self) {
        self.0.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Marks the task as idle while the guard is alive.
    pub(in crate::worker) fn waits(&self) -> Waits {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(self.clone())
    }

    /// Returns the number of signs of progress so far.
    pub(in crate::worker) fn beats(&self) -> u64 {
        self.0.beats.load(Ordering::Relaxed)
    }

    /// Returns true if the task waits for an external service or for work.
    pub(in crate::worker) fn is_idle(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }
}

/// While this guard is alive, the watchdog treats the task as idle: it waits for an external
/// service or for work. All other code of a watched task must make progress, and calls of ports
/// have their own timeouts.
#[must_use = "the task is idle only while this guard is alive"]
pub(in crate::worker) struct Waits(Heartbeat);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.beat();
        self.0.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
