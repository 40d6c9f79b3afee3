//! Builds the executors of a worker.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use protocol::id::NodeId;
use protocol::pipeline::ExecutorKind;

use super::engine;
use crate::client::Unavailable;
use crate::config::Config;
use crate::egress::Policy;
use crate::exec::access::HostAccess;
use crate::exec::docker::{self, Docker};
use crate::exec::local::{self, Local};
use crate::exec::podman::{self, Podman};
use crate::exec::ssh::{self, Ssh};
use crate::exec::{Executors, NamedFiles, call};
use crate::ports::{Executor, Steps};

/// Drops the Docker engine from the settings if no step needs it. The worker then never contacts
/// that engine, which might be unavailable.
pub(super) fn with_docker(config: &Config, is_needed: bool) -> Config {
    let mut config = config.clone();
    config.engine.docker_url = config.engine.docker_url.filter(|_| is_needed);
    config
}

/// The minimum limit for the engine's own copy of a step's output, in bytes.
const LOG_BYTES: u64 = 16 << 20;

pub(super) fn executor(
    config: &Config,
    node: &NodeId,
    url: Option<String>,
    checkpoints: Option<String>,
    local: local::Options,
    policy: &Policy,
) -> anyhow::Result<Arc<dyn Executor>> {
    // A user who runs a file of their own needs no grants.
    let is_of_user = local.work_dir.is_some();
    let reserved = checkpoints.as_deref().map(podman::repository_of);
    let access = HostAccess { checkpoints: reserved, ..engine::access(&config.engine, is_of_user) };
    // The engine stores a time and a stream name with each line.
    let log_bytes = config.worker.log_limit.map(|limit| limit.saturating_mul(2).max(LOG_BYTES));
    let lone: Option<Arc<dyn Steps>> = match &config.engine.docker_url {
        None => None,
        Some(url) => {
            let (worker, access) = (Some(node.clone()), access.clone());
            let of_engine = engine::docker_options(&config.engine, url);
            let docker =
                Docker::connect(docker::Options { worker, access, log_bytes, ..of_engine });
            Some(Arc::new(docker.map_err(|cause| Unavailable::because(&cause))?))
        }
    };
    // `None` if no step runs on an engine.
    let engine: Option<Arc<dyn Executor>> = match url {
        None => None,
        Some(url) => {
            let worker = Some(node.clone());
            let of_engine = engine::options(&config.engine, url);
            let options = podman::Options { checkpoints, worker, access, log_bytes, ..of_engine };
            let podman = Podman::connect(options);
            Some(Arc::new(podman.map_err(|cause| Unavailable::because(&cause))?))
        }
    };
    let named = if is_of_user {
        NamedFiles::any()
    } else {
        NamedFiles::below(config.worker.file_dirs.clone())
    };
    // A call may write files below the working directory only if steps work in the user's
    // directory.
    let calls = call::Options {
        policy: policy.clone(),
        named: named.clone(),
        files: local.work_dir.clone(),
        times: call::Times::default(),
    };
    let ssh = ssh::Options {
        program: "ssh".into(),
        inherited: inherited(),
        policy: policy.clone(),
        named,
    };
    let executors = Executors::new(engine, Arc::new(Local::new(local)))
        .with_job_engine(lone)
        .with(ExecutorKind::Ssh, Arc::new(Ssh::new(ssh)));
    let all = call::all(&calls).into_iter();
    Ok(Arc::new(all.fold(executors, |executors, (kind, calls)| executors.with(kind, calls))))
}

/// The argument that makes this program a step's supervisor.
pub const SUPERVISE: &str = "supervise";

/// The executor on this host. `work_dir`: where steps work instead of a directory of their run.
pub(super) fn on_this_host(
    config: &Config,
    runs: PathBuf,
    work_dir: Option<PathBuf>,
) -> local::Options {
    let own = config.step_env.iter().map(|(name, value)| (name.into(), value.expose().into()));
    // The session's directory, which systemd creates in memory, else the shared one.
    let memory = [std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some("/dev/shm".into())];
    local::Options {
        memory: memory.into_iter().flatten().filter(|dir| dir.is_absolute()).collect(),
        cgroup: local::own_cgroup(),
        supervisor: ("/proc/self/exe".into(), vec![SUPERVISE.into()]),
        runs,
        work_dir,
        inherited: inherited().into_iter().chain(own).collect(),
    }
}

/// The variables of this process that steps inherit.
fn inherited() -> Vec<(OsString, OsString)> {
    // The worker's own settings can contain passwords.
    let ours = |name: &OsString| name.as_encoded_bytes().starts_with(b"BOB_");
    std::env::vars_os().filter(|(name, _)| !ours(name)).collect()
}

/// Runs a step's supervisor.
///
/// # Errors
/// If it was not started by a worker.
pub fn supervise() -> std::io::Result<()> {
    local::supervise()
}
