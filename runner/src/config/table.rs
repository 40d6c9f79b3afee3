//! The table of all settings: name, variable, kind, description and default. One row per setting, in
//! the order of the manual.

use std::path::PathBuf;
use std::time::Duration;

use protocol::dialect::MAX_ATTEMPTS;
use protocol::pipeline::{ExecutorKind, NetworkGrant, PullPolicy};
use protocol::quantity::Span;

use super::choices::{EngineUrl, LiteralSecrets, LogFormat, LogLevel, Mode};
use super::env_files::StepEnv;
use super::grants;
use super::http_access::{self, KeySource};
use super::key::Kind::{Choice, Text};
use super::key::{Key, Setting, count, key, millis, percent, seconds};
use super::outputs::{self, StoreSetting};
use super::parse::{self, BrokerUrl, StorageUrls};
use super::reach::{self, AllowedAddress, SecretScope};
use super::{Secret, SharedDir};

pub(crate) static MODE: Key<Mode> = key("mode", "BOB_MODE",
    Choice(&[("cluster", Mode::Cluster), ("embedded", Mode::Embedded)]),
    "`cluster`, or `embedded`: queue and state in one file, without RabbitMQ and etcd.").or("cluster");
pub(super) static DATA_DIR: Key<PathBuf> = key("data-dir", "BOB_DATA_DIR", Text(parse::path),
    "Directory for the file of embedded mode, and for the runs of `run`.").or_in_words("`$XDG_STATE_HOME/bob-runner`");

pub(super) static STORAGE_URLS: Key<StorageUrls> = key("storage.urls", "BOB_STORAGE_URLS", Text(parse::storage_urls),
    "URLs of the members of the etcd cluster, all `http://` or all `https://`.").or("http://localhost:2379").list();
pub(super) static STORAGE_USER: Key<String> = key("storage.user", "BOB_STORAGE_USER", Text(parse::line),
    "User name for etcd. If not set, no credentials are sent.");
pub(super) static STORAGE_PASSWORD: Key<Secret<String>> = key("storage.password", "BOB_STORAGE_PASSWORD", Text(parse::secret),
    "Password for etcd.").secret();
pub(super) static STORAGE_CA: Key<PathBuf> = key("storage.ca", "BOB_STORAGE_CA", Text(parse::readable_file),
    "PEM file of the certificate authorities that are trusted for etcd, instead of those of the system.");
pub(super) static STORAGE_CERT: Key<PathBuf> = key("storage.cert", "BOB_STORAGE_CERT", Text(parse::readable_file),
    "PEM file of the client certificate for etcd.");
pub(super) static STORAGE_KEY: Key<PathBuf> = key("storage.key", "BOB_STORAGE_KEY", Text(parse::readable_file),
    "PEM file of the private key of that certificate.");

pub(super) static QUEUE_URL: Key<BrokerUrl> = key("queue.url", "BOB_QUEUE_URL", Text(parse::queue_url),
    "URL of RabbitMQ: `amqp://` or `amqps://`. Its path is the virtual host.").or("amqp://localhost:5672");
pub(super) static QUEUE_USER: Key<String> = key("queue.user", "BOB_QUEUE_USER", Text(parse::line),
    "User name for RabbitMQ.").or("guest");
pub(super) static QUEUE_PASSWORD: Key<Secret<String>> = key("queue.password", "BOB_QUEUE_PASSWORD", Text(parse::secret),
    "Password for RabbitMQ.").or("guest").secret();
pub(super) static QUEUE_CA: Key<PathBuf> = key("queue.ca", "BOB_QUEUE_CA", Text(parse::readable_file),
    "PEM file of the certificate authorities that are trusted for RabbitMQ, instead of those of the system.");
pub(super) static QUEUE_CERT: Key<PathBuf> = key("queue.cert", "BOB_QUEUE_CERT", Text(parse::readable_file),
    "PEM file of the client certificate for RabbitMQ.");
