//! The table of all settings: name, variable, default and description. The loader, the manual and
//! the hints about misspelt names all use it.

use std::fmt::Write as _;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The name in the settings file and for `--set`: `room.name`.
    pub name: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    /// The default as text. `None` if it is computed from the environment, or if there is none.
    pub default: Option<&'static str>,
    /// Describes the default in the manual if its text alone is not enough.
    pub default_in_words: Option<&'static str>,
    /// The description, as one sentence.
    pub about: &'static str,
    /// The form of the value.
    pub form: ValueForm,
    /// Whether this version supports the setting.
    pub support: Support,
}

/// The form of a setting's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueForm {
    /// A single value.
    Single,
    /// Several values, separated by commas or as a list in the file.
    List,
    /// A value that is never displayed. It can also be read from a file, given as
    /// `<VARIABLE>_FILE`.
    Secret,
}

/// Whether this version supports a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Supported.
    Full,
    /// Known but not supported: any value is refused.
    Refused,
}

const fn plain(
    name: &'static str,
    variable: &'static str,
    default: Option<&'static str>,
    about: &'static str,
) -> Setting {
    Setting {
        name,
        variable,
        default,
        default_in_words: None,
        about,
        form: ValueForm::Single,
        support: Support::Full,
    }
}

impl Setting {
    const fn list(self) -> Self {
        Self { form: ValueForm::List, ..self }
    }

    const fn secret(self) -> Self {
        Self { form: ValueForm::Secret, ..self }
    }

    const fn words(self, words: &'static str) -> Self {
        Self { default_in_words: Some(words), ..self }
    }

    const fn support(self, support: Support) -> Self {
        Self { support, ..self }
    }

    /// The variable with the path of a file that contains the secret.
    #[must_use]
    pub fn file_variable(&self) -> String {
        format!("{}_FILE", self.variable)
    }

    /// The name in the settings file for the path of a file that contains the secret.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}-file", self.name)
    }
}

