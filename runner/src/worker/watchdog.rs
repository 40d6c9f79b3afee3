//! Watches the worker's own code: what stands still, or fails, keeps neither its runs nor its lease.
//!
//! A lease is renewed by a task of its own, and so it would outlive a loop that never comes back: its
//! runs would be owned for ever, and nobody would look after them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::error;

tokio::task_local! {
    static SIGNS: Arc<Signs>;
}

/// The signs of life of one task.
#[derive(Debug, Default)]
struct Signs {
    /// It waits for something that may take its time.
    waiting: AtomicUsize,
    /// How often it has come on.
    beats: AtomicU64,
}

impl Signs {
    fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }
}

/// For as long as it lives, the task waits for something that may take its time: the world outside, or
/// work to come. All else that a watched task does is to go on without end, and no call of a port takes
/// long without its own deadline.
#[must_use = "the task waits only as long as this lives"]
pub(super) struct Waits(Option<Arc<Signs>>);

/// Says that the task waits from here on. Means nothing in a task that is not watched.
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

/// Says that the task has come on, as where it tries something again.
pub(super) fn beat() {
    // A task that is not watched has nobody to tell.
    SIGNS.try_with(|signs| signs.beat()).ok();
}

/// So often somebody looks within the time that a task is given: as a process that was held up wakes to
/// a look that is long due, it is the looks that count, not the time.
const LOOKS: u32 = 10;

/// Resolves when a task has neither waited nor come on for that long.
async fn stands_still(signs: &Signs, span: Duration) {
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

/// How a watched task has not come to its end.
#[derive(Debug, Clone, Error)]
pub(super) enum Failed {
    #[error("it has stood still for {} s", .0.as_secs())]
    StoodStill(Duration),
    #[error("it has failed: {0}")]
    Panicked(String),
}

/// Runs a task, and breaks it off where it stands still for `span`.
pub(super) async fn watched(
    tasks: &TaskTracker,
    span: Duration,
    task: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Failed> {
    let signs = Arc::new(Signs::default());
    let task = tasks.spawn(SIGNS.scope(Arc::clone(&signs), task));
    let mut task = AbortOnDropHandle::new(task);
    tokio::select! {
        biased;
        joined = &mut task => joined.map_err(|cause| Failed::Panicked(cause.to_string())),
        () = stands_still(&signs, span) => {
            task.abort();
            // So that it does nothing more; where it holds up its thread that may be never.
            tokio::time::timeout(span / LOOKS, task).await.ok();
            Err(Failed::StoodStill(span))
        }
    }
}

/// Why a worker has ended though nobody asked it to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{loop_of} of this worker is out of order: {how}; its lease is given up, so that others go on with \
     its runs; this is a fault of bob-runner"
)]
pub struct OutOfOrder {
    loop_of: &'static str,
    how: String,
}

/// Watches the loops without which a worker is none.
#[derive(Debug)]
pub(super) struct Watchdog {
    span: Duration,
    fault: OnceLock<OutOfOrder>,
    bites: CancellationToken,
    /// The loops that have not ended.
    going: Mutex<Vec<&'static str>>,
}

impl Watchdog {
    /// `span`: for how long a loop may stand still.
    pub(super) fn new(span: Duration) -> Self {
        let (fault, bites) = (OnceLock::new(), CancellationToken::new());
        Self { span, fault, bites, going: Mutex::default() }
    }

    /// For how long a task may stand still.
    pub(super) fn span(&self) -> Duration {
        self.span
    }

    /// Runs a loop that the worker cannot be without.
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
                // The first one is the cause of those that follow.
                dog.fault.set(fault).ok();
                dog.bites.cancel();
            }
        })
    }

    /// The loops that have not ended, by what they are the loop of.
    pub(super) fn going(&self) -> Vec<&'static str> {
        self.locked().clone()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Vec<&'static str>> {
        self.going.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when a loop is out of order.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn bites(&self) {
        self.bites.cancelled().await;
    }

    /// What is out of order.
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
            // The clock jumps, as over a SIGSTOP, and the task goes on when it wakes.
            tokio::time::advance(LONG).await;
            tokio::time::sleep(SPAN / 2).await;
        });
        assert!(held_up.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_loop_that_is_out_of_order_is_named() {
        let (dog, tasks) = (Arc::new(Watchdog::new(SPAN)), TaskTracker::new());
        dog.spawn(&tasks, "the first loop", async { panic!("on purpose") });
        dog.bites().await;
        dog.spawn(&tasks, "the second loop", std::future::pending());
        tasks.close();
        tasks.wait().await;
        let fault = dog.fault().unwrap().to_string();
        assert!(fault.starts_with("the first loop of this worker is out of order"), "{fault}");
    }
}