pub(super) static QUEUE_KEY: Key<PathBuf> = key("queue.key", "BOB_QUEUE_KEY", Text(parse::readable_file),
    "PEM file of the private key of that certificate.");

pub(super) static CONNECTION_RETRY_ATTEMPTS: Key<u32> = key("connection.retry-attempts", "BOB_CONNECTION_RETRY_ATTEMPTS", count(1, 1_000_000),
    "Number of attempts for each connection at start. A connection that breaks later is retried without limit.").or("10");
pub(super) static CONNECTION_RETRY_DELAY: Key<Duration> = key("connection.retry-delay", "BOB_CONNECTION_RETRY_DELAY", millis(0, 3_600_000),
    "Milliseconds between two of these attempts.").or("2000");

pub(super) static STREAM_NAME: Key<String> = key("stream.name", "BOB_STREAM_NAME", Text(parse::queue_name),
    "Name of the event stream.").or("bob.event-stream");
pub(super) static STREAM_RETENTION_DAYS: Key<u32> = key("stream.retention-days", "BOB_STREAM_RETENTION_DAYS", count(1, 36_500),
    "Days for which a stream that the worker declares keeps events.").or("7");
pub(super) static STREAM_MAX_BYTES: Key<u64> = key("stream.max-bytes", "BOB_STREAM_MAX_BYTES", Text(parse::stream_bytes),
    "Maximum size of a stream that the worker declares, in bytes or with a unit, at least `128Mi`. The oldest segments of 64 MiB are deleted first. An existing stream keeps its own arguments, with one warning: set a policy of the broker, or delete the stream.").or_in_words("no limit by size");
pub(super) static STREAM_URL: Key<BrokerUrl> = key("stream.url", "BOB_STREAM_URL", Text(parse::stream_url),
    "URL of another server for the stream (`amqp://`, `amqps://`), or `rabbitmq-stream://` for the native protocol if both sides support it.").or_in_words("the server of `BOB_QUEUE_URL`, over AMQP");

pub(super) static ENGINE_URL: Key<EngineUrl> = key("engine.url", "CONTAINER_ENGINE_URL", Text(parse::engine_url),
    "URL of the podman service: `unix:///path`, `http://host:port` or `tcp://host:port`.").or_in_words("the rootless socket of the user, else a service that bob-runner starts, else `http://localhost:8080`");
pub(super) static ENGINE_DOCKER_URL: Key<EngineUrl> = key("engine.docker-url", "BOB_DOCKER_URL", Text(parse::engine_url),
    "URL of the Docker engine for jobs of executor docker that have an image of their own: `unix:///path`, `http://host:port` or `tcp://host:port`.").or_in_words("none: podman runs them");
pub(super) static ENGINE_NETWORK: Key<String> = key("engine.network", "BOB_NETWORK", Text(grants::network),
    "Network of steps that name none.").or_in_words("the engine's default network");
pub(super) static ENGINE_NETWORKS: Key<Vec<NetworkGrant>> = key("engine.networks", "BOB_NETWORKS", Text(grants::networks),
    "Networks that pipelines can use beyond `none`, `bridge`, `private`, `slirp4netns` and `pasta`: `host`, names of networks of the engine, and `host-loopback`, which allows the options that reach the host's loopback (`slirp4netns:allow_host_loopback=true`, `pasta` with `-T`, `-U` or `--map-gw`). `BOB_NETWORK` needs no entry. `run` can use any.").list().or_in_words("none");
pub(super) static ENGINE_PULL_POLICY: Key<PullPolicy> = key("engine.pull-policy", "BOB_PULL_POLICY",
    Choice(&[("always", PullPolicy::Always), ("missing", PullPolicy::Missing), ("never", PullPolicy::Never)]),
    "When images are pulled, unless the pipeline sets it: `always`, `missing` or `never`.").or("missing");
