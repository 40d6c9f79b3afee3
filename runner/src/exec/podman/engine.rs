//! The engine: its address, its connection and what it can do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::id::NodeId;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::base_marks::BaseMarker;
use super::call::{EngineCall, Fault, Reply, no_space};
use super::config_dialect::ConfigDialect;
use super::http::Http;
use super::image::Memory;
use super::listing::UnlistedContainers;
use super::pull::{Pulls, Registries};
use super::reaper::Reaper;
use super::registry::Registry;
use super::starts::{Init, Starts};
use super::volume_uses::VolumeUses;
use crate::exec::access::HostAccess;
use crate::exec::engine::{machine_id, store_id};
use crate::ports::{EngineInfo, ExecError};

/// The timeout for the engine's description of itself.
const LOOKING: Duration = Duration::from_secs(60);
/// The files of this machine's id.
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// The executor's name in nodes and events.
pub const NAME: &str = "podman";
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
pub(super) struct Engine {
    pub(super) info: EngineInfo,
    pub(super) cpus: u64,
}

/// The path of the engine's store, once it is known to be on the same disk in this process's
/// mounts.
#[derive(Debug, Default)]
pub(super) struct Root(pub(super) Mutex<Option<PathBuf>>);

/// Runs steps in podman containers.
#[derive(Debug)]
pub struct Podman {
    pub(super) http: Arc<Http>,
    pub(super) client: podman_api::Podman,
    pub(super) registries: Registries,
    pub(super) network: Option<String>,
    pub(super) worker: Option<NodeId>,
    pub(super) access: HostAccess,
    pub(super) log_bytes: Option<u64>,
    pub(super) checkpoints: Option<Registry>,
    pub(super) pulls: Pulls,
    pub(super) marks: BaseMarker,
    pub(super) volume_uses: VolumeUses,
    pub(super) root: Root,
    pub(super) memory: Memory,
    pub(super) dialect: ConfigDialect,
    pub(super) reaper: Reaper,
    pub(super) ghosts: UnlistedContainers,
    pub(super) init: Init,
    pub(super) starts: Starts,
    pub(super) engine: OnceCell<Engine>,
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
            marks: BaseMarker::default(),
            volume_uses: VolumeUses::default(),
            root: Root::default(),
            memory: Memory::default(),
            dialect: ConfigDialect::default(),
            reaper: Reaper::default(),
            ghosts: UnlistedContainers::default(),
            init: Init::default(),
            starts: Starts::default(),
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

    pub(super) async fn engine(&self) -> Result<&Engine, ExecError> {
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
        let files: &[&str] = if self.http.is_local() { &MACHINE_IDS } else { &[] };
        let machine = machine_id(files)
            .or_else(|| host.and_then(|host| host.hostname.clone()))
            .unwrap_or_default();
        let id = store_id(&machine, &root);
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
    pub(super) async fn enforced_cpus(&self) -> Result<u64, ExecError> {
        let engine = self.engine().await?;
        match &engine.info.limits_refused {
            Some(reason) => Err(ExecError::Unsupported(reason.clone())),
            None => Ok(engine.cpus),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are refusals and answers")]
    pub(super) fn client_failed(&self, doing: &str, cause: &podman_api::Error) -> ExecError {
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

/// The message of the innermost error, without its wrappers.
fn innermost(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.last().unwrap_or(error).to_string()
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