/// All settings, in the order of the manual.
pub const SETTINGS: &[Setting] = &[
    plain("mode", "BOB_MODE", Some("cluster"),
        "`cluster`, or `embedded`: queue and state in one file, without RabbitMQ and etcd."),
    plain("data-dir", "BOB_DATA_DIR", None, "Directory for the file of embedded mode, and for the runs of `run`.")
        .words("`$XDG_STATE_HOME/bob-runner`"),
    plain("storage.urls", "BOB_STORAGE_URLS", Some("http://localhost:2379"),
        "URLs of the members of the etcd cluster, all `http://` or all `https://`.").list(),
    plain("storage.user", "BOB_STORAGE_USER", None, "User name for etcd. If not set, no credentials are sent."),
    plain("storage.password", "BOB_STORAGE_PASSWORD", None, "Password for etcd.").secret(),
    plain("storage.ca", "BOB_STORAGE_CA", None,
        "PEM file of the certificate authorities that are trusted for etcd, instead of those of the system."),
    plain("storage.cert", "BOB_STORAGE_CERT", None, "PEM file of the client certificate for etcd."),
    plain("storage.key", "BOB_STORAGE_KEY", None, "PEM file of the private key of that certificate."),
    plain("queue.url", "BOB_QUEUE_URL", Some("amqp://localhost:5672"),
        "URL of RabbitMQ: `amqp://` or `amqps://`. Its path is the virtual host."),
    plain("queue.user", "BOB_QUEUE_USER", Some("guest"), "User name for RabbitMQ."),
    plain("queue.password", "BOB_QUEUE_PASSWORD", Some("guest"), "Password for RabbitMQ.").secret(),
    plain("queue.ca", "BOB_QUEUE_CA", None,
        "PEM file of the certificate authorities that are trusted for RabbitMQ, instead of those of the system."),
    plain("queue.cert", "BOB_QUEUE_CERT", None, "PEM file of the client certificate for RabbitMQ."),
    plain("queue.key", "BOB_QUEUE_KEY", None, "PEM file of the private key of that certificate."),
    plain("connection.retry-attempts", "BOB_CONNECTION_RETRY_ATTEMPTS", Some("10"),
        "Number of attempts for each connection at start. A connection that breaks later is retried without limit."),
    plain("connection.retry-delay", "BOB_CONNECTION_RETRY_DELAY", Some("2000"),
        "Milliseconds between two of these attempts."),
    plain("stream.name", "BOB_STREAM_NAME", Some("bob.event-stream"), "Name of the event stream."),
    plain("stream.retention-days", "BOB_STREAM_RETENTION_DAYS", Some("7"),
        "Days for which a stream that the worker declares keeps events."),
    plain("stream.max-bytes", "BOB_STREAM_MAX_BYTES", None,
        "Maximum size of a stream that the worker declares, in bytes or with a unit, at least `128Mi`. The oldest segments of 64 MiB are deleted first. An existing stream keeps its own arguments, with one warning: set a policy of the broker, or delete the stream.")
        .words("no limit by size"),
    plain("stream.url", "BOB_STREAM_URL", None,
        "URL of another server for the stream (`amqp://`, `amqps://`), or `rabbitmq-stream://` for the native protocol if both sides support it.")
        .words("the server of `BOB_QUEUE_URL`, over AMQP"),
    plain("engine.url", "CONTAINER_ENGINE_URL", None,
        "URL of the podman service: `unix:///path`, `http://host:port` or `tcp://host:port`.")
        .words("the rootless socket of the user, else a service that bob-runner starts, else `http://localhost:8080`"),
    plain("engine.docker-url", "BOB_DOCKER_URL", None,
        "URL of the Docker engine for jobs of executor docker that have an image of their own: `unix:///path`, `http://host:port` or `tcp://host:port`.")
        .words("none: podman runs them"),
    plain("engine.network", "BOB_NETWORK", None, "Network of steps that name none.")
        .words("the engine's default network"),
    plain("engine.networks", "BOB_NETWORKS", None,
        "Networks that pipelines can use beyond `none`, `bridge`, `private`, `slirp4netns` and `pasta`: `host`, names of networks of the engine, and `host-loopback`, which allows the options that reach the host's loopback (`slirp4netns:allow_host_loopback=true`, `pasta` with `-T`, `-U` or `--map-gw`). `BOB_NETWORK` needs no entry. `run` can use any.")
        .list().words("none"),
    plain("engine.pull-policy", "BOB_PULL_POLICY", Some("missing"),
        "When images are pulled, unless the pipeline sets it: `always`, `missing` or `never`."),
    plain("engine.registry-auth-file", "BOB_REGISTRY_AUTH_FILE", None, "File with credentials of registries, in podman's format.")
        .words("podman's `auth.json`, if it exists"),
    plain("engine.registry-insecure", "BOB_REGISTRY_INSECURE", None,
        "Registries (`host` or `host:port`) that are used without TLS verification.").list(),
    plain("engine.shared-dirs", "BOB_SHARED_DIRS", None,
        "Directories of the engine's host that jobs of executor docker can mount, as absolute paths separated by colons. `:ro` after a path makes the directory read-only. A directory without `:ro` can be mounted only as a whole; parts of one with `:ro` can be mounted by themselves. No directory can be inside a writable one. `run` shares everything that its user can read.")
        .words("none"),
    plain("engine.shared-volumes", "BOB_SHARED_VOLUMES", None,
        "Volumes of the engine that jobs of executor docker can mount by name. On podman, jobs can also mount volumes that jobs created; on a Docker engine, only those named here. `run` can mount any.")
        .list().words("none"),
    plain("worker.max-parallel-runs", "BOB_MAX_PARALLEL_RUNS", Some("4"),
        "Number of runs that one worker drives at once."),
    plain("worker.max-parallel-steps", "BOB_MAX_PARALLEL_STEPS", Some("16"),
        "Maximum number of steps of one run that run in parallel."),
    plain("worker.executors", "BOB_EXECUTORS", Some("podman"),
        "Executors that `serve` offers: podman, docker, local, custom, ssh, http, proxmox, sevdesk, lexware. They extend what everyone who can start a run can do: local and custom to everything that the worker's user can do, ssh to all hosts that this user's keys open, and the calls to the services that the worker's host can reach.").list(),
    plain("worker.log-limit-bytes", "BOB_LOG_LIMIT_BYTES", Some("1Gi"),
        "Maximum output of one step, and of all steps of a run together, in bytes or with a unit. At the limit, the worker writes one notice to the log. The rest of the step's output is then discarded, or the step fails if it has `on-log-limit: fail`. `0`: no limit."),
    plain("worker.literal-secrets", "BOB_LITERAL_SECRETS", Some("reject"),
        "Whether definitions can contain secrets in clear text: `allow` or `reject`. They are searched for in `with`, in `callback` and in the `params` of resources: as values of keys such as `password` and `clientSecret`, in headers such as `Authorization`, in parameters of URLs and forms such as `?api_key=`, and as the password in a URL. Applies to `serve`, `submit` and `pipeline apply`; `run` always allows them."),
    plain("worker.run-retention-days", "BOB_RUN_RETENTION_DAYS", Some("7"),
        "Days for which the records of ended runs are kept."),
    plain("worker.max-losses", "BOB_MAX_LOSSES", Some("3"),
        "Number of owners that a run can lose without a newly committed step."),
    plain("worker.checkpoint-registry", "BOB_CHECKPOINT_REGISTRY", None,
        "Registry to which committed steps are pushed, as `host[:port][/repository]`, so that workers on other engines can resume after them.")
        .words("none"),
    plain("worker.lease-ttl-seconds", "BOB_LEASE_TTL_SECONDS", Some("10"),
        "Seconds without a sign of life after which a worker's runs count as lost."),
    plain("worker.drain-seconds", "BOB_DRAIN_SECONDS", Some("30"),
        "Seconds for which a worker that exits waits for its running steps."),
    plain("worker.kill-grace-seconds", "BOB_KILL_GRACE_SECONDS", Some("10"),
        "Seconds between SIGTERM and SIGKILL for a step that is stopped."),
    plain("worker.health-check-freq", "BOB_HEALTH_CHECK_FREQ", Some("10000"),
        "Milliseconds between two updates of a node's entry."),
    plain("worker.disk-high", "BOB_DISK_HIGH", Some("85"),
        "Usage of the container engine's disk, in percent, from which on a worker accepts no new work and removes unused base images that it has pulled."),
    plain("worker.disk-low", "BOB_DISK_LOW", Some("80"),
        "Usage in percent below which it accepts work again. Must be less than `BOB_DISK_HIGH`."),
    plain("worker.base-images-bytes", "BOB_BASE_IMAGES_BYTES", Some("20Gi"),
        "Maximum size of all base images that a worker has pulled, in bytes or with a unit. Above it, the least recently used ones are removed. `0`: no limit."),
    plain("worker.secrets-dir", "BOB_SECRETS_DIR", None,
        "Directories with the secrets of steps, one file per secret, as absolute paths separated by colons. The directory in `CREDENTIALS_DIRECTORY` is searched after them. A secret can also be a variable `BOB_SECRET_<NAME>`, or a file that `BOB_SECRET_<NAME>_FILE` names."),
    plain("worker.secrets-scopes", "BOB_SECRETS_SCOPES", None,
        "Pipelines to which a worker gives these secrets, as `SECRET=GROUP` or `SECRET=GROUP:PIPELINE`; `*` matches any characters. A scope that names a group or a pipeline applies only to stored pipelines, started with variables that they declare, because a message can claim any group. With `@HOST` or `@HOST:PORT` at its end, the secret is sent only to that host, in a callback or a call. `*=*` gives every secret to everyone, also for a definition in a message. `run` gives its user every secret.")
        .list().words("none: no pipeline receives a secret"),
    plain("worker.allowed-addresses", "BOB_ALLOWED_ADDRESSES", None,
        "Closed addresses that steps, callbacks and definitions can name nevertheless, as host, host:port, address, address:port or network. Closed are the addresses of the worker's own host, link-local and metadata addresses, and the worker's etcd, RabbitMQ, engines and checkpoint registry, which only an entry with their port opens. `run` can connect to every address.")
        .list().words("none"),
    plain("worker.file-dirs", "BOB_FILE_DIRS", None,
        "Directories whose files steps can name in `ca_file`, `keyfile` and `known_hosts_file`, as absolute paths separated by colons. `run` reads every file that its user can read.")
        .words("none: steps cannot name files"),
    plain("worker.env-files", "BOB_ENV_FILES", None,
        "Files with variables, one `NAME=VALUE` per line, that override a worker's environment for steps of executor local and custom. A later file overrides an earlier one, and a missing one is ignored. For prunner's files, `run` has `--env-files`.")
        .list().words("none"),
    plain("spill.dir", "BOB_SPILL_DIR", None, "Directory for events that the broker does not accept. The next worker of the cluster that uses the directory publishes the events that an earlier one left there.")
        .words("`$XDG_STATE_HOME/bob-runner/spill`"),
    plain("spill.bytes", "BOB_SPILL_BYTES", Some("1Gi"),
        "Maximum size of these events, in bytes or with a unit (`512Mi`). If it is reached, steps block when they write output."),
    plain("ci.queue", "BOB_CI_QUEUE", None,
        "Queue file to which `add` writes jobs, one per line. `serve` in embedded mode runs them if `BOB_EXECUTORS` names local.")
        .words("`$XDG_STATE_HOME/bob-runner/ci-job-queue`"),
    plain("ci.attempts", "BOB_CI_ATTEMPTS", Some("3"),
        "Number of attempts for a job that does not set it; 0 and 1 both mean one."),
    plain("ci.delay", "BOB_CI_DELAY", Some("5s"),
        "Time between two attempts, always the same (`5s`, or whole seconds)."),
    plain("ci.timeout", "BOB_CI_TIMEOUT", None,
        "Time limit for one attempt (`10m`, or whole seconds)."),
    plain("outputs.store", "BOB_OUTPUTS", None,
        "Store for outputs of steps: a directory, `s3://bucket/prefix`, or `bob-artifact:NAME` for a registered artifact store.")
        .words("none"),
    plain("outputs.s3-endpoint", "BOB_OUTPUTS_S3_ENDPOINT", None,
        "URL of the server of that bucket: `https://host:port`, or `http://` if encryption is not needed.")
        .words("AWS"),
    plain("outputs.s3-region", "BOB_OUTPUTS_S3_REGION", Some("us-east-1"), "Region of that bucket."),
    plain("outputs.s3-access-key", "BOB_OUTPUTS_S3_ACCESS_KEY", None,
        "Id of the access key for that bucket.").words("the role of the machine in AWS"),
    plain("outputs.s3-secret-key", "BOB_OUTPUTS_S3_SECRET_KEY", None, "Secret of that key.").secret(),
    plain("http.address", "BOB_HTTP_ADDRESS", Some("localhost:9009"), "Address of the HTTP API.")
        .support(Support::Refused),
    plain("metrics.address", "BOB_METRICS_ADDRESS", Some("localhost:9100"),
        "Address of the metrics; empty: none.").support(Support::Refused),
    plain("log.level", "BOB_LOG_LEVEL", Some("info"),
        "Level of the program's own log: `error`, `warn`, `info`, `debug`, `trace` or `off`."),
    plain("log.format", "BOB_LOG_FORMAT", None, "Format of that log: `text`, `json`, or `ci`, with which `serve` writes `[date time] [LEVEL] text` to standard output.")
        .words("`text` on a terminal, else `json`"),
];

