//! RabbitMQ and etcd in tests: those of the environment, and separate ones that a test can stop and
//! kill.
//!
//! `scripts/services env` prints the variables. A test without its services is skipped, or fails if
//! that is not allowed ([`crate::skipped`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use protocol::id::NodeId;
use runner::cluster::{AmqpOptions, EtcdOptions, TlsFiles};

use crate::skipped::{Need, missing_services, skip};

/// The variables that describe a set of services.
#[derive(Debug, Clone)]
pub struct Services {
    variables: BTreeMap<String, String>,
}

#[expect(clippy::disallowed_methods, reason = "a test's configuration is its environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Services {
    /// The services of the environment. `None` if a variable in `needed` is not set.
    ///
    /// # Panics
    /// If the test must not be skipped.
    #[must_use]
    pub fn from_env(needed: &[&str]) -> Option<Self> {
        let mut variables = BTreeMap::new();
        for name in NAMES {
            if let Some(value) = variable(name) {
                variables.insert((*name).to_owned(), value);
            }
        }
        let missing = missing_services(needed, |name| variables.contains_key(name));
        if !missing.is_empty() {
            skip(&missing, Need::Provided);
            return None;
        }
        Some(Self { variables })
    }

    /// The value of a variable.
    ///
    /// # Panics
    /// If it is not set. [`Services::from_env`] checks the needed ones.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.variables.get(name).unwrap_or_else(|| panic!("the services have no {name}"))
    }

    /// The value of a variable, if it is set.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    fn tls(&self, prefix: &str) -> TlsFiles {
        let file = |end: &str| self.variables.get(&format!("{prefix}_{end}")).map(PathBuf::from);
        TlsFiles { ca: file("CA"), cert: file("CERT"), key: file("KEY") }
    }

    /// Options for connecting to etcd.
    #[must_use]
    pub fn etcd(&self) -> EtcdOptions {
        EtcdOptions {
            urls: self.get("BOB_STORAGE_URLS").split(',').map(str::to_owned).collect(),
            user: None,
            password: None,
            tls: self.tls("BOB_STORAGE"),
            retry_attempts: 1,
            retry_delay: Duration::ZERO,
        }
    }

    /// Options for connecting to the broker in a test's virtual host.
    ///
    /// # Panics
    /// If the spill directory cannot be created.
    #[must_use]
    pub fn amqp(&self, vhost: &Vhost) -> AmqpOptions {
        AmqpOptions {
            url: format!("{}/{}", self.get("BOB_QUEUE_URL"), vhost.name),
            user: self.get("BOB_QUEUE_USER").to_owned(),
            password: self.get("BOB_QUEUE_PASSWORD").to_owned(),
            tls: self.tls("BOB_QUEUE"),
            node: NodeId::from_uuid(uuid::Uuid::new_v4()),
            retry_attempts: 1,
            retry_delay: Duration::ZERO,
            stream_name: "bob.event-stream".to_owned(),
            stream_retention_days: 7,
            stream_max_bytes: None,
            stream_url: None,
            spill_dir: vhost.spill.path().to_owned(),
            spill_bytes: 1 << 30,
            spill_cluster: Some("test".to_owned()),
        }
    }

    /// Creates a virtual host.
    pub async fn vhost(&self) -> Vhost {
        let vhost = Vhost {
            name: format!("t-{}", uuid::Uuid::new_v4()),
            management: Management::of(self),
            spill: tempfile::tempdir().expect("a directory for the test"),
        };
        let path = format!("vhosts/{}", vhost.name);
        vhost.management.send(reqwest::Method::PUT, &path, None).await;
        let user = self.get("BOB_QUEUE_USER");
        let path = format!("permissions/{}/{user}", vhost.name);
        let all = r#"{"configure":".*","write":".*","read":".*"}"#;
        vhost.management.send(reqwest::Method::PUT, &path, Some(all)).await;
        vhost
    }
}

