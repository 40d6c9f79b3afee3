//! Finds the container engine: the configured one, else the user's socket, else starts a service.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info};

use super::lifeline::LIFELINE;
use crate::config;
use crate::exec::access::{Granted, HostAccess, SharedDir};
use crate::exec::{docker, podman};

/// A podman service that this process started. It ends with this process, even after SIGKILL.
#[derive(Debug)]
pub struct OwnService {
    /// The lifeline, a process of this program that runs the service.
    child: Child,
    /// Closing it ends the service.
    lifeline: Option<ChildStdin>,
    dir: tempfile::TempDir,
    /// The last line of the service's standard error.
    last: watch::Receiver<String>,
    /// The task that reads its standard error.
    _reading: JoinSet<()>,
}

/// The URL of an engine, and the service if this process started it.
#[derive(Debug)]
pub struct EngineService {
    /// `unix:///path` or `http://host:port`.
    pub url: String,
    /// The service. Must be kept while the engine is used.
    pub own: Option<OwnService>,
}

/// The timeout for a started service to answer.
const OWN_SERVICE_STARTS_WITHIN: Duration = Duration::from_secs(20);
/// How long to wait for the end of the service. Longer than its grace.
const ENDS_WITHIN: Duration = Duration::from_secs(7);
/// The running program, even if its file was replaced by a newer version.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// How long to wait for the last output after the service has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The maximum length of a logged line, in bytes. Longer lines are split.
const MAX_LINE: u64 = 4096;

/// Finds the engine (`CONTAINER_ENGINE_URL` in docs/settings.md).
///
/// # Errors
/// If a service was started and does not answer.
pub async fn find(engine: &config::Engine) -> anyhow::Result<EngineService> {
    if let Some(url) = &engine.url {
        return Ok(EngineService { url: url.to_string(), own: None });
    }
    if let Some(socket) = &engine.user_socket
        && tokio::net::UnixStream::connect(socket).await.is_ok()
    {
        return Ok(EngineService { url: format!("unix://{}", socket.display()), own: None });
    }
    let root = rustix::process::geteuid().is_root();
    match &engine.program {
        Some(program) if !root => {
            let own = OwnService::start(Path::new(THIS_PROGRAM), program).await?;
            let url = format!("unix://{}", own.socket().display());
            info!(url, "a podman service of our own is started");
            Ok(EngineService { url, own: Some(own) })
        }
        Some(_) | None => Ok(EngineService { url: "http://localhost:8080".into(), own: None }),
    }
}

/// The options of the podman executor for an engine at this URL.
pub(super) fn options(engine: &config::Engine, url: String) -> podman::Options {
    let (auth_files, auth_asked_for) = auth_files(engine);
    podman::Options {
        url,
        auth_files,
        auth_asked_for,
        insecure_registries: engine.registry_insecure.clone(),
        network: engine.network.clone(),
        checkpoints: None,
        worker: None,
        access: HostAccess::default(),
        log_bytes: None,
    }
}

/// The options of the Docker executor.
pub(super) fn docker_options(engine: &config::Engine, url: &config::EngineUrl) -> docker::Options {
    let (auth_files, auth_asked_for) = auth_files(engine);
    docker::Options {
        auth_files,
        auth_asked_for,
        network: engine.network.clone(),
        ..docker::Options::new(url.to_string())
    }
}

/// The steps' access to the engine's host. `is_of_user`: a user runs a file of their own.
pub(super) fn access(engine: &config::Engine, is_of_user: bool) -> HostAccess {
    let socket = |url: &config::EngineUrl| match url {
        config::EngineUrl::Unix(path) => Some(path.clone()),
        config::EngineUrl::Tcp { .. } => None,
    };
    let named = engine.url.iter().chain(&engine.docker_url).filter_map(socket);
    let dirs = engine.shared_dirs.iter().cloned();
    let dirs =
        dirs.map(|config::SharedDir { path, is_read_only }| SharedDir { path, is_read_only });
    let granted = Granted {
        dirs: dirs.collect(),
        volumes: engine.shared_volumes.clone(),
        networks: engine.networks.clone(),
        default_network: engine.network.clone(),
    };
    HostAccess {
        granted: (!is_of_user).then_some(granted),
        sockets: named.chain(engine.user_socket.clone()).collect(),
        checkpoints: None,
    }
}

