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
    pub form: Form,
    /// Whether this version supports the setting.
    pub support: Support,
}

/// The form of a setting's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
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
        form: Form::Single,
        support: Support::Full,
    }
}

impl Setting {
    const fn list(self) -> Self {
        Self { form: Form::List, ..self }
    }

    const fn secret(self) -> Self {
        Self { form: Form::Secret, ..self }
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
        "`cluster`, or `embedded`: queue and state in one file, no RabbitMQ, no etcd."),
    plain("data-dir", "BOB_DATA_DIR", None, "Where embedded mode keeps its file, and `run` its runs.")
        .words("`$XDG_STATE_HOME/bob-runner`"),
    plain("storage.urls", "BOB_STORAGE_URLS", Some("http://localhost:2379"),
        "The members of the etcd cluster, all `http://` or all `https://`.").list(),
    plain("storage.user", "BOB_STORAGE_USER", None, "The user at etcd; without one, none is sent."),
    plain("storage.password", "BOB_STORAGE_PASSWORD", None, "The password of that user.").secret(),
    plain("storage.ca", "BOB_STORAGE_CA", None,
        "PEM file of the authorities that etcd's certificate is checked against, instead of the usual ones."),
    plain("storage.cert", "BOB_STORAGE_CERT", None, "PEM file of the certificate that we show etcd."),
    plain("storage.key", "BOB_STORAGE_KEY", None, "PEM file of the key of that certificate."),
    plain("queue.url", "BOB_QUEUE_URL", Some("amqp://localhost:5672"),
        "RabbitMQ: `amqp://` or `amqps://`; its path is the virtual host."),
    plain("queue.user", "BOB_QUEUE_USER", Some("guest"), "The user at RabbitMQ."),
    plain("queue.password", "BOB_QUEUE_PASSWORD", Some("guest"), "The password of that user.").secret(),
    plain("queue.ca", "BOB_QUEUE_CA", None,
        "PEM file of the authorities that RabbitMQ's certificate is checked against, instead of the usual ones."),
    plain("queue.cert", "BOB_QUEUE_CERT", None, "PEM file of the certificate that we show RabbitMQ."),
    plain("queue.key", "BOB_QUEUE_KEY", None, "PEM file of the key of that certificate."),
    plain("connection.retry-attempts", "BOB_CONNECTION_RETRY_ATTEMPTS", Some("10"),
        "How often each connection is tried at start; once connected, for ever."),
    plain("connection.retry-delay", "BOB_CONNECTION_RETRY_DELAY", Some("2000"),
        "Milliseconds between two of these attempts."),
    plain("stream.name", "BOB_STREAM_NAME", Some("bob.event-stream"), "The stream of the events."),
    plain("stream.retention-days", "BOB_STREAM_RETENTION_DAYS", Some("7"),
        "How long the stream keeps events, where we are the ones who make it."),
    plain("stream.max-bytes", "BOB_STREAM_MAX_BYTES", None,
        "Maximum size of a stream that the worker declares, in bytes or with a unit, at least `128Mi`. The oldest segments of 64 MiB are deleted first. An existing stream keeps its own arguments, with one warning: set a policy of the broker, or delete the stream.")
        .words("no limit by size"),
    plain("stream.url", "BOB_STREAM_URL", None,
        "Another server for the stream (`amqp://`, `amqps://`), or `rabbitmq-stream://` for the native protocol where both sides speak it.")
        .words("the server of `BOB_QUEUE_URL`, over AMQP"),
    plain("engine.url", "CONTAINER_ENGINE_URL", None,
        "The podman service: `unix:///path`, `http://host:port` or `tcp://host:port`.")
        .words("the rootless socket of the user; else a service of our own; else `http://localhost:8080`"),
    plain("engine.docker-url", "BOB_DOCKER_URL", None,
        "The Docker engine that runs the jobs of executor docker which have an image of their own: `unix:///path`, `http://host:port` or `tcp://host:port`.")
        .words("none: podman runs them"),
    plain("engine.network", "BOB_NETWORK", None, "The network of steps that name none.")
        .words("the engine's own"),
    plain("engine.networks", "BOB_NETWORKS", None,
        "Networks that pipelines can use beyond `none`, `bridge`, `private`, `slirp4netns` and `pasta`: `host`, names of networks of the engine, and `host-loopback`, which allows the options that reach the host's loopback (`slirp4netns:allow_host_loopback=true`, `pasta` with `-T`, `-U` or `--map-gw`). `BOB_NETWORK` needs no entry. `run` can use any.")
        .list().words("none"),
    plain("engine.pull-policy", "BOB_PULL_POLICY", Some("missing"),
        "When images are pulled where the pipeline does not say: `always`, `missing` or `never`."),
    plain("engine.registry-auth-file", "BOB_REGISTRY_AUTH_FILE", None, "Credentials of registries, as podman writes them.")
        .words("podman's `auth.json`, where it is"),
    plain("engine.registry-insecure", "BOB_REGISTRY_INSECURE", None,
        "Registries (`host` or `host:port`) that are asked without TLS checks.").list(),
    plain("engine.shared-dirs", "BOB_SHARED_DIRS", None,
        "Directories of the engine's host that jobs of executor docker can mount, as absolute paths with colons between them, each with `:ro` after it if jobs can only read it. A directory without `:ro` can be mounted only as a whole; parts of one with `:ro` can be mounted by themselves. None can lie inside of a writable one. `run` shares whatever its user can read.")
        .words("none"),
    plain("engine.shared-volumes", "BOB_SHARED_VOLUMES", None,
        "Volumes of the engine that jobs of executor docker can mount by name. On podman, jobs can also mount volumes that jobs created; on a Docker engine, only those named here. `run` can mount any.")
        .list().words("none"),
    plain("worker.max-parallel-runs", "BOB_MAX_PARALLEL_RUNS", Some("4"),
        "How many runs one worker has at once."),
    plain("worker.max-parallel-steps", "BOB_MAX_PARALLEL_STEPS", Some("16"),
        "How many steps of one run go on at once, where its pipeline lets them."),
    plain("worker.executors", "BOB_EXECUTORS", Some("podman"),
        "What `serve` runs steps with: podman, docker, local, custom, ssh, http, proxmox, sevdesk, lexware. Whoever may start a run has with local and custom all that the worker's user has, with ssh all hosts that this user's keys open, and with the calls what its host can reach.").list(),
    plain("worker.log-limit-bytes", "BOB_LOG_LIMIT_BYTES", Some("1Gi"),
        "Maximum output of one step, and of all steps of a run together, in bytes or with a unit. At the limit, the worker writes one notice to the log. The rest of the step's output is then discarded, or the step fails if it has `on-log-limit: fail`. `0`: no limit."),
    plain("worker.literal-secrets", "BOB_LITERAL_SECRETS", Some("reject"),
        "Whether definitions may contain secrets in clear text, in keys such as `password` and `api_key` or in an `Authorization` header: `allow` or `reject`. `serve`, `submit` and `pipeline apply` obey it; `run` always allows them."),
    plain("worker.run-retention-days", "BOB_RUN_RETENTION_DAYS", Some("7"),
        "How long the records of ended runs are kept."),
    plain("worker.max-losses", "BOB_MAX_LOSSES", Some("3"),
        "How many owners a run may lose without a newly committed step."),
    plain("worker.checkpoint-registry", "BOB_CHECKPOINT_REGISTRY", None,
        "Where committed steps are pushed to, as `host[:port][/repository]`, so that workers on other engines can go on from them.")
        .words("nowhere"),
    plain("worker.lease-ttl-seconds", "BOB_LEASE_TTL_SECONDS", Some("10"),
        "How long a worker may be silent before its runs count as lost."),
    plain("worker.drain-seconds", "BOB_DRAIN_SECONDS", Some("30"),
        "How long a worker that ends waits for its running steps."),
    plain("worker.kill-grace-seconds", "BOB_KILL_GRACE_SECONDS", Some("10"),
        "The time between SIGTERM and SIGKILL for a step that is stopped."),
    plain("worker.health-check-freq", "BOB_HEALTH_CHECK_FREQ", Some("10000"),
        "Milliseconds between two refreshes of a node's entry."),
    plain("worker.disk-high", "BOB_DISK_HIGH", Some("85"),
        "From so many percent of the container engine's disk on a worker takes nothing new, and removes base images that it has pulled and nobody uses."),
    plain("worker.disk-low", "BOB_DISK_LOW", Some("80"),
        "Below so many percent it takes work again; less than `BOB_DISK_HIGH`."),
    plain("worker.base-images-bytes", "BOB_BASE_IMAGES_BYTES", Some("20Gi"),
        "How much the base images may take that it has pulled, in bytes or with a unit; then those that were used longest ago go. `0`: no limit."),
    plain("worker.secrets-dir", "BOB_SECRETS_DIR", None,
        "Directories with the secrets of steps, one file each, as absolute paths with colons between them; then that of `CREDENTIALS_DIRECTORY`. A secret may also be a variable `BOB_SECRET_<NAME>`, or `BOB_SECRET_<NAME>_FILE`: a file that holds it."),
    plain("worker.secrets-scopes", "BOB_SECRETS_SCOPES", None,
        "Which of these secrets a worker gives to whom, as `SECRET=GROUP` or `SECRET=GROUP:PIPELINE`, where `*` stands for any characters. A scope that names a group or a pipeline is for stored pipelines, started with variables that they declare, because a message can claim any group. With `@HOST` or `@HOST:PORT` behind it, a secret goes only to that host, in a callback or a call. `*=*`: every secret to everyone, also in a definition that a message contains. `run` gives its user every secret.")
        .list().words("none: nobody is given a secret"),
    plain("worker.allowed-addresses", "BOB_ALLOWED_ADDRESSES", None,
        "Addresses that steps, callbacks and definitions may name although they are closed: host, host:port, address, address:port or network. Closed are the addresses of the worker's own host, link-local and metadata addresses, and etcd, RabbitMQ, the engines and the checkpoint registry of the worker, which only an entry with their port opens. `run` may connect to every address.")
        .list().words("none"),
    plain("worker.file-dirs", "BOB_FILE_DIRS", None,
        "Directories whose files steps may name in `ca_file`, `keyfile` and `known_hosts_file`, as absolute paths with colons between them. `run` reads every file that its user may read.")
        .words("none: no step names a file"),
    plain("worker.env-files", "BOB_ENV_FILES", None,
        "Files of variables (`NAME=VALUE` a line) that steps of executor local and custom have at a worker beside its own environment, and before it; a later file wins, one that is missing is passed over. `run` of a prunner file has `--env-files`.")
        .list().words("none"),
    plain("spill.dir", "BOB_SPILL_DIR", None, "Directory for events that the broker does not take. The next worker of the cluster that uses the directory publishes the events that an earlier one left there.")
        .words("`$XDG_STATE_HOME/bob-runner/spill`"),
    plain("spill.bytes", "BOB_SPILL_BYTES", Some("1Gi"),
        "How much may wait there, in bytes or with a unit (`512Mi`); then the steps' output waits."),
    plain("ci.queue", "BOB_CI_QUEUE", None,
        "The file whose lines `serve` runs as jobs in embedded mode, where `BOB_EXECUTORS` names local, and that `add` writes to.")
        .words("`$XDG_STATE_HOME/bob-runner/ci-job-queue`"),
    plain("ci.attempts", "BOB_CI_ATTEMPTS", Some("3"),
        "How often such a job is tried in all where it does not say; 0 and 1 both mean once."),
    plain("ci.delay", "BOB_CI_DELAY", Some("5s"),
        "The time between two attempts, always the same (`5s`, or whole seconds)."),
    plain("ci.timeout", "BOB_CI_TIMEOUT", None,
        "How long one attempt may take (`10m`, or whole seconds)."),
    plain("outputs.store", "BOB_OUTPUTS", None,
        "Where outputs of steps are kept: a directory, `s3://bucket/prefix`, or `bob-artifact:NAME` for a registered artifact store.")
        .words("nowhere"),
    plain("outputs.s3-endpoint", "BOB_OUTPUTS_S3_ENDPOINT", None,
        "The server of that bucket: `https://host:port`, or `http://` where nothing needs to be hidden on the way.")
        .words("AWS"),
    plain("outputs.s3-region", "BOB_OUTPUTS_S3_REGION", Some("us-east-1"), "The region of that bucket."),
    plain("outputs.s3-access-key", "BOB_OUTPUTS_S3_ACCESS_KEY", None,
        "The id of the key that we show it.").words("the role of the machine in AWS"),
    plain("outputs.s3-secret-key", "BOB_OUTPUTS_S3_SECRET_KEY", None, "The secret of that key.").secret(),
    plain("http.address", "BOB_HTTP_ADDRESS", Some("localhost:9009"), "Where the HTTP API listens.")
        .support(Support::Refused),
    plain("metrics.address", "BOB_METRICS_ADDRESS", Some("localhost:9100"),
        "Where the metrics are; empty: nowhere.").support(Support::Refused),
    plain("log.level", "BOB_LOG_LEVEL", Some("info"),
        "What the program says of itself: `error`, `warn`, `info`, `debug`, `trace` or `off`."),
    plain("log.format", "BOB_LOG_FORMAT", None, "How it says it: `text` or `json`, or `ci`, with which `serve` writes `[date time] [LEVEL] text` to standard output.")
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
        String::from("| variable | in the file | default | what it is |\n|---|---|---|---|\n");
    for setting in SETTINGS {
        let default = match (setting.default_in_words, setting.default) {
            (Some(words), _) => words.to_owned(),
            (None, Some(value)) => format!("`{value}`"),
            (None, None) => "not set".to_owned(),
        };
        let file = if setting.form == Form::Secret {
            format!(" Or `{}`: a file that holds it.", setting.file_variable())
        } else {
            String::new()
        };
        let support = match setting.support {
            Support::Full => "",
            Support::Refused => " **Not done by this version: a value is refused.**",
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
    fn every_name_and_every_variable_stands_once() {
        for (position, setting) in SETTINGS.iter().enumerate() {
            for other in &SETTINGS[position + 1..] {
                assert_ne!(setting.name, other.name);
                assert_ne!(setting.variable, other.variable);
            }
        }
    }

    #[test]
    fn a_misspelt_name_finds_the_one_that_was_meant() {
        let names = || SETTINGS.iter().map(|setting| setting.name);
        assert_eq!(nearest("storage.url", names()), Some("storage.urls"));
        assert_eq!(nearest("queue.pasword", names()), Some("queue.password"));
        assert_eq!(nearest("something-else", names()), None);
    }

    #[test]
    fn the_manual_in_docs_holds_the_table_as_it_is() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/settings.md");
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(file.contains(&manual()), "put this into docs/settings.md:\n{}", manual());
    }
}