const NAMES: &[&str] = &[
    "BOB_QUEUE_URL",
    "BOB_QUEUE_USER",
    "BOB_QUEUE_PASSWORD",
    "BOB_QUEUE_CA",
    "BOB_STORAGE_URLS",
    "BOB_STORAGE_CA",
    "BOB_STORAGE_CERT",
    "BOB_STORAGE_KEY",
    "BOB_TEST_MANAGEMENT_URL",
    "BOB_TEST_QUEUE_PLAIN_URL",
    "BOB_TEST_STREAM_URL",
    "BOB_TEST_WRONG_CA",
    "BOB_TEST_WRONG_CERT",
    "BOB_TEST_WRONG_KEY",
    "BOB_TEST_SUITE",
    "CONTAINER_ENGINE_URL",
    "BOB_TEST_IMAGE",
    "BOB_TEST_REGISTRY",
    "BOB_TEST_REGISTRY_AUTH",
    "BOB_TEST_REGISTRY_USER",
    "BOB_TEST_REGISTRY_PASSWORD",
    "BOB_TEST_DOCKER_URL",
];

/// The variables that tests of the broker need.
pub const BROKER: &[&str] =
    &["BOB_QUEUE_URL", "BOB_QUEUE_USER", "BOB_QUEUE_PASSWORD", "BOB_TEST_MANAGEMENT_URL"];
/// The variables that tests of the store need.
pub const STORE: &[&str] = &["BOB_STORAGE_URLS"];
/// The variables that tests of the container engine need.
pub const ENGINE: &[&str] = &["CONTAINER_ENGINE_URL", "BOB_TEST_IMAGE"];

/// The broker's management API.
#[derive(Debug, Clone)]
pub struct Management {
    url: String,
    user: String,
    password: String,
}

impl Management {
    /// The management API of these services.
    #[must_use]
    pub fn of(services: &Services) -> Self {
        Self {
            url: services.get("BOB_TEST_MANAGEMENT_URL").to_owned(),
            user: services.get("BOB_QUEUE_USER").to_owned(),
            password: services.get("BOB_QUEUE_PASSWORD").to_owned(),
        }
    }

    /// Sends a request and returns the response body.
    ///
    /// # Panics
    /// If it fails.
    pub async fn send(&self, method: reqwest::Method, path: &str, body: Option<&str>) -> String {
        let (status, text) = self.answer(method, path, body).await;
        assert!(status.is_success(), "{path}: {status} {text}");
        text
    }

    async fn answer(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<&str>,
    ) -> (reqwest::StatusCode, String) {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let mut request = client
            .request(method, format!("{}/api/{path}", self.url))
            .basic_auth(&self.user, Some(&self.password));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        let answer = request.send().await.expect("the management API answers");
        let status = answer.status();
        (status, answer.text().await.expect("an answer's body"))
    }

    /// Sends a GET and parses the response.
    ///
    /// # Panics
    /// If it is not JSON.
    pub async fn get(&self, path: &str) -> serde_json::Value {
        let text = self.send(reqwest::Method::GET, path, None).await;
        serde_json::from_str(&text).expect("JSON")
    }

    /// Like [`Self::get`]. `None` if the object does not exist.
    pub async fn find(&self, path: &str) -> Option<serde_json::Value> {
        let (status, text) = self.answer(reqwest::Method::GET, path, None).await;
        status.is_success().then(|| serde_json::from_str(&text).ok()).flatten()
    }

    /// Closes all connections of a virtual host. Returns whether there were any.
    pub async fn close_connections(&self, vhost: &Vhost) -> bool {
        let all = self.get("connections").await;
        let mut found = false;
        for connection in all.as_array().into_iter().flatten() {
            if connection["vhost"] == vhost.name.as_str() {
                let name = connection["name"].as_str().unwrap_or_default();
                let name = name.replace(' ', "%20").replace('>', "%3E");
                let path = format!("connections/{name}");
                let (status, text) = self.answer(reqwest::Method::DELETE, &path, None).await;
                // The list can be some seconds old, so a connection might already be gone.
                let is_gone = status == reqwest::StatusCode::NOT_FOUND;
                assert!(status.is_success() || is_gone, "{path}: {status} {text}");
                found |= !is_gone;
            }
        }
        found
    }
}

