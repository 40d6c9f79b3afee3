//! The container engine in tests: an executor on it, a run per test, and a sink that records
//! output.

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
use runner::ports::conformance::StepBuilder;
use runner::ports::{
    ExecError, Gate, Images as _, LogSink, RunScope, StepOutcome, StepSpec, Steps as _, StopSignal,
    Workspace,
};

use crate::services::{ENGINE, Services};

/// Records the output of a step.
#[derive(Debug, Default)]
pub struct OutputRecorder {
    stdout: Mutex<Vec<u8>>,
    stderr: Mutex<Vec<u8>>,
    notes: Mutex<Vec<u8>>,
}

impl OutputRecorder {
    fn of(&self, stream: LogStream) -> &Mutex<Vec<u8>> {
        match stream {
            LogStream::Stderr => &self.stderr,
            LogStream::Stdout => &self.stdout,
            LogStream::Bob => &self.notes,
        }
    }

    fn all(&self, stream: LogStream) -> Vec<u8> {
        self.of(stream).lock().clone()
    }

    /// The standard output so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<u8> {
        self.all(LogStream::Stdout)
    }

    /// The standard error so far.
    #[must_use]
    pub fn stderr(&self) -> Vec<u8> {
        self.all(LogStream::Stderr)
    }

    /// The executor's notices about the output.
    #[must_use]
    pub fn notes(&self) -> String {
        String::from_utf8_lossy(&self.all(LogStream::Bob)).into_owned()
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
        let mut kept = self.of(stream).lock();
        kept.extend_from_slice(&bytes);
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
    /// The stop signal of its steps.
    pub stop: StopSignal,
    /// The URL of the engine.
    pub url: String,
}

