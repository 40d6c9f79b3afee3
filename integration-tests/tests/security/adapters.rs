//! Both engine adapters, configured with the grants of an operator.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use protocol::id::Epoch;
use protocol::pipeline::{ExecutorKind, PullPolicy};
use runner::exec::access::{Granted, HostAccess};
use runner::exec::docker::{self, Docker};
use runner::exec::podman::{self, Podman};
use runner::ports::{
    ExecError, Gate, Images, LogSink, RunScope, StepSpec, Steps, StopSignal, Workspace,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use test_support::engine::{OutputRecorder, shell};
use test_support::services::{ENGINE, Services};
use test_support::skipped::{Need, skip};

/// An engine behind one of the two adapters, and a run for one test.
pub(crate) struct Adapter {
    /// The adapter's name, for failure messages.
    pub(crate) name: &'static str,
    /// The engine's URL.
    pub(crate) url: String,
    is_docker: bool,
    /// The base image.
    pub(crate) image: String,
    steps: Arc<dyn Steps>,
    /// The adapter's operations on images. `None` if it does not manage images.
    images: Option<Arc<dyn Images>>,
    run: RunScope,
    stop: StopSignal,
}

/// Connects each adapter to the engines that the environment names.
pub(crate) fn adapters(granted: &Granted) -> Vec<Adapter> {
    let Some(services) = Services::from_env(ENGINE) else { return Vec::new() };
    let podman = services.get("CONTAINER_ENGINE_URL").to_owned();
    let image = services.get("BOB_TEST_IMAGE").to_owned();
    let adapter = |name, url: &str, is_docker| {
        let granted = granted.clone();
        Adapter::new(name, url, &image, is_docker, granted)
    };
    let mut adapters =
        vec![adapter("podman", &podman, false), adapter("the Docker API of podman", &podman, true)];
    match services.find("BOB_TEST_DOCKER_URL") {
        Some(url) => adapters.push(adapter("docker.io", url, true)),
        None => skip(&["Docker"], Need::Optional),
    }
    adapters
}

impl Adapter {
    fn new(name: &'static str, url: &str, image: &str, is_docker: bool, granted: Granted) -> Self {
        let access = HostAccess { granted: Some(granted), ..HostAccess::default() };
        let (steps, images): (Arc<dyn Steps>, Option<Arc<dyn Images>>) = if is_docker {
            let options = docker::Options { access, ..docker::Options::new(url) };
            (Arc::new(Docker::connect(options).unwrap()), None)
        } else {
            let options = podman::Options { access, ..podman::Options::new(url) };
            let podman = Arc::new(Podman::connect(options).unwrap());
            (Arc::<Podman>::clone(&podman), Some(podman))
        };
        let run = RunScope {
            cluster: "a test's own".into(),
            run: format!("r-S.{}", uuid::Uuid::new_v4()).parse().unwrap(),
            epoch: Epoch(1),
            image: image.to_owned(),
            pull: PullPolicy::Never,
            has_own_images: true,
        };
        let (url, image) = (url.to_owned(), image.to_owned());
        Self { name, url, is_docker, image, steps, images, run, stop: StopSignal::default() }
    }

    /// Whether the adapter uses the Docker API.
    pub(crate) fn is_docker(&self) -> bool {
        self.is_docker
    }

    /// A temporary directory next to the engine's socket, so that the engine can mount it.
    pub(crate) fn dir(&self) -> TempDir {
        let socket_dir = Path::new(self.url.trim_start_matches("unix://")).parent().unwrap();
        let dir = tempfile::tempdir_in(socket_dir).unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        dir
    }

    /// A step of executor docker that runs a line of shell. `with` can override its image.
    pub(crate) fn job(&self, line: &str, with: Value) -> StepSpec {
        let mut arguments = Map::from_iter([("image".to_owned(), json!(self.image))]);
        if let Value::Object(overrides) = with {
            arguments.extend(overrides);
        }
        StepSpec { executor: ExecutorKind::Docker, with: arguments, ..shell(0, line) }
    }

    async fn attempt(&self, step: &StepSpec) -> Result<(i32, String), ExecError> {
        let recorder = Arc::new(OutputRecorder::default());
        let sink: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&recorder);
        let workspace = match &self.images {
            Some(images) => images.prepare(&self.run, &self.stop).await?,
            None => Workspace::None,
        };
        let gate = Gate::open();
        let outcome =
            self.steps.run_step(&self.run, &workspace, step, gate, sink, &self.stop).await?;
        self.discard(outcome.workspace).await;
        let stderr = recorder.stderr();
        let output = format!("{}{}", recorder.text(), String::from_utf8_lossy(&stderr));
        Ok((outcome.exit.code, output))
    }

    async fn discard(&self, workspace: Workspace) {
        self.steps.discard(&self.run, workspace).await;
    }

    /// The output of a step that must exit with 0.
    pub(crate) async fn passes(&self, step: &StepSpec) -> String {
        match self.attempt(step).await {
            Ok((0, output)) => output,
            other => panic!("{}: {:?}: {other:?}", self.name, step.with),
        }
    }

    /// The reason for rejecting a step before it starts.
    pub(crate) async fn refuses(&self, step: &StepSpec) -> String {
        match self.attempt(step).await {
            Err(ExecError::Unsupported(reason)) => reason,
            other => panic!("{}: {:?} {:?}: {other:?}", self.name, step.network, step.with),
        }
    }

    /// The error of a step that cannot start.
    pub(crate) async fn fails(&self, step: &StepSpec) -> ExecError {
        match self.attempt(step).await {
            Err(error) => error,
            Ok(output) => panic!("{}: {:?}: {output:?}", self.name, step.with),
        }
    }

    /// The error of preparing a run with this image, or of a step with it if the adapter does not
    /// manage images.
    pub(crate) async fn fails_on(&self, image: &str) -> ExecError {
        let Some(images) = &self.images else {
            return self.fails(&self.job("true", json!({ "image": image }))).await;
        };
        let run = RunScope { image: image.to_owned(), ..self.run.clone() };
        match images.prepare(&run, &self.stop).await {
            Err(error) => error,
            Ok(base) => panic!("{}: {image}: {base:?}", self.name),
        }
    }

    /// Removes the run's objects from the engine.
    pub(crate) async fn end(&self) {
        self.steps.destroy(&self.run.run).await.unwrap();
    }
}