/// A virtual host that is removed when dropped.
#[derive(Debug)]
pub struct Vhost {
    /// Its name.
    pub name: String,
    /// The management API of its broker.
    pub management: Management,
    /// The spill directory for a test's events.
    pub spill: tempfile::TempDir,
}

impl Drop for Vhost {
    fn drop(&mut self) {
        let (management, path) = (self.management.clone(), format!("vhosts/{}", self.name));
        // The test's runtime can be ending, so use a separate thread and runtime.
        let removing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                // The test can have ended the broker, so errors are ignored.
                let client = reqwest::Client::builder().no_proxy().build().expect("a client");
                drop(
                    client
                        .delete(format!("{}/api/{path}", management.url))
                        .basic_auth(&management.user, Some(&management.password))
                        .timeout(Duration::from_secs(10))
                        .send()
                        .await,
                );
            });
        });
        drop(removing.join());
    }
}

/// Services of a single test, which it can stop, kill and pause. Dropping the value ends them.
#[derive(Debug)]
pub struct OwnServices {
    name: String,
    services: Services,
}

impl OwnServices {
    /// Starts services for a test. `None` if the environment does not ask for tests with services:
    /// starting them can install packages.
    ///
    /// # Panics
    /// If they do not start, or if the test must not be skipped.
    #[must_use]
    pub fn start(only: &str, options: &[&str]) -> Option<Self> {
        let is_requested = |name: &&str| variable(name).is_some();
        if !["BOB_TEST_SERVICES"].iter().chain(NAMES).any(is_requested) {
            skip(&only.split(',').map(service_name).collect::<Vec<_>>(), Need::Provided);
            return None;
        }
        Some(Self::launch(only, options))
    }

    /// Starts services. `only` is a list for `scripts/services`, `options` are further arguments.
    ///
    /// # Panics
    /// If they do not start.
    #[must_use]
    pub fn launch(only: &str, options: &[&str]) -> Self {
        let name = format!("t-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let mut words = vec!["up", "--name", &name, "--only", only];
        words.extend(options);
        let suite = variable("BOB_TEST_SUITE").unwrap_or_else(|| "host".to_owned());
        words.extend(["--suite", &suite]);
        let printed = run(&words);
        let variables = printed.lines().filter_map(|line| line.split_once('='));
        let variables =
            variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { name, services: Services { variables } }
    }

    /// Starts an engine whose store is on a small separate disk (such as `64m`), which can be
    /// filled. Needs root.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn small_engine(size: &'static str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip(&["root, to mount a small disk"], Need::Ci);
            return None;
        }
        let start = move || Self::start("podman", &["--podman-disk", size]);
        tokio::task::spawn_blocking(start).await.expect("scripts/services")
    }

    /// Their variables.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Runs `stop`, `start`, `restart`, `kill`, `pause`, `unpause`, `alarm` or `unalarm` for a
    /// service, without blocking the runtime.
    ///
    /// # Panics
    /// If that fails.
    pub async fn control(&self, verb: &str, service: &str) {
        let words = [verb.to_owned(), service.to_owned(), "--name".to_owned(), self.name.clone()];
        let work = move || run(&words.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(work).await.expect("scripts/services");
    }
}

impl Drop for OwnServices {
    fn drop(&mut self) {
        drop(Command::new(script()).args(["down", "--name", &self.name]).output());
    }
}

/// The name of a service of `scripts/services` in messages.
fn service_name(service: &str) -> &str {
    match service {
        "rabbitmq" => "RabbitMQ",
        other => other,
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/services")
}

fn run(words: &[&str]) -> String {
    let output = Command::new(script()).args(words).output().expect("scripts/services starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "scripts/services {words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}