pub(super) static ENGINE_REGISTRY_AUTH_FILE: Key<PathBuf> = key("engine.registry-auth-file", "BOB_REGISTRY_AUTH_FILE", Text(parse::readable_file),
    "File with credentials of registries, in podman's format.").or_in_words("podman's `auth.json`, if it exists");
pub(super) static ENGINE_REGISTRY_INSECURE: Key<Vec<String>> = key("engine.registry-insecure", "BOB_REGISTRY_INSECURE", Text(parse::hosts),
    "Registries (`host` or `host:port`) that are used without TLS verification.").list();
pub(super) static ENGINE_SHARED_DIRS: Key<Vec<SharedDir>> = key("engine.shared-dirs", "BOB_SHARED_DIRS", Text(grants::shared_dirs),
    "Directories of the engine's host that jobs of executor docker can mount, as absolute paths separated by colons. `:ro` after a path makes the directory read-only. A directory without `:ro` can be mounted only as a whole; parts of one with `:ro` can be mounted by themselves. No directory can be inside a writable one. `run` shares everything that its user can read.").or_in_words("none");
pub(super) static ENGINE_SHARED_VOLUMES: Key<Vec<String>> = key("engine.shared-volumes", "BOB_SHARED_VOLUMES", Text(grants::volumes),
    "Volumes of the engine that jobs of executor docker can mount by name. On podman, jobs can also mount volumes that jobs created; on a Docker engine, only those named here. `run` can mount any.").list().or_in_words("none");

pub(crate) static WORKER_MAX_PARALLEL_RUNS: Key<u32> = key("worker.max-parallel-runs", "BOB_MAX_PARALLEL_RUNS", count(0, 10_000),
    "Number of runs that one worker drives at once. `0`: `serve` is no worker and only offers the HTTP API.").or("4");
pub(super) static WORKER_MAX_PARALLEL_STEPS: Key<u32> = key("worker.max-parallel-steps", "BOB_MAX_PARALLEL_STEPS", count(1, 10_000),
    "Maximum number of steps of one run that run in parallel.").or("16");
pub(super) static WORKER_EXECUTORS: Key<Vec<ExecutorKind>> = key("worker.executors", "BOB_EXECUTORS", Text(parse::executors),
    "Executors that `serve` offers: podman, docker, local, custom, ssh, http, proxmox, sevdesk, lexware. They extend what everyone who can start a run can do: local and custom to everything that the worker's user can do, ssh to all hosts that this user's keys open, and the calls to the services that the worker's host can reach.").or("podman").list();
pub(super) static WORKER_LOG_LIMIT_BYTES: Key<Option<u64>> = key("worker.log-limit-bytes", "BOB_LOG_LIMIT_BYTES", Text(parse::limit),
    "Maximum output of one step, and of all steps of a run together, in bytes or with a unit. At the limit, the worker writes one notice to the log. The rest of the step's output is then discarded, or the step fails if it has `on-log-limit: fail`. `0`: no limit.").or("1Gi");
pub(super) static WORKER_LITERAL_SECRETS: Key<LiteralSecrets> = key("worker.literal-secrets", "BOB_LITERAL_SECRETS",
    Choice(&[("allow", LiteralSecrets::Allow), ("reject", LiteralSecrets::Reject)]),
    "Whether definitions can contain secrets in clear text: `allow` or `reject`. They are searched for in `with`, in `callback` and in the `params` of resources: as values of keys such as `password` and `clientSecret`, in headers such as `Authorization`, in parameters of URLs and forms such as `?api_key=`, and as the password in a URL. Applies to `serve`, `submit` and `pipeline apply`; `run` always allows them.").or("reject");
pub(super) static WORKER_RUN_RETENTION_DAYS: Key<u32> = key("worker.run-retention-days", "BOB_RUN_RETENTION_DAYS", count(1, 36_500),
    "Days for which an ended run is kept, with its record and its outputs in a directory, unless its pipeline sets `retention`.").or("7");
