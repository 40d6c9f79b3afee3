//! Removes individual containers in the background.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::id::RunId;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use super::http::Http;

/// The pause before a container is removed. The engine cleans up after an ended container in a
/// separate process. A removal at the same time would delay the start of the next step.
const PAUSE: Duration = Duration::from_secs(1);
/// How many containers are removed concurrently in the background.
const MAX_CONCURRENT: usize = 2;

#[derive(Debug)]
struct Removal {
    run: RunId,
    container: String,
    due_at: Instant,
}

#[derive(Debug, Default)]
struct Queue {
    /// In the order of `due_at`.
    removals: VecDeque<Removal>,
    /// The number of running `remove_queued` tasks.
    active: usize,
}

/// Removes containers after a pause, a few at a time.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    queue: Arc<Mutex<Queue>>,
    tasks: TaskTracker,
}

impl Reaper {
    /// Removes a container in the background. If that fails, it is removed at the end of its run.
    pub(super) fn soon(&self, http: &Arc<Http>, run: &RunId, container: String) {
        let mut queue = self.queue.lock();
        let due_at = Instant::now() + PAUSE;
        queue.removals.push_back(Removal { run: run.clone(), container, due_at });
        if queue.active < MAX_CONCURRENT {
            queue.active += 1;
            let (queue, http) = (Arc::clone(&self.queue), Arc::clone(http));
            drop(self.tasks.spawn(async move { remove_queued(&queue, &http).await }));
        }
    }

    /// Drops a run's containers from the queue, because the caller removes them.
    pub(super) fn forget(&self, run: &RunId) {
        let mut queue = self.queue.lock();
        queue.removals.retain(|removal| removal.run != *run);
    }
}

/// Removes containers as they become due, until the queue is empty.
async fn remove_queued(queue: &Mutex<Queue>, http: &Arc<Http>) {
    loop {
        let (due_at, removal) = {
            let mut queue = queue.lock();
            let Some(due_at) = queue.removals.front().map(|first| first.due_at) else {
                queue.active -= 1;
                return;
            };
            let is_due = due_at <= Instant::now();
            (due_at, if is_due { queue.removals.pop_front() } else { None })
        };
        let Some(Removal { run, container, .. }) = removal else {
            sleep_until(due_at).await;
            continue;
        };
        if let Err(fault) = http.link().remove(&container).await {
            tracing::debug!(run.id = %run, container.id = container, %fault,
                "cannot remove a container now; it is removed at the end of its run");
        }
    }
}
