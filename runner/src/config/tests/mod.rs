//! The settings as a whole: precedence, complete reports of faults, and masking of secrets.

use std::path::Path;

use super::*;

mod http_access;
mod trust;

/// Loads settings from the text of a file, variables and `--set`.
fn loaded(
    file: Option<(&str, &str)>,
    environment: Environment,
    set: &[&str],
) -> Result<Loaded, Faults> {
    let directory = tempfile::tempdir().unwrap();
    if let Some((name, text)) = file {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let flags = Flags { config: None, set: set.iter().map(|&pair| pair.to_owned()).collect() };
    load(&Sources {
        flags,
        environment,
        working_dir: directory.path().to_owned(),
        system_dir: directory.path().join("etc"),
    })
}

fn config_of<const N: usize>(variables: [(&str, &str); N]) -> Config {
    loaded(None, Environment::from(variables), &[]).unwrap().config
}

fn faults_of<const N: usize>(variables: [(&str, &str); N]) -> String {
    loaded(None, Environment::from(variables), &[]).unwrap_err().to_string()
}

#[test]
fn the_defaults_match_the_wire_contract() {
    let config = config_of([("HOME", "/home/x")]);
    assert_eq!(config.mode, Mode::Cluster);
    assert_eq!(config.data_dir, Path::new("/home/x/.local/state/bob-runner"));
    assert_eq!(config.spill.dir, Path::new("/home/x/.local/state/bob-runner/spill"));
    assert_eq!(config.spill.bytes, 1 << 30);
    assert_eq!(config.storage.urls[0].as_str(), "http://localhost:2379/");
    assert_eq!(config.storage.login, None);
    assert_eq!(config.queue.broker.to_string(), "amqp://localhost:5672");
    assert_eq!(config.queue.broker.vhost, "/");
    assert_eq!(config.queue.broker.login.user, "guest");
    assert_eq!(config.queue.broker.login.password.expose(), "guest");
    assert_eq!(config.connection.retry_attempts, 10);
    assert_eq!(config.connection.retry_delay, Duration::from_secs(2));
    assert_eq!(
        (config.stream.name.as_str(), config.stream.retention_days),
        ("bob.event-stream", 7)
    );
    assert_eq!(config.stream.server, None);
    assert_eq!(config.engine.url, None);
    assert_eq!(config.engine.pull_policy, PullPolicy::Missing);
    let worker = &config.worker;
    assert_eq!((worker.max_parallel_runs, worker.run_retention_days, worker.max_losses), (4, 7, 3));
    assert_eq!((worker.disk_high, worker.disk_low), (85, 80));
    let seconds = [worker.lease_ttl, worker.drain, worker.kill_grace, worker.health_check];
    assert_eq!(seconds.map(|span| span.as_secs()), [10, 30, 10, 10]);
    assert_eq!(config.log, Log { level: LogLevel::Info, format: None });
}

#[test]
fn flags_override_variables_and_variables_override_the_file() {
    let toml = ("bob-runner.toml", "[worker]\nmax-parallel-runs = 2\n");
    let yaml = ("bob-runner.yaml", r#"{"worker": {"max_parallel_runs": 2}}"#);
    let variable = || Environment::from([("BOB_MAX_PARALLEL_RUNS", "3")]);
    let none = Environment::default;
    let flag = ["worker.max-parallel-runs=5"];
    let nothing: [&str; 0] = [];
    for (file, environment, set, expected, at) in [
        (None, none(), &nothing[..], 4, None),
        (Some(toml), none(), &nothing, 2, Some("bob-runner.toml: worker.max-parallel-runs")),
        (Some(yaml), none(), &nothing, 2, Some("bob-runner.yaml: worker.max-parallel-runs")),
        (Some(toml), variable(), &nothing, 3, Some("BOB_MAX_PARALLEL_RUNS")),
        (Some(toml), variable(), &flag, 5, Some("--set worker.max-parallel-runs")),
        (None, variable(), &flag, 5, Some("--set worker.max-parallel-runs")),
        (Some(toml), none(), &flag, 5, Some("--set worker.max-parallel-runs")),
    ] {
        let loaded = loaded(file, environment, set).unwrap();
        assert_eq!(loaded.config.worker.max_parallel_runs, expected);
        let effective = loaded
            .effective
            .iter()
            .find(|effective| effective.setting.name == "worker.max-parallel-runs")
            .unwrap();
        let said = effective.at.as_deref();
        assert_eq!(said.map(|said| at.is_some_and(|at| said.ends_with(at))), at.map(|_| true));
    }
}

#[test]
fn a_variable_overrides_the_url_which_overrides_the_default() {
    let url = ("BOB_QUEUE_URL", "amqp://u:p@h/dev");
    let login = |config: &Config| {
        let login = &config.queue.broker.login;
        (login.user.clone(), login.password.expose().clone())
    };
    assert_eq!(login(&config_of([url])), ("u".into(), "p".into()));
    assert_eq!(login(&config_of([url, ("BOB_QUEUE_USER", "v")])), ("v".into(), "p".into()));
    assert_eq!(login(&config_of([("BOB_QUEUE_USER", "v")])), ("v".into(), "guest".into()));
    assert_eq!(config_of([url]).queue.broker.vhost, "dev");
    let storage = config_of([("BOB_STORAGE_URLS", "http://a:b@h"), ("BOB_STORAGE_PASSWORD", "c")]);
    let login = storage.storage.login.unwrap();
    assert_eq!((login.user.as_str(), login.password.expose().as_str()), ("a", "c"));
    assert_eq!(storage.storage.urls[0].as_str(), "http://h/");
    let stream = config_of([url, ("BOB_STREAM_URL", "amqps://s")]).stream.server.unwrap();
    assert_eq!((stream.broker.login.user.as_str(), stream.broker.port), ("u", 5671));
    assert_eq!(stream.url(), "amqps://s:5671/%2F");
    let own =
        config_of([url, ("BOB_STREAM_URL", "rabbitmq-stream://x:y@s")]).stream.server.unwrap();
    assert_eq!((own.broker.login.user.as_str(), own.protocol), ("x", StreamProtocol::Native));
    assert_eq!(own.url(), "rabbitmq-stream://s:5552/%2F");
}

#[test]
fn all_faults_are_reported_together_with_name_value_and_expectation() {
    let toml = "mods = \"x\"\n[queue]\nurls = 1\n[worker]\ndrain-seconds = -1\ndisk-low = [1]\n";
    let environment = Environment::from([
        ("BOB_MODE", "clustered"),
        ("BOB_STORAGE_URLS", "localhost:2379"),
        ("BOB_QUEUE_URL", "http://user:hunter2@host"),
        ("BOB_DISK_HIGH", "101"),
        ("BOB_STORAGE_USER", "bob"),
        ("BOB_QUEUE_CA", "/nonexistent/ca.pem"),
        ("BOB_QUEUE_CERT", "/nonexistent/cert.pem"),
        ("BOB_CHECKPOINT_REGISTRY", "registry.local/Name:tag"),
    ]);
    let set = ["log.level=loud", "nonsense", "stream.nam=x", "queue.password=hunter2"];
    let faults = loaded(Some(("bob-runner.toml", toml)), environment, &set).unwrap_err();
    let text = faults.to_string();
    for expected in [
        "mods: unknown setting; did you mean mode?",
        "queue.urls: unknown setting; did you mean queue.url?",
        "worker.drain-seconds = \"-1\": expected a whole number from 0",
        "worker.disk-low: is a list",
        "BOB_MODE = \"clustered\": expected one of cluster, embedded",
        "BOB_STORAGE_URLS = \"localhost:2379\": expected http://host:port",
        "BOB_QUEUE_URL = \"http://***@host\": expected amqp://host:port",
        "BOB_DISK_HIGH = \"101\": expected a whole number from 1 to 100",
        "BOB_STORAGE_USER: needs storage.password too (BOB_STORAGE_PASSWORD)",
        "BOB_QUEUE_CA = \"/nonexistent/ca.pem\": expected a file that can be read",
        "BOB_QUEUE_CERT: needs queue.key too (BOB_QUEUE_KEY)",
        "BOB_CHECKPOINT_REGISTRY = \"registry.local/Name:tag\": expected a registry as host",
        "--set log.level = \"loud\": expected one of",
        "--set nonsense: expected NAME=VALUE",
        "--set stream.nam: unknown setting; did you mean stream.name?",
        "--set queue.password: is a password",
    ] {
        assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
    assert!(text.starts_with(&format!("{} settings are wrong\n", faults.0.len())), "{text}");
}

#[test]
fn a_password_can_be_a_file_but_not_set_twice() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter2\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = config_of([("BOB_QUEUE_PASSWORD_FILE", path)]);
    assert_eq!(config.queue.broker.login.password.expose(), "hunter2");
    let toml = format!("[queue]\npassword-file = {path:?}\n");
    let said = loaded(Some(("bob-runner.toml", &toml)), Environment::default(), &[]).unwrap();
    assert_eq!(said.config.queue.broker.login.password.expose(), "hunter2");
    let twice = faults_of([("BOB_QUEUE_PASSWORD_FILE", path), ("BOB_QUEUE_PASSWORD", "x")]);
    assert!(twice.contains("BOB_QUEUE_PASSWORD: is said twice"), "{twice}");
    // A variable overrides the file, even if one of them gives a path.
    let variable = Environment::from([("BOB_QUEUE_PASSWORD", "x")]);
    let over = loaded(Some(("bob-runner.toml", &toml)), variable, &[]).unwrap();
    assert_eq!(over.config.queue.broker.login.password.expose(), "x");
    let missing = faults_of([("BOB_STORAGE_PASSWORD_FILE", "/nonexistent/p")]);
    assert!(missing.contains("BOB_STORAGE_PASSWORD_FILE = \"/nonexistent/p\""), "{missing}");
}

#[test]
fn a_password_file_with_several_lines_is_refused_and_not_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    for text in ["hunter2\n\n", "hunter2\nmore", "\nhunter2\n", "hunter2\r\r\n"] {
        std::fs::write(file.path(), text).unwrap();
        let faults = faults_of([("BOB_QUEUE_PASSWORD_FILE", path)]);
        assert!(faults.contains("a file that holds one line"), "{text:?}: {faults}");
        assert!(faults.contains(path) && !faults.contains("hunter2"), "{text:?}: {faults}");
    }
    std::fs::write(file.path(), "hunter2\r\n").unwrap();
    let config = config_of([("BOB_QUEUE_PASSWORD_FILE", path)]);
    assert_eq!(config.queue.broker.login.password.expose(), "hunter2");
}

#[test]
fn secrets_are_never_shown() {
    let environment = Environment::from([
        ("BOB_QUEUE_URL", "amqp://u:hunter2@h"),
        ("BOB_QUEUE_PASSWORD", "hunter2"),
        ("BOB_STORAGE_URLS", "http://u:hunter2@h"),
        ("BOB_STREAM_URL", "amqp://u:hunter2@h"),
    ]);
    let loaded = loaded(None, environment, &[]).unwrap();
    let shown = format!("{loaded:?} {} {:?}", loaded.config.queue.broker, loaded.config);
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn unsupported_addresses_are_ignored_by_default_and_refused_if_set() {
    assert!(loaded(None, Environment::default(), &[]).unwrap().warnings.is_empty());
    let off = Environment::from([("BOB_METRICS_ADDRESS", "")]);
    assert!(loaded(None, off, &[]).unwrap().warnings.is_empty());
    let faults = faults_of([("BOB_METRICS_ADDRESS", "localhost:1")]);
    assert!(faults.contains("BOB_METRICS_ADDRESS: is known, and not done"), "{faults}");
}

#[test]
fn the_http_api_has_a_default_address_and_can_be_switched_off() {
    let http = loaded(None, Environment::default(), &[]).unwrap().config.http;
    assert_eq!((http.address.as_deref(), http.is_named), (Some("localhost:9009"), false));
    let http = config_of([("BOB_HTTP_ADDRESS", "localhost:9009")]).http;
    assert_eq!((http.address.as_deref(), http.is_named), (Some("localhost:9009"), true));
    assert_eq!(config_of([("BOB_HTTP_ADDRESS", "off")]).http.address, None);
    let faults = faults_of([("BOB_HTTP_ADDRESS", "9009")]);
    assert!(faults.contains("expected host:port, or off"), "{faults}");
    assert_eq!(config_of([("BOB_MAX_PARALLEL_RUNS", "0")]).worker.max_parallel_runs, 0);
    let faults = faults_of([("BOB_MAX_PARALLEL_RUNS", "0"), ("BOB_HTTP_ADDRESS", "off")]);
    assert!(faults.contains("expected host:port, because"), "{faults}");
}

#[test]
fn disk_watermarks_have_defaults_and_the_low_one_must_be_below_the_high_one() {
    let worker = config_of([("BOB_DISK_HIGH", "90"), ("BOB_BASE_IMAGES_BYTES", "5G")]).worker;
    assert_eq!((worker.disk_high, worker.disk_low, worker.base_images_bytes), (90, 80, 5 << 30));
    for (set, said) in [
        (("BOB_DISK_HIGH", "80"), "BOB_DISK_HIGH = \"80\": expected more than worker.disk-low"),
        (("BOB_DISK_LOW", "85"), "BOB_DISK_LOW = \"85\": expected less than worker.disk-high"),
        (("BOB_DISK_LOW", "0"), "BOB_DISK_LOW = \"0\": expected a whole number from 1 to 100"),
        (("BOB_BASE_IMAGES_BYTES", "much"), "BOB_BASE_IMAGES_BYTES = \"much\": expected bytes"),
    ] {
        let faults = faults_of([set]);
        assert!(faults.contains(said), "{faults}");
    }
}

#[test]
fn a_variable_that_looks_like_a_misspelt_setting_is_warned_about() {
    let environment = Environment::from([
        ("BOB_STORAGE_URL", "x"),
        ("BOB_QUEUE_PASSWORDS", "x"),
        ("BOB_TEST_IMAGE", "x"),
        ("BOB_QUEUE_API_URL", "x"),
    ]);
    let warnings = loaded(None, environment, &[]).unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "BOB_QUEUE_PASSWORDS is not a setting; did you mean BOB_QUEUE_PASSWORD?",
            "BOB_STORAGE_URL is not a setting; did you mean BOB_STORAGE_URLS?",
        ]
    );
}

