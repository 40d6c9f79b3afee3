//! Runs steps that have an image of their own in containers of a Docker engine, over its Engine
//! API.
//!
//! This executor keeps no images: a step starts from its image and leaves only files. Steps that
//! build on each other's images run on podman.
//!
//! | file | duty |
//! |---|---|
//! | `wire` `look` `fault` | the engine's socket, for calls that bollard does not cover |
//! | `create` `work_dir` | the settings of a container, and its working directory |
//! | `step` `output` `stop` | one step, from its creation to its proven end |
//! | `image` | inspecting and pulling images |
//! | `secrets` | secrets passed to a step in memory |
//! | `files` | artifacts copied out |
//! | `remains` | containers that a lost worker left running |
//! | `remove` | removal, always by label and never from memory |

mod create;
mod fault;
mod files;
mod image;
mod look;
mod output;
mod remains;
mod remove;
mod secrets;
mod step;
mod stop;
mod wire;
mod work_dir;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bollard::errors::Error;
use bollard::models::SystemInfo;
use bollard::{API_DEFAULT_VERSION, ClientVersion};
use protocol::id::{Epoch, NodeId, RunId};
use protocol::pipeline::Step;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use wire::{Target, Wire};

pub use remains::WorkerContainers;

use crate::exec::access::HostAccess;
use crate::exec::job::volumes_of;
use crate::ports::{
    ByteStream, EngineInfo, ExecError, Gate, LeftoverRun, LogSink, RunScope, StepOutcome, StepSpec,
    Steps, StopSignal, Workspace,
};

/// The engine's name in nodes and events.
pub const NAME: &str = "docker";
/// The timeout for the start of a response, in seconds.
const ANSWERS: u64 = 120;

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
    /// The network of steps that name none. `None`: the engine's default.
    pub network: Option<String>,
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
            network: None,
            worker: None,
            access: HostAccess::default(),
            log_bytes: None,
        }
    }
}

/// Runs steps in containers of a Docker engine. Clones share one executor.
#[derive(Debug, Clone)]
pub struct Docker {
    wire: Arc<Wire>,
    client: Arc<OnceCell<Client>>,
    tasks: TaskTracker,
    auth_files: Vec<PathBuf>,
    auth_asked_for: bool,
    network: Option<String>,
    worker: Option<NodeId>,
    access: Arc<HostAccess>,
    log_bytes: Option<u64>,
}

/// A connected engine.
#[derive(Debug)]
struct Client {
    docker: bollard::Docker,
    /// The prefix of every path: the API version that both sides support.
    prefix: String,
    is_podman: bool,
    lacks_init: AtomicBool,
    cpus: i64,
    has_limits: bool,
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    api_version: String,
    #[serde(default)]
    components: Option<Vec<Component>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

impl Client {
    fn has_init(&self) -> bool {
        !self.lacks_init.load(Ordering::Relaxed)
    }

    fn lacks_init(&self) {
        if !self.lacks_init.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the Docker engine has no init program: steps get SIGTERM as process 1, which most programs ignore; install docker-init (tini)"
            );
        }
    }

    /// Checks that the engine can enforce limits.
    fn limits(&self) -> Result<(), String> {
        if self.has_limits {
            return Ok(());
        }
        Err("limits cannot be enforced: the Docker engine has no control of cpu or memory on its host (see the warnings of `docker info`)".to_owned())
    }
}

/// The API version that both sides support.
fn spoken(api_version: &str) -> ClientVersion {
    let part = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or_default();
    let mut parts = api_version.split('.');
    let (major, minor) = (part(parts.next()), part(parts.next()));
    let ours = (API_DEFAULT_VERSION.major_version, API_DEFAULT_VERSION.minor_version);
    let (major_version, minor_version) = (major, minor).min(ours);
    ClientVersion { major_version, minor_version }
}

impl Docker {
    /// Creates an executor for the engine at an address. Does not connect yet: the first call shows
    /// whether the engine answers.
    ///
    /// # Errors
    /// [`ExecError::Unsupported`] if the address is invalid.
    pub fn connect(options: Options) -> Result<Self, ExecError> {
        Ok(Self {
            wire: Arc::new(Wire::new(&options.url)?),
            client: Arc::default(),
            tasks: TaskTracker::new(),
            auth_files: options.auth_files,
            auth_asked_for: options.auth_asked_for,
            network: options.network,
            worker: options.worker,
            access: Arc::new(options.access),
            log_bytes: options.log_bytes,
        })
    }

    async fn client(&self) -> Result<&Client, Error> {
        self.client.get_or_try_init(|| self.look_at_engine()).await
    }