pub(super) static WORKER_RUN_RETENTION_COUNT: Key<u32> = key("worker.run-retention-count", "BOB_RUN_RETENTION_COUNT", count(0, 1_000_000),
    "Number of ended runs of each pipeline that are kept, unless the pipeline sets `retention-count`. The oldest are removed first. `0`: no limit.").or("0");
pub(super) static WORKER_MAX_LOSSES: Key<u32> = key("worker.max-losses", "BOB_MAX_LOSSES", count(0, 1_000),
    "Number of owners that a run can lose without a newly committed step.").or("3");
pub(super) static WORKER_CHECKPOINT_REGISTRY: Key<String> = key("worker.checkpoint-registry", "BOB_CHECKPOINT_REGISTRY", Text(parse::repository),
    "Registry to which committed steps are pushed, as `host[:port][/repository]`, so that workers on other engines can resume after them.").or_in_words("none");
pub(super) static WORKER_LEASE_TTL_SECONDS: Key<Duration> = key("worker.lease-ttl-seconds", "BOB_LEASE_TTL_SECONDS", seconds(1, 3_600),
    "Seconds without a sign of life after which a worker's runs count as lost.").or("10");
pub(crate) static WORKER_DRAIN_SECONDS: Key<Duration> = key("worker.drain-seconds", "BOB_DRAIN_SECONDS", seconds(0, 604_800),
    "Seconds for which a worker that exits waits for its running steps.").or("30");
pub(super) static WORKER_KILL_GRACE_SECONDS: Key<Duration> = key("worker.kill-grace-seconds", "BOB_KILL_GRACE_SECONDS", seconds(0, 3_600),
    "Seconds between SIGTERM and SIGKILL for a step that is stopped.").or("10");
pub(super) static WORKER_HEALTH_CHECK_FREQ: Key<Duration> = key("worker.health-check-freq", "BOB_HEALTH_CHECK_FREQ", millis(100, 3_600_000),
    "Milliseconds between two updates of a node's entry.").or("10000");
pub(super) static WORKER_DISK_HIGH: Key<u8> = key("worker.disk-high", "BOB_DISK_HIGH", percent(1, 100),
    "Usage of the container engine's disk, in percent, from which on a worker accepts no new work and removes unused base images that it has pulled.").or("85");
pub(super) static WORKER_DISK_LOW: Key<u8> = key("worker.disk-low", "BOB_DISK_LOW", percent(1, 100),
    "Usage in percent below which it accepts work again. Must be less than `BOB_DISK_HIGH`.").or("80");
pub(super) static WORKER_BASE_IMAGES_BYTES: Key<u64> = key("worker.base-images-bytes", "BOB_BASE_IMAGES_BYTES", Text(parse::bytes),
    "Maximum size of all base images that a worker has pulled, in bytes or with a unit. Above it, the least recently used ones are removed. `0`: no limit.").or("20Gi");
pub(super) static WORKER_SECRETS_DIR: Key<Vec<PathBuf>> = key("worker.secrets-dir", "BOB_SECRETS_DIR", Text(parse::dirs),
    "Directories with the secrets of steps, one file per secret, as absolute paths separated by colons. The directory in `CREDENTIALS_DIRECTORY` is searched after them. A secret can also be a variable `BOB_SECRET_<NAME>`, or a file that `BOB_SECRET_<NAME>_FILE` names.");
pub(super) static WORKER_SECRETS_SCOPES: Key<Vec<SecretScope>> = key("worker.secrets-scopes", "BOB_SECRETS_SCOPES", Text(reach::scopes),
    "Pipelines to which a worker gives these secrets, as `SECRET=GROUP` or `SECRET=GROUP:PIPELINE`; `*` matches any characters. A scope that names a group or a pipeline applies only to stored pipelines, started with variables that they declare, because a message can claim any group. With `@HOST` or `@HOST:PORT` at its end, the secret is sent only to that host, in a callback or a call. `*=*` gives every secret to everyone, also for a definition in a message. `run` gives its user every secret.").list().or_in_words("none: no pipeline receives a secret");
