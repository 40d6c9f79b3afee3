//! The engine as the executor of one process.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use protocol::event::LogStream;
use protocol::id::RunId;
use protocol::pipeline::ExecutorKind;
use protocol::time::Millis;
use runner::ports::{
    BaseImage, ByteStream, Checkpoint, Disk, EngineInfo, ExecError, Exit, Gate, Images,
    LeftoverRun, LogSink, RunScope, StepOutcome, StepSpec, Steps, StopLevel, StopSignal, Workspace,
};
use tokio::sync::watch;

use crate::call::call;
use crate::engine::*;
use crate::plan::{EffectSide, work};
use crate::world::{Broken, Process, World, lock};

/// An engine as seen by one process.
pub struct Handle {
    pub process: Arc<Process>,
}

fn failed(doing: &str) -> ExecError {
    ExecError::Engine { doing: doing.to_owned(), cause: "the test made it fail".to_owned() }
}

impl Handle {
    fn world(&self) -> &Arc<World> {
        &self.process.world
    }

    fn engine(&self) -> &Engine {
        &self.world().engines[self.process.engine]
    }

    async fn pass(&self, site: &str, side: EffectSide) -> Result<(), ExecError> {
        self.process.pass(site, side).await.map_err(|Broken| failed(site))?;
        self.is_there()
    }

    /// How much longer it is unreachable.
    fn away(&self) -> Duration {
        lock(&self.engine().away_until).saturating_sub(self.now())
    }

    fn is_there(&self) -> Result<(), ExecError> {
        if self.away().is_zero() {
            return Ok(());
        }
        let at = format!("engine {}", self.process.engine);
        Err(ExecError::Unreachable { at, cause: "it is away".to_owned() })
    }

    fn now(&self) -> Duration {
        self.world().start.elapsed()
    }

    fn image(&self, run: &RunId) -> Workspace {
        let mut inner = lock(&self.engine().inner);
        inner.next += 1;
        let id = format!("image-{}-{}", self.process.engine, inner.next);
        inner.images.insert(id.clone(), run.clone());
        Workspace::Image { id, depth: 0 }
    }

    /// Creates a container under its step's name. Replaces one of the same name unless a later
    /// owner created it.
    fn create(&self, run: &RunScope, step: &StepSpec) -> Result<u64, ExecError> {
        let now = self.now();
        let mut inner = lock(&self.engine().inner);
        let same = |c: &Container| c.run == run.run && c.position == step.position;
        let there = inner.containers.iter().find(|(_, c)| same(c)).map(|(id, c)| (*id, c.epoch));
        match there {
            Some((_, epoch)) if epoch > run.epoch => return Err(ExecError::NotStarted),
            Some((id, _)) => inner.remove(id, now),
            None => {}
        }
        inner.next += 1;
        let id = inner.next;
        let container = Container {
            run: run.run.clone(),
            position: step.position,
            epoch: run.epoch,
            stubborn: work(&step.words).stubborn,
            life: watch::Sender::new(ContainerState::Created),
            journal: None,
        };
        inner.containers.insert(id, container);
        Ok(id)
    }

    /// Starts a container. It ends by itself, even if no process watches it.
    fn start(
        &self,
        id: u64,
        step: &StepSpec,
    ) -> Result<watch::Receiver<ContainerState>, ExecError> {
        let (world, now) = (Arc::clone(self.world()), self.now());
        let revision = world.store.revision();
        let mut inner = lock(&self.engine().inner);
        let at = inner.journal.len();
        let Some(container) = inner.containers.get_mut(&id) else {
            return Err(failed("starting a step whose container is gone"));
        };
        container.journal = Some(at);
        container.life.send_replace(ContainerState::Runs);
        let life = container.life.subscribe();
        let executed = Executed {
            engine: self.process.engine,
            run: container.run.clone(),
            position: step.position,
            attempt: step.attempt,
            epoch: container.epoch,
            began: now,
            revision,
            ended: None,
            code: None,
        };
        world.say(|| format!("{executed:?} by w{}", self.process.number));
        inner.journal.push(executed);
        drop(inner);
        let (work, engine) = (work(&step.words), self.process.engine);
        tokio::spawn(async move {
            tokio::time::sleep(work.span).await;
            let now = world.start.elapsed();
            let mut inner = lock(&world.engines[engine].inner);
            let runs =
                inner.containers.get(&id).is_some_and(|c| *c.life.borrow() == ContainerState::Runs);
            if runs {
                inner.ends(id, now, ContainerState::Exited(work.code));
            }
        });
        Ok(life)
    }

