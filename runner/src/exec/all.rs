//! All executors behind the one port. Each step goes to the executor it names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use protocol::id::RunId;
use protocol::pipeline::{ExecutorKind, Place, Step};
use protocol::time::Millis;

use super::job::own_image;
use super::with::has_known_keys;
use crate::ports::{
    BaseImage, ByteStream, Checkpoint, Disk, EngineInfo, ExecError, Executor, Gate, Images,
    LeftoverRun, LogSink, Remote, RunScope, StepOutcome, StepSpec, Steps, StopSignal, Workspace,
};

/// The executors of one worker. A step runs on the engine, on this host, or on another system.
pub struct Executors {
    /// The container engine. `None` if this worker runs no steps on an engine.
    engine: Option<Arc<dyn Executor>>,
    /// The engine for steps with an image of their own. `None` if `engine` runs them too.
    job_engine: Option<Arc<dyn Steps>>,
    local: Arc<dyn Steps>,
    remote: BTreeMap<&'static str, Arc<dyn Remote>>,
}

impl std::fmt::Debug for Executors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executors").finish_non_exhaustive()
    }
}

/// The executor of a step.
enum Runs<'a> {
    Here(&'a dyn Steps),
    Elsewhere(&'a dyn Remote),
}

impl Executors {
    /// Creates the executors of an optional container engine and the host.
    #[must_use]
    pub fn new(engine: Option<Arc<dyn Executor>>, local: Arc<dyn Steps>) -> Self {
        Self { engine, job_engine: None, local, remote: BTreeMap::new() }
    }

    /// Sets the engine that runs steps with an image of their own.
    #[must_use]
    pub fn with_job_engine(mut self, lone: Option<Arc<dyn Steps>>) -> Self {
        self.job_engine = lone;
        self
    }

    /// Sets the executor that runs the steps of `kind`.
    #[must_use]
    pub fn with(mut self, kind: ExecutorKind, remote: Arc<dyn Remote>) -> Self {
        self.remote.insert(kind.as_str(), remote);
        self
    }

    fn of_step(&self, step: &StepSpec) -> Result<Runs<'_>, ExecError> {
        let here = match step.executor.capabilities().place {
            Place::Engine => self.engine_for(own_image(step).is_some()),
            Place::Host => Some(&*self.local),
            Place::RemoteHost | Place::Service => None,
        };
        let name = step.executor.as_str();
        let runs =
            here.map(Runs::Here).or_else(|| Some(Runs::Elsewhere(&**self.remote.get(name)?)));
        runs.ok_or_else(|| ExecError::Unsupported(format!("this worker has no executor {name}")))
    }

    /// The engine that runs steps with or without an image of their own.
    fn engine_for(&self, has_own_image: bool) -> Option<&dyn Steps> {
        let own = self.job_engine.as_deref().filter(|_| has_own_image);
        own.or_else(|| self.engine())
    }

    /// The executor whose steps leave such a workspace.
    fn of_workspace(&self, workspace: &Workspace) -> &dyn Steps {
        match workspace {
            Workspace::Image { .. } | Workspace::Container { .. } => self.main(),
            Workspace::Lone { .. } => self.job_engine.as_deref().unwrap_or(&*self.local),
            Workspace::Dir(_) | Workspace::None => &*self.local,
        }
    }

    /// The images to which a workspace belongs. `None` if it is not on the engine.
    fn images_of(&self, workspace: &Workspace) -> Option<&dyn Executor> {
        match workspace {
            Workspace::Image { .. } | Workspace::Container { .. } => self.engine.as_deref(),
            Workspace::Lone { .. } | Workspace::Dir(_) | Workspace::None => None,
        }
    }

    fn engine(&self) -> Option<&dyn Steps> {
        self.engine.as_deref().map(|engine| engine as &dyn Steps)
    }

    /// The engines in the order in which they are cleaned up.
    fn engines(&self) -> impl Iterator<Item = &dyn Steps> {
        self.job_engine.as_deref().into_iter().chain(self.engine())
    }

    /// The engine, or the host if there is no engine.
    fn main(&self) -> &dyn Steps {
        self.engine().unwrap_or(&*self.local)
    }
}

#[async_trait]
impl Steps for Executors {
    async fn info(&self) -> Result<EngineInfo, ExecError> {
        self.main().info().await
    }

    async fn limits_refused(&self, kind: ExecutorKind) -> Result<Option<String>, ExecError> {
        match kind.capabilities().place {
            Place::Engine => self.main().limits_refused(kind).await,
            Place::Host => self.local.limits_refused(kind).await,
            // These steps use no resources of this host. Their executors check limits themselves.
            Place::RemoteHost | Place::Service => Ok(None),
        }
    }

    fn rejects(&self, step: &Step, network: Option<&str>) -> Option<String> {
        let executor = match step.executor.capabilities().place {
            Place::Engine => self.engine_for(step.has_own_image()),
            Place::Host | Place::RemoteHost | Place::Service => None,
        };
        match executor {
            Some(executor) => executor.rejects(step, network),
            None => has_known_keys(step.name.as_str(), step.executor, &step.with).err(),
        }
    }

