//! What can be set: typed, read once from flags, variables and a file, with every fault at once.
//! Nothing else reads the environment.
//!
//! | module | duty |
//! |---|---|
//! | [`setting`] | the table: names, variables, defaults, meaning |
//! | `environment` | the variables of the process |
//! | [`env_files`] | files of variables for steps |
//! | `layer` | each source of values, and what is wrong with it |
//! | `access` | who can change the file |
//! | `file` | where the file is found, and how it is read |
//! | `local` | what a file in the working directory must not decide |
//! | `load` | the layers into the types below |
//! | `outputs` | where outputs are kept, and what goes with it |
//! | `parse` | one text into one value |
//! | `grants` | grants of the operator to pipelines |
//! | `reach` | what is opened to those who send messages |
//! | `secret` | a value that is never shown |
//!
//! Rooms take plain option structs of their own; `app` makes those from these types.

mod access;
pub mod env_files;
mod environment;
mod fault;
mod file;
mod grants;
mod layer;
mod load;
mod local;
mod outputs;
mod parse;
mod reach;
mod secret;
pub mod setting;
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
pub use environment::Environment;
pub use fault::{Fault, Faults};
pub use load::{Effective, Flags, Loaded, Sources, load};
pub use reach::{AllowedAddress, AllowedHost, SecretScope};
pub use secret::{Secret, without_credentials};

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where queue and state are.
    pub mode: Mode,
    /// Where embedded mode keeps its file, and `run` its runs.
    pub data_dir: PathBuf,
    /// etcd.
    pub storage: Storage,
    /// RabbitMQ.
    pub queue: Queue,
    /// How often a service is tried at start.
    pub connection: Connection,
    /// The event stream.
    pub stream: Stream,
    /// The container engine.
    pub engine: Engine,
    /// The worker itself.
    pub worker: Worker,
    /// Secrets of steps.
    pub secrets: Secrets,
    /// Addresses that messages may name although they are closed by their kind.
    pub allowed_addresses: Vec<AllowedAddress>,
    /// What steps of this host have beside the environment of this process.
    pub step_env: env_files::StepEnv,
    /// What jobs are told of their runner.
    pub job_env: Vars,
    /// Where events wait that the broker does not take.
    pub spill: Spill,
    /// Jobs that are lines of a file.
    pub ci: Ci,
    /// Where outputs of steps are kept; nowhere where there is none.
    pub outputs: Option<Outputs>,
    /// What the program says of itself.
    pub log: Log,
}

/// Where queue and state are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// RabbitMQ and etcd.
    Cluster,
    /// One file, no servers.
    Embedded,
}

/// Certificates of a connection, all PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authorities that the server is checked against; the usual ones where there is none.
    pub ca: Option<PathBuf>,
    /// What we show the server.
    pub identity: Option<Identity>,
}

/// A certificate of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, with what leads to its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// etcd.
#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    /// The members, without credentials; all `http` or all `https`.
    pub urls: Vec<Url>,
    /// Who we are there; no authentication where there is nobody.
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
    /// Its host, without the brackets of an IPv6 address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The virtual host.
    pub vhost: String,
    /// Who we are there.
    pub login: Login,
}

impl Broker {
    /// The address with the virtual host, without credentials.
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
    /// The address without credentials.
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

/// How often a service is tried at start. Once connected, a worker reconnects for as long as it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// How often; at least 1.
    pub retry_attempts: u32,
    /// The time between two attempts.
    pub retry_delay: Duration,
}

/// The event stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// How long it keeps events.
    pub retention_days: u32,
    /// Its maximum size in bytes.
    pub max_bytes: Option<u64>,
    /// The server, where it is not that of the queue.
    pub server: Option<StreamServer>,
}

/// A server of its own for the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamServer {
    /// The protocol that is asked for.
    pub protocol: StreamProtocol,
    /// The server. For the native protocol its port is that of the stream plugin.
    pub broker: Broker,
}

impl StreamServer {
    /// The address with the virtual host, without credentials.
    #[must_use]
    pub fn url(&self) -> String {
        match (self.protocol, self.broker.tls) {
            (StreamProtocol::Amqp, _) => self.broker.url(),
            (StreamProtocol::Native, false) => self.broker.url_as("rabbitmq-stream"),
            (StreamProtocol::Native, true) => self.broker.url_as("rabbitmq-stream+tls"),
        }
    }
}

/// How the stream is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamProtocol {
    /// AMQP 0-9-1.
    Amqp,
    /// The stream plugin's own.
    Native,
}

