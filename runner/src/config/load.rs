//! Combines flags, variables, file and defaults, in order of precedence, and reports every fault.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use protocol::quantity::Span;

use super::key::Key;
use super::layer::Layer;
use super::local::{self, SettingValue};
use super::outputs::StoreSetting;
use super::parse::BrokerUrl;
use super::reader::{Reader, masked};
use super::setting::{SETTINGS, Setting};
use super::sources::Sources;
use super::{
    Broker, CertificateFiles, Ci, Config, Connection, Definitions, Engine, Environment, Fault,
    Faults, Http, HttpAccess, Identity, Log, Login, Outputs, Queue, S3, Secrets, Spill, Storage,
    Stream, StreamServer, Tls, Worker, file, table,
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

impl Loaded {
    /// Whether a setting was set, rather than left at its default.
    #[must_use]
    pub fn is_set<T>(&self, key: &Key<T>) -> bool {
        self.effective.iter().any(|one| one.setting.name == key.name() && one.at.is_some())
    }
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
    let effective = SETTINGS.iter().map(|&setting| reader.effective(setting)).collect();
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

impl Reader {
    fn effective(&self, setting: &'static Setting) -> Effective {
        let found = self.lookup(setting.name);
        let at = found.as_ref().and_then(|found| found.at.clone());
        Effective { setting, value: found.map(|found| masked(setting, &found.text)), at }
    }

    fn config(&mut self, environment: &Environment) -> Config {
        // Unsupported settings are parsed too, so that invalid values are reported.
        let _known: Option<String> = self.optional(&table::METRICS_ADDRESS);
        let state = environment.state_home().join("bob-runner");
        let queue = self.queue();
        let env_files = self.optional(&table::WORKER_ENV_FILES);
        let (step_env, warnings) = env_files.unwrap_or_default();
        self.warnings.extend(warnings);
        Config {
            mode: self.value(&table::MODE),
            data_dir: self.optional(&table::DATA_DIR).unwrap_or_else(|| state.clone()),
            storage: self.storage(),
            stream: self.stream(&queue.broker.login),
            queue,
            connection: Connection {
                retry_attempts: self.value(&table::CONNECTION_RETRY_ATTEMPTS),
                retry_delay: self.value(&table::CONNECTION_RETRY_DELAY),
            },
            engine: self.engine(environment),
            worker: self.worker(),
            secrets: self.secrets(environment),
            allowed_addresses: self.list(&table::WORKER_ALLOWED_ADDRESSES),
            step_env,
            job_env: environment.job_variables(),
            spill: Spill {
                dir: self.optional(&table::SPILL_DIR).unwrap_or_else(|| state.join("spill")),
                bytes: self.value(&table::SPILL_BYTES),
            },
            ci: self.ci(&state),
            outputs: self.outputs(),
            definitions: self.definitions(),
            http: self.http(),
            http_access: self.http_access(),
            log: Log {
                level: self.value(&table::LOG_LEVEL),
                format: self.optional(&table::LOG_FORMAT),
            },
        }
    }

    fn definitions(&mut self) -> Definitions {
        Definitions {
            dir: self.optional(&table::DEFINITIONS_DIR),
            pattern: self.value(&table::DEFINITIONS_PATTERN),
            watch: self.optional(&table::DEFINITIONS_WATCH).map(Span::as_duration),
            source: self.optional(&table::DEFINITIONS_SOURCE),
        }
    }

    fn http(&mut self) -> Http {
        let address = self.value(&table::HTTP_ADDRESS);
        let found = self.lookup(table::HTTP_ADDRESS.name());
        let is_named = found.as_ref().is_some_and(|found| found.at.is_some());
        let runs = self.lookup(table::WORKER_MAX_PARALLEL_RUNS.name());
        let has_no_slots = runs.is_some_and(|runs| runs.text == "0");
        if let Some(found) = found.filter(|_| has_no_slots && address.is_none()) {
            let expected = "host:port, because worker.max-parallel-runs is 0: nothing but the HTTP \
                            API is left";
            self.fault(table::HTTP_ADDRESS.setting(), &found, expected.into());
        }
        Http { address, is_named, log_cache_bytes: self.value(&table::HTTP_LOG_CACHE_BYTES) }
    }

    fn http_access(&mut self) -> HttpAccess {
        let (cert, key) = (&table::HTTP_TLS_CERT, &table::HTTP_TLS_KEY);
        let given = (self.lookup(cert.name()).is_some(), self.lookup(key.name()).is_some());
        let files = (self.optional(cert), self.optional(key));
        let certificate = match given {
            (true, false) => self.missing(cert, key),
            (false, true) => self.missing(key, cert),
            (true, true) | (false, false) => {
                files.0.zip(files.1).map(|(cert, key)| CertificateFiles { cert, key })
            }
        };
        HttpAccess {
            secret: self.optional(&table::HTTP_JWT_SECRET),
            keys: self.optional(&table::HTTP_JWKS),
            audience: self.list(&table::HTTP_JWT_AUDIENCE),
            issuer: self.list(&table::HTTP_JWT_ISSUER),
            hosts: self.list(&table::HTTP_HOSTS),
            certificate,
            rate: NonZeroU32::new(self.value(&table::HTTP_RATE)),
            max_body_bytes: self.value(&table::HTTP_MAX_BODY_BYTES),
            max_connections: self.value(&table::HTTP_MAX_CONNECTIONS),
            header_time: self.value(&table::HTTP_HEADER_SECONDS),
            request_time: self.value(&table::HTTP_REQUEST_SECONDS),
        }
    }

    fn storage(&mut self) -> Storage {
        let said = self.optional(&table::STORAGE_URLS);
        // If the URL is invalid, report no faults about related settings.
        let encrypted =
            said.as_ref().is_none_or(|said| said.urls.iter().all(|url| url.scheme() == "https"));
        let urls = said.unwrap_or_else(|| Self::default_of(&table::STORAGE_URLS));
        let user = self.optional(&table::STORAGE_USER).or(urls.user);
        let password = self.optional(&table::STORAGE_PASSWORD).or(urls.password);
        let keys = [&table::STORAGE_CA, &table::STORAGE_CERT, &table::STORAGE_KEY];
        let tls = self.tls(keys, encrypted, "storage.urls with https://");
        let login = match (user, password) {
            (Some(user), Some(password)) => Some(Login { user, password }),
            (None, None) => None,
            (Some(_), None) => self.missing(&table::STORAGE_USER, &table::STORAGE_PASSWORD),
            (None, Some(_)) => self.missing(&table::STORAGE_PASSWORD, &table::STORAGE_USER),
        };
        Storage { urls: urls.urls, login, tls }
    }

    fn tls(&mut self, keys: [&Key<PathBuf>; 3], encrypted: bool, needs: &str) -> Tls {
        let [ca, cert, key] = keys;
        for file in keys {
            let Some(found) = self.lookup(file.name()) else { continue };
            if !encrypted {
                let at = found.at.unwrap_or_else(|| file.name().to_owned());
                let expected = format!("has a use only for {needs}, which is not what was given");
                self.faults.push(Fault { at, value: None, expected });
            }
        }
        let ca = self.optional(ca);
        let given = (self.lookup(cert.name()).is_some(), self.lookup(key.name()).is_some());
        let files = (self.optional(cert), self.optional(key));
        let identity = match given {
            (true, false) => self.missing(cert, key),
            (false, true) => self.missing(key, cert),
            (true, true) | (false, false) => {
                files.0.zip(files.1).map(|(cert, key)| Identity { cert, key })
            }
        };
        Tls { ca, identity }
    }

    fn queue(&mut self) -> Queue {
        let said = self.optional(&table::QUEUE_URL);
        let encrypted = said.as_ref().is_none_or(|url| url.tls);
        let url = said.unwrap_or_else(|| Self::default_of(&table::QUEUE_URL));
        let login = Login {
            user: self.value_or_in_url(&table::QUEUE_USER, url.user.clone()),
            password: self.value_or_in_url(&table::QUEUE_PASSWORD, url.password.clone()),
        };
        let keys = [&table::QUEUE_CA, &table::QUEUE_CERT, &table::QUEUE_KEY];
        let tls = self.tls(keys, encrypted, "queue.url with amqps://");
        Queue { broker: broker(url, login), tls }
    }

    /// Credentials missing in the stream's URL are taken from the queue.
    fn stream(&mut self, queue: &Login) -> Stream {
        let server = self.optional(&table::STREAM_URL).map(|url| {
            let login = Login {
                user: url.user.clone().unwrap_or_else(|| queue.user.clone()),
                password: url.password.clone().unwrap_or_else(|| queue.password.clone()),
            };
            StreamServer { protocol: url.protocol, broker: broker(url, login) }
        });
        Stream {
            name: self.value(&table::STREAM_NAME),
            retention_days: self.value(&table::STREAM_RETENTION_DAYS),
            max_bytes: self.optional(&table::STREAM_MAX_BYTES),
            server,
        }
    }

    fn outputs(&mut self) -> Option<Outputs> {
        let said = self.optional(&table::OUTPUTS_STORE);
        let wrong = said.is_none() && self.lookup(table::OUTPUTS_STORE.name()).is_some();
        let (user, password) = (&table::OUTPUTS_S3_ACCESS_KEY, &table::OUTPUTS_S3_SECRET_KEY);
        let endpoint = &table::OUTPUTS_S3_ENDPOINT;
        // If the store is invalid, report no faults about related settings.
        if !wrong && !matches!(said, Some(StoreSetting::Bucket { .. })) {
            for name in [endpoint.name(), user.name(), password.name()] {
                let Some(found) = self.lookup(name) else { continue };
                let expected =
                    "has a use only for outputs.store with s3://, which is not what was given";
                let at = found.at.unwrap_or_else(|| name.to_owned());
                self.faults.push(Fault { at, value: None, expected: expected.into() });
            }
        }
        let login = match (self.optional(user), self.optional(password)) {
            (Some(user), Some(password)) => Some(Login { user, password }),
            (Some(_), None) => self.missing(user, password),
            (None, Some(_)) => self.missing(password, user),
            (None, None) => None,
        };
        let endpoint = self.optional(endpoint);
        let region = self.value(&table::OUTPUTS_S3_REGION);
        Some(match said? {
            StoreSetting::Directory(path) => Outputs::Directory(path),
            StoreSetting::ArtifactStore(name) => Outputs::ArtifactStore(name),
            StoreSetting::Bucket { bucket, prefix } => {
                Outputs::S3(S3 { bucket, prefix, endpoint, region, login })
            }
        })
    }

    fn engine(&mut self, environment: &Environment) -> Engine {
        let auth_file = self.optional(&table::ENGINE_REGISTRY_AUTH_FILE);
        Engine {
            url: self.optional(&table::ENGINE_URL),
            docker_url: self.optional(&table::ENGINE_DOCKER_URL),
            user_socket: environment.runtime_dir().map(|dir| dir.join("podman/podman.sock")),
            program: environment.program("podman"),
            uid_mapper: environment.program("newuidmap"),
            network: self.optional(&table::ENGINE_NETWORK),
            pull_policy: self.value(&table::ENGINE_PULL_POLICY),
            registry_auth_file: auth_file.or_else(|| environment.podman_auth_file()),
            registry_auth_places: environment.podman_auth_places(),
            registry_insecure: self.list(&table::ENGINE_REGISTRY_INSECURE),
            shared_dirs: self.list(&table::ENGINE_SHARED_DIRS),
            shared_volumes: self.list(&table::ENGINE_SHARED_VOLUMES),
            networks: self.list(&table::ENGINE_NETWORKS),
        }
    }

    fn ci(&mut self, state: &Path) -> Ci {
        let queue = self.optional(&table::CI_QUEUE);
        Ci {
            is_named: queue.is_some(),
            queue: queue.unwrap_or_else(|| state.join("ci-job-queue")),
            attempts: self.value(&table::CI_ATTEMPTS),
            delay: self.value(&table::CI_DELAY),
            timeout: self.optional(&table::CI_TIMEOUT),
        }
    }

    fn secrets(&mut self, environment: &Environment) -> Secrets {
        let mut dirs = self.list(&table::WORKER_SECRETS_DIR);
        dirs.extend(environment.credentials_dir());
        let scopes = self.list(&table::WORKER_SECRETS_SCOPES);
        Secrets { dirs, variables: environment.secrets(), scopes }
    }

    fn worker(&mut self) -> Worker {
        let worker = Worker {
            max_parallel_runs: self.value(&table::WORKER_MAX_PARALLEL_RUNS),
            executors: self.value(&table::WORKER_EXECUTORS),
            log_limit: self.value(&table::WORKER_LOG_LIMIT_BYTES),
            literal_secrets: self.value(&table::WORKER_LITERAL_SECRETS),
            max_parallel_steps: self.value(&table::WORKER_MAX_PARALLEL_STEPS),
            run_retention_days: self.value(&table::WORKER_RUN_RETENTION_DAYS),
            run_retention_count: Some(self.value(&table::WORKER_RUN_RETENTION_COUNT))
                .filter(|count| *count > 0),
            max_losses: self.value(&table::WORKER_MAX_LOSSES),
            checkpoint_registry: self.optional(&table::WORKER_CHECKPOINT_REGISTRY),
            lease_ttl: self.value(&table::WORKER_LEASE_TTL_SECONDS),
            drain: self.value(&table::WORKER_DRAIN_SECONDS),
            kill_grace: self.value(&table::WORKER_KILL_GRACE_SECONDS),
            health_check: self.value(&table::WORKER_HEALTH_CHECK_FREQ),
            file_dirs: self.list(&table::WORKER_FILE_DIRS),
            disk_high: self.value(&table::WORKER_DISK_HIGH),
            disk_low: self.value(&table::WORKER_DISK_LOW),
            base_images_bytes: self.value(&table::WORKER_BASE_IMAGES_BYTES),
        };
        if worker.disk_low >= worker.disk_high {
            let (high, low) = (&table::WORKER_DISK_HIGH, &table::WORKER_DISK_LOW);
            let is_set = |found: &SettingValue| found.at.is_some();
            // Report the value that the user set, because a default has no source.
            if let Some(found) = self.lookup(low.name()).filter(is_set) {
                let expected = format!("less than {}, which is {}", high.name(), worker.disk_high);
                self.fault(low.setting(), &found, expected);
            } else if let Some(found) = self.lookup(high.name()) {
                let expected = format!("more than {}, which is {}", low.name(), worker.disk_low);
                self.fault(high.setting(), &found, expected);
            }
        }
        worker
    }
}

fn broker(url: BrokerUrl, login: Login) -> Broker {
    Broker { tls: url.tls, host: url.host, port: url.port, vhost: url.vhost, login }
}