pub(super) static WORKER_ALLOWED_ADDRESSES: Key<Vec<AllowedAddress>> = key("worker.allowed-addresses", "BOB_ALLOWED_ADDRESSES", Text(reach::addresses),
    "Closed addresses that steps, callbacks and definitions can name nevertheless, as host, host:port, address, address:port or network. Closed are the addresses of the worker's own host, link-local and metadata addresses, and the worker's etcd, RabbitMQ, engines and checkpoint registry, which only an entry with their port opens. `run` can connect to every address.").list().or_in_words("none");
pub(super) static WORKER_FILE_DIRS: Key<Vec<PathBuf>> = key("worker.file-dirs", "BOB_FILE_DIRS", Text(parse::dirs),
    "Directories whose files steps can name in `ca_file`, `keyfile` and `known_hosts_file`, as absolute paths separated by colons. `run` reads every file that its user can read.").or_in_words("none: steps cannot name files");
pub(super) static WORKER_ENV_FILES: Key<(StepEnv, Vec<String>)> = key("worker.env-files", "BOB_ENV_FILES", Text(parse::env_files),
    "Files with variables, one `NAME=VALUE` per line, that override a worker's environment for steps of executor local and custom. A later file overrides an earlier one, and a missing one is ignored. For prunner's files, `run` has `--env-files`.").list().or_in_words("none");

pub(super) static SPILL_DIR: Key<PathBuf> = key("spill.dir", "BOB_SPILL_DIR", Text(parse::path),
    "Directory for events that the broker does not accept. The next worker of the cluster that uses the directory publishes the events that an earlier one left there.").or_in_words("`$XDG_STATE_HOME/bob-runner/spill`");
pub(super) static SPILL_BYTES: Key<u64> = key("spill.bytes", "BOB_SPILL_BYTES", Text(parse::bytes),
    "Maximum size of these events, in bytes or with a unit (`512Mi`). If it is reached, steps block when they write output.").or("1Gi");

pub(crate) static CI_QUEUE: Key<PathBuf> = key("ci.queue", "BOB_CI_QUEUE", Text(parse::path),
    "Queue file to which `add` writes jobs, one per line. `serve` in embedded mode runs them if `BOB_EXECUTORS` names local.").or_in_words("`$XDG_STATE_HOME/bob-runner/ci-job-queue`");
pub(crate) static CI_ATTEMPTS: Key<u32> = key("ci.attempts", "BOB_CI_ATTEMPTS", count(0, MAX_ATTEMPTS),
    "Number of attempts for a job that does not set it; 0 and 1 both mean one.").or("3");
pub(crate) static CI_DELAY: Key<Span> = key("ci.delay", "BOB_CI_DELAY", Text(parse::span),
    "Time between two attempts, always the same (`5s`, or whole seconds).").or("5s");
pub(crate) static CI_TIMEOUT: Key<Span> = key("ci.timeout", "BOB_CI_TIMEOUT", Text(parse::span),
    "Time limit for one attempt (`10m`, or whole seconds).");

pub(crate) static DEFINITIONS_DIR: Key<PathBuf> = key("definitions.dir", "BOB_DEFINITIONS", Text(parse::path),
    "Directory from whose files `serve` loads definitions of pipelines.").or_in_words("the working directory in embedded mode, none in a cluster");
pub(crate) static DEFINITIONS_PATTERN: Key<String> = key("definitions.pattern", "BOB_DEFINITIONS_PATTERN", Text(parse::glob),
    "Glob for the files below that directory.").or("**/pipelines.{yml,yaml}");
