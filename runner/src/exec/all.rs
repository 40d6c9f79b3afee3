//! All executors behind the one port: each step goes to its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use protocol::id::RunId;
use protocol::pipeline::ExecutorKind;
use protocol::time::Millis;

use crate::ports::{
    BaseImage, ByteStream, Checkpoint, Disk, EngineInfo, ExecError, Executor, Gate, Left, LogSink,
    Ran, RunScope, StepSpec, StopSignal, Workspace,
};

/// The executors of one worker: images are the engine's business, what is no image is the host's.
pub struct Executors {
    engine: Arc<dyn Executor>,
    local: Arc<dyn Executor>,
}

impl std::fmt::Debug for Executors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executors").finish_non_exhaustive()
    }
}

impl Executors {
    /// A container engine, and the host itself.
    #[must_use]
    pub fn new(engine: Arc<dyn Executor>, local: Arc<dyn Executor>) -> Self {
        Self { engine, local }
    }

    fn of_step(&self, step: &StepSpec) -> Result<&dyn Executor, ExecError> {
        match step.executor {
            ExecutorKind::Podman => Ok(&*self.engine),
            ExecutorKind::Local => Ok(&*self.local),
            ExecutorKind::Docker
            | ExecutorKind::Custom
            | ExecutorKind::Ssh
            | ExecutorKind::Proxmox
            | ExecutorKind::Lexware
            | ExecutorKind::Sevdesk
            | ExecutorKind::Http => {
                let name = step.executor.as_str();
                Err(ExecError::Unsupported(format!("this worker has no executor {name}")))
            }
        }
    }

    fn of_workspace(&self, workspace: &Workspace) -> &dyn Executor {
        match workspace {
            Workspace::Image { .. } | Workspace::Container { .. } => &*self.engine,
            Workspace::Dir(_) | Workspace::None => &*self.local,
        }
    }
}

#[async_trait]
impl Executor for Executors {
    async fn info(&self) -> Result<EngineInfo, ExecError> {
        self.engine.info().await
    }

    async fn prepare(&self, run: &RunScope, stop: &StopSignal) -> Result<Workspace, ExecError> {
        // A run none of whose steps is on an image has none.
        let executor = if run.image.is_empty() { &self.local } else { &self.engine };
        executor.prepare(run, stop).await
    }

    async fn adopt(
        &self,
        run: &RunScope,
        kept: Option<&Checkpoint>,
    ) -> Result<Option<Workspace>, ExecError> {
        self.local.adopt(run, kept).await?;
        self.engine.adopt(run, kept).await
    }

    async fn push(
        &self,
        run: &RunScope,
        kept: &Workspace,
        step: &StepSpec,
    ) -> Result<Option<String>, ExecError> {
        self.of_workspace(kept).push(run, kept, step).await
    }

    async fn run_step(
        &self,
        run: &RunScope,
        on: &Workspace,
        step: &StepSpec,
        gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<Ran, ExecError> {
        self.of_step(step)?.run_step(run, on, step, gate, out, stop).await
    }

    async fn checkpoint(
        &self,
        run: &RunScope,
        left: Workspace,
        step: &StepSpec,
    ) -> Result<Workspace, ExecError> {
        self.of_workspace(&left).checkpoint(run, left.clone(), step).await
    }

    async fn discard(&self, run: &RunScope, left: Workspace) {
        self.of_workspace(&left).discard(run, left.clone()).await;
    }

    async fn import(
        &self,
        run: &RunScope,
        on: &Workspace,
        at: &str,
        tar: ByteStream,
    ) -> Result<Workspace, ExecError> {
        self.of_workspace(on).import(run, on, at, tar).await
    }

    async fn export(
        &self,
        run: &RunScope,
        left: &Workspace,
        path: &str,
    ) -> Result<ByteStream, ExecError> {
        self.of_workspace(left).export(run, left, path).await
    }

    async fn clear(&self, run: &RunId) -> Result<(), ExecError> {
        self.local.clear(run).await?;
        self.engine.clear(run).await
    }

    async fn destroy(&self, run: &RunId) -> Result<(), ExecError> {
        self.local.destroy(run).await?;
        self.engine.destroy(run).await
    }

    async fn leftovers(&self) -> Result<Vec<Left>, ExecError> {
        let (local, engine) = (self.local.leftovers().await?, self.engine.leftovers().await?);
        let all: BTreeSet<Left> = local.into_iter().chain(engine).collect();
        Ok(all.into_iter().collect())
    }

    async fn answers(&self) -> Result<(), ExecError> {
        self.engine.answers().await
    }

    async fn disk(&self) -> Result<Option<Disk>, ExecError> {
        self.engine.disk().await
    }

    async fn bases(
        &self,
        used: &BTreeSet<String>,
        now: Millis,
    ) -> Result<Vec<BaseImage>, ExecError> {
        self.engine.bases(used, now).await
    }

    async fn remove_base(&self, image: &BaseImage) -> Result<bool, ExecError> {
        self.engine.remove_base(image).await
    }
}
