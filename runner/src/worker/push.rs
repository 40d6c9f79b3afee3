//! What a run's steps left, on its way to the registry: one after the other, beside the run itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shared;
use super::watchdog::waits;
use crate::ports::{RunScope, StepSpec, Workspace};
use crate::rules::run::Input;

/// How often a push is tried; where it comes to nothing, the run can be gone on with on its own
/// engine alone, until the next one.
const TRIES: u32 = 4;
/// The pause after the first try; it doubles.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a hand-over waits for what is on its way.
const WITHIN: Duration = Duration::from_secs(30);

/// What one step left.
pub(super) struct Push {
    pub(super) scope: RunScope,
    pub(super) kept: Workspace,
    pub(super) step: StepSpec,
    /// Who is told of its digest.
    pub(super) tell: UnboundedSender<Input>,
}

/// The pushes of one run.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    last: Option<JoinHandle<()>>,
    stopped: CancellationToken,
}

impl Pushes {
    /// Pushes, once those before are done with.
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

    /// Waits until all are done with, but not for long.
    pub(super) async fn done(&mut self) {
        let Some(mut last) = self.last.take() else { return };
        let _waits = waits();
        if tokio::time::timeout(WITHIN, &mut last).await.is_err() {
            warn!("a checkpoint is not in the registry in time");
            self.last = Some(last);
        }
    }

    /// Ends those that are not done.
    pub(super) async fn stop(&mut self) {
        self.stopped.cancel();
        if let Some(last) = self.last.take() {
            let _waits = waits();
            drop(last.await);
        }
    }
}

async fn carry_out(shared: &Shared, push: Push) {
    let Push { scope, kept, step, tell } = push;
    let mut pause = PAUSE;
    for attempt in 1..=TRIES {
        match shared.ports.executor.push(&scope, &kept, &step).await {
            Ok(None) => return,
            Ok(Some(digest)) => {
                info!(run.id = %scope.run, digest, "step {} of run {} is in the registry", step.name, scope.run);
                // A drive that is gone has no use for it.
                drop(tell.send(Input::Pushed { step: step.name, attempt: step.attempt, digest }));
                return;
            }
            Err(cause) => {
                warn!(run.id = %scope.run, %cause, attempt,
                    "step {} of run {} is not in the registry", step.name, scope.run);
            }
        }
        if attempt < TRIES {
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}