/// The credential files, and whether the user named them.
fn auth_files(engine: &config::Engine) -> (Vec<PathBuf>, bool) {
    match &engine.registry_auth_file {
        Some(named) => (vec![named.clone()], true),
        None => (engine.registry_auth_places.clone(), false),
    }
}

impl OwnService {
    /// Starts the service through `launcher`, which is this program.
    async fn start(launcher: &Path, program: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("bob-runner-podman-")
            .tempdir()
            .context("cannot make a directory for podman's socket")?;
        let socket = dir.path().join("podman.sock");
        let mut child = Command::new(launcher)
            .arg0("bob-runner")
            .arg(LIFELINE)
            .arg(dir.path())
            .arg(program)
            .args(["system", "service", "--time", "0"])
            .arg(format!("unix://{}", socket.display()))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            // Ctrl-C must not reach the service: it is needed to end the steps.
            .process_group(0)
            // The lifeline must end the service first.
            .kill_on_drop(false)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let (told, last) = watch::channel(String::new());
        let mut reading = JoinSet::new();
        if let Some(stderr) = child.stderr.take() {
            reading.spawn(read(stderr, told));
        }
        let lifeline = child.stdin.take();
        let mut own = Self { child, lifeline, dir, last, _reading: reading };
        match tokio::time::timeout(OWN_SERVICE_STARTS_WITHIN, own.answers()).await {
            Ok(answers) => answers?,
            Err(_) => bail!(
                "`podman system service` did not answer within {} s ({}); try it by hand, or set \
                 CONTAINER_ENGINE_URL",
                OWN_SERVICE_STARTS_WITHIN.as_secs(),
                own.output()
            ),
        }
        Ok(own)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("podman.sock")
    }

