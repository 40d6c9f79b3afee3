//! Both engine adapters, with the grants of an operator.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use integration_tests::engine::{OutputRecorder, shell};
use integration_tests::services::{ENGINE, Services};
use integration_tests::skipped::{Need, skip};
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

/// An engine behind one of the two adapters, and a run for one test.
pub(crate) struct Adapter {
    /// Its name, for failure messages.
    pub(crate) name: &'static str,
    /// The engine's URL.
    pub(crate) url: String,
    is_docker: bool,
    /// The base image.
    pub(crate) image: String,
    steps: Arc<dyn Steps>,
    /// The same engine, if the adapter manages images.
    images: Option<Arc<dyn Images>>,
    run: RunScope,
    stop: StopSignal,
}

/// The adapters on the engines of the environment.
pub(crate) fn adapters(granted: &Granted) -> Vec<Adapter> {
    let Some(services) = Services::of_environment(ENGINE) else { return Vec::new() };
    let podman = services.get("CONTAINER_ENGINE_URL").to_owned();
    let image = services.get("BOB_TEST_IMAGE").to_owned();
    let of = |name, url: &str, is_docker| {
        let granted = granted.clone();
        Adapter::new(name, url, &image, is_docker, granted)
    };
    let mut adapters =
        vec![of("podman", &podman, false), of("the Docker API of podman", &podman, true)];
    match services.find("BOB_TEST_DOCKER_URL") {
        Some(url) => adapters.push(of("docker.io", url, true)),
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

    /// A directory that the engine can see: next to its socket.
    pub(crate) fn dir(&self) -> TempDir {
        let beside = Path::new(self.url.trim_start_matches("unix://")).parent().unwrap();
        let dir = tempfile::tempdir_in(beside).unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        dir
    }

    /// A step with an image of its own that runs a line of shell.
    pub(crate) fn job(&self, line: &str, with: Value) -> StepSpec {
        let mut all = Map::from_iter([("image".to_owned(), json!(self.image))]);
        if let Value::Object(more) = with {
            all.extend(more);
        }
        StepSpec { executor: ExecutorKind::Docker, with: all, ..shell(0, line) }
    }

    async fn attempt(&self, step: &StepSpec) -> Result<(i32, String), ExecError> {
        let kept = Arc::new(OutputRecorder::default());
        let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
        let on = match &self.images {
            Some(images) => images.prepare(&self.run, &self.stop).await?,
            None => Workspace::None,
        };
        let ran = self.steps.run_step(&self.run, &on, step, Gate::open(), out, &self.stop).await?;
        let (code, left) = (ran.exit.code, ran.left);
        self.discard(left).await;
        let said = format!("{}{}", kept.text(), String::from_utf8_lossy(&kept.stderr()));
        Ok((code, said))
    }

    async fn discard(&self, left: Workspace) {
        self.steps.discard(&self.run, left).await;
    }

    /// The output of a step that must exit with 0.
    pub(crate) async fn passes(&self, step: &StepSpec) -> String {
        match self.attempt(step).await {
            Ok((0, said)) => said,
            other => panic!("{}: {:?}: {other:?}", self.name, step.with),
        }
    }

    /// The error of a step that is rejected before it starts.
    pub(crate) async fn refuses(&self, step: &StepSpec) -> String {
        match self.attempt(step).await {
            Err(ExecError::Unsupported(why)) => why,
            other => panic!("{}: {:?} {:?}: {other:?}", self.name, step.network, step.with),
        }
    }

    /// The error of a step that cannot start.
    pub(crate) async fn fails(&self, step: &StepSpec) -> ExecError {
        match self.attempt(step).await {
            Err(error) => error,
            Ok(said) => panic!("{}: {:?}: {said:?}", self.name, step.with),
        }
    }

    /// The error of a run with this image, or of a step with it if the adapter manages no images.
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

    /// Removes the run's objects.
    pub(crate) async fn end(&self) {
        self.steps.destroy(&self.run.run).await.unwrap();
    }
}
