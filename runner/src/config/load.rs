//! Combines flags, variables, file and defaults, in order of precedence, and reports every fault.

use std::path::Path;

use protocol::dialect::MAX_ATTEMPTS;

use super::layer::Layer;
use super::local::{self, SettingValue};
use super::parse::{self, BrokerUrl, Parsed};
use super::setting::{SETTINGS, Setting, Support, ValueForm, named};
use super::sources::Sources;
use super::{
    Broker, Ci, Config, Connection, Engine, Environment, Fault, Faults, Identity, Log, Login,
    Outputs, Queue, S3, Secret, Secrets, Spill, Storage, Stream, StreamServer, Tls, Worker, file,
    grants, outputs, reach, without_credentials,
};

/// The effective settings.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Warnings for the user, one sentence each.
    pub warnings: Vec<String>,
    /// The value and source of each setting.
    pub effective: Vec<Effective>,
}

/// The effective value of one setting.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The setting.
    pub setting: &'static Setting,
    /// The value as text, masked if it is secret.
    pub value: Option<String>,
    /// The source. `None` for a default.
    pub at: Option<String>,
}

/// Loads the settings.
///
/// # Errors
/// Every fault in the settings.
pub fn load(sources: &Sources) -> Result<Loaded, Faults> {
    let mut faults = Vec::new();
    let mut warnings = Vec::new();
    let mut local = None;
    let file = match file::find(sources) {
        Ok(Some(chosen)) => {
            local = chosen.is_local.then(|| chosen.path.display().to_string());
            read_file(&chosen.path, &mut faults)
        }
        Ok(None) => Layer::default(),
        Err(fault) => {
            faults.push(fault);
            Layer::default()
        }
    };
    let merged = config::Config::builder()
        .add_source(Layer::of_defaults())
        .add_source(file)
        .add_source(Layer::of_variables(&sources.environment, &mut faults, &mut warnings))
        .add_source(Layer::of_flags(&sources.flags.set, &mut faults))
        .build()
        .map_err(|cause| {
            Faults(vec![Fault { at: "settings".into(), value: None, expected: cause.to_string() }])
        })?;
    let mut reader = Reader { merged, faults, warnings };
    reader.check_support();
    if let Some(label) = &local {
        let faults = local::check(label, |name| reader.lookup(name), &sources.environment);
        reader.faults.extend(faults);
    }
    let config = reader.config(&sources.environment);
    if !reader.faults.is_empty() {
        return Err(Faults(reader.faults));
    }
    let effective = SETTINGS.iter().map(|setting| reader.effective(setting)).collect();
    Ok(Loaded { config, warnings: reader.warnings, effective })
}

fn read_file(path: &Path, faults: &mut Vec<Fault>) -> Layer {
    match file::read(path) {
        Ok(leaves) => Layer::of_file(&path.display().to_string(), leaves, faults),
        Err(fault) => {
            faults.push(fault);
            Layer::default()
        }
    }
}

struct Reader {
    merged: config::Config,
    faults: Vec<Fault>,
    warnings: Vec<String>,
}

impl Reader {
    fn lookup(&self, name: &str) -> Option<SettingValue> {
        let mut value = &self.merged.cache;
        for part in name.split('.') {
            let config::ValueKind::Table(table) = &value.kind else { return None };
            value = table.get(part)?;
        }
        let at = value.origin().map(str::to_owned);
        // Layers contain only text.
        let text = value.clone().into_string().ok()?;
        Some(SettingValue { text, at })
    }

    fn effective(&self, setting: &'static Setting) -> Effective {
        let found = self.lookup(setting.name);
        let at = found.as_ref().and_then(|found| found.at.clone());
        Effective { setting, value: found.map(|found| masked(setting, &found.text)), at }
    }

    fn fault(&mut self, name: &'static str, found: &SettingValue, expected: String) {
        let value = named(name).map(|setting| masked(setting, &found.text));
        let at = found.at.clone().unwrap_or_else(|| name.to_owned());
        self.faults.push(Fault { at, value, expected });
    }