    fn signal(&self, id: u64, code: i32) {
        let now = self.now();
        let mut inner = lock(&self.engine().inner);
        let Some(container) = inner.containers.get(&id) else { return };
        let heeds = code == 137 || !container.stubborn;
        if heeds && *container.life.borrow() == ContainerState::Runs {
            inner.ends(id, now, ContainerState::Exited(code));
        }
    }

    /// Ends a container according to the stop signal.
    async fn obey(&self, id: u64, stop: &StopSignal) {
        let mut level = stop.above(StopLevel::Run).await;
        if let StopLevel::Stop { grace } = level {
            self.process.pass("term", EffectSide::Before).await.ok();
            tokio::time::sleep(self.away()).await;
            self.signal(id, 143);
            let more = stop.above(level);
            level = tokio::time::timeout(grace, more).await.unwrap_or(StopLevel::Kill);
        }
        if level == StopLevel::Kill {
            self.process.pass("kill", EffectSide::Before).await.ok();
            tokio::time::sleep(self.away()).await;
            self.signal(id, 137);
        }
        std::future::pending().await
    }
}

async fn over(life: &mut watch::Receiver<ContainerState>) -> Option<i32> {
    let ended = life
        .wait_for(|life| matches!(life, ContainerState::Exited(_) | ContainerState::Gone))
        .await;
    match ended.map(|life| *life) {
        Ok(ContainerState::Exited(code)) => Some(code),
        Ok(ContainerState::Gone | ContainerState::Created | ContainerState::Runs) | Err(_) => None,
    }
}

#[async_trait]
impl Steps for Handle {
    async fn info(&self) -> Result<EngineInfo, ExecError> {
        let id = format!("engine-{}", self.process.engine);
        let checkpoints = self.world().plan.registry;
        Ok(EngineInfo {
            id,
            executor: "simulated",
            checkpoints,
            limits_refused: None,
            warning: None,
        })
    }

    async fn run_step(
        &self,
        run: &RunScope,
        _on: &Workspace,
        step: &StepSpec,
        mut gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError> {
        if step.executor == ExecutorKind::Ssh {
            return call(&self.process, run, step, gate, &*out, stop).await;
        }
        self.pass("create", EffectSide::Before).await?;
        let id = self.create(run, step)?;
        self.pass("create", EffectSide::After).await?;
        let open = tokio::select! {
            biased;
            open = gate.opened() => open,
            _ = stop.above(StopLevel::Run) => false,
        };
        if !open {
            self.process.lives().await;
            lock(&self.engine().inner).remove(id, self.now());
            return Err(ExecError::NotStarted);
        }
        if !gate.is_owned() {
            lock(&self.engine().inner).remove(id, self.now());
            return Err(ExecError::NotStarted);
        }
        self.pass("start", EffectSide::Before).await?;
        let mut life = self.start(id, step)?;
        out.write(LogStream::Stdout, Bytes::from(format!("{} begins\n", step.name))).await;
        let code = tokio::select! {
            biased;
            code = over(&mut life) => code,
            () = self.obey(id, stop) => None,
        };
        self.pass("wait", EffectSide::After).await?;
        out.write(LogStream::Stdout, Bytes::from_static(b"and ends")).await;
        let code = code.ok_or_else(|| failed("waiting for a container that is gone"))?;
        let left = Workspace::Container { id: id.to_string(), depth: 0 };
        Ok(StepOutcome::new(Exit { code, oom: false }, left))
    }

    async fn discard(&self, _run: &RunScope, left: Workspace) {
        if self.pass("discard", EffectSide::Before).await.is_err() {
            // It is retried until the engine is reachable. Otherwise the end of the run removes it.
            tokio::time::sleep(self.away()).await;
        }
        if let Workspace::Container { id, .. } = &left
            && let Ok(id) = id.parse()
        {
            lock(&self.engine().inner).remove(id, self.now());
        }
    }

    async fn export(
        &self,
        _run: &RunScope,
        _left: &Workspace,
        _path: &str,
    ) -> Result<ByteStream, ExecError> {
        Ok(futures::stream::iter([Ok(Bytes::from_static(b"a file"))]).boxed())
    }

    async fn destroy(&self, run: &RunId) -> Result<(), ExecError> {
        self.pass("destroy", EffectSide::Before).await?;
        let now = self.now();
        let mut inner = lock(&self.engine().inner);
        for (id, _) in inner.of_run(run) {
            inner.remove(id, now);
        }
        inner.images.retain(|_, of| of != run);
        drop(inner);
        lock(&self.world().registry).retain(|_, of| of != run);
        Ok(())
    }

    async fn clear(&self, run: &RunId) -> Result<(), ExecError> {
        self.pass("destroy", EffectSide::Before).await?;
        let now = self.now();
        let mut inner = lock(&self.engine().inner);
        for (id, _) in inner.of_run(run) {
            inner.remove(id, now);
        }
        Ok(())
    }

    async fn answers(&self) -> Result<(), ExecError> {
        self.pass("ping", EffectSide::Before).await
    }

    async fn leftovers(&self) -> Result<Vec<LeftoverRun>, ExecError> {
        self.pass("leftovers", EffectSide::Before).await?;
        let inner = lock(&self.engine().inner);
        let mut runs: Vec<RunId> = inner.containers.values().map(|c| c.run.clone()).collect();
        runs.extend(inner.images.values().cloned());
        runs.sort();
        runs.dedup();
        let of = |run| LeftoverRun { run, cluster: Some("simulated".into()) };
        Ok(runs.into_iter().map(of).collect())
    }

    async fn end(&self, run: &RunScope) -> Result<(), ExecError> {
        self.adopt(run, None).await.map(drop)
    }
}

#[async_trait]
impl Images for Handle {
    async fn prepare(&self, run: &RunScope, stop: &StopSignal) -> Result<Workspace, ExecError> {
        tokio::select! {
            biased;
            passed = self.pass("prepare", EffectSide::Before) => passed?,
            _ = stop.above(StopLevel::Run) => return Err(ExecError::NotStarted),
        }
        let _base = &run.image;
        Ok(Workspace::Image { id: "base".into(), depth: 0 })
    }

