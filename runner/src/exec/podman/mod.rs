//! Runs each step in a podman container and commits it as the image that the next step starts from.
//!
//! | file | duty |
//! |---|---|
//! | `engine` | the engine: its address, its connection and what it can do |
//! | `http` `call` `path` `api` | the engine's REST socket, where podman-api is not enough |
//! | `create` | the settings of a container, which do not leak from one step to the next |
//! | `step` `ready` `starts` `refused` `output` `stop` `watcher` | one step, from its creation to its proven end |
//! | `image` `pull` | inspecting and pulling images, and when to squash a chain |
//! | `configured` `config_dialect` | commits with the configuration of the base image |
//! | `look` `etc` | which files a step changed |
//! | `files` `work_dir` | resources in, artifacts out, and directories that a container needs |
//! | `volume` `secrets` `leak` | secrets passed in memory, and the check that no commit has them |
//! | `disk` `bases` `base_marks` `shared` `volume_uses` | the engine's disk, and the base images and volumes that can be removed to free it |
//! | `processes` | ending steps by process id, if the engine does not answer |
//! | `remains` | containers that a lost worker left running |
//! | `remove` `reaper` `listing` | removal, always by label and never from memory |

mod api;
mod base_marks;
mod bases;
mod call;
mod chain;
mod checkpoint;
mod config_dialect;
mod configured;
mod create;
mod disk;
mod engine;
mod etc;
mod files;
#[cfg(test)]
mod hangs;
mod http;
mod image;
mod job;
mod leak;
mod listing;
mod look;
#[cfg(test)]
mod oddities;
mod output;
mod path;
mod processes;
mod pull;
mod ready;
mod reaper;
mod refused;
mod registry;
mod remains;
mod remove;
mod reserve;
mod secrets;
mod shared;
mod starts;
mod step;
mod stop;
mod volume;
mod volume_uses;
mod watcher;
mod work_dir;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join;
use protocol::id::RunId;
use protocol::pipeline::Step;
use protocol::time::Millis;

pub use engine::{NAME, Options, Podman, loses_changes};
pub use look::Change;
pub use registry::repository_of;
pub use remains::{ListedContainers, WorkerContainers};

use crate::exec::job::volumes_of;
use crate::ports::{
    BaseImage, ByteStream, Checkpoint, Disk, EngineInfo, ExecError, Gate, Images, LeftoverRun,
    LogSink, RunScope, StepOutcome, StepSpec, Steps, StopSignal, Workspace,
};

#[async_trait]
impl Steps for Podman {
    async fn info(&self) -> Result<EngineInfo, ExecError> {
        Ok(self.engine().await?.info.clone())
    }

    fn rejects(&self, step: &Step, network: Option<&str>) -> Option<String> {
        let network = network.map(|text| self.access.network(step.name.as_str(), text));
        network.and_then(Result::err).or_else(|| volumes_of(step).err())
    }

    async fn end(&self, run: &RunScope) -> Result<(), ExecError> {
        let cause = match self.end_containers(run).await {
            Ok(()) => {
                self.starts.forget(&run.run);
                self.memory.forget_run(&run.run);
                return Ok(());
            }
            Err(cause) => cause,
        };
        if !matches!(cause, ExecError::Unreachable { .. }) || !self.http.shares_processes() {
            return Err(cause);
        }
        self.end_processes(&run.run).await?;
        // A hung engine can still perform a start that it has not answered.
        if self.starts.is_unanswered(&run.run) { Err(cause) } else { Ok(()) }
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
        Box::pin(self.step(run, on, step, gate, &*out, stop)).await
    }

    async fn discard(&self, run: &RunScope, left: Workspace) {
        if let Workspace::Container { id, .. } = left {
            self.memory.forget_container(&run.run, &id);
            self.make_room_to_remove().await;
            self.reaper.soon(&self.http, &run.run, id);
        }
    }

