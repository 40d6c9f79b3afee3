//! Runs each step in a podman container and commits it as the image that the next step starts from.
//!
//! | file | duty |
//! |---|---|
//! | `http` `call` `path` `api` | the engine's REST socket, where podman-api is not enough |
//! | `create` | the settings of a container, which do not leak from one step to the next |
//! | `step` `refused` `output` `stop` `watcher` | one step, from its creation to its proven end |
//! | `image` `pull` | inspecting and pulling images, and when to squash a chain |
//! | `configured` | commits with the configuration of the base image |
//! | `look` `etc` | which files a step changed |
//! | `files` `work_dir` | resources in, artifacts out, and directories that a container needs |
//! | `volume` `secrets` `leak` | secrets passed in memory, and the check that no commit has them |
//! | `disk` `bases` `shared` | the engine's disk, and the base images and volumes that can be removed to free it |
//! | `processes` | ending steps by process id, if the engine does not answer |
//! | `remains` | containers that a lost worker left running |
//! | `remove` | removal, always by label and never from memory |

mod api;
mod bases;
mod call;
mod chain;
mod checkpoint;
mod configured;
mod create;
mod disk;
mod etc;
mod files;
#[cfg(feature = "testing")]
pub mod fuzzing;
#[cfg(test)]
mod hangs;
mod http;
mod image;
mod job;
mod leak;
mod look;
#[cfg(test)]
mod oddities;
mod output;
mod path;
mod processes;
mod pull;
mod refused;
mod registry;
mod remains;
mod remove;
mod reserve;
mod secrets;
mod shared;
mod step;
mod stop;
mod volume;
mod watcher;
mod work_dir;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join;
use protocol::id::{NodeId, RunId};
use protocol::pipeline::Step;
use protocol::time::Millis;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use call::{EngineCall, Fault, Reply, no_space};
use http::Http;
use image::Memory;
use pull::{Pulls, Registries};
use registry::Registry;
use remove::{Reaper, UnlistedContainers};

pub use look::Change;
pub use registry::repository_of;
pub use remains::{ListedContainers, WorkerContainers};

use crate::exec::access::HostAccess;
use crate::exec::job::volumes_of;
use crate::ports::{
    BaseImage, ByteStream, Checkpoint, Disk, EngineInfo, ExecError, Gate, Images, LeftoverRun,
    LogSink, RunScope, StepOutcome, StepSpec, Steps, StopSignal, Workspace,
};

/// The timeout for the engine's description of itself.
const LOOKING: Duration = Duration::from_secs(60);
/// The executor's name in nodes and events.
pub const NAME: &str = "podman";
/// How often a commit is retried after a layer shared with another run was removed meanwhile.
const COMMITS: u32 = 6;

/// How to reach the engine, and defaults for steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The engine's address: `unix:///path`, `http://host:port` or `tcp://host:port`.
    pub url: String,
    /// Registry credential files in the format of podman and docker. The first file with an entry
    /// for a registry is used.
    pub auth_files: Vec<PathBuf>,
    /// Whether the user named the first file, so that it must exist.
    pub auth_asked_for: bool,
    /// Registries accessed without TLS or without verifying their certificate.
    pub insecure_registries: Vec<String>,
    /// The network of steps that name none. `None`: the engine's default.
    pub network: Option<String>,
    /// The repository for copies of commits: `HOST[:PORT][/REPOSITORY]`.
    pub checkpoints: Option<String>,
    /// The process that creates containers, stored in a label of each.
    pub worker: Option<NodeId>,
    /// The steps' access to the engine's host.
    pub access: HostAccess,
    /// The maximum size of the engine's own copy of a step's output, in bytes. `None`: unlimited.
    pub log_bytes: Option<u64>,
}

impl Options {
    /// Default options for an engine at an address.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            auth_files: Vec::new(),
            auth_asked_for: false,
            insecure_registries: Vec::new(),
            network: None,
            checkpoints: None,
            worker: None,
            access: HostAccess::default(),
            log_bytes: None,
        }
    }
}

#[derive(Debug)]
struct Engine {
    info: EngineInfo,
    cpus: u64,
}

/// Runs steps in podman containers.
#[derive(Debug)]
pub struct Podman {
    http: Arc<Http>,
    client: podman_api::Podman,
    registries: Registries,
    network: Option<String>,
    worker: Option<NodeId>,
    access: HostAccess,
    log_bytes: Option<u64>,
    checkpoints: Option<Registry>,
    pulls: Pulls,
    marks: bases::BaseMarker,
    volume_uses: shared::VolumeUses,
    root: disk::Root,
    memory: Memory,
    dialect: configured::ConfigDialect,
    reaper: Reaper,
    ghosts: UnlistedContainers,
    init: step::Init,
    starts: step::Starts,
    engine: OnceCell<Engine>,
}

impl Podman {
    /// Creates an executor for the engine at an address. Does not connect yet: the first call shows
    /// whether the engine answers.
    ///
    /// # Errors
    /// [`ExecError::Unsupported`] if the address is invalid.
    pub fn connect(options: Options) -> Result<Self, ExecError> {
        let http = Http::new(&options.url)?;
        let version = podman_api::ApiVersion::new(4, Some(0), Some(0));
        let client = podman_api::Podman::new_versioned(&options.url, version)
            .map_err(|cause| ExecError::Unsupported(format!("{}: {cause}", options.url)))?;
        let registries = Registries {
            auth_files: options.auth_files,
            auth_asked_for: options.auth_asked_for,
            insecure: options.insecure_registries,
        };
        let checkpoints = options
            .checkpoints
            .map(|name| Registry::new(&name, |host| registries.is_insecure(host)));
        Ok(Self {
            http,
            client,
            registries,
            checkpoints: checkpoints.transpose().map_err(ExecError::Unsupported)?,
            network: options.network,
            worker: options.worker,
            access: options.access,
            log_bytes: options.log_bytes,
            pulls: Pulls::default(),
            marks: bases::BaseMarker::default(),
            volume_uses: shared::VolumeUses::default(),
            root: disk::Root::default(),
            memory: Memory::default(),
            dialect: configured::ConfigDialect::default(),
            reaper: Reaper::default(),
            ghosts: UnlistedContainers::default(),
            init: step::Init::default(),
            starts: step::Starts::default(),
            engine: OnceCell::new(),
        })
    }

