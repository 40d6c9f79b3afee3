//! Watchdog for the worker's own tasks. A task that stalls or panics loses its runs, and the worker
//! gives up its lease.
//!
//! The lease is renewed by a separate task, and would otherwise outlive a stalled loop. Its runs
//! would be owned forever without anyone driving them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::error;

tokio::task_local! {
    static SIGNS: Arc<TaskSigns>;
}

/// The signs of life of one task.
#[derive(Debug, Default)]
struct TaskSigns {
    /// The number of live [`Waits`] guards.
    waiting: AtomicUsize,
    /// The number of signs of progress.
    beats: AtomicU64,
}

impl TaskSigns {
    fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }
}

/// While this guard is alive, the watchdog treats the task as idle: it waits for an external
/// service or for work. All other code of a watched task must make progress, and calls of ports
/// have their own timeouts.
#[must_use = "the task waits only as long as this lives"]
pub(super) struct Waits(Option<Arc<TaskSigns>>);

/// Marks the current task as idle. Has no effect in a task that is not watched.
pub(super) fn waits() -> Waits {
    let signs = SIGNS.try_with(Arc::clone).ok();
    if let Some(signs) = &signs {
        signs.waiting.fetch_add(1, Ordering::Relaxed);
    }
    Waits(signs)
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some(signs) = &self.0 {
            signs.beat();
            signs.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Reports progress of the current task, for example before a retry.
pub(super) fn beat() {
    // A task that is not watched has no signs.
    SIGNS.try_with(|signs| signs.beat()).ok();
}

/// The number of checks within the permitted time. A suspended process wakes up to an overdue
/// check, so the watchdog counts checks, not elapsed time.
const LOOKS: u32 = 10;

/// Completes when a task has neither waited nor made progress for `span`.
async fn stalled(signs: &TaskSigns, span: Duration) {
    let (mut seen, mut looks) = (signs.beats.load(Ordering::Relaxed), 0);
    while looks < LOOKS {
        tokio::time::sleep(span / LOOKS).await;
        let beats = signs.beats.load(Ordering::Relaxed);
        if beats != seen || signs.waiting.load(Ordering::Relaxed) > 0 {
            (seen, looks) = (beats, 0);
        } else {
            looks += 1;
        }
    }
}

/// Why a watched task did not complete.
#[derive(Debug, Clone, Error)]
pub(super) enum Failed {
    #[error("it has stood still for {} s", .0.as_secs())]
    StoodStill(Duration),
    #[error("it has failed: {0}")]
    Panicked(String),
}

/// Runs a task, and aborts it if it stalls for `span`.
pub(super) async fn watched(
    tasks: &TaskTracker,
    span: Duration,
    task: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Failed> {
    let signs = Arc::new(TaskSigns::default());
    let task = tasks.spawn(SIGNS.scope(Arc::clone(&signs), task));
    let mut task = AbortOnDropHandle::new(task);
    tokio::select! {
        biased;
        joined = &mut task => joined.map_err(|cause| Failed::Panicked(cause.to_string())),
        () = stalled(&signs, span) => {
            task.abort();
            // Wait until the abort takes effect. It never does if the task blocks its thread.
            tokio::time::timeout(span / LOOKS, task).await.ok();
            Err(Failed::StoodStill(span))
        }
    }
}

/// Why a worker ended without being asked to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{loop_of} of this worker is out of order: {how}; its lease is given up, so that others go on with \
     its runs; this is a fault of bob-runner"
)]
pub struct OutOfOrder {
    loop_of: &'static str,
    how: String,
}

/// Watches the loops that a worker cannot do without.
#[derive(Debug)]
pub(super) struct Watchdog {
    span: Duration,
    fault: OnceLock<OutOfOrder>,
    bites: CancellationToken,
    /// The names of the loops that have not ended.
    going: Mutex<Vec<&'static str>>,
}

impl Watchdog {
    /// `span` is the time for which a loop may stall.
    pub(super) fn new(span: Duration) -> Self {
        let (fault, bites) = (OnceLock::new(), CancellationToken::new());
        Self { span, fault, bites, going: Mutex::default() }
    }

    /// Returns the time for which a task may stall.
    pub(super) fn span(&self) -> Duration {
        self.span
    }

    /// Spawns an essential loop.
    pub(super) fn spawn(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        loop_of: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let (dog, inner) = (Arc::clone(self), tasks.clone());
        self.locked().push(loop_of);
        tasks.spawn(async move {
            let ended = watched(&inner, dog.span, task).await;
            let mut going = dog.locked();
            if let Some(at) = going.iter().position(|name| *name == loop_of) {
                going.swap_remove(at);
            }
            drop(going);
            if let Err(cause) = ended {
                let fault = OutOfOrder { loop_of, how: cause.to_string() };
                error!("{fault}");
                // The first fault is the cause of later ones.
                dog.fault.set(fault).ok();
                dog.bites.cancel();
            }
        })
    }

    /// Returns the names of the loops that have not ended.
    pub(super) fn unfinished(&self) -> Vec<&'static str> {
        self.locked().clone()
    }

    fn locked(&self) -> parking_lot::MutexGuard<'_, Vec<&'static str>> {
        self.going.lock()
    }

    /// Completes when a loop has stalled or panicked.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn tripped(&self) {
        self.bites.cancelled().await;
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

    async fn watch(task: impl Future<Output = ()> + Send + 'static) -> Result<(), Failed> {
        watched(&TaskTracker::new(), SPAN, task).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_never_comes_back_is_broken_off() {
        assert!(matches!(watch(std::future::pending()).await, Err(Failed::StoodStill(SPAN))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_fails_is_told() {
        let failed = watch(async { panic!("on purpose") }).await;
        assert!(matches!(failed, Err(Failed::Panicked(why)) if why.contains("panicked")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_or_comes_on_may_take_its_time() {
        let waiting = watch(async {
            let _waits = waits();
            tokio::time::sleep(LONG).await;
        });
        assert!(waiting.await.is_ok());
        let coming_on = watch(async {
            for _ in 0..100 {
                tokio::time::sleep(SPAN / 2).await;
                beat();
            }
        });
        assert!(coming_on.await.is_ok());
        let after_waiting = watch(async {
            drop(waits());
            std::future::pending().await
        });
        assert!(after_waiting.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_held_up_is_given_the_time_all_the_same() {
        let held_up = watch(async {
            // The clock jumps, as over a SIGSTOP, and the task continues when it wakes up.
            tokio::time::advance(LONG).await;
            tokio::time::sleep(SPAN / 2).await;
        });
        assert!(held_up.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_loop_that_is_out_of_order_is_named() {
        let (dog, tasks) = (Arc::new(Watchdog::new(SPAN)), TaskTracker::new());
        dog.spawn(&tasks, "the first loop", async { panic!("on purpose") });
        dog.tripped().await;
        dog.spawn(&tasks, "the second loop", std::future::pending());
        tasks.close();
        tasks.wait().await;
        let fault = dog.fault().unwrap().to_string();
        assert!(fault.starts_with("the first loop of this worker is out of order"), "{fault}");
    }
}