/// The container engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Its service, where it was said.
    pub url: Option<EngineUrl>,
    /// The Docker engine of steps that have an image of their own; podman runs them where there is none.
    pub docker_url: Option<EngineUrl>,
    /// The rootless socket of this user, tried first where nothing was said.
    pub user_socket: Option<PathBuf>,
    /// The podman program on the path, for a service of our own.
    pub program: Option<PathBuf>,
    /// The program that gives a rootless podman its users, where it is on the path.
    pub uid_mapper: Option<PathBuf>,
    /// The network of steps that name none; the engine's own where there is none.
    pub network: Option<String>,
    /// When images are pulled where the pipeline does not say.
    pub pull_policy: PullPolicy,
    /// Credentials of registries, where somebody named the file.
    pub registry_auth_file: Option<PathBuf>,
    /// Where they may be otherwise; the first file that knows a registry holds.
    pub registry_auth_places: Vec<PathBuf>,
    /// Registries (`host` or `host:port`) that are asked without TLS checks.
    pub registry_insecure: Vec<String>,
    /// Directories of its host that a step can mount.
    pub shared_dirs: Vec<SharedDir>,
    /// Volumes that a step can mount although no step created them.
    pub shared_volumes: Vec<String>,
    /// The networks that a step can use beyond those that end at its container.
    pub networks: Vec<NetworkGrant>,
}

/// A directory of the engine's host that steps can mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDir {
    /// The directory.
    pub path: PathBuf,
    /// Whether steps can only read it.
    pub is_read_only: bool,
}

/// Where a container engine answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineUrl {
    /// A socket.
    Unix(PathBuf),
    /// A host and a port.
    Tcp {
        /// The host, without the brackets of an IPv6 address.
        host: String,
        /// The port.
        port: u16,
    },
}

impl std::fmt::Display for EngineUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
        }
    }
}

/// The worker itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// How many runs it has at once; at least 1.
    pub max_parallel_runs: u32,
    /// How many steps of one run go on at once; at least 1.
    pub max_parallel_steps: u32,
    /// What `serve` runs steps with.
    pub executors: Vec<ExecutorKind>,
    /// Maximum output of one step, and of all steps of a run together, in bytes. `None`: no limit.
    pub log_limit: Option<u64>,
    /// Whether definitions may contain secrets in clear text.
    pub literal_secrets: LiteralSecrets,
    /// How long the records of ended runs are kept.
    pub run_retention_days: u32,
    /// How many owners a run may lose without a newly committed step.
    pub max_losses: u32,
    /// Where committed steps are pushed to: `host[:port][/repository]`.
    pub checkpoint_registry: Option<String>,
    /// How long it may be silent before its runs count as lost.
    pub lease_ttl: Duration,
    /// How long it waits for running steps when it ends.
    pub drain: Duration,
    /// The time between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// The time between two refreshes of its entry.
    pub health_check: Duration,
    /// Directories whose files steps may name.
    pub file_dirs: Vec<PathBuf>,
    /// Percent of the engine's disk from which on it takes nothing new.
    pub disk_high: u8,
    /// Percent of it below which it takes work again; less than `disk_high`.
    pub disk_low: u8,
    /// How much the base images may take that it has pulled; 0: as much as they like.
    pub base_images_bytes: u64,
}

/// Whether definitions may contain secrets in clear text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiteralSecrets {
    /// They may.
    Allow,
    /// They are rejected.
    Reject,
}

/// Secrets of steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    /// Directories with a file for each.
    pub dirs: Vec<PathBuf>,
    /// Values, and paths of files, of the variables that begin with `BOB_SECRET_`, by what follows.
    pub variables: BTreeMap<String, Secret<Vec<u8>>>,
    /// Who may use them at a worker that serves others.
    pub scopes: Vec<SecretScope>,
}

/// Where events wait that the broker does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spill {
    /// The directory.
    pub dir: PathBuf,
    /// How much may wait there.
    pub bytes: u64,
}

/// Jobs that are lines of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ci {
    /// The file.
    pub queue: PathBuf,
    /// Whether somebody has named it.
    pub is_named: bool,
    /// How often a job is tried in all, where it does not say itself.
    pub attempts: u32,
    /// The time between two attempts, where it does not say itself.
    pub delay: Span,
    /// How long an attempt may take, where it does not say itself.
    pub timeout: Option<Span>,
}

/// Where outputs of steps are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outputs {
    /// In a directory.
    Directory(PathBuf),
    /// In a bucket.
    S3(S3),
    /// In a registered artifact store, by its name.
    ArtifactStore(RegisteredName),
}

/// A bucket of S3, or of what speaks its language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3 {
    /// The bucket.
    pub bucket: String,
    /// What all keys begin with, without a slash around it; may be empty.
    pub prefix: String,
    /// Its server; that of AWS where there is none.
    pub endpoint: Option<String>,
    /// Its region.
    pub region: String,
    /// Who we are there, by the id of a key and its secret.
    pub login: Option<Login>,
}

/// What the program says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// How much.
    pub level: LogLevel,
    /// How; `Text` on a terminal and else `Json` where it was not said.
    pub format: Option<LogFormat>,
}

/// How much the program says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of the wire contract say it")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How the program says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One object a line.
    Json,
    /// `[YYYY-MM-DD HH:MM:SS] [LEVEL] text`, on standard output.
    Ci,
}
