//! A client of the engine's own API.

use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt as _;
use protocol::id::RunId;
use tokio::sync::Mutex;

use super::tar::tar_of;

/// Held while an image that tests share has another name.
static PUSHING: Mutex<()> = Mutex::const_new(());

/// A client of the engine's API, for setup and checks that the executor does not support.
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
        let client = podman_api::Podman::new_versioned(url, version).expect("invalid URL");
        Self { client, url: url.to_owned() }
    }

    /// The number of containers with a run's label, or of images if `kind` is `images`.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn labelled(&self, kind: &str, run: &RunId) -> usize {
        use podman_api::opts::{ContainerListFilter, ContainerListOpts};
        if kind == "images" {
            return self.images_of(run).await;
        }
        let label = ContainerListFilter::LabelKeyVal("bob.run".into(), run.to_string());
        let opts = ContainerListOpts::builder().all(true).filter([label]).build();
        self.client.containers().list(&opts).await.expect("cannot list containers").len()
    }

    /// Whether a container of a run is running.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn runs(&self, run: &RunId) -> bool {
        use podman_api::opts::{ContainerListFilter, ContainerListOpts};
        let label = ContainerListFilter::LabelKeyVal("bob.run".into(), run.to_string());
        let opts = ContainerListOpts::builder().all(false).filter([label]).build();
        !self.client.containers().list(&opts).await.expect("cannot list containers").is_empty()
    }

    async fn images_of(&self, run: &RunId) -> usize {
        use podman_api::opts::{ImageListFilter, ImageListOpts};
        let start = Instant::now();
        loop {
            let label = ImageListFilter::LabelKeyVal("bob.run".into(), run.to_string());
            let opts = ImageListOpts::builder().all(true).filter([label]).build();
            match self.client.images().list(&opts).await {
                Ok(images) => return images.len(),
                // Another test removed an image during the listing. The engine reports that in
                // several ways.
                Err(podman_api::Error::Fault { .. }) if start.elapsed().as_secs() < 60 => {}
                Err(error) => panic!("cannot list images: {error}"),
            }
        }
    }

    /// Whether an image with that name or id exists.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn has_image(&self, name: &str) -> bool {
        self.client.images().get(name).exists().await.expect("cannot look up the image")
    }

    /// Commits a container with changes to its settings. Returns the image id.
    ///
    /// # Panics
    /// If the engine rejects the commit.
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
        container.commit(&opts.build()).await.expect("cannot commit the container");
        let image =
            self.client.images().get(repo).inspect().await.expect("cannot inspect the image");
        let id = image.id.expect("no image id");
        if name.is_none() {
            let opts = podman_api::opts::ImageTagOpts::builder().repo(repo).tag("latest").build();
            self.client.images().get(&id).untag(&opts).await.expect("cannot untag the image");
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
        let images = images.expect("cannot list images");
        let image = images.into_iter().find(|image| image.id.as_deref() == Some(id));
        image.and_then(|image| image.names).unwrap_or_default()
    }

    /// The engine's description of a container.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn described(&self, container: &str) -> String {
        let description = self
            .client
            .containers()
            .get(container)
            .inspect()
            .await
            .expect("cannot inspect the container");
        serde_json::to_string(&description).expect("cannot serialize the description")
    }

    /// The directory on the engine's host that holds the changes of a container.
    ///
    /// # Panics
    /// If the engine does not answer or does not use overlay storage.
    pub async fn changed_dir(&self, container: &str) -> std::path::PathBuf {
        let description = self
            .client
            .containers()
            .get(container)
            .inspect()
            .await
            .expect("cannot inspect the container");
        let description =
            serde_json::to_value(description).expect("cannot serialize the description");
        let dir = description["GraphDriver"]["Data"]["UpperDir"].as_str();
        dir.expect("no overlay storage").into()
    }

    /// The engine's description of an image.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn described_image(&self, image: &str) -> String {
        let description =
            self.client.images().get(image).inspect().await.expect("cannot inspect the image");
        serde_json::to_string(&description).expect("cannot serialize the description")
    }

    /// Builds an image in Docker's format from a Dockerfile and names it.
    ///
    /// # Panics
    /// If the build fails.
    pub async fn build(&self, name: &str, dockerfile: &str) {
        // Only the Docker API builds in that format by default.
        let socket = self.url.strip_prefix("unix://").expect("the URL is not a socket");
        let stream =
            tokio::net::UnixStream::connect(socket).await.expect("cannot connect to the engine");
        let stream = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .expect("cannot connect to the engine");
        let body = Bytes::from(tar_of("Dockerfile", dockerfile.as_bytes()).await);
        let request = hyper::Request::post(format!("/v1.41/build?t={name}"))
            .header("host", "engine")
            .header("content-type", "application/x-tar")
            .body(http_body_util::Full::new(body))
            .expect("invalid request");
        let exchange = async {
            use http_body_util::BodyExt as _;
            let response = sender.send_request(request).await.expect("no response");
            response.into_body().collect().await.expect("incomplete response").to_bytes()
        };
        let response = tokio::select! {
            response = exchange => response,
            result = connection => panic!("the engine closed the connection: {result:?}"),
        };
        let response = String::from_utf8_lossy(&response);
        assert!(response.contains("Successfully tagged"), "{response}");
    }

    /// The settings of an image, and its health check.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn settings_of(&self, image: &str) -> serde_json::Value {
        let description =
            self.client.images().get(image).inspect().await.expect("cannot inspect the image");
        let description =
            serde_json::to_value(description).expect("cannot serialize the description");
        let health = description.get("Healthcheck").or_else(|| description.get("HealthCheck"));
        serde_json::json!({"config": description["Config"], "health": health})
    }

    /// The names of the volumes of a run.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn volumes_of(&self, run: &RunId) -> Vec<String> {
        use podman_api::opts::{VolumeListFilter, VolumeListOpts};
        let label = VolumeListFilter::LabelKeyVal("bob.run".into(), run.to_string());
        let opts = VolumeListOpts::builder().filter([label]).build();
        let volumes = self.client.volumes().list(&opts).await.expect("cannot list volumes");
        volumes.into_iter().map(|volume| volume.name).collect()
    }

    /// The names of all volumes.
    ///
    /// # Panics
    /// If the engine does not answer.
    pub async fn volumes(&self) -> Vec<String> {
        let volumes =
            self.client.volumes().list(&Default::default()).await.expect("cannot list volumes");
        volumes.into_iter().map(|volume| volume.name).collect()
    }

    /// Adds a name with the tag `latest` to an image.
    ///
    /// # Panics
    /// If the engine rejects the name.
    pub async fn tag(&self, id: &str, name: &str) {
        let opts = podman_api::opts::ImageTagOpts::builder().repo(name).tag("latest").build();
        self.client.images().get(id).tag(&opts).await.expect("cannot tag the image");
    }

    /// The process id of conmon, podman's monitor, of the container of a run's first step.
    ///
    /// # Panics
    /// If the container or its conmon does not exist.
    pub async fn conmon_of(&self, run: &RunId) -> i64 {
        let container = self.client.containers().get(format!("bob-{run}-0"));
        let state = container
            .inspect()
            .await
            .expect("cannot inspect the container")
            .state
            .expect("no state");
        state.conmon_pid.expect("no conmon")
    }

    /// Removes an image.
    ///
    /// # Panics
    /// If the engine does not remove it.
    pub async fn remove_image(&self, name: &str) {
        self.client.images().get(name).remove().await.expect("cannot remove the image");
    }

    /// Pushes an image to a registry under a name, and removes that name from the engine.
    ///
    /// # Panics
    /// If the registry rejects the image.
    pub async fn push(&self, image: &str, name: &str, user: &str, password: &str) {
        use podman_api::opts::{ImagePushOpts, ImageTagOpts, RegistryAuth};
        let (repo, tag) = name.rsplit_once(':').expect("no tag in the name");
        // podman 4.3 reads the names of an image and then writes all of them, so a name that another
        // test gives the same image meanwhile would be lost.
        let _alone = PUSHING.lock().await;
        let tag_opts = ImageTagOpts::builder().repo(repo).tag(tag).build();
        self.client.images().get(image).tag(&tag_opts).await.expect("cannot tag the image");
        let auth = RegistryAuth::builder().username(user).password(password).build();
        let opts = ImagePushOpts::builder().destination(name).tls_verify(false).auth(auth).build();
        let handle = self.client.images().get(name);
        let mut progress = handle.push(&opts);
        while let Some(line) = progress.next().await {
            line.expect("cannot push the image");
        }
        let untag_opts = ImageTagOpts::builder().repo(repo).tag(tag).build();
        self.client.images().get(name).untag(&untag_opts).await.expect("cannot untag the image");
    }
}