    async fn adopt(
        &self,
        run: &RunScope,
        kept: Option<&Checkpoint>,
    ) -> Result<Option<Workspace>, ExecError> {
        self.pass("adopt", EffectSide::Before).await?;
        let now = self.now();
        let there = {
            let mut inner = lock(&self.engine().inner);
            for (id, epoch) in inner.of_run(&run.run) {
                if epoch <= run.epoch {
                    inner.remove(id, now);
                }
            }
            let held = |kept: &&Checkpoint| inner.images.contains_key(&kept.image);
            kept.filter(held).map(|kept| kept.image.clone())
        };
        let there = match (there, kept) {
            (None, Some(Checkpoint { image, digest: Some(digest) })) => {
                self.pass("pull", EffectSide::Before).await?;
                let found = lock(&self.world().registry).contains_key(digest);
                if found {
                    let mut inner = lock(&self.engine().inner);
                    inner.images.insert(image.clone(), run.run.clone());
                }
                found.then(|| image.clone())
            }
            (there, _) => there,
        };
        self.pass("adopt", EffectSide::After).await?;
        Ok(there.map(|id| Workspace::Image { id, depth: 0 }))
    }

    async fn push(
        &self,
        run: &RunScope,
        kept: &Workspace,
        _step: &StepSpec,
    ) -> Result<Option<String>, ExecError> {
        let (true, Some(image)) = (self.world().plan.registry, kept.image()) else {
            return Ok(None);
        };
        self.pass("push", EffectSide::Before).await?;
        tokio::time::sleep(self.world().span(Duration::from_millis(300))).await;
        self.process.lives().await;
        let digest = format!("sha256:{image}");
        lock(&self.world().registry).insert(digest.clone(), run.run.clone());
        self.pass("push", EffectSide::After).await?;
        Ok(Some(digest))
    }

    async fn checkpoint(
        &self,
        run: &RunScope,
        left: Workspace,
        _step: &StepSpec,
    ) -> Result<Workspace, ExecError> {
        self.pass("commit", EffectSide::Before).await?;
        let Workspace::Container { id, .. } = &left else { return Err(failed("commit")) };
        let id: u64 = id.parse().map_err(|_not_a_number| failed("commit"))?;
        if !lock(&self.engine().inner).containers.contains_key(&id) {
            return Err(failed("keeping what a container that is gone left"));
        }
        let image = self.image(&run.run);
        self.pass("commit", EffectSide::After).await?;
        lock(&self.engine().inner).remove(id, self.now());
        Ok(image)
    }

    async fn import(
        &self,
        _run: &RunScope,
        on: &Workspace,
        _at: &str,
        _tar: ByteStream,
    ) -> Result<Workspace, ExecError> {
        Ok(on.clone())
    }

    async fn disk(&self) -> Result<Option<Disk>, ExecError> {
        Ok(None)
    }

    async fn bases(
        &self,
        _used: &BTreeSet<String>,
        _now: Millis,
    ) -> Result<Vec<BaseImage>, ExecError> {
        Ok(Vec::new())
    }

    async fn remove_base(&self, _image: &BaseImage) -> Result<bool, ExecError> {
        Ok(false)
    }
}