#[test]
fn certificates_go_with_encrypted_connections_and_come_in_pairs() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let config = config_of([
        ("BOB_QUEUE_URL", "amqps://h"),
        ("BOB_QUEUE_CA", path),
        ("BOB_QUEUE_CERT", path),
        ("BOB_QUEUE_KEY", path),
    ]);
    assert_eq!(config.queue.tls.ca.as_deref(), Some(file.path()));
    assert_eq!(config.queue.tls.identity.unwrap().key, file.path());
    let plain = faults_of([("BOB_STORAGE_CA", path)]);
    assert!(
        plain.contains("BOB_STORAGE_CA: has a use only for storage.urls with https://"),
        "{plain}"
    );
}

#[test]
fn the_file_is_that_of_the_flag_then_the_variable_then_the_first_found() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str, runs: u32| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("[worker]\nmax-parallel-runs = {runs}\n")).unwrap();
        path
    };
    let home = directory.path().join("config");
    let runs = |flag: Option<&Path>, variable: Option<&Path>| {
        let mut variables = vec![("XDG_CONFIG_HOME", home.to_str().unwrap())];
        variables.extend(variable.map(|path| ("BOB_CONFIG", path.to_str().unwrap())));
        let environment = match variables[..] {
            [one] => Environment::from([one]),
            [one, two] => Environment::from([one, two]),
            _ => Environment::default(),
        };
        load(&Sources {
            flags: Flags { config: flag.map(Path::to_owned), set: Vec::new() },
            environment,
            working_dir: directory.path().join("here"),
            system_dir: directory.path().join("etc"),
        })
        .map(|loaded| loaded.config.worker.max_parallel_runs)
    };
    assert_eq!(runs(None, None), Ok(4));
    place("etc/bob-runner.toml", 11);
    assert_eq!(runs(None, None), Ok(11));
    place("config/bob-runner/bob-runner.toml", 12);
    assert_eq!(runs(None, None), Ok(12));
    place("here/bob-runner.toml", 13);
    assert_eq!(runs(None, None), Ok(13));
    let named = place("named.toml", 14);
    assert_eq!(runs(None, Some(&named)), Ok(14));
    assert_eq!(runs(Some(&place("flag.toml", 15)), Some(&named)), Ok(15));
    assert!(runs(Some(Path::new("/nonexistent.toml")), None).is_err());
    std::fs::write(directory.path().join("here/bob-runner.yaml"), "{}").unwrap();
    assert!(runs(None, None).unwrap_err().to_string().contains("is beside it"));
}