    /// A setting without a default.
    fn optional<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Parsed<T>) -> Option<T> {
        let found = self.lookup(name)?;
        match parse(&found.text) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.fault(name, &found, expected);
                None
            }
        }
    }

    /// A setting with a default. After a fault, the result is the default, which is never used.
    fn value<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Parsed<T>) -> T {
        self.optional(name, &parse).unwrap_or_else(|| Self::default_of(name, parse))
    }

    fn default_of<T>(name: &'static str, parse: impl Fn(&str) -> Parsed<T>) -> T {
        let default = named(name).and_then(|setting| setting.default);
        #[expect(clippy::expect_used, reason = "a test reads every default of the table")]
        default.and_then(|text| parse(text).ok()).expect("a setting with a default that is valid")
    }

    fn check_support(&mut self) {
        for setting in SETTINGS {
            let Some(found) = self.lookup(setting.name) else { continue };
            let Some(at) = found.at else { continue };
            match setting.support {
                Support::Full => {}
                // An empty value requests nothing.
                Support::Refused if found.text.is_empty() => {}
                Support::Refused => self.faults.push(Fault {
                    at,
                    value: None,
                    expected: "is known, and not done by this version; leave it out".into(),
                }),
            }
        }
    }

    fn config(&mut self, environment: &Environment) -> Config {
        // Unsupported settings are parsed too, so that invalid values are reported.
        let _known: (Option<String>, Option<String>) = (
            self.optional("http.address", parse::address),
            self.optional("metrics.address", |text| match text {
                "" => Ok(String::new()),
                _ => parse::address(text),
            }),
        );
        let state = environment.state_home().join("bob-runner");
        let queue = self.queue();
        let env_files = self.optional("worker.env-files", parse::env_files);
        let (step_env, warnings) = env_files.unwrap_or_default();
        self.warnings.extend(warnings);
        Config {
            mode: self.value("mode", parse::mode),
            data_dir: self.optional("data-dir", parse::path).unwrap_or_else(|| state.clone()),
            storage: self.storage(),
            stream: self.stream(&queue.broker.login),
            queue,
            connection: Connection {
                retry_attempts: self
                    .value("connection.retry-attempts", parse::number(1, 1_000_000)),
                retry_delay: self.value("connection.retry-delay", parse::millis(0, 3_600_000)),
            },
            engine: self.engine(environment),
            worker: self.worker(),
            secrets: self.secrets(environment),
            allowed_addresses: self
                .optional("worker.allowed-addresses", reach::addresses)
                .unwrap_or_default(),
            step_env,
            job_env: environment.job_variables(),
            spill: Spill {
                dir: self.optional("spill.dir", parse::path).unwrap_or_else(|| state.join("spill")),
                bytes: self.value("spill.bytes", parse::bytes),
            },
            ci: self.ci(&state),
            outputs: self.outputs(),
            log: Log {
                level: self.value("log.level", parse::log_level),
                format: self.optional("log.format", parse::log_format),
            },
        }
    }

    fn storage(&mut self) -> Storage {
        let said = self.optional("storage.urls", parse::storage_urls);
        // If the URL is invalid, report no faults about related settings.
        let encrypted =
            said.as_ref().is_none_or(|said| said.urls.iter().all(|url| url.scheme() == "https"));
        let urls = said.unwrap_or_else(|| Self::default_of("storage.urls", parse::storage_urls));
        let user = self.optional("storage.user", parse::line).or(urls.user);
        let password = self.optional("storage.password", secret).or(urls.password);
        let tls = self.tls(
            ["storage.ca", "storage.cert", "storage.key"],
            encrypted,
            "storage.urls with https://",
        );
        let login = match (user, password) {
            (Some(user), Some(password)) => Some(Login { user, password }),
            (None, None) => None,
            (Some(_), None) => self.missing("storage.user", "storage.password"),
            (None, Some(_)) => self.missing("storage.password", "storage.user"),
        };
        Storage { urls: urls.urls, login, tls }
    }

    /// Reports that `given` requires `missing`.
    fn missing<T>(&mut self, given: &'static str, missing: &'static str) -> Option<T> {
        let at = self.lookup(given).and_then(|found| found.at).unwrap_or_else(|| given.to_owned());
        let variable = named(missing).map_or(missing, |setting| setting.variable);
        let expected = format!("needs {missing} too ({variable})");
        self.faults.push(Fault { at, value: None, expected });
        None
    }

    fn tls(&mut self, names: [&'static str; 3], encrypted: bool, needs: &str) -> Tls {
        let [ca_name, cert_name, key_name] = names;
        for name in names {
            let Some(found) = self.lookup(name) else { continue };
            if !encrypted {
                let at = found.at.unwrap_or_else(|| name.to_owned());
                let expected = format!("has a use only for {needs}, which is not what was given");
                self.faults.push(Fault { at, value: None, expected });
            }
        }
        let ca = self.optional(ca_name, parse::readable_file);
        let given = (self.lookup(cert_name).is_some(), self.lookup(key_name).is_some());
        let cert = self.optional(cert_name, parse::readable_file);
        let key = self.optional(key_name, parse::readable_file);
        let identity = match given {
            (true, false) => self.missing(cert_name, key_name),
            (false, true) => self.missing(key_name, cert_name),
            (true, true) | (false, false) => {
                cert.zip(key).map(|(cert, key)| Identity { cert, key })
            }
        };
        Tls { ca, identity }
    }

    /// A set value takes precedence over the URL, and the URL over the default.
    fn said_or_in_url<T>(
        &mut self,
        name: &'static str,
        in_url: Option<T>,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> T {
        let is_said = self.lookup(name).is_some_and(|found| found.at.is_some());
        match in_url {
            Some(value) if !is_said => value,
            Some(_) | None => self.value(name, parse),
        }
    }

    fn queue(&mut self) -> Queue {
        let said = self.optional("queue.url", parse::queue_url);
        let encrypted = said.as_ref().is_none_or(|url| url.tls);
        let url = said.unwrap_or_else(|| Self::default_of("queue.url", parse::queue_url));
        let login = Login {
            user: self.said_or_in_url("queue.user", url.user.clone(), parse::line),
            password: self.said_or_in_url("queue.password", url.password.clone(), secret),
        };
        let names = ["queue.ca", "queue.cert", "queue.key"];
        let tls = self.tls(names, encrypted, "queue.url with amqps://");
        Queue { broker: broker(url, login), tls }
    }

    /// Credentials missing in the stream's URL are taken from the queue.
    fn stream(&mut self, queue: &Login) -> Stream {
        let server = self.optional("stream.url", parse::stream_url).map(|url| {
            let login = Login {
                user: url.user.clone().unwrap_or_else(|| queue.user.clone()),
                password: url.password.clone().unwrap_or_else(|| queue.password.clone()),
            };
            StreamServer { protocol: url.protocol, broker: broker(url, login) }
        });
        Stream {
            name: self.value("stream.name", parse::queue_name),
            retention_days: self.value("stream.retention-days", parse::number(1, 36_500)),
            max_bytes: self.optional("stream.max-bytes", parse::stream_bytes),
            server,
        }
    }

    fn outputs(&mut self) -> Option<Outputs> {
        let said = self.optional("outputs.store", outputs::parse_store);
        let wrong = said.is_none() && self.lookup("outputs.store").is_some();
        let names =
            ["endpoint", "access-key", "secret-key"].map(|name| format!("outputs.s3-{name}"));
        // If the store is invalid, report no faults about related settings.
        if !wrong && !matches!(said, Some(outputs::StoreSetting::Bucket { .. })) {
            for name in names {
                let Some(found) = self.lookup(&name) else { continue };
                let expected =
                    "has a use only for outputs.store with s3://, which is not what was given";
                let at = found.at.unwrap_or(name);
                self.faults.push(Fault { at, value: None, expected: expected.into() });
            }
        }
        let (user, password) = ("outputs.s3-access-key", "outputs.s3-secret-key");
        let login = match (self.optional(user, parse::line), self.optional(password, secret)) {
            (Some(user), Some(password)) => Some(Login { user, password }),
            (Some(_), None) => self.missing(user, password),
            (None, Some(_)) => self.missing(password, user),
            (None, None) => None,
        };
        let endpoint = self.optional("outputs.s3-endpoint", outputs::endpoint);
        let region = self.value("outputs.s3-region", parse::line);
        Some(match said? {
            outputs::StoreSetting::Directory(path) => Outputs::Directory(path),
            outputs::StoreSetting::ArtifactStore(name) => Outputs::ArtifactStore(name),
            outputs::StoreSetting::Bucket { bucket, prefix } => {
                Outputs::S3(S3 { bucket, prefix, endpoint, region, login })
            }
        })
    }

    fn engine(&mut self, environment: &Environment) -> Engine {
        let auth_file = self.optional("engine.registry-auth-file", parse::readable_file);
        Engine {
            url: self.optional("engine.url", parse::engine_url),
            docker_url: self.optional("engine.docker-url", parse::engine_url),
            user_socket: environment.runtime_dir().map(|dir| dir.join("podman/podman.sock")),
            program: environment.program("podman"),
            uid_mapper: environment.program("newuidmap"),
            network: self.optional("engine.network", grants::network),
            pull_policy: self.value("engine.pull-policy", parse::pull_policy),
            registry_auth_file: auth_file.or_else(|| environment.podman_auth_file()),
            registry_auth_places: environment.podman_auth_places(),
            registry_insecure: self
                .optional("engine.registry-insecure", parse::hosts)
                .unwrap_or_default(),
            shared_dirs: self
                .optional("engine.shared-dirs", grants::shared_dirs)
                .unwrap_or_default(),
            shared_volumes: self
                .optional("engine.shared-volumes", grants::volumes)
                .unwrap_or_default(),
            networks: self.optional("engine.networks", grants::networks).unwrap_or_default(),
        }
    }

    fn ci(&mut self, state: &Path) -> Ci {
        let queue = self.optional("ci.queue", parse::path);
        Ci {
            is_named: queue.is_some(),
            queue: queue.unwrap_or_else(|| state.join("ci-job-queue")),
            attempts: self.value("ci.attempts", parse::number(0, MAX_ATTEMPTS)),
            delay: self.value("ci.delay", parse::span),
            timeout: self.optional("ci.timeout", parse::span),
        }
    }

    fn secrets(&mut self, environment: &Environment) -> Secrets {
        let mut dirs = self.optional("worker.secrets-dir", parse::dirs).unwrap_or_default();
        dirs.extend(environment.credentials_dir());
        let scopes = self.optional("worker.secrets-scopes", reach::scopes).unwrap_or_default();
        Secrets { dirs, variables: environment.secrets(), scopes }
    }

    fn worker(&mut self) -> Worker {
        let worker = Worker {
            max_parallel_runs: self.value("worker.max-parallel-runs", parse::number(1, 10_000)),
            executors: self.value("worker.executors", parse::executors),
            log_limit: self.value("worker.log-limit-bytes", parse::limit),
            literal_secrets: self.value("worker.literal-secrets", parse::literal_secrets),
            max_parallel_steps: self.value("worker.max-parallel-steps", parse::number(1, 10_000)),
            run_retention_days: self.value("worker.run-retention-days", parse::number(1, 36_500)),
            max_losses: self.value("worker.max-losses", parse::number(0, 1_000)),
            checkpoint_registry: self.optional("worker.checkpoint-registry", parse::repository),
            lease_ttl: self.value("worker.lease-ttl-seconds", parse::seconds(1, 3_600)),
            drain: self.value("worker.drain-seconds", parse::seconds(0, 604_800)),
            kill_grace: self.value("worker.kill-grace-seconds", parse::seconds(0, 3_600)),
            health_check: self.value("worker.health-check-freq", parse::millis(100, 3_600_000)),
            file_dirs: self.optional("worker.file-dirs", parse::dirs).unwrap_or_default(),
            disk_high: self.value("worker.disk-high", parse::number(1, 100)),
            disk_low: self.value("worker.disk-low", parse::number(1, 100)),
            base_images_bytes: self.value("worker.base-images-bytes", parse::bytes),
        };
        if worker.disk_low >= worker.disk_high {
            let said = |found: &SettingValue| found.at.is_some();
            // Report the value that the user set, because a default has no source.
            if let Some(found) = self.lookup("worker.disk-low").filter(said) {
                let expected = format!("less than worker.disk-high, which is {}", worker.disk_high);
                self.fault("worker.disk-low", &found, expected);
            } else if let Some(found) = self.lookup("worker.disk-high") {
                let expected = format!("more than worker.disk-low, which is {}", worker.disk_low);
                self.fault("worker.disk-high", &found, expected);
            }
        }
        worker
    }
}

fn broker(url: BrokerUrl, login: Login) -> Broker {
    Broker { tls: url.tls, host: url.host, port: url.port, vhost: url.vhost, login }
}

#[expect(clippy::unnecessary_wraps, reason = "it has the form of the parsers")]
fn secret(text: &str) -> Parsed<Secret<String>> {
    Ok(Secret::new(text.to_owned()))
}

fn masked(setting: &Setting, text: &str) -> String {
    match setting.form {
        ValueForm::Secret => "***".to_owned(),
        ValueForm::Single | ValueForm::List => without_credentials(text),
    }
}