    async fn look_at_engine(&self) -> Result<Client, Error> {
        let version: Version = self.wire.get("/version").await?;
        let speaks = spoken(&version.api_version);
        let docker = match &self.wire.target {
            Target::Unix(path) => {
                let path = path.to_string_lossy();
                bollard::Docker::connect_with_unix(&path, ANSWERS, &speaks)?
            }
            Target::Tcp(host) => bollard::Docker::connect_with_http(host, ANSWERS, &speaks)?,
        };
        // bollard encodes this header in standard base64, but engines expect the URL-safe alphabet.
        let docker = docker.with_request_modifier(|mut request| {
            if let Some(auth) = request.headers_mut().get_mut("x-registry-auth") {
                let text = auth.to_str().unwrap_or_default().replace('+', "-").replace('/', "_");
                if let Ok(text) = text.parse() {
                    *auth = text;
                }
            }
            request
        });
        let info = docker.info().await?;
        let mut components = version.components.iter().flatten();
        let init = info.init_commit.as_ref().and_then(|commit| commit.id.as_deref());
        Ok(Client {
            prefix: format!("/v{}.{}", speaks.major_version, speaks.minor_version),
            is_podman: components.any(|component| component.name.starts_with("Podman")),
            // Docker reports `N/A` if it did not find the init program.
            lacks_init: AtomicBool::new(init == Some("N/A")),
            cpus: info.ncpu.unwrap_or(1).max(1),
            has_limits: info.memory_limit == Some(true) && info.cpu_cfs_quota == Some(true),
            id: self.id_of(&info),
            docker,
        })
    }

    /// A stable id of the engine's container store. podman's own id changes with every request.
    fn id_of(&self, info: &SystemInfo) -> String {
        let machine = match self.wire.target {
            Target::Unix(_) => std::fs::read_to_string("/etc/machine-id").ok(),
            Target::Tcp(_) => None,
        };
        let machine = machine.map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
        let machine = machine.or_else(|| info.name.clone()).unwrap_or_default();
        let root = info.docker_root_dir.as_deref().unwrap_or_default();
        let digest = Sha256::digest(format!("{machine}\n{root}"));
        digest.iter().take(16).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
    }

    /// The engine's socket if it is on this host.
    fn socket(&self) -> Option<&Path> {
        match &self.wire.target {
            Target::Unix(path) => Some(path),
            Target::Tcp(_) => None,
        }
    }

    /// Why a step cannot mount a volume. A Docker engine runs as root and holds volumes of other
    /// programs, so the operator names each allowed volume.
    fn volume_rejected(&self, step: &str, name: &str) -> Option<String> {
        (!self.access.has_volume(name)).then(|| {
            format!(
                "step {step}: volume {name:?} of the Docker engine is not open to pipelines: the operator of this worker can add it to BOB_SHARED_VOLUMES"
            )
        })
    }
}

#[async_trait]
impl Steps for Docker {
    async fn info(&self) -> Result<EngineInfo, ExecError> {
        let client = self.client().await;
        let client = client.map_err(|error| self.failed("asking what it is", &error))?;
        let limits_refused = client.limits().err();
        Ok(EngineInfo {
            id: client.id.clone(),
            executor: NAME,
            checkpoints: false,
            limits_refused,
            warning: None,
        })
    }

    fn rejects(&self, step: &Step, network: Option<&str>) -> Option<String> {
        let network = network.map(|text| self.access.network(step.name.as_str(), text));
        if let Some(why) = network.and_then(Result::err) {
            return Some(why);
        }
        match volumes_of(step) {
            Ok(volumes) => {
                volumes.iter().find_map(|name| self.volume_rejected(step.name.as_str(), name))
            }
            Err(why) => Some(why),
        }
    }

    async fn run_step(
        &self,
        run: &RunScope,
        _on: &Workspace,
        step: &StepSpec,
        gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError> {
        Box::pin(self.step(run, step, gate, &*out, stop)).await
    }

    async fn discard(&self, _run: &RunScope, left: Workspace) {
        if let Workspace::Lone { id } = left {
            self.soon(id);
        }
    }

    async fn export(
        &self,
        _run: &RunScope,
        left: &Workspace,
        path: &str,
    ) -> Result<ByteStream, ExecError> {
        self.pack(left, path).await
    }

    async fn clear(&self, run: &RunId) -> Result<(), ExecError> {
        self.end_containers(run, Epoch(i64::MAX)).await
    }

    async fn destroy(&self, run: &RunId) -> Result<(), ExecError> {
        self.end_containers(run, Epoch(i64::MAX)).await
    }

    async fn leftovers(&self) -> Result<Vec<LeftoverRun>, ExecError> {
        self.runs_left().await
    }

    async fn answers(&self) -> Result<(), ExecError> {
        let pinged = self.wire.open("/_ping").await;
        pinged.map(drop).map_err(|error| self.failed("ping", &error))
    }

    async fn end(&self, run: &RunScope) -> Result<(), ExecError> {
        self.end_containers(&run.run, run.epoch).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_speak_the_older_version_of_the_two() {
        let of = |text: &str| {
            let version = spoken(text);
            (version.major_version, version.minor_version)
        };
        assert_eq!(of("1.41"), (1, 41));
        let ours = (API_DEFAULT_VERSION.major_version, API_DEFAULT_VERSION.minor_version);
        assert_eq!(of("1.999"), ours);
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_named() {
        let docker = Docker::connect(Options::new("unix:///nowhere/docker.sock")).unwrap();
        let error = docker.info().await.unwrap_err();
        assert!(matches!(error, ExecError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("unix:///nowhere/docker.sock"), "{error}");
    }
}
