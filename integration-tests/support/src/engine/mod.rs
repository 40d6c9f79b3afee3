//! Access to the container engine in tests: an executor, a run per test, and a sink that records
//! output.

mod api;
mod tar;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use protocol::event::LogStream;
use protocol::id::{Epoch, RunId};
use protocol::pipeline::{ExecutorKind, PullPolicy};
use runner::exec::podman::{Options, Podman};
use runner::ports::{
    ExecError, Gate, Images as _, LogSink, RunScope, StepOutcome, StepSpec, Steps as _, StopSignal,
    Workspace,
};

pub use self::api::Api;
pub use self::tar::{files_of, tar_of};
use crate::conformance::StepBuilder;
use crate::services::{ENGINE, Services};

/// Records the output of a step.
#[derive(Debug, Default)]
pub struct OutputRecorder {
    stdout: Mutex<Vec<u8>>,
    stderr: Mutex<Vec<u8>>,
    notes: Mutex<Vec<u8>>,
}

impl OutputRecorder {
    fn buffer(&self, stream: LogStream) -> &Mutex<Vec<u8>> {
        match stream {
            LogStream::Stderr => &self.stderr,
            LogStream::Stdout => &self.stdout,
            LogStream::Bob => &self.notes,
        }
    }

    fn bytes(&self, stream: LogStream) -> Vec<u8> {
        self.buffer(stream).lock().clone()
    }

    /// The standard output so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<u8> {
        self.bytes(LogStream::Stdout)
    }

    /// The standard error so far.
    #[must_use]
    pub fn stderr(&self) -> Vec<u8> {
        self.bytes(LogStream::Stderr)
    }

    /// The executor's notices about the output.
    #[must_use]
    pub fn notes(&self) -> String {
        String::from_utf8_lossy(&self.bytes(LogStream::Bob)).into_owned()
    }

    /// The standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout()).into_owned()
    }
}

#[async_trait]
impl LogSink for OutputRecorder {
    async fn write(&self, stream: LogStream, bytes: Bytes) {
        let mut buffer = self.buffer(stream).lock();
        buffer.extend_from_slice(&bytes);
    }
}

/// A step that runs a command.
#[must_use]
pub fn step(position: usize, words: &[&str]) -> StepSpec {
    StepBuilder::new(position, ExecutorKind::Podman).words(words).network("none").build()
}

/// A step that runs a line of shell.
#[must_use]
pub fn shell(position: usize, line: &str) -> StepSpec {
    step(position, &["sh", "-c", line])
}

/// A run and an executor for one test.
#[derive(Debug)]
pub struct Bench {
    /// The executor.
    pub podman: Podman,
    /// The run.
    pub run: RunScope,
    /// The stop signal of the run's steps.
    pub stop: StopSignal,
    /// The URL of the engine.
    pub url: String,
}

impl Bench {
    /// Uses the engine and the base image that the environment names. `None` if a variable is
    /// missing and the test can be skipped.
    ///
    /// # Panics
    /// If the engine's URL is invalid.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        let services = Services::from_env(ENGINE)?;
        Some(Self::new(
            &Options::new(services.get("CONTAINER_ENGINE_URL")),
            services.get("BOB_TEST_IMAGE"),
        ))
    }

    /// Whether the engine has objects of a run.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn is_left(&self, run: &RunId) -> bool {
        let leftovers = self.podman.leftovers().await.expect("cannot list leftovers");
        leftovers.iter().any(|leftover| leftover.run == *run)
    }

    /// Creates an executor for an engine.
    ///
    /// # Panics
    /// If the engine's URL is invalid.
    #[must_use]
    pub fn new(options: &Options, image: &str) -> Self {
        let run = format!("r-T.{}", uuid::Uuid::new_v4());
        Self {
            podman: Podman::connect(options.clone()).expect("invalid engine URL"),
            run: RunScope {
                cluster: "a test's own".into(),
                run: run.parse().expect("invalid run id"),
                epoch: Epoch(1),
                image: image.to_owned(),
                pull: PullPolicy::Missing,
                has_own_images: true,
            },
            stop: StopSignal::default(),
            url: options.url.clone(),
        }
    }

    /// The same run as seen by another process.
    ///
    /// # Panics
    /// If the engine's URL is invalid.
    #[must_use]
    pub fn another_process(&self) -> Self {
        Self {
            podman: Podman::connect(Options::new(&self.url)).expect("invalid engine URL"),
            run: self.run.clone(),
            stop: StopSignal::default(),
            url: self.url.clone(),
        }
    }

    /// Another run on the same engine.
    #[must_use]
    pub fn another_run(&self) -> Self {
        Self::new(&Options::new(&self.url), &self.run.image)
    }

    /// Prepares the run's first workspace.
    ///
    /// # Panics
    /// If the preparation fails.
    pub async fn prepare(&self) -> Workspace {
        self.podman.prepare(&self.run, &self.stop).await.expect("cannot prepare the base image")
    }

    /// Runs a step with an open gate.
    ///
    /// # Errors
    /// If the executor fails.
    pub async fn try_step(
        &self,
        workspace: &Workspace,
        step: &StepSpec,
    ) -> Result<(StepOutcome, Arc<OutputRecorder>), ExecError> {
        let recorder = Arc::new(OutputRecorder::default());
        let sink: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&recorder);
        let gate = Gate::open();
        let outcome =
            self.podman.run_step(&self.run, workspace, step, gate, sink, &self.stop).await?;
        Ok((outcome, recorder))
    }

    /// Runs a step.
    ///
    /// # Panics
    /// If the executor fails.
    pub async fn step(
        &self,
        workspace: &Workspace,
        step: &StepSpec,
    ) -> (StepOutcome, Arc<OutputRecorder>) {
        self.try_step(workspace, step).await.expect("cannot run the step")
    }

    /// Runs a step that must exit with 0, and commits it.
    ///
    /// # Panics
    /// If the executor or the step fails.
    pub async fn pass(
        &self,
        workspace: &Workspace,
        step: &StepSpec,
    ) -> (Workspace, Arc<OutputRecorder>) {
        let (outcome, recorder) = self.step(workspace, step).await;
        let stderr = String::from_utf8_lossy(&recorder.stderr()).into_owned();
        assert_eq!(outcome.exit.code, 0, "{:?}: {stderr}", step.words);
        let committed = self.podman.checkpoint(&self.run, outcome.workspace, step).await;
        (committed.expect("cannot commit the step"), recorder)
    }

    /// Removes the run's objects and checks that none is left.
    ///
    /// # Panics
    /// If the removal fails or an object is left.
    pub async fn destroy(&self) {
        self.podman.destroy(&self.run.run).await.expect("cannot remove the run's objects");
        let api = Api::of(&self.url);
        assert_eq!(api.labelled("containers", &self.run.run).await, 0, "containers are left");
        assert_eq!(api.labelled("images", &self.run.run).await, 0, "images are left");
    }
}

/// Waits until a condition holds.
///
/// # Panics
/// If it does not hold within a minute.
pub async fn until<F: Future<Output = bool>>(condition: &str, holds: impl Fn() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(60), "not true within a minute: {condition}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Collects all bytes of a stream.
///
/// # Panics
/// If the stream fails.
pub async fn collect(mut stream: runner::ports::ByteStream) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(bytes) = stream.next().await {
        content.extend_from_slice(&bytes.expect("cannot read the stream"));
    }
    content
}