    /// Checks that the engine answers.
    ///
    /// # Errors
    /// [`ExecError::Unreachable`] if it does not.
    pub async fn ping(&self) -> Result<(), ExecError> {
        // Short timeouts: the caller asks whether the engine answers now.
        let (within, patience) = (Duration::from_secs(5), Duration::from_secs(1));
        let ask = EngineCall { within, patience, ..EngineCall::get("/_ping") };
        let pinged = self.http.call(ask).await.and_then(Reply::good);
        pinged.map(drop).map_err(|fault| fault.at("ping", &self.http))
    }

    async fn engine(&self) -> Result<&Engine, ExecError> {
        self.engine.get_or_try_init(|| self.look_at_engine()).await
    }

    async fn look_at_engine(&self) -> Result<Engine, ExecError> {
        let info = timeout(LOOKING, self.client.info()).await;
        let info = info.map_err(|_elapsed| ExecError::Unreachable {
            at: self.http.address.clone(),
            cause: Fault::TimedOut(LOOKING).to_string(),
        })?;
        let info = info.map_err(|cause| self.client_failed("asking what it is", &cause))?;
        self.http.has_answered();
        let host = info.host.as_ref();
        let store = info.store.as_ref();
        let root = store.and_then(|store| store.graph_root.clone()).unwrap_or_default();
        let warning = loses_changes(store.and_then(|store| store.graph_driver_name.as_deref()));
        let machine = machine_id(self.http.is_local())
            .or_else(|| host.and_then(|host| host.hostname.clone()))
            .unwrap_or_default();
        let digest = Sha256::digest(format!("{machine}\n{root}"));
        let id = digest.iter().take(16).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        let cpus = host.and_then(|host| u64::try_from(host.cpus?).ok()).unwrap_or(1).max(1);
        let controllers = host.and_then(|host| host.cgroup_controllers.clone());
        let is_rootless =
            host.and_then(|host| host.security.as_ref()?.rootless).unwrap_or_default();
        let is_v1 = host.and_then(|host| host.cgroup_version.as_deref()) == Some("v1");
        let limits_refused = match is_rootless && is_v1 {
            true => Some(NO_V1.to_owned()),
            false => limits_refused(&controllers.unwrap_or_default()),
        };
        Ok(Engine {
            info: EngineInfo {
                id,
                executor: NAME,
                checkpoints: self.checkpoints.is_some(),
                limits_refused,
                warning,
            },
            cpus,
        })
    }

    /// The number of processors that a share refers to. An error if limits are not enforced.
    async fn enforced_cpus(&self) -> Result<u64, ExecError> {
        let engine = self.engine().await?;
        match &engine.info.limits_refused {
            Some(reason) => Err(ExecError::Unsupported(reason.clone())),
            None => Ok(engine.cpus),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are refusals and answers")]
    fn client_failed(&self, doing: &str, cause: &podman_api::Error) -> ExecError {
        match cause {
            podman_api::Error::Fault { message, .. } if no_space(message) => {
                ExecError::NoSpace { cause: message.clone() }
            }
            podman_api::Error::Error(cause) => {
                ExecError::Unreachable { at: self.http.address.clone(), cause: innermost(cause) }
            }
            other => ExecError::Engine { doing: doing.to_owned(), cause: other.to_string() },
        }
    }
}

/// The innermost error, without its wrappers.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// The machine id, if the engine is on this machine.
fn machine_id(local: bool) -> Option<String> {
    let files = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
    let read = |file: &&str| std::fs::read_to_string(file).ok().map(|id| id.trim().to_owned());
    if local { files.iter().find_map(read).filter(|id| !id.is_empty()) } else { None }
}

/// Why a rootless engine enforces no limits with control groups of version 1 or in hybrid mode.
const NO_V1: &str = "limits cannot be enforced: control groups of version 1 are not delegated to a rootless container engine; boot with systemd.unified_cgroup_hierarchy=1";

/// The warning for a storage driver that compares files only by size and time.
pub fn loses_changes(driver: Option<&str>) -> Option<String> {
    (driver == Some("vfs")).then(|| {
        "the container engine's storage driver vfs compares files by size and time: if a step changes a \
         file and leaves both the same, later steps do not see the change; set driver = \"overlay\" in \
         storage.conf"
            .to_owned()
    })
}

fn limits_refused(controllers: &[String]) -> Option<String> {
    let missing: Vec<&str> = ["cpu", "memory"]
        .into_iter()
        .filter(|wanted| !controllers.iter().any(|has| has == wanted))
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "limits cannot be enforced: this host delegates no {} controller to the container engine (see `systemctl edit user@.service`, Delegate=cpu memory pids)",
            missing.join(" and no ")
        )
    })
}

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
                cause: format!("{left:?} is no container"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_refused_where_a_controller_is_missing() {
        let of = |list: &[&str]| {
            limits_refused(&list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(of(&["cpu", "memory", "pids"]), None);
        let said = of(&["memory", "pids"]).unwrap();
        assert!(said.contains("no cpu controller"), "{said}");
        assert!(of(&["hugetlb"]).unwrap().contains("no cpu and no memory controller"));
    }
}
