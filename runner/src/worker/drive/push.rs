//! Pushes a run's checkpoints to the registry, one after another, in the background.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::ports::{RunScope, StepSpec, Workspace};
use crate::rules::run::Input;
use crate::worker::retry::Retry;
use crate::worker::shared::Shared;
use crate::worker::watchdog::Heartbeat;

/// The number of attempts to push. If all fail, only the run's own engine can resume it until the
/// next push.
const TRIES: u32 = 4;
/// The pause after the first attempt. It doubles each time.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause before the last attempt.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// How long a hand-over waits for pushes in progress.
const WITHIN: Duration = Duration::from_secs(30);

/// The checkpoint of one step.
pub(super) struct Push {
    pub(super) scope: RunScope,
    pub(super) kept: Workspace,
    pub(super) step: StepSpec,
    /// Receives the digest.
    pub(super) tell: UnboundedSender<Input>,
}

/// The pushes of one run.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    last: Option<JoinHandle<()>>,
    stopped: CancellationToken,
}

impl Pushes {
    /// Pushes a checkpoint after those before it.
    pub(super) fn add(&mut self, shared: Arc<Shared>, push: Push) {
        let (before, stopped) = (self.last.take(), self.stopped.clone());
        let tasks = shared.tasks.clone();
        self.last = Some(tasks.spawn(async move {
            if let Some(before) = before {
                drop(before.await);
            }
            tokio::select! {
                biased;
                () = stopped.cancelled() => {}
                () = carry_out(&shared, push) => {}
            }
        }));
    }

    /// Waits for all pushes, for at most [`WITHIN`].
    pub(super) async fn done(&mut self, heartbeat: &Heartbeat) {
        let Some(mut last) = self.last.take() else { return };
        let _waits = heartbeat.waits();
        if tokio::time::timeout(WITHIN, &mut last).await.is_err() {
            warn!("a checkpoint is not in the registry in time");
            self.last = Some(last);
        }
    }

    /// Cancels the remaining pushes.
    pub(super) async fn stop(&mut self, heartbeat: &Heartbeat) {
        self.stopped.cancel();
        if let Some(last) = self.last.take() {
            let _waits = heartbeat.waits();
            drop(last.await);
        }
    }
}

async fn carry_out(shared: &Shared, push: Push) {
    let Push { scope, kept, step, tell } = push;
    // This task has no watchdog: the drive cancels it at its end.
    let heartbeat = Heartbeat::unwatched();
    let mut retry = Retry::new(&*shared.ports.host, &heartbeat, PAUSE, LONGEST_PAUSE);
    for attempt in 1..=TRIES {
        match shared.ports.executor.push(&scope, &kept, &step).await {
            Ok(None) => return,
            Ok(Some(digest)) => {
                info!(run.id = %scope.run, digest, "step {} of run {} is in the registry", step.name, scope.run);
                // If the drive has ended, it no longer needs the digest.
                drop(tell.send(Input::Pushed { step: step.name, attempt: step.attempt, digest }));
                return;
            }
            Err(cause) => {
                warn!(run.id = %scope.run, %cause, attempt,
                    "step {} of run {} is not in the registry", step.name, scope.run);
            }
        }
        if attempt < TRIES {
            retry.wait().await;
        }
    }
}