/// Finds a setting by name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The known name that was probably meant by `given`.
pub(super) fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .min()
        .filter(|(distance, name)| *distance <= (name.len() / 4).clamp(1, 3))
        .map(|(_, name)| name)
}

/// Generates the settings table of the manual, as Markdown.
#[must_use]
pub fn manual() -> String {
    let mut text =
        String::from("| variable | in the file | default | meaning |\n|---|---|---|---|\n");
    for setting in SETTINGS {
        let default = match (setting.default_in_words, setting.default) {
            (Some(words), _) => words.to_owned(),
            (None, Some(value)) => format!("`{value}`"),
            (None, None) => "not set".to_owned(),
        };
        let file = if setting.form == ValueForm::Secret {
            format!(" Or `{}`: a file that contains it.", setting.file_variable())
        } else {
            String::new()
        };
        let support = match setting.support {
            Support::Full => "",
            Support::Refused => " **Not supported by this version: any value is rejected.**",
        };
        // Writing to a String cannot fail.
        let _infallible = writeln!(
            text,
            "| `{}` | `{}` | {default} | {}{file}{support} |",
            setting.variable, setting.name, setting.about
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_every_variable_is_unique() {
        for (position, setting) in SETTINGS.iter().enumerate() {
            for other in &SETTINGS[position + 1..] {
                assert_ne!(setting.name, other.name);
                assert_ne!(setting.variable, other.variable);
            }
        }
    }

    #[test]
    fn a_misspelt_name_gives_a_suggestion() {
        let names = || SETTINGS.iter().map(|setting| setting.name);
        assert_eq!(nearest("storage.url", names()), Some("storage.urls"));
        assert_eq!(nearest("queue.pasword", names()), Some("queue.password"));
        assert_eq!(nearest("something-else", names()), None);
    }

    #[test]
    fn the_manual_contains_the_current_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/settings.md");
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(file.contains(&manual()), "put this into docs/settings.md:\n{}", manual());
    }
}