impl Bench {
    /// Uses the engine and the base image of the environment.
    ///
    /// # Panics
    /// If the engine's URL is invalid.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        let services = Services::of_environment(ENGINE)?;
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
        let left = self.podman.leftovers().await.expect("the engine lists leftovers");
        left.iter().any(|left| left.run == *run)
    }

    /// Creates an executor for an engine.
    ///
    /// # Panics
    /// If the engine's URL is invalid.
    #[must_use]
    pub fn new(options: &Options, image: &str) -> Self {
        let run = format!("r-T.{}", uuid::Uuid::new_v4());
        Self {
            podman: Podman::connect(options.clone()).expect("an engine's address"),
            run: RunScope {
                cluster: "a test's own".into(),
                run: run.parse().expect("a run id"),
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
            podman: Podman::connect(Options::new(&self.url)).expect("an engine's address"),
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
    /// If that fails.
    pub async fn prepare(&self) -> Workspace {
        self.podman.prepare(&self.run, &self.stop).await.expect("the base image")
    }

    /// Runs a step whose gate is open.
    ///
    /// # Errors
    /// Errors of the executor.
    pub async fn try_step(
        &self,
        on: &Workspace,
        step: &StepSpec,
    ) -> Result<(StepOutcome, Arc<OutputRecorder>), ExecError> {
        let kept = Arc::new(OutputRecorder::default());
        let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
        let gate = Gate::open();
        let ran = self.podman.run_step(&self.run, on, step, gate, out, &self.stop).await?;
        Ok((ran, kept))
    }

    /// Runs a step.
    ///
    /// # Panics
    /// If the executor fails.
    pub async fn step(
        &self,
        on: &Workspace,
        step: &StepSpec,
    ) -> (StepOutcome, Arc<OutputRecorder>) {
        self.try_step(on, step).await.expect("a step")
    }

    /// Runs a step that must exit with 0, and commits it.
    ///
    /// # Panics
    /// If the executor or the step fails.
    pub async fn pass(&self, on: &Workspace, step: &StepSpec) -> (Workspace, Arc<OutputRecorder>) {
        let (ran, kept) = self.step(on, step).await;
        let stderr = String::from_utf8_lossy(&kept.stderr()).into_owned();
        assert_eq!(ran.exit.code, 0, "{:?}: {stderr}", step.words);
        (self.podman.checkpoint(&self.run, ran.left, step).await.expect("a checkpoint"), kept)
    }

    /// Removes the run's objects and checks that none is left.
    ///
    /// # Panics
    /// If one is left.
    pub async fn destroy(&self) {
        self.podman.destroy(&self.run.run).await.expect("a clean end");
        let api = Api::of(&self.url);
        assert_eq!(api.labelled("containers", &self.run.run).await, 0, "containers are left");
        assert_eq!(api.labelled("images", &self.run.run).await, 0, "images are left");
    }
}

/// The engine's API, for checks that the executor does not offer.
#[derive(Debug)]
pub struct Api {
    client: podman_api::Podman,
    url: String,
}

impl Api {
    /// Connects to a URL.
    ///
    /// # Panics
    /// If the URL is invalid.
    #[must_use]
    pub fn of(url: &str) -> Self {
        let version = podman_api::ApiVersion::new(4, Some(0), Some(0));
        let client = podman_api::Podman::new_versioned(url, version).expect("an address");
        Self { client, url: url.to_owned() }
    }

    /// The number of containers or images with a run's label.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn labelled(&self, what: &str, run: &RunId) -> usize {
        use podman_api::opts::{ContainerListFilter, ContainerListOpts};
        if what == "images" {
            return self.images_of(run).await;
        }
        let label = ContainerListFilter::LabelKeyVal("bob.run".into(), run.to_string());
        let opts = ContainerListOpts::builder().all(true).filter([label]).build();
        self.client.containers().list(&opts).await.expect("containers").len()
    }

    /// Whether a container of a run is running.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn runs(&self, run: &RunId) -> bool {
        use podman_api::opts::{ContainerListFilter, ContainerListOpts};
        let label = ContainerListFilter::LabelKeyVal("bob.run".into(), run.to_string());
        let opts = ContainerListOpts::builder().all(false).filter([label]).build();
        !self.client.containers().list(&opts).await.expect("containers").is_empty()
    }

    async fn images_of(&self, run: &RunId) -> usize {
        use podman_api::opts::{ImageListFilter, ImageListOpts};
        let begun = Instant::now();
        loop {
            let label = ImageListFilter::LabelKeyVal("bob.run".into(), run.to_string());
            let opts = ImageListOpts::builder().all(true).filter([label]).build();
            match self.client.images().list(&opts).await {
                Ok(images) => return images.len(),
                // Another test removed an image during the listing. The engine reports that in
                // several ways.
                Err(podman_api::Error::Fault { .. }) if begun.elapsed().as_secs() < 60 => {}
                Err(error) => panic!("no list of images: {error}"),
            }
        }
    }

    /// Whether an image with that name or id exists.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn has_image(&self, name: &str) -> bool {
        self.client.images().get(name).exists().await.expect("an answer")
    }

    /// Commits a container with changes to its settings. Returns the image id.
    ///
    /// # Panics
    /// If the engine rejects it.
    pub async fn commit(&self, container: &str, name: Option<&str>, changes: &[&str]) -> String {
        let unnamed = format!("localhost/t-{}", uuid::Uuid::new_v4());
        let repo = name.unwrap_or(&unnamed);
        let opts = podman_api::opts::ContainerCommitOpts::builder()
            .repo(repo)
            .tag("latest")
            .format("docker")
            // The container's command must not become a setting of the image.
            .changes(["ENTRYPOINT []", "CMD []"].iter().chain(changes).copied());
        let container = self.client.containers().get(container);
        container.commit(&opts.build()).await.expect("a commit");
        let image = self.client.images().get(repo).inspect().await.expect("an image");
        let id = image.id.expect("an id");
        if name.is_none() {
            let opts = podman_api::opts::ImageTagOpts::builder().repo(repo).tag("latest").build();
            self.client.images().get(&id).untag(&opts).await.expect("no name");
        }
        id
    }

    /// The names of an image. Empty if it does not exist.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn names_of(&self, id: &str) -> Vec<String> {
        let opts = podman_api::opts::ImageListOpts::builder().all(true).build();
        let mut images = self.client.images().list(&opts).await;
        // podman 4.3 fails if another test removes an image during the listing.
        for _ in 0..20 {
            match &images {
                Err(cause) if cause.to_string().contains("image not known") => {
                    images = self.client.images().list(&opts).await;
                }
                Ok(_) | Err(_) => break,
            }
        }
        let images = images.expect("images");
        let image = images.into_iter().find(|image| image.id.as_deref() == Some(id));
        image.and_then(|image| image.names).unwrap_or_default()
    }

    /// The engine's description of a container.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn described(&self, container: &str) -> String {
        let said = self.client.containers().get(container).inspect().await.expect("a container");
        serde_json::to_string(&said).expect("valid JSON")
    }

    /// The directory on the engine's host that holds the changes of a container.
    ///
    /// # Panics
    /// If the engine does not answer, or has no such directory.
    pub async fn changed_dir(&self, container: &str) -> std::path::PathBuf {
        let said = self.client.containers().get(container).inspect().await.expect("a container");
        let said = serde_json::to_value(said).expect("valid JSON");
        let dir = said["GraphDriver"]["Data"]["UpperDir"].as_str();
        dir.expect("a directory of an overlay").into()
    }

    /// The engine's description of an image.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn described_image(&self, image: &str) -> String {
        let said = self.client.images().get(image).inspect().await.expect("an image");
        serde_json::to_string(&said).expect("valid JSON")
    }

    /// Builds an image from a Dockerfile, in Docker's format, under a name.
    ///
    /// # Panics
    /// If the engine rejects it.
    pub async fn build(&self, name: &str, dockerfile: &str) {
        // Only the Docker API builds in that format by default.
        let socket = self.url.strip_prefix("unix://").expect("a socket");
        let stream = tokio::net::UnixStream::connect(socket).await.expect("the engine");
        let stream = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.expect("the engine");
        let body = Bytes::from(tar_of("Dockerfile", dockerfile.as_bytes()).await);
        let request = hyper::Request::post(format!("/v1.41/build?t={name}"))
            .header("host", "engine")
            .header("content-type", "application/x-tar")
            .body(http_body_util::Full::new(body))
            .expect("a request");
        let asking = async {
            use http_body_util::BodyExt as _;
            let answer = sender.send_request(request).await.expect("an answer");
            answer.into_body().collect().await.expect("an answer").to_bytes()
        };
        let said = tokio::select! {
            said = asking => said,
            ended = connection => panic!("the engine hung up: {ended:?}"),
        };
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("Successfully tagged"), "{said}");
    }

    /// The settings of an image, and its health check.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn settings_of(&self, image: &str) -> serde_json::Value {
        let said = self.client.images().get(image).inspect().await.expect("an image");
        let said = serde_json::to_value(said).expect("valid JSON");
        let health = said.get("Healthcheck").or_else(|| said.get("HealthCheck"));
        serde_json::json!({"config": said["Config"], "health": health})
    }

    /// The names of the volumes of a run.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn volumes_of(&self, run: &RunId) -> Vec<String> {
        use podman_api::opts::{VolumeListFilter, VolumeListOpts};
        let label = VolumeListFilter::LabelKeyVal("bob.run".into(), run.to_string());
        let opts = VolumeListOpts::builder().filter([label]).build();
        let listed = self.client.volumes().list(&opts).await.expect("volumes");
        listed.into_iter().map(|volume| volume.name).collect()
    }

    /// The names of all volumes.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn volumes(&self) -> Vec<String> {
        let listed = self.client.volumes().list(&Default::default()).await.expect("volumes");
        listed.into_iter().map(|volume| volume.name).collect()
    }

    /// Names an image.
    ///
    /// # Panics
    /// If the engine rejects it.
    pub async fn tag(&self, id: &str, name: &str) {
        let opts = podman_api::opts::ImageTagOpts::builder().repo(name).tag("latest").build();
        self.client.images().get(id).tag(&opts).await.expect("a name");
    }

    /// The conmon of a run's only container.
    ///
    /// # Panics
    /// If there is none.
    pub async fn conmon_of(&self, run: &RunId) -> i64 {
        let container = self.client.containers().get(format!("bob-{run}-0"));
        let state = container.inspect().await.expect("a container").state.expect("a state");
        state.conmon_pid.expect("a process")
    }

    /// Removes an image.
    ///
    /// # Panics
    /// If the engine rejects it.
    pub async fn remove_image(&self, name: &str) {
        self.client.images().get(name).remove().await.expect("a removal");
    }

    /// Pushes an image to a registry under a name, and removes that name from the engine.
    ///
    /// # Panics
    /// If the registry rejects it.
    pub async fn push(&self, image: &str, name: &str, user: &str, password: &str) {
        use podman_api::opts::{ImagePushOpts, ImageTagOpts, RegistryAuth};
        let (repo, tag) = name.rsplit_once(':').expect("a tag");
        let tagging = ImageTagOpts::builder().repo(repo).tag(tag).build();
        self.client.images().get(image).tag(&tagging).await.expect("a tag");
        let auth = RegistryAuth::builder().username(user).password(password).build();
        let opts = ImagePushOpts::builder().destination(name).tls_verify(false).auth(auth).build();
        let handle = self.client.images().get(name);
        let mut pushed = handle.push(&opts);
        while let Some(line) = pushed.next().await {
            line.expect("a push");
        }
        let untag = ImageTagOpts::builder().repo(repo).tag(tag).build();
        self.client.images().get(name).untag(&untag).await.expect("no name");
    }
}

/// Waits until a condition holds.
///
/// # Panics
/// If it does not hold within a minute.
pub async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Collects all bytes of a stream.
///
/// # Panics
/// If it fails.
pub async fn collect(mut stream: runner::ports::ByteStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = stream.next().await {
        all.extend_from_slice(&bytes.expect("whole"));
    }
    all
}

/// A tar with one file.
///
/// # Panics
/// Never, because it is built in memory.
pub async fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tokio_tar::Builder::new(Vec::new());
    let mut header = tokio_tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content).await.expect("in memory");
    tar.into_inner().await.expect("in memory")
}

/// The files of a tar, by name.
///
/// # Panics
/// If it is invalid.
pub async fn files_of(tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    use tokio::io::AsyncReadExt as _;
    let mut archive = tokio_tar::Archive::new(tar);
    let mut entries = archive.entries().expect("a tar");
    let mut files = Vec::new();
    while let Some(entry) = entries.next().await {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a name").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).await.expect("content");
        files.push((name, content));
    }
    files
}