pub(crate) static DEFINITIONS_WATCH: Key<Span> = key("definitions.watch", "BOB_DEFINITIONS_WATCH", Text(parse::span),
    "Time between two checks of these files for changes (`30s`, or whole seconds).").or_in_words("none: only signals reload them");
pub(super) static DEFINITIONS_SOURCE: Key<String> = key("definitions.source", "BOB_DEFINITIONS_SOURCE", Text(parse::line),
    "Name of the set to which these definitions belong. All workers with the same name must load the same files.").or_in_words("the absolute path of the directory; in embedded mode there is one set");

pub(super) static OUTPUTS_STORE: Key<StoreSetting> = key("outputs.store", "BOB_OUTPUTS", Text(outputs::parse_store),
    "Store for outputs of steps: a directory, `s3://bucket/prefix`, or `bob-artifact:NAME` for a registered artifact store.").or_in_words("none");
pub(super) static OUTPUTS_S3_ENDPOINT: Key<String> = key("outputs.s3-endpoint", "BOB_OUTPUTS_S3_ENDPOINT", Text(outputs::endpoint),
    "URL of the server of that bucket: `https://host:port`, or `http://` if encryption is not needed.").or_in_words("AWS");
pub(super) static OUTPUTS_S3_REGION: Key<String> = key("outputs.s3-region", "BOB_OUTPUTS_S3_REGION", Text(parse::line),
    "Region of that bucket.").or("us-east-1");
pub(super) static OUTPUTS_S3_ACCESS_KEY: Key<String> = key("outputs.s3-access-key", "BOB_OUTPUTS_S3_ACCESS_KEY", Text(parse::line),
    "Id of the access key for that bucket.").or_in_words("the role of the machine in AWS");
pub(super) static OUTPUTS_S3_SECRET_KEY: Key<Secret<String>> = key("outputs.s3-secret-key", "BOB_OUTPUTS_S3_SECRET_KEY", Text(parse::secret),
    "Secret of that key.").secret();

pub(super) static HTTP_ADDRESS: Key<Option<String>> = key("http.address", "BOB_HTTP_ADDRESS", Text(parse::address_or_off),
    "Address at which `serve` offers the HTTP API, as `host:port`; `off`: no API. If the port of the default address is in use, the worker runs without the API, with a warning.").or("localhost:9009");
pub(super) static HTTP_LOG_CACHE_BYTES: Key<u64> = key("http.log-cache-bytes", "BOB_LOG_CACHE_BYTES", Text(parse::bytes),
    "Maximum size of the compressed logs of recent runs that a node with the HTTP API keeps in `log-cache` below `BOB_DATA_DIR`, in bytes or with a unit. The least recently used log is removed first. `0`: no cache, every request reads the event stream.").or("1Gi");
pub(super) static HTTP_JWT_SECRET: Key<Secret<String>> = key("http.jwt-secret", "BOB_HTTP_JWT_SECRET", Text(http_access::jwt_secret),
    "Shared secret of tokens that are signed with HS256, at least 16 characters. A token without the claim `scope` has every right. Without this setting and `BOB_HTTP_JWKS`, `serve` makes a secret that only its own user can read, in `BOB_DATA_DIR`, and listens on loopback addresses only.").secret();
pub(super) static HTTP_JWKS: Key<KeySource> = key("http.jwks", "BOB_HTTP_JWKS", Text(http_access::key_source),
    "File or `https://` URL of a JSON Web Key Set, with the public keys of tokens that are signed with RS256, ES256 or EdDSA. Changed keys apply without a restart. A token without the claim `scope` can only read.");
pub(super) static HTTP_JWT_AUDIENCE: Key<Vec<String>> = key("http.jwt-audience", "BOB_HTTP_JWT_AUDIENCE", Text(http_access::claim_values),
    "Values of the claim `aud`, one of which a token must contain. Set it if the keys of `BOB_HTTP_JWKS` also sign tokens for other services.").list().or_in_words("not checked with the shared secret; with a key of `BOB_HTTP_JWKS`, a token must have no `aud`");
