//! The engine: its address, its connection and what it can do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bollard::errors::Error;
use bollard::models::SystemInfo;
use bollard::{API_DEFAULT_VERSION, ClientVersion};
use protocol::id::NodeId;
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use super::fault;
use super::wire::Wire;
use crate::exec::access::HostAccess;
use crate::exec::engine::{EngineAddress, machine_id, store_id};
use crate::exec::exhausted::{no_keys, no_space};
use crate::ports::{ExecError, with_causes};

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
    pub(super) wire: Arc<Wire>,
    pub(super) client: Arc<OnceCell<Client>>,
    pub(super) tasks: TaskTracker,
    pub(super) auth_files: Vec<PathBuf>,
    pub(super) auth_asked_for: bool,
    pub(super) network: Option<String>,
    pub(super) worker: Option<NodeId>,
    pub(super) access: Arc<HostAccess>,
    pub(super) log_bytes: Option<u64>,
}

/// A connected engine.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) docker: bollard::Docker,
    /// The prefix of every path: the API version that both sides support.
    pub(super) prefix: String,
    pub(super) is_podman: bool,
    pub(super) lacks_init: AtomicBool,
    pub(super) cpus: i64,
    pub(super) has_limits: bool,
    pub(super) id: String,
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
    pub(super) fn has_init(&self) -> bool {
        !self.lacks_init.load(Ordering::Relaxed)
    }

    pub(super) fn lacks_init(&self) {
        if !self.lacks_init.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the Docker engine has no init program: steps get SIGTERM as process 1, which most programs ignore; install docker-init (tini)"
            );
        }
    }

    /// Checks that the engine can enforce limits.
    pub(super) fn limits(&self) -> Result<(), String> {
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

    pub(super) async fn client(&self) -> Result<&Client, Error> {
        self.client.get_or_try_init(|| self.look_at_engine()).await
    }

    async fn look_at_engine(&self) -> Result<Client, Error> {
        let version: Version = self.wire.get("/version").await?;
        let speaks = spoken(&version.api_version);
        let docker = match &self.wire.target {
            EngineAddress::Unix(path) => {
                let path = path.to_string_lossy();
                bollard::Docker::connect_with_unix(&path, ANSWERS, &speaks)?
            }
            EngineAddress::Tcp(host) => bollard::Docker::connect_with_http(host, ANSWERS, &speaks)?,
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
        let files: &[&str] = if self.socket().is_some() { &["/etc/machine-id"] } else { &[] };
        let machine = machine_id(files).or_else(|| info.name.clone()).unwrap_or_default();
        store_id(&machine, info.docker_root_dir.as_deref().unwrap_or_default())
    }

    /// The engine's socket if it is on this host.
    pub(super) fn socket(&self) -> Option<&Path> {
        self.wire.target.socket()
    }

    /// Why a step cannot mount a volume. A Docker engine runs as root and holds volumes of other
    /// programs, so the operator names each allowed volume.
    pub(super) fn volume_rejected(&self, step: &str, name: &str) -> Option<String> {
        (!self.access.has_volume(name)).then(|| {
            format!(
                "step {step}: volume {name:?} of the Docker engine is not open to pipelines: the operator of this worker can add it to BOB_SHARED_VOLUMES"
            )
        })
    }

    /// The port's error. `doing` describes the call in words.
    pub(super) fn failed(&self, doing: &str, error: &Error) -> ExecError {
        let said = fault::refusal(error);
        if fault::is_away(error) {
            return ExecError::Unreachable {
                at: self.wire.address.clone(),
                cause: with_causes(error),
            };
        }
        if no_space(said) {
            return ExecError::NoSpace { cause: said.to_owned() };
        }
        if no_keys(said) {
            return ExecError::KeyQuota { cause: said.to_owned() };
        }
        let cause = if said.is_empty() { with_causes(error) } else { said.trim().to_owned() };
        ExecError::Engine { doing: doing.to_owned(), cause }
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
}