#[test]
fn outputs_are_not_stored_by_default() {
    assert_eq!(config_of([]).outputs, None);
    let config = config_of([("BOB_OUTPUTS", "/srv/out")]);
    assert_eq!(config.outputs, Some(Outputs::Directory("/srv/out".into())));
    let config = config_of([("BOB_OUTPUTS", "s3://b")]);
    let Some(Outputs::S3(bucket)) = config.outputs else { panic!("a bucket") };
    assert_eq!((bucket.region.as_str(), bucket.login), ("us-east-1", None));
}

#[test]
fn the_secret_of_a_bucket_can_be_in_a_file_and_is_not_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter2\n").unwrap();
    let loaded = loaded(
        None,
        Environment::from([
            ("BOB_OUTPUTS", "s3://b/p"),
            ("BOB_OUTPUTS_S3_ENDPOINT", "http://127.0.0.1:9000"),
            ("BOB_OUTPUTS_S3_ACCESS_KEY", "me"),
            ("BOB_OUTPUTS_S3_SECRET_KEY_FILE", file.path().to_str().unwrap()),
        ]),
        &[],
    )
    .unwrap();
    let Some(Outputs::S3(bucket)) = &loaded.config.outputs else { panic!("a bucket") };
    assert_eq!(bucket.login.as_ref().unwrap().password.expose(), "hunter2");
    assert!(!format!("{:?}", loaded).contains("hunter2"));
}

#[test]
fn bucket_settings_without_a_bucket_or_incomplete_ones_are_refused() {
    let said = faults_of([("BOB_OUTPUTS", "/srv"), ("BOB_OUTPUTS_S3_ENDPOINT", "http://h:1")]);
    assert!(said.contains("BOB_OUTPUTS_S3_ENDPOINT") && said.contains("s3://"), "{said}");
    let said = faults_of([("BOB_OUTPUTS", "s3://b"), ("BOB_OUTPUTS_S3_SECRET_KEY", "hunter2")]);
    assert!(said.contains("BOB_OUTPUTS_S3_ACCESS_KEY") && !said.contains("hunter2"), "{said}");
}
