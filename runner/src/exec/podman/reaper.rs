//! Removes single containers in the background.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::id::RunId;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use super::http::Http;

/// How long after its end a container is removed. A removal during the engine's own cleanup, which
/// is a separate process, would delay the next step's start.
const REST: Duration = Duration::from_secs(1);
/// How many containers are removed concurrently in the background.
const AT_A_TIME: usize = 2;

#[derive(Debug)]
struct Removal {
    run: RunId,
    container: String,
    at: Instant,
}

#[derive(Debug, Default)]
struct Queue {
    due: VecDeque<Removal>,
    workers: usize,
}

/// Removes containers after a pause, a few at a time.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    queue: Arc<Mutex<Queue>>,
    tasks: TaskTracker,
}

impl Reaper {
    /// Removes a container in the background. After a failure, the end of the run removes it.
    pub(super) fn soon(&self, http: &Arc<Http>, run: &RunId, container: String) {
        let mut queue = self.queue.lock();
        queue.due.push_back(Removal { run: run.clone(), container, at: Instant::now() + REST });
        if queue.workers < AT_A_TIME {
            queue.workers += 1;
            let (queue, http) = (Arc::clone(&self.queue), Arc::clone(http));
            drop(self.tasks.spawn(async move { work(&queue, &http).await }));
        }
    }

    /// Drops a run's containers from the queue, because the caller removes them.
    pub(super) fn forget(&self, run: &RunId) {
        let mut queue = self.queue.lock();
        queue.due.retain(|due| due.run != *run);
    }
}

async fn work(queue: &Mutex<Queue>, http: &Arc<Http>) {
    loop {
        let due = {
            let mut queue = queue.lock();
            let Some(due) = queue.due.front() else {
                queue.workers -= 1;
                return;
            };
            if due.at <= Instant::now() {
                queue.due.pop_front().ok_or_else(Instant::now)
            } else {
                Err(due.at)
            }
        };
        match due {
            Err(at) => sleep_until(at).await,
            Ok(due) => {
                if let Err(fault) = http.link().remove(&due.container).await {
                    tracing::debug!(run.id = %due.run, container.id = due.container, %fault,
                        "a container is left to the end of its run");
                }
            }
        }
    }
}
