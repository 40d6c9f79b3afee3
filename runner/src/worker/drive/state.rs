//! The state of a drive, and what every part of the drive does with it.

use std::pin::Pin;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use protocol::id::StepPosition;
use protocol::pipeline::{Graph, Pipeline, Step};
use protocol::run::Cause;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::completion::{Completed, Interrupted, OperationError};
use super::emitter::Emitter;
use super::ledger::Ledger;
use super::output::Budget;
use super::progress::Progress;
use super::push::Pushes;
use super::run_secrets::RunSecrets;
use crate::ports::{LoggerFeed, RunScope, StopSignal, Workspace};
use crate::rules::run::{Broke, Input, Run};
use crate::worker::lease::HeldLease;
use crate::worker::shared::Shared;
use crate::worker::watchdog::Heartbeat;

/// A run driven by this worker.
pub(super) struct Drive {
    pub(super) shared: Arc<Shared>,
    /// The heartbeat of the task that drives the run. Operations run in tasks of their own.
    pub(super) heartbeat: Heartbeat,
    pub(super) run: Run,
    pub(super) ledger: Ledger,
    pub(super) emitter: Arc<Emitter>,
    pub(super) feed: Option<Arc<dyn LoggerFeed>>,
    pub(super) scope: RunScope,
    pub(super) signals: Signals,
    pub(super) pushes: Pushes,
    pub(super) held: HeldLease,
    /// The slot, which is released on drop.
    pub(super) slot: Option<OwnedSemaphorePermit>,
    /// Operations in progress, for steps or for the whole run.
    pub(super) doing: FuturesUnordered<Operation>,
    pub(super) graph: Graph,
    pub(super) progress: Progress,
    pub(super) secrets: RunSecrets,
    /// The output budget of the run's steps.
    pub(super) budget: Budget,
}

/// How the rest of the worker reaches a drive.
pub(in crate::worker) struct Signals {
    /// Stops the run's steps.
    pub(in crate::worker) stop: StopSignal,
    /// Raised by a hand-over, for steps that may run again. A part of `stop`.
    pub(in crate::worker) leave: StopSignal,
    pub(in crate::worker) inputs: mpsc::UnboundedReceiver<Input>,
    /// Sends facts to the drive.
    pub(in crate::worker) tell: mpsc::UnboundedSender<Input>,
}

/// An operation in progress.
pub(super) type Operation =
    Pin<Box<dyn Future<Output = Result<Completed, Interrupted>> + Send + Sync>>;

impl Drive {
    pub(super) fn pipeline(&self) -> Option<&Pipeline> {
        self.run.record().pipeline.as_ref()
    }

    pub(super) fn step(&self, position: StepPosition) -> Option<&Step> {
        self.pipeline()?.step(position)
    }

    /// Starts an operation for a step or for the whole run.
    pub(super) fn begin(
        &mut self,
        at: Option<StepPosition>,
        doing: BoxFuture<'static, Result<Completed, OperationError>>,
    ) {
        let doing = self.shared.tasks.spawn(doing);
        let done = doing.map(move |done| {
            let done = done.unwrap_or_else(|cause| {
                let why = format!("the worker's own code failed: {cause}");
                Err(Broke::new(Cause::Engine, why).into())
            });
            match done {
                Ok(completed) => Ok(completed),
                Err(OperationError::Broke(broke)) => Ok(Input::Broke(at, broke).into()),
                Err(OperationError::Interrupted(cause)) => Err(cause),
            }
        });
        self.doing.push(Box::pin(done));
    }

    pub(super) fn log_broken(&mut self, position: StepPosition, what: &str) {
        // The rules only order what was started before. This reports a wrong order.
        self.broke(position, Broke::new(Cause::Engine, format!("nothing is there to {what}")));
    }

    /// Reports that an order for a step could not be carried out.
    pub(super) fn broke(&mut self, position: StepPosition, broke: Broke) {
        self.begin(Some(position), Box::pin(async move { Err(broke.into()) }));
    }

    /// Returns the workspace that a step starts from.
    pub(super) fn on(&self, position: StepPosition) -> Option<Workspace> {
        let progress = &self.progress;
        if let Some(on) = progress.steps.get(&position).and_then(|step| step.on.clone()) {
            return Some(on);
        }
        if self.step(position).is_some_and(|step| !step.is_on_image()) {
            return Some(Workspace::None);
        }
        let mut before = self.graph.begins_on(position);
        while let Some(at) = before {
            if let Some(kept) = progress.kept.get(&at) {
                return Some(kept.clone());
            }
            // The step was allowed to fail, and left no image.
            before = self.graph.begins_on(at);
        }
        progress.base.clone()
    }

    /// Creates the stop signal of an attempt. A hand-over raises it only if the step may run again.
    pub(super) fn stop_of(&mut self, position: StepPosition) -> StopSignal {
        let may_repeat = self.step(position).is_none_or(Step::may_repeat);
        let stop = if may_repeat { self.signals.leave.part() } else { self.signals.stop.part() };
        self.progress.steps.entry(position).or_default().stop = stop.clone();
        stop
    }

    /// Writes a line to the run's external log.
    pub(super) fn log_line(&self, line: &str) {
        if let Some(feed) = &self.feed {
            feed.push(format!("[bob] {}\n", self.secrets.mask().text(line)).into());
        }
    }
}
