//! The engines under test, a run per test, and direct access to the engine's API.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Method;
use hyper_util::rt::TokioIo;
use protocol::id::{Epoch, RunId};
use protocol::pipeline::{ExecutorKind, PullPolicy};
use runner::exec::docker::{Docker, Options};
use runner::ports::{
    ExecError, Gate, LogSink, RunScope, StepOutcome, StepSpec, Steps as _, StopSignal, Workspace,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use test_support::engine::{OutputRecorder, shell};
use test_support::services::{ENGINE, Services};
use test_support::skipped::{Need, skip};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// An engine under test.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    /// Its name, for failure messages.
    pub(crate) name: &'static str,
    /// Its URL.
    pub(crate) url: String,
    /// The base image.
    pub(crate) image: String,
}

/// The engines of the environment.
pub(crate) fn engines() -> Vec<Engine> {
    let Some(services) = Services::from_env(ENGINE) else { return Vec::new() };
    let image = services.get("BOB_TEST_IMAGE").to_owned();
    let podman = services.get("CONTAINER_ENGINE_URL").to_owned();
    let mut engines = vec![Engine { name: "podman", url: podman, image: image.clone() }];
    match services.find("BOB_TEST_DOCKER_URL") {
        Some(url) => engines.push(Engine { name: "docker.io", url: url.to_owned(), image }),
        // Not every host can run it. `scripts/services up --only podman,docker` gives the reason.
        None => skip(&["Docker"], Need::Optional),
    }
    engines
}

impl Engine {
    /// A directory that the engine can see, whatever its root: next to its socket.
    pub(crate) fn dir(&self) -> TempDir {
        let beside = Path::new(self.url.trim_start_matches("unix://")).parent().unwrap();
        let dir = tempfile::tempdir_in(beside).unwrap();
        // The engine can run as another user.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        dir
    }
}

/// A run and an executor for one test.
pub(crate) struct Bench {
    pub(crate) engine: Engine,
    pub(crate) docker: Docker,
    pub(crate) run: RunScope,
    pub(crate) stop: StopSignal,
}

impl Bench {
    pub(crate) fn new(engine: &Engine) -> Self {
        let run = format!("r-D.{}", uuid::Uuid::new_v4());
        Self {
            engine: engine.clone(),
            docker: Docker::connect(Options::new(&engine.url)).unwrap(),
            run: RunScope {
                cluster: "a test's own".into(),
                run: run.parse().unwrap(),
                epoch: Epoch(1),
                image: engine.image.clone(),
                pull: PullPolicy::Never,
                has_own_images: true,
            },
            stop: StopSignal::default(),
        }
    }

    /// A job that runs a line of shell.
    pub(crate) fn job(&self, line: &str, with: Value) -> StepSpec {
        let mut all = Map::from_iter([("image".to_owned(), json!(self.engine.image))]);
        if let Value::Object(more) = with {
            all.extend(more);
        }
        StepSpec { executor: ExecutorKind::Docker, with: all, ..shell(0, line) }
    }

    pub(crate) async fn try_step(
        &self,
        step: &StepSpec,
    ) -> Result<(StepOutcome, Arc<OutputRecorder>), ExecError> {
        let kept = Arc::new(OutputRecorder::default());
        let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
        let gate = Gate::open();
        let on = Workspace::None;
        let ran = self.docker.run_step(&self.run, &on, step, gate, out, &self.stop).await?;
        Ok((ran, kept))
    }

    /// Runs a step that must exit with 0.
    pub(crate) async fn pass(&self, step: &StepSpec) -> (Workspace, Arc<OutputRecorder>) {
        let (ran, kept) = self.try_step(step).await.unwrap();
        let said = String::from_utf8_lossy(&kept.stderr()).into_owned();
        assert_eq!(ran.exit.code, 0, "{:?}: {} {said}", step.words, kept.text());
        (ran.workspace, kept)
    }

    /// The output of a line of shell.
    pub(crate) async fn written(&self, line: &str, with: Value) -> (Vec<u8>, Vec<u8>) {
        let (left, kept) = self.pass(&self.job(line, with)).await;
        self.docker.discard(&self.run, left).await;
        (kept.stdout(), kept.stderr())
    }