pub(super) static HTTP_JWT_ISSUER: Key<Vec<String>> = key("http.jwt-issuer", "BOB_HTTP_JWT_ISSUER", Text(http_access::claim_values),
    "Values of the claim `iss`, one of which a token must contain.").list().or_in_words("not checked");
pub(super) static HTTP_HOSTS: Key<Vec<String>> = key("http.hosts", "BOB_HTTP_HOSTS", Text(http_access::host_names),
    "Host names, without port, under which clients reach the HTTP API, besides `localhost` and the host of `BOB_HTTP_ADDRESS`. Requests for other names are rejected. Addresses need no entry.").list().or_in_words("none");
pub(super) static HTTP_TLS_CERT: Key<PathBuf> = key("http.tls-cert", "BOB_HTTP_TLS_CERT", Text(parse::readable_file),
    "PEM file of the certificate of the HTTP API, with its chain. A changed file applies without a restart.").or_in_words("none: not encrypted");
pub(super) static HTTP_TLS_KEY: Key<PathBuf> = key("http.tls-key", "BOB_HTTP_TLS_KEY", Text(parse::readable_file),
    "PEM file of the private key of that certificate.");
pub(super) static HTTP_RATE: Key<u32> = key("http.rate", "BOB_HTTP_RATE", count(0, 1_000_000),
    "Maximum number of requests of one user per second. Twice as many can come at once. Requests without a user count for their address. `0`: no limit.").or("100");
pub(super) static HTTP_MAX_BODY_BYTES: Key<u64> = key("http.max-body-bytes", "BOB_HTTP_MAX_BODY_BYTES", Text(parse::bytes),
    "Maximum size of the body of a request, in bytes or with a unit.").or("4Mi");
pub(super) static HTTP_MAX_CONNECTIONS: Key<u32> = key("http.max-connections", "BOB_HTTP_MAX_CONNECTIONS", count(1, 1_000_000),
    "Maximum number of connections to the HTTP API. Further ones wait until another ends.").or("1000");
pub(super) static HTTP_HEADER_SECONDS: Key<Duration> = key("http.header-seconds", "BOB_HTTP_HEADER_SECONDS", seconds(1, 3_600),
    "Seconds within which a client must send the headers of a request. A connection without a request is closed after this time.").or("10");
pub(super) static HTTP_REQUEST_SECONDS: Key<Duration> = key("http.request-seconds", "BOB_HTTP_REQUEST_SECONDS", seconds(1, 3_600),
    "Seconds within which a client must send the body of a request and the response must begin. Streams continue.").or("30");
pub(super) static METRICS_ADDRESS: Key<String> = key("metrics.address", "BOB_METRICS_ADDRESS", Text(parse::address_or_none),
    "Address of the metrics; empty: none.").or("localhost:9100").unsupported();

pub(crate) static LOG_LEVEL: Key<LogLevel> = key("log.level", "BOB_LOG_LEVEL",
    Choice(&[("error", LogLevel::Error), ("warn", LogLevel::Warn), ("info", LogLevel::Info), ("debug", LogLevel::Debug), ("trace", LogLevel::Trace), ("off", LogLevel::Off)]),
    "Level of the program's own log: `error`, `warn`, `info`, `debug`, `trace` or `off`.").or("info");
pub(super) static LOG_FORMAT: Key<LogFormat> = key("log.format", "BOB_LOG_FORMAT",
    Choice(&[("text", LogFormat::Text), ("json", LogFormat::Json), ("ci", LogFormat::Ci)]),
    "Format of that log: `text`, `json`, or `ci`, with which `serve` writes `[date time] [LEVEL] text` to standard output.").or_in_words("`text` on a terminal, else `json`");

