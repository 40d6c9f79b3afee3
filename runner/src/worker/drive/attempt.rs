//! One attempt of a step: renders its programs, runs it, and collects what it leaves.

use std::sync::Arc;

use protocol::id::StepPosition;
use protocol::run::Cause;
use tokio_util::task::AbortOnDropHandle;

use super::collect::{CollectRequest, NotTaken, collect};
use super::completion::{Completed, Interrupted, OperationError};
use super::operation::{engine_failure, is_full};
use super::output::Output;
use super::render::rendered;
use crate::ports::{
    ExecError, Exit, Gate, LogSink, Rendering, RunScope, StepOutcome, StepSpec, StopLevel,
    StopSignal, Workspace,
};
use crate::rules::run::Broke;
use crate::worker::lease::HeldLease;
use crate::worker::shared::Shared;

/// An attempt of a step in progress.
pub(super) struct Attempt {
    pub(super) shared: Arc<Shared>,
    pub(super) held: HeldLease,
    pub(super) scope: RunScope,
    pub(super) position: StepPosition,
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
    ) -> Result<Completed, OperationError> {
        let spec = rendered(&self.shared, spec, rendering, &self.stop).await?;
        let (ran, output_bytes) = self.execute(&on, &spec, gate).await;
        match ran {
            Ok(ran) => self.collect(ran, output_bytes).await,
            Err(ExecError::NotStarted) if self.stop.level() == StopLevel::Run => {
                Err(OperationError::Interrupted(Interrupted::OwnershipLost))
            }
            Err(cause) => Err(self.command_failed(&cause, output_bytes).await),
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
        let output_bytes = self.output.finish().await;
        in_time.abort();
        // After a delay, the guard's kill may be seen before the loss of the lease. Wait until the lease
        // is known to be valid or lost; the drive handles a loss first.
        self.held.settled(&*self.shared.ports.host).await;
        (ran, output_bytes)
    }

    /// Collects the result and the outputs of a step whose command has ended.
    async fn collect(
        &self,
        mut ran: StepOutcome,
        output_bytes: Sizes,
    ) -> Result<Completed, OperationError> {
        let exit_code = Some(ran.exit.code);
        let broke = |cause, why| Broke {
            exit_code,
            output_bytes: Some(output_bytes),
            ..Broke::new(cause, why)
        };
        if let Some(why) = self.output.failed_at_limit().await {
            self.shared.ports.executor.discard(&self.scope, ran.workspace).await;
            return Err(broke(Cause::ExitCode, why).into());
        }
        let taken = match &self.request {
            Some(wanted) => {
                let of = (&*self.shared, &self.scope);
                collect(of, &mut ran, wanted, &self.output, &self.stop).await
            }
            None => Ok(()),
        };
        let Err(cause) = taken else {
            return self.ended(ran, output_bytes).await;
        };
        self.shared.ports.executor.discard(&self.scope, ran.workspace).await;
        Err(match cause {
            NotTaken::Engine(cause) => self.command_failed(&cause, output_bytes).await,
            NotTaken::Files(cause, why) => broke(cause, why).into(),
        })
    }

    /// Returns how the step fails after an executor's error.
    async fn command_failed(&self, error: &ExecError, output_bytes: Sizes) -> OperationError {
        match engine_failure(&self.shared, error).await {
            OperationError::Broke(broke) => {
                OperationError::Broke(Broke { output_bytes: Some(output_bytes), ..broke })
            }
            interrupted @ OperationError::Interrupted(_) => interrupted,
        }
    }

    /// Completes the step after its command has exited. A command that fails on a full disk is
    /// assumed to fail for that reason, whatever its exit code.
    async fn ended(
        &self,
        ran: StepOutcome,
        output_bytes: Sizes,
    ) -> Result<Completed, OperationError> {
        let Exit { code, oom } = ran.exit;
        let is_own_failure = code != 0 && !oom && self.stop.level() == StopLevel::Run;
        if !is_own_failure || !is_full(&self.shared).await {
            return Ok(Completed::exited(self.position, ran, output_bytes));
        }
        self.shared.ports.executor.discard(&self.scope, ran.workspace).await;
        let message = format!("the container engine has no space left: exit code {code}");
        let broke = Broke::new(Cause::NoSpace, message);
        Err(Broke { exit_code: Some(code), output_bytes: Some(output_bytes), ..broke }.into())
    }
}
