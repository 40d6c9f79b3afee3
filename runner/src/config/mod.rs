//! Typed settings, read once from flags, variables and a file, with every fault reported at once.
//! Nothing else reads the environment.
//!
//! | module | duty |
//! |---|---|
//! | `table` | the table of all settings |
//! | `key` | the types of that table: a setting, and how its text becomes a value |
//! | [`setting`] | finds settings by name, and generates the manual |
//! | `environment` | the variables of the process |
//! | [`env_files`] | files with environment variables for steps |
//! | `layer` | one source of values, and its faults |
//! | `access` | checks who can change the settings file |
//! | `file` | finds and parses the settings file |
//! | `local` | restrictions on a settings file in the working directory |
//! | `sources` | the sources of settings |
//! | `choices` | settings with a fixed set of values |
//! | `load` | combines the layers into the types below |
//! | `reader` | reads single settings from the merged layers, and collects faults |
//! | `outputs` | the store for outputs, and its settings |
//! | `parse` | parses one text into one value |
//! | `grants` | grants of the operator to pipelines |
//! | `reach` | access that the operator opens to publishers of messages |
//! | `definitions` | definitions of pipelines that are loaded from files |
//! | `http` | the HTTP API |
//! | `http_access` | who can use the HTTP API, and the limits of its requests |
//! | `secret` | a value that is never displayed |
//!
//! Other modules take option structs of their own, which `app` builds from these types.

mod access;
mod choices;
mod definitions;
pub mod env_files;
mod environment;
mod fault;
mod file;
mod grants;
mod http;
mod http_access;
mod key;
mod layer;
mod load;
mod local;
mod outputs;
mod parse;
mod reach;
mod reader;
mod secret;
pub mod setting;
mod sources;
// One row per setting, which rustfmt would break into six lines.
#[rustfmt::skip]
pub(crate) mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use protocol::id::RegisteredName;
use protocol::pipeline::{ExecutorKind, NetworkGrant, PullPolicy, Vars};
use protocol::quantity::Span;
use url::Url;

pub use access::check as check_access;
pub use choices::{EngineUrl, LiteralSecrets, LogFormat, LogLevel, Mode, StreamProtocol};
pub use definitions::Definitions;
pub use environment::Environment;
pub use fault::{Fault, Faults};
pub use http::Http;
pub use http_access::{CertificateFiles, HttpAccess, KeySource};
pub use load::{Effective, Loaded, load};
pub use reach::{AllowedAddress, AllowedHost, SecretScope};
pub use secret::{Secret, without_credentials};
pub use sources::{Flags, Sources};

/// All settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Storage of queue and state.
    pub mode: Mode,
    /// Directory for embedded mode's file and for the stores of `run`.
    pub data_dir: PathBuf,
    /// etcd.
    pub storage: Storage,
    /// RabbitMQ.
    pub queue: Queue,
    /// Connection attempts at start.
    pub connection: Connection,
    /// The event stream.
    pub stream: Stream,
    /// The container engine.
    pub engine: Engine,
    /// The worker itself.
    pub worker: Worker,
    /// Secrets of steps.
    pub secrets: Secrets,
    /// Addresses that messages may use although their kind is blocked.
    pub allowed_addresses: Vec<AllowedAddress>,
    /// Additional environment variables for steps on this host.
    pub step_env: env_files::StepEnv,
    /// Variables that describe the runner to jobs.
    pub job_env: Vars,
    /// Buffer on disk for events that the broker does not accept.
    pub spill: Spill,
    /// Jobs from a queue file of shell commands.
    pub ci: Ci,
    /// Store for the outputs of steps, if any.
    pub outputs: Option<Outputs>,
    /// Definitions of pipelines that are loaded from files.
    pub definitions: Definitions,
    /// The HTTP API.
    pub http: Http,
    /// Who can use the HTTP API, and the limits of its requests.
    pub http_access: HttpAccess,
    /// The program's own log.
    pub log: Log,
}

/// Certificates of a TLS connection, all as PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Authorities that verify the server. The default authorities if missing.
    pub ca: Option<PathBuf>,
    /// The client certificate.
    pub identity: Option<Identity>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, with its chain.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// etcd.
#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    /// The member URLs, without credentials. All `http` or all `https`.
    pub urls: Vec<Url>,
    /// The credentials. No authentication if missing.
    pub login: Option<Login>,
    /// Certificates, for `https`.
    pub tls: Tls,
}

/// A user and a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password.
    pub password: Secret<String>,
}

/// A RabbitMQ server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The host, without the brackets of an IPv6 address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The virtual host.
    pub vhost: String,
    /// The credentials.
    pub login: Login,
}

impl Broker {
    /// The URL with the virtual host, without credentials.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_as(if self.tls { "amqps" } else { "amqp" })
    }

    fn url_as(&self, scheme: &str) -> String {
        let vhost = utf8_percent_encode(&self.vhost, NON_ALPHANUMERIC);
        format!("{scheme}://{}/{vhost}", self.authority())
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl std::fmt::Display for Broker {
    /// The URL without credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// RabbitMQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// The server.
    pub broker: Broker,
    /// Certificates, for `amqps`.
    pub tls: Tls,
}

/// Connection attempts at start. Once connected, a worker reconnects for as long as it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Number of attempts, at least 1.
    pub retry_attempts: u32,
    /// Delay between two attempts.
    pub retry_delay: Duration,
}

/// The event stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// The stream's name.
    pub name: String,
    /// Retention, in days.
    pub retention_days: u32,
    /// Maximum size, in bytes.
    pub max_bytes: Option<u64>,
    /// The server, if it is not the queue's.
    pub server: Option<StreamServer>,
}