    async fn answers(&mut self) -> anyhow::Result<()> {
        loop {
            if tokio::net::UnixStream::connect(self.socket()).await.is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().context("cannot see podman's service")? {
                let all = async { while self.last.changed().await.is_ok() {} };
                // A child process can hold its end of the pipe open.
                drop(tokio::time::timeout(LAST_WORDS, all).await);
                bail!(
                    "`podman system service` ended with {status}: {}; `bob-runner doctor` says what \
                     this host lacks",
                    self.output()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn output(&self) -> String {
        let last = self.last.borrow();
        if last.is_empty() { "it said nothing".to_owned() } else { last.clone() }
    }

    /// Ends the service.
    pub async fn end(mut self) {
        drop(self.lifeline.take());
        // If it does not end in time, its lifeline ends it soon after.
        drop(tokio::time::timeout(ENDS_WITHIN, self.child.wait()).await);
    }
}

/// Reads the service's standard error, since a full pipe would block the service.
async fn read(stderr: ChildStderr, told: watch::Sender<String>) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut stderr).take(MAX_LINE).read_until(b'\n', &mut line).await;
        if !read.is_ok_and(|count| count > 0) {
            return;
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !text.is_empty() {
            debug!(said = text, "podman's service");
            told.send_replace(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, Sources, load};

    /// Installs a program for a test. Another process writes it, because a file that is open for
    /// writing cannot be executed.
    fn program(dir: &Path, name: &str, text: &str) -> PathBuf {
        let (source, program) = (dir.join("source"), dir.join(name));
        std::fs::write(&source, text).unwrap();
        let installed = std::process::Command::new("install")
            .args(["-m", "755"])
            .args([&source, &program])
            .status();
        assert!(installed.unwrap().success());
        program
    }

    #[tokio::test]
    async fn an_own_podman_service_has_its_own_process_group_and_can_log_much() {
        let dir = tempfile::tempdir().unwrap();
        let program = program(
            dir.path(),
            "podman",
            "#!/bin/sh\n\
             head -c 300000 /dev/zero | tr '\\0' x >&2\n\
             echo >&2\n\
             echo \"process $$ in group $(cut -d' ' -f5 /proc/$$/stat)\" >&2\n\
             echo >&2\n\
             exit 7\n",
        );
        // Takes the place of this program, since the test binary is not bob-runner.
        let text = "#!/bin/sh\n[ \"$1\" = lifeline ] || exit 9\nshift 2\nexec \"$@\"\n";
        let launcher = self::program(dir.path(), "launcher", text);
        let error = OwnService::start(&launcher, &program).await.unwrap_err().to_string();
        let said = error.split_once("exit status: 7: process ").map(|(_, said)| said);
        let (process, rest) = said.and_then(|said| said.split_once(" in group ")).expect(&error);
        assert!(rest.starts_with(&format!("{process};")), "{error}");
    }

    #[test]
    fn a_worker_grants_what_its_operator_names_and_run_grants_everything() {
        let nowhere = tempfile::tempdir().unwrap();
        let environment = Environment::from([
            ("BOB_NETWORKS", "host,mine"),
            ("BOB_NETWORK", "pasta:-T,80"),
            ("BOB_SHARED_VOLUMES", "data"),
            ("BOB_DOCKER_URL", "unix:///run/engine/docker"),
            ("XDG_RUNTIME_DIR", "/run/u"),
        ]);
        let sources = Sources {
            flags: Flags::default(),
            environment,
            working_dir: nowhere.path().to_owned(),
            system_dir: nowhere.path().to_owned(),
        };
        let engine = load(&sources).unwrap().config.engine;
        let access = access(&engine, false);
        let granted = access.granted.unwrap();
        let names: Vec<&str> = granted.networks.iter().map(|grant| grant.as_str()).collect();
        assert_eq!((names, granted.volumes), (vec!["host", "mine"], vec!["data".to_owned()]));
        assert_eq!(granted.default_network.as_deref(), Some("pasta:-T,80"));
        let sockets = ["/run/engine/docker", "/run/u/podman/podman.sock"].map(PathBuf::from);
        assert_eq!(access.sockets, sockets);
        assert_eq!(super::access(&engine, true).granted, None);
    }

    fn options_with(variables: Environment) -> podman::Options {
        let nowhere = tempfile::tempdir().unwrap();
        let sources = Sources {
            flags: Flags::default(),
            environment: variables,
            working_dir: nowhere.path().to_owned(),
            system_dir: nowhere.path().to_owned(),
        };
        options(&load(&sources).unwrap().config.engine, "unix:///s".into())
    }

    #[test]
    fn registry_credentials_default_to_the_files_of_podman() {
        let made = options_with(Environment::from([
            ("XDG_RUNTIME_DIR", "/run/u"),
            ("XDG_CONFIG_HOME", "/conf"),
            ("HOME", "/home/u"),
        ]));
        let places = [
            "/run/u/containers/auth.json",
            "/conf/containers/auth.json",
            "/home/u/.docker/config.json",
        ];
        assert_eq!(made.auth_files, places.map(PathBuf::from));
        assert!(!made.auth_asked_for, "a default file may be missing");
    }

    #[test]
    fn a_named_file_of_registry_credentials_is_the_only_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for variable in ["BOB_REGISTRY_AUTH_FILE", "REGISTRY_AUTH_FILE"] {
            let made = options_with(Environment::from([(variable, path), ("HOME", "/home/u")]));
            assert_eq!(made.auth_files, [file.path()], "{variable}");
            assert!(made.auth_asked_for, "{variable}");
        }
    }
}
