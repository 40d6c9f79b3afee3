//! One attempt of a step: renders its programs, runs it, and collects what it leaves.

use std::sync::Arc;

use protocol::run::Cause;
use tokio_util::task::AbortOnDropHandle;

use super::collect::{CollectRequest, NotTaken, collect};
use super::operation::{self, Completion};
use super::output::Output;
use super::render::rendered;
use crate::ports::{
    ExecError, Gate, LogSink, Rendering, RunScope, StepOutcome, StepSpec, StopLevel, StopSignal,
    Workspace,
};
use crate::worker::lease::HeldLease;
use crate::worker::shared::Shared;

/// An attempt of a step in progress.
pub(super) struct Attempt {
    pub(super) shared: Arc<Shared>,
    pub(super) held: HeldLease,
    pub(super) scope: RunScope,
    pub(super) request: Option<CollectRequest>,
    pub(super) output: Arc<Output>,
    pub(super) stop: StopSignal,
}

/// The sizes of a step's standard output and standard error.
type Sizes = (u64, u64);

impl Attempt {
    /// Runs the step from the workspace `on`.
    pub(super) async fn run(
        self,
        on: Workspace,
        spec: StepSpec,
        rendering: Option<Rendering>,
        gate: Gate,
    ) -> Completion {
        let spec = match rendered(&self.shared, spec, rendering, &self.stop).await {
            Ok(spec) => spec,
            Err(done) => return done,
        };
        let (ran, said) = self.execute(&on, &spec, gate).await;
        match ran {
            Ok(ran) => self.collect(ran, said).await,
            Err(ExecError::NotStarted) if self.stop.level() == StopLevel::Run => {
                Completion::OwnershipLost
            }
            Err(cause) => operation::command_failed(&self.shared, &cause, said).await,
        }
    }

    async fn execute(
        &self,
        on: &Workspace,
        spec: &StepSpec,
        gate: Gate,
    ) -> (Result<StepOutcome, ExecError>, Sizes) {
        let in_time = {
            let output = Arc::clone(&self.output);
            // Ends with this future, however that ends: a drain waits for every task.
            let publishing = async move { output.publish_in_time().await };
            AbortOnDropHandle::new(self.shared.tasks.spawn(publishing))
        };
        let sink: Arc<dyn LogSink> = Arc::clone(&self.output) as Arc<dyn LogSink>;
        let executor = &self.shared.ports.executor;
        let ran = executor.run_step(&self.scope, on, spec, gate, sink, &self.stop).await;
        let said = self.output.finish().await;
        in_time.abort();
        // After a delay, the guard's kill may be seen before the loss of the lease. Wait until the lease
        // is known to be valid or lost; the drive handles a loss first.
        self.held.settled(&*self.shared.ports.host).await;
        (ran, said)
    }

    /// Collects the result and the outputs of a step whose command has ended.
    async fn collect(&self, mut ran: StepOutcome, said: Sizes) -> Completion {
        let code = Some(ran.exit.code);
        if let Some(why) = self.output.failed_at_limit().await {
            self.shared.ports.executor.discard(&self.scope, ran.left).await;
            return Completion::BrokeSaying(Cause::ExitCode, why, code, said);
        }
        let taken = match &self.request {
            Some(wanted) => {
                let of = (&*self.shared, &self.scope);
                collect(of, &mut ran, wanted, &self.output, &self.stop).await
            }
            None => Ok(()),
        };
        let Err(cause) = taken else {
            return operation::ended(&self.shared, &self.scope, ran, &self.stop, said).await;
        };
        self.shared.ports.executor.discard(&self.scope, ran.left).await;
        match cause {
            NotTaken::Engine(cause) => operation::command_failed(&self.shared, &cause, said).await,
            NotTaken::Files(cause, why) => Completion::BrokeSaying(cause, why, code, said),
        }
    }
}