/// A separate server for the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamServer {
    /// The requested protocol.
    pub protocol: StreamProtocol,
    /// The server. For the native protocol, the port of the stream plugin.
    pub broker: Broker,
}

impl StreamServer {
    /// The URL with the virtual host, without credentials.
    #[must_use]
    pub fn url(&self) -> String {
        match (self.protocol, self.broker.tls) {
            (StreamProtocol::Amqp, _) => self.broker.url(),
            (StreamProtocol::Native, false) => self.broker.url_as("rabbitmq-stream"),
            (StreamProtocol::Native, true) => self.broker.url_as("rabbitmq-stream+tls"),
        }
    }
}

/// The container engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// The engine's address, if set.
    pub url: Option<EngineUrl>,
    /// The Docker engine for steps with their own image. If missing, podman runs them.
    pub docker_url: Option<EngineUrl>,
    /// The user's rootless socket, tried first if no address is set.
    pub user_socket: Option<PathBuf>,
    /// The podman program on the path, to start a service of the worker's own.
    pub program: Option<PathBuf>,
    /// The program that maps users for rootless podman, if it is on the path.
    pub uid_mapper: Option<PathBuf>,
    /// Default network of steps. The engine's default if missing.
    pub network: Option<String>,
    /// Default pull policy.
    pub pull_policy: PullPolicy,
    /// The file with registry credentials, if set.
    pub registry_auth_file: Option<PathBuf>,
    /// Default files with registry credentials. The first one that contains a registry applies.
    pub registry_auth_places: Vec<PathBuf>,
    /// Registries (`host` or `host:port`) used without TLS verification.
    pub registry_insecure: Vec<String>,
    /// Directories on the engine's host that steps can mount.
    pub shared_dirs: Vec<SharedDir>,
    /// Volumes that steps can mount although no step created them.
    pub shared_volumes: Vec<String>,
    /// Networks that steps can use in addition to those confined to their container.
    pub networks: Vec<NetworkGrant>,
}

/// A directory on the engine's host that steps can mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDir {
    /// The directory.
    pub path: PathBuf,
    /// Whether steps can mount it only read-only.
    pub is_read_only: bool,
}

/// The worker itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Maximum number of concurrent runs. 0: the process is no worker and only serves the HTTP API.
    pub max_parallel_runs: u32,
    /// Maximum number of concurrent steps per run, at least 1.
    pub max_parallel_steps: u32,
    /// Executors that `serve` offers.
    pub executors: Vec<ExecutorKind>,
    /// Maximum output of one step, and of all steps of a run, in bytes. `None` means unlimited.
    pub log_limit: Option<u64>,
    /// Whether definitions can contain clear-text secrets.
    pub literal_secrets: LiteralSecrets,
    /// How long ended runs are kept whose pipelines do not set it, in days.
    pub run_retention_days: u32,
    /// How many ended runs of a pipeline are kept that does not set it. `None` means unlimited.
    pub run_retention_count: Option<u32>,
    /// Maximum number of owners that a run can lose without a newly committed step.
    pub max_losses: u32,
    /// Registry for committed steps: `host[:port][/repository]`.
    pub checkpoint_registry: Option<String>,
    /// Time to live of the worker's lease.
    pub lease_ttl: Duration,
    /// How long a stopping worker waits for running steps.
    pub drain: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// Interval between refreshes of the node entry.
    pub health_check: Duration,
    /// Directories whose files steps can refer to.
    pub file_dirs: Vec<PathBuf>,
    /// Usage of the engine's disk, in percent, at which the worker stops accepting runs.
    pub disk_high: u8,
    /// Usage in percent below which it accepts runs again. Less than `disk_high`.
    pub disk_low: u8,
    /// Maximum size of all pulled base images, in bytes. 0 means unlimited.
    pub base_images_bytes: u64,
}

/// Sources of secrets for steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    /// Directories with a file for each.
    pub dirs: Vec<PathBuf>,
    /// Variables with the prefix `BOB_SECRET_`: values and file paths, by the rest of the name.
    pub variables: BTreeMap<String, Secret<Vec<u8>>>,
    /// Which pipelines can use which secrets, on a worker that serves others.
    pub scopes: Vec<SecretScope>,
}

/// Buffer on disk for events that the broker does not accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spill {
    /// The directory.
    pub dir: PathBuf,
    /// Maximum size, in bytes.
    pub bytes: u64,
}

/// Jobs from a queue file of shell commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ci {
    /// The queue file.
    pub queue: PathBuf,
    /// Whether the file was set explicitly.
    pub is_named: bool,
    /// Default number of attempts of a job.
    pub attempts: u32,
    /// Default delay between two attempts.
    pub delay: Span,
    /// Default time limit of an attempt.
    pub timeout: Option<Span>,
}

/// Store for the outputs of steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outputs {
    /// A directory.
    Directory(PathBuf),
    /// An S3 bucket.
    S3(S3),
    /// A registered artifact store.
    ArtifactStore(RegisteredName),
}

/// A bucket of S3 or a compatible service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3 {
    /// The bucket.
    pub bucket: String,
    /// Key prefix, without leading and trailing slashes. Can be empty.
    pub prefix: String,
    /// The server. AWS if missing.
    pub endpoint: Option<String>,
    /// The region.
    pub region: String,
    /// The access key id and secret.
    pub login: Option<Login>,
}

/// The program's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The level.
    pub level: LogLevel,
    /// The format. If missing, `Text` on a terminal, otherwise `Json`.
    pub format: Option<LogFormat>,
}