    /// Removes the run's objects and checks that none is left.
    pub(crate) async fn destroy(&self) {
        self.docker.destroy(&self.run.run).await.unwrap();
        assert!(containers(&self.engine, &self.run.run).await.is_empty(), "containers are left");
    }
}

/// Calls the engine's API directly, for checks that the executor does not offer. Typed clients fail
/// on some states of podman.
pub(crate) async fn ask(engine: &Engine, method: Method, path: &str) -> Value {
    let socket = engine.url.strip_prefix("unix://").unwrap();
    let stream = TokioIo::new(UnixStream::connect(socket).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    let is_post = method == Method::POST;
    let request = hyper::Request::builder()
        .method(method)
        .uri(format!("/v1.41{path}"))
        .header("host", "engine")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(if is_post { b"{}" } else { b"" })))
        .unwrap();
    let asking = async {
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(status.is_success(), "{path}: {status} {body:?}");
        serde_json::from_slice(&body).unwrap_or_default()
    };
    tokio::select! {
        answer = asking => answer,
        ended = connection => panic!("the engine hung up: {ended:?}"),
    }
}

/// The ids of a run's containers.
pub(crate) async fn containers(engine: &Engine, run: &RunId) -> Vec<String> {
    let filters = format!("%7B%22label%22%3A%5B%22bob.run%3D{run}%22%5D%7D");
    let path = format!("/containers/json?all=true&filters={filters}");
    let listed = ask(engine, Method::GET, &path).await;
    let ids = listed.as_array().into_iter().flatten().map(|it| it["Id"].as_str().unwrap());
    ids.map(str::to_owned).collect()
}

/// The engine's description of a container.
pub(crate) async fn described(engine: &Engine, container: &str) -> Value {
    ask(engine, Method::GET, &format!("/containers/{container}/json")).await
}

/// Commits a container with another setting and returns the image name. The image keeps the
/// container's command as its entrypoint.
pub(crate) async fn image_of(engine: &Engine, container: &str, change: &str) -> String {
    let name = format!("localhost/t-{}", uuid::Uuid::new_v4());
    let change: String = change
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' => char::from(byte).into(),
            other => format!("%{other:02X}"),
        })
        .collect();
    let path = format!("/commit?container={container}&repo={name}&tag=latest&changes={change}");
    ask(engine, Method::POST, &path).await;
    format!("{name}:latest")
}

#[derive(Debug, Clone, Copy, Default)]
struct ConnectionState {
    /// How often all connections were closed.
    cuts: u32,
    /// Whether new connections wait.
    is_held: bool,
}

/// A connection to the engine that can be cut.
pub(crate) struct CuttableConnection {
    pub(crate) url: String,
    state: watch::Sender<ConnectionState>,
    _forwarding: JoinSet<()>,
}

impl CuttableConnection {
    pub(crate) async fn to(engine: &Engine) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("tcp://{}", listener.local_addr().unwrap());
        let socket = engine.url.strip_prefix("unix://").unwrap().to_owned();
        let state = watch::Sender::new(ConnectionState::default());
        let (states, mut forwarding) = (state.clone(), JoinSet::new());
        forwarding.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let (mut state, socket) = (states.subscribe(), socket.clone());
                connections.spawn(async move {
                    let cuts = state.wait_for(|state| !state.is_held).await.unwrap().cuts;
                    let mut far = UnixStream::connect(&socket).await.unwrap();
                    tokio::select! {
                        copied = copy_bidirectional(&mut near, &mut far) => drop(copied),
                        cut = state.wait_for(|state| state.cuts > cuts) => drop(cut.unwrap()),
                    }
                });
            }
        });
        Self { url, state, _forwarding: forwarding }
    }

    /// Closes all current connections. New ones wait until [`Self::restore`].
    pub(crate) fn cut(&self) {
        self.state
            .send_modify(|state| *state = ConnectionState { cuts: state.cuts + 1, is_held: true });
    }

    pub(crate) fn restore(&self) {
        self.state.send_modify(|state| state.is_held = false);
    }
}