/// All settings, in the order of the manual.
pub static SETTINGS: &[&Setting] = &[
    MODE.setting(), DATA_DIR.setting(),
    STORAGE_URLS.setting(), STORAGE_USER.setting(), STORAGE_PASSWORD.setting(),
    STORAGE_CA.setting(), STORAGE_CERT.setting(), STORAGE_KEY.setting(),
    QUEUE_URL.setting(), QUEUE_USER.setting(), QUEUE_PASSWORD.setting(), QUEUE_CA.setting(),
    QUEUE_CERT.setting(), QUEUE_KEY.setting(),
    CONNECTION_RETRY_ATTEMPTS.setting(), CONNECTION_RETRY_DELAY.setting(),
    STREAM_NAME.setting(), STREAM_RETENTION_DAYS.setting(), STREAM_MAX_BYTES.setting(),
    STREAM_URL.setting(),
    ENGINE_URL.setting(), ENGINE_DOCKER_URL.setting(), ENGINE_NETWORK.setting(),
    ENGINE_NETWORKS.setting(), ENGINE_PULL_POLICY.setting(), ENGINE_REGISTRY_AUTH_FILE.setting(),
    ENGINE_REGISTRY_INSECURE.setting(), ENGINE_SHARED_DIRS.setting(),
    ENGINE_SHARED_VOLUMES.setting(),
    WORKER_MAX_PARALLEL_RUNS.setting(), WORKER_MAX_PARALLEL_STEPS.setting(),
    WORKER_EXECUTORS.setting(), WORKER_LOG_LIMIT_BYTES.setting(), WORKER_LITERAL_SECRETS.setting(),
    WORKER_RUN_RETENTION_DAYS.setting(), WORKER_RUN_RETENTION_COUNT.setting(),
    WORKER_MAX_LOSSES.setting(),
    WORKER_CHECKPOINT_REGISTRY.setting(), WORKER_LEASE_TTL_SECONDS.setting(),
    WORKER_DRAIN_SECONDS.setting(), WORKER_KILL_GRACE_SECONDS.setting(),
    WORKER_HEALTH_CHECK_FREQ.setting(), WORKER_DISK_HIGH.setting(), WORKER_DISK_LOW.setting(),
    WORKER_BASE_IMAGES_BYTES.setting(), WORKER_SECRETS_DIR.setting(),
    WORKER_SECRETS_SCOPES.setting(), WORKER_ALLOWED_ADDRESSES.setting(), WORKER_FILE_DIRS.setting(),
    WORKER_ENV_FILES.setting(),
    SPILL_DIR.setting(), SPILL_BYTES.setting(),
    CI_QUEUE.setting(), CI_ATTEMPTS.setting(), CI_DELAY.setting(), CI_TIMEOUT.setting(),
    DEFINITIONS_DIR.setting(), DEFINITIONS_PATTERN.setting(), DEFINITIONS_WATCH.setting(),
    DEFINITIONS_SOURCE.setting(),
    OUTPUTS_STORE.setting(), OUTPUTS_S3_ENDPOINT.setting(), OUTPUTS_S3_REGION.setting(),
    OUTPUTS_S3_ACCESS_KEY.setting(), OUTPUTS_S3_SECRET_KEY.setting(),
    HTTP_ADDRESS.setting(), HTTP_LOG_CACHE_BYTES.setting(),
    HTTP_JWT_SECRET.setting(), HTTP_JWKS.setting(), HTTP_JWT_AUDIENCE.setting(),
    HTTP_JWT_ISSUER.setting(), HTTP_HOSTS.setting(), HTTP_TLS_CERT.setting(),
    HTTP_TLS_KEY.setting(), HTTP_RATE.setting(), HTTP_MAX_BODY_BYTES.setting(),
    HTTP_MAX_CONNECTIONS.setting(), HTTP_HEADER_SECONDS.setting(), HTTP_REQUEST_SECONDS.setting(),
    METRICS_ADDRESS.setting(),
    LOG_LEVEL.setting(), LOG_FORMAT.setting(),
];
