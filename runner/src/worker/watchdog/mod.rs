//! Watchdog for the worker's own tasks. A task that stalls or panics loses its runs, and the worker
//! gives up its lease.
//!
//! The lease is renewed by a separate task, and would otherwise outlive a stalled loop. Its runs
//! would be owned forever without anyone driving them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::error;

mod heartbeat;

pub(in crate::worker) use self::heartbeat::Heartbeat;

/// The number of checks within the permitted time. A suspended process wakes up to an overdue
/// check, so the watchdog counts checks, not elapsed time.
const LOOKS: u32 = 10;

/// Completes when a task has neither waited nor made progress for `span`.
async fn stalled(heartbeat: &Heartbeat, span: Duration) {
    let (mut seen, mut looks) = (heartbeat.beats(), 0);
    while looks < LOOKS {
        tokio::time::sleep(span / LOOKS).await;
        let beats = heartbeat.beats();
        if beats != seen || heartbeat.is_idle() {
            (seen, looks) = (beats, 0);
        } else {
            looks += 1;
        }
    }
}

/// Why a watched task did not complete.
#[derive(Debug, Clone, Error)]
pub(super) enum Failed {
    #[error("it made no progress for {} s", .0.as_secs())]
    Stalled(Duration),
    #[error("it failed: {0}")]
    Panicked(String),
}

/// A task with its heartbeat, before it starts.
pub(super) struct Watched<T> {
    heartbeat: Heartbeat,
    task: T,
}

impl<T: Future<Output = ()> + Send + 'static> Watched<T> {
    /// Creates a task that reports its progress with the heartbeat.
    pub(super) fn new(task: impl FnOnce(Heartbeat) -> T) -> Self {
        let heartbeat = Heartbeat::new();
        let task = task(heartbeat.clone());
        Self { heartbeat, task }
    }

    /// Runs the task, and aborts it if it stalls for `span`.
    pub(super) async fn run(self, tasks: &TaskTracker, span: Duration) -> Result<(), Failed> {
        let mut task = AbortOnDropHandle::new(tasks.spawn(self.task));
        tokio::select! {
            biased;
            joined = &mut task => joined.map_err(|cause| Failed::Panicked(cause.to_string())),
            () = stalled(&self.heartbeat, span) => {
                task.abort();
                // Wait until the abort takes effect. It never does if the task blocks its thread.
                tokio::time::timeout(span / LOOKS, task).await.ok();
                Err(Failed::Stalled(span))
            }
        }
    }
}

/// Why a worker ended without being asked to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{name} of this worker is out of order: {cause}; the worker gives up its lease, so that others \
     resume its runs; this is a fault of bob-runner"
)]
pub struct OutOfOrder {
    /// The name of the loop.
    name: &'static str,
    cause: String,
}

/// Watches the loops that a worker cannot do without.
#[derive(Debug)]
pub(super) struct Watchdog {
    span: Duration,
    fault: OnceLock<OutOfOrder>,
    tripped: CancellationToken,
    /// The names of the loops that have not ended.
    running: Mutex<Vec<&'static str>>,
}

impl Watchdog {
    /// `span` is the time for which a loop may stall.
    pub(super) fn new(span: Duration) -> Self {
        let (fault, tripped) = (OnceLock::new(), CancellationToken::new());
        Self { span, fault, tripped, running: Mutex::default() }
    }

    /// Returns the time for which a task may stall.
    pub(super) fn span(&self) -> Duration {
        self.span
    }

    /// Spawns an essential loop.
    pub(super) fn spawn<T: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        name: &'static str,
        task: impl FnOnce(Heartbeat) -> T,
    ) -> JoinHandle<()> {
        let (dog, inner) = (Arc::clone(self), tasks.clone());
        let task = Watched::new(task);
        self.locked().push(name);
        tasks.spawn(async move {
            let ended = task.run(&inner, dog.span).await;
            let mut running = dog.locked();
            if let Some(at) = running.iter().position(|other| *other == name) {
                running.swap_remove(at);
            }
            drop(running);
            if let Err(cause) = ended {
                let fault = OutOfOrder { name, cause: cause.to_string() };
                error!("{fault}");
                // The first fault is the cause of later ones.
                dog.fault.set(fault).ok();
                dog.tripped.cancel();
            }
        })
    }

    /// Returns the names of the loops that have not ended.
    pub(super) fn unfinished(&self) -> Vec<&'static str> {
        self.locked().clone()
    }

    fn locked(&self) -> parking_lot::MutexGuard<'_, Vec<&'static str>> {
        self.running.lock()
    }

    /// Completes when a loop has stalled or panicked.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn tripped(&self) {
        self.tripped.cancelled().await;
    }

    /// Returns the first fault.
    pub(super) fn fault(&self) -> Option<OutOfOrder> {
        self.fault.get().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(30);
    const LONG: Duration = Duration::from_secs(1000);

    async fn watch<T>(task: impl FnOnce(Heartbeat) -> T) -> Result<(), Failed>
    where
        T: Future<Output = ()> + Send + 'static,
    {
        Watched::new(task).run(&TaskTracker::new(), SPAN).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_stalls_is_aborted() {
        let stalled = watch(|_| std::future::pending()).await;
        assert!(matches!(stalled, Err(Failed::Stalled(SPAN))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_of_a_task_is_reported() {
        let failed = watch(|_| async { panic!("on purpose") }).await;
        assert!(matches!(failed, Err(Failed::Panicked(why)) if why.contains("panicked")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_or_makes_progress_is_not_aborted() {
        let waiting = watch(|heartbeat| async move {
            let _waits = heartbeat.waits();
            tokio::time::sleep(LONG).await;
        });
        assert!(waiting.await.is_ok());
        let in_progress = watch(|heartbeat| async move {
            for _ in 0..100 {
                tokio::time::sleep(SPAN / 2).await;
                heartbeat.beat();
            }
        });
        assert!(in_progress.await.is_ok());
        let after_waiting = watch(|heartbeat| async move {
            drop(heartbeat.waits());
            std::future::pending().await
        });
        assert!(after_waiting.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_which_the_process_was_suspended_does_not_count() {
        let suspended = watch(|_| async {
            // The clock jumps, as over a SIGSTOP, and the task continues when it wakes up.
            tokio::time::advance(LONG).await;
            tokio::time::sleep(SPAN / 2).await;
        });
        assert!(suspended.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_fault_names_the_first_loop_that_failed() {
        let (dog, tasks) = (Arc::new(Watchdog::new(SPAN)), TaskTracker::new());
        dog.spawn(&tasks, "the first loop", |_| async { panic!("on purpose") });
        dog.tripped().await;
        dog.spawn(&tasks, "the second loop", |_| std::future::pending());
        tasks.close();
        tasks.wait().await;
        let fault = dog.fault().unwrap().to_string();
        assert!(fault.starts_with("the first loop of this worker is out of order"), "{fault}");
    }
}