    async fn export(
        &self,
        run: &RunScope,
        left: &Workspace,
        path: &str,
    ) -> Result<ByteStream, ExecError> {
        self.pack(run, left, path).await
    }

    async fn destroy(&self, run: &RunId) -> Result<(), ExecError> {
        let (destroyed, ()) = join(self.destroy_run(run), self.forget_in_registry(run)).await;
        destroyed
    }

    async fn clear(&self, run: &RunId) -> Result<(), ExecError> {
        self.clear_run(run).await
    }

    async fn answers(&self) -> Result<(), ExecError> {
        self.ping().await
    }

    async fn leftovers(&self) -> Result<Vec<LeftoverRun>, ExecError> {
        self.runs_left().await
    }
}

#[async_trait]
impl Images for Podman {
    async fn prepare(&self, run: &RunScope, stop: &StopSignal) -> Result<Workspace, ExecError> {
        self.first(run, stop).await
    }

    async fn adopt(
        &self,
        run: &RunScope,
        kept: Option<&Checkpoint>,
    ) -> Result<Option<Workspace>, ExecError> {
        // End running steps first: pulling an image can take long.
        self.end_containers(run).await?;
        let Some(Checkpoint { image, digest }) = kept else { return Ok(None) };
        // Name it before looking at it, so that it is not removed in between.
        if let Some(adopted) = self.name_again(run, image).await? {
            return Ok(Some(adopted));
        }
        match (&self.checkpoints, digest) {
            (Some(registry), Some(digest)) => self.fetch_from(registry, run, image, digest).await,
            (_, _) => Ok(None),
        }
    }

    async fn push(
        &self,
        run: &RunScope,
        kept: &Workspace,
        step: &StepSpec,
    ) -> Result<Option<String>, ExecError> {
        let Some(registry) = &self.checkpoints else { return Ok(None) };
        self.push_to(registry, run, kept, step).await.map(Some)
    }

    async fn checkpoint(
        &self,
        run: &RunScope,
        left: Workspace,
        step: &StepSpec,
    ) -> Result<Workspace, ExecError> {
        let Workspace::Container { id, .. } = left else {
            return Err(ExecError::Engine {
                doing: "keeping what a step left".into(),
                cause: format!("{left:?} is not a container"),
            });
        };
        let Some(made) = self.memory.container(&run.run, &id) else {
            return Err(ExecError::Engine {
                doing: "keeping what a step left".into(),
                cause: format!("container {id} is none of this process"),
            });
        };
        let what = format!("s{}-{}", step.position, step.attempt);
        if let Err(cause) = self.has_no_secrets(&id, step).await {
            self.memory.forget_container(&run.run, &id);
            self.reaper.soon(&self.http, &run.run, id);
            return Err(cause);
        }
        let mut link = self.http.link();
        let kept = self.keep(&mut link, run, &id, &made.on, &made.known, &what).await?;
        self.memory.forget_container(&run.run, &id);
        self.reaper.soon(&self.http, &run.run, id);
        Ok(kept)
    }

    async fn import(
        &self,
        run: &RunScope,
        on: &Workspace,
        at: &str,
        tar: ByteStream,
    ) -> Result<Workspace, ExecError> {
        self.unpack(run, on, at, tar).await
    }

    async fn disk(&self) -> Result<Option<Disk>, ExecError> {
        self.look_at_disk().await
    }

    async fn bases(
        &self,
        used: &BTreeSet<String>,
        now: Millis,
    ) -> Result<Vec<BaseImage>, ExecError> {
        self.pulled_images(used, now).await
    }

    async fn remove_base(&self, image: &BaseImage) -> Result<bool, ExecError> {
        self.remove_pulled(image).await
    }

    async fn shared_volumes(&self) -> Result<Vec<String>, ExecError> {
        self.volumes_of_steps().await
    }

    async fn remove_shared_volume(&self, name: &str) -> Result<bool, ExecError> {
        self.remove_volume_of_steps(name).await
    }
}