    async fn run_step(
        &self,
        run: &RunScope,
        on: &Workspace,
        step: &StepSpec,
        gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError> {
        match self.of_step(step)? {
            Runs::Here(executor) => executor.run_step(run, on, step, gate, out, stop).await,
            Runs::Elsewhere(remote) => remote.run_step(run, step, gate, out, stop).await,
        }
    }

    async fn discard(&self, run: &RunScope, left: Workspace) {
        self.of_workspace(&left).discard(run, left.clone()).await;
    }

    async fn export(
        &self,
        run: &RunScope,
        left: &Workspace,
        path: &str,
    ) -> Result<ByteStream, ExecError> {
        self.of_workspace(left).export(run, left, path).await
    }

    async fn end(&self, run: &RunScope) -> Result<(), ExecError> {
        // Clean up on every executor even if one engine is unreachable.
        let mut ended = self.local.end(run).await;
        for engine in self.engines() {
            ended = ended.and(engine.end(run).await);
        }
        ended
    }

    async fn clear(&self, run: &RunId) -> Result<(), ExecError> {
        let mut cleared = self.local.clear(run).await;
        for engine in self.engines() {
            cleared = cleared.and(engine.clear(run).await);
        }
        cleared
    }

    async fn destroy(&self, run: &RunId) -> Result<(), ExecError> {
        let mut destroyed = self.local.destroy(run).await;
        for engine in self.engines() {
            destroyed = destroyed.and(engine.destroy(run).await);
        }
        destroyed
    }

    async fn leftovers(&self) -> Result<Vec<LeftoverRun>, ExecError> {
        let mut all = BTreeSet::new();
        for executor in
            [&*self.local].into_iter().chain(self.engine()).chain(self.job_engine.as_deref())
        {
            match executor.leftovers().await {
                Ok(left) => all.extend(left),
                Err(cause) => {
                    tracing::warn!(%cause, "what one engine has left of runs is not known")
                }
            }
        }
        Ok(all.into_iter().collect())
    }

    async fn answers(&self) -> Result<(), ExecError> {
        // A step that needs the other one gets an error of its own.
        self.main().answers().await
    }
}

#[async_trait]
impl Images for Executors {
    async fn prepare(&self, run: &RunScope, stop: &StopSignal) -> Result<Workspace, ExecError> {
        match &self.engine {
            // A run without an image has no steps on the engine.
            Some(engine) if !run.image.is_empty() => engine.prepare(run, stop).await,
            Some(_) | None => Ok(Workspace::None),
        }
    }

    async fn adopt(
        &self,
        run: &RunScope,
        kept: Option<&Checkpoint>,
    ) -> Result<Option<Workspace>, ExecError> {
        self.local.end(run).await?;
        if let Some(lone) = self.job_engine.as_ref().filter(|_| run.has_own_images) {
            lone.end(run).await?;
        }
        match &self.engine {
            Some(engine) => engine.adopt(run, kept).await,
            None => Ok(None),
        }
    }

    async fn push(
        &self,
        run: &RunScope,
        kept: &Workspace,
        step: &StepSpec,
    ) -> Result<Option<String>, ExecError> {
        match self.images_of(kept) {
            Some(images) => images.push(run, kept, step).await,
            None => Ok(None),
        }
    }

    async fn checkpoint(
        &self,
        run: &RunScope,
        left: Workspace,
        step: &StepSpec,
    ) -> Result<Workspace, ExecError> {
        if let Some(images) = self.images_of(&left) {
            return images.checkpoint(run, left, step).await;
        }
        // A directory stays until the end of the run, but a container is no longer needed.
        if matches!(left, Workspace::Lone { .. }) {
            self.discard(run, left).await;
        }
        Ok(Workspace::None)
    }

    async fn import(
        &self,
        run: &RunScope,
        on: &Workspace,
        at: &str,
        tar: ByteStream,
    ) -> Result<Workspace, ExecError> {
        match self.images_of(on) {
            Some(images) => images.import(run, on, at, tar).await,
            None => Err(ExecError::Unsupported(
                "only a step that begins on an image can have a resource mounted".to_owned(),
            )),
        }
    }

    async fn disk(&self) -> Result<Option<Disk>, ExecError> {
        match &self.engine {
            Some(engine) => engine.disk().await,
            None => Ok(None),
        }
    }

    async fn bases(
        &self,
        used: &BTreeSet<String>,
        now: Millis,
    ) -> Result<Vec<BaseImage>, ExecError> {
        match &self.engine {
            Some(engine) => engine.bases(used, now).await,
            None => Ok(Vec::new()),
        }
    }

    async fn remove_base(&self, image: &BaseImage) -> Result<bool, ExecError> {
        match &self.engine {
            Some(engine) => engine.remove_base(image).await,
            None => Ok(false),
        }
    }

    async fn shared_volumes(&self) -> Result<Vec<String>, ExecError> {
        match &self.engine {
            Some(engine) => engine.shared_volumes().await,
            None => Ok(Vec::new()),
        }
    }

    async fn remove_shared_volume(&self, name: &str) -> Result<bool, ExecError> {
        match &self.engine {
            Some(engine) => engine.remove_shared_volume(name).await,
            None => Ok(false),
        }
    }
}
