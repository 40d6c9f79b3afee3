//! Restrictions on settings files that someone other than the user might have written.

use super::*;

#[test]
fn a_file_in_the_working_directory_cannot_redirect_credentials() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "hunter2\n").unwrap();
    let broker_and_password_file =
        format!("[queue]\nurl = \"amqp://evil\"\npassword-file = {:?}\n", secret.path());
    let empty = Environment::default;
    let password = || Environment::from([("BOB_QUEUE_PASSWORD", "p")]);
    let s3_keys = [("BOB_OUTPUTS_S3_ACCESS_KEY", "k"), ("BOB_OUTPUTS_S3_SECRET_KEY", "s")];
    let broker = "[queue]\nurl = \"amqp://evil\"\n";
    let stream = "[stream]\nurl = \"amqp://evil\"\n";
    for (toml, environment, setting, credentials) in [
        (broker, password(), "queue.url", "BOB_QUEUE_PASSWORD"),
        (broker, Environment::from([("BOB_QUEUE_USER", "u")]), "queue.url", "BOB_QUEUE_USER"),
        (&broker_and_password_file, empty(), "queue.url", "queue.password-file"),
        (broker, Environment::from([("BOB_SECRET_TOKEN", "t")]), "queue.url", "BOB_SECRET_TOKEN"),
        (broker, Environment::from([("BOB_SECRETS_DIR", "/s")]), "queue.url", "BOB_SECRETS_DIR"),
        (stream, password(), "stream.url", "BOB_QUEUE_PASSWORD"),
        (
            stream,
            Environment::from([("BOB_QUEUE_URL", "amqp://u:p@good")]),
            "stream.url",
            "BOB_QUEUE_URL",
        ),
        (
            "[storage]\nurls = [\"http://evil\"]\nuser = \"u\"\n",
            Environment::from([("BOB_STORAGE_PASSWORD", "p")]),
            "storage.urls",
            "BOB_STORAGE_PASSWORD",
        ),
        (
            "[outputs]\nstore = \"s3://b\"\ns3-endpoint = \"https://evil\"\n",
            Environment::from(s3_keys),
            "outputs.s3-endpoint",
            "BOB_OUTPUTS_S3_ACCESS_KEY and BOB_OUTPUTS_S3_SECRET_KEY",
        ),
        ("[outputs]\nstore = \"s3://b\"\n", empty(), "outputs.store", "the role of this machine"),
        (
            "[outputs]\ns3-region = \"evil/#\"\n",
            Environment::from([("BOB_OUTPUTS", "s3://b"), s3_keys[0], s3_keys[1]]),
            "outputs.s3-region",
            "BOB_OUTPUTS_S3_ACCESS_KEY",
        ),
    ] {
        let faults = loaded(Some(("bob-runner.toml", toml)), environment, &[]).unwrap_err();
        let suffix = format!(": {setting}");
        let fault = faults.0.iter().find(|fault| fault.at.ends_with(&suffix)).unwrap();
        assert!(
            fault.expected.contains("is not combined with credentials from elsewhere"),
            "{fault}"
        );
        assert!(fault.expected.contains(credentials), "{credentials}: {fault}");
        assert!(fault.expected.contains("name it with `--config "), "{fault}");
    }
}

#[test]
fn a_file_in_the_working_directory_cannot_set_the_certificate_authority_of_another_server() {
    let ca = tempfile::NamedTempFile::new().unwrap();
    let toml = format!("[queue]\nca = {:?}\n", ca.path());
    for variables in [
        [("BOB_QUEUE_URL", "amqps://u:p@good"), ("HOME", "/h")],
        [("BOB_QUEUE_URL", "amqps://good"), ("BOB_QUEUE_PASSWORD", "p")],
    ] {
        let environment = Environment::from(variables);
        let faults = loaded(Some(("bob-runner.toml", &toml)), environment, &[]).unwrap_err();
        assert!(faults.to_string().contains("queue.ca: is not combined"), "{faults}");
    }
}

#[test]
fn a_file_in_the_working_directory_cannot_redirect_registry_secrets_or_open_the_http_api() {
    for (toml, setting) in [
        ("[engine]\nurl = \"http://evil:1\"\n", "engine.url"),
        ("[engine]\ndocker-url = \"http://evil:1\"\n", "engine.docker-url"),
        ("[engine]\nregistry-insecure = [\"evil\"]\n", "engine.registry-insecure"),
        ("[worker]\ncheckpoint-registry = \"evil/x\"\n", "worker.checkpoint-registry"),
        ("[worker]\nsecrets-scopes = [\"*=*\"]\n", "worker.secrets-scopes"),
        ("[http]\njwt-secret = \"known to the author\"\n", "http.jwt-secret"),
        ("[http]\njwks = \"https://evil/keys\"\n", "http.jwks"),
        ("[http]\nhosts = [\"evil\"]\n", "http.hosts"),
    ] {
        let faults = loaded(Some(("bob-runner.toml", toml)), Environment::default(), &[]);
        let faults = faults.unwrap_err().to_string();
        assert!(
            faults.contains(&format!("{setting}: is not accepted from a settings file")),
            "{faults}"
        );
    }
}

#[test]
fn a_file_can_contain_its_own_credentials_and_a_file_named_by_the_user_is_trusted() {
    let password = || Environment::from([("BOB_QUEUE_PASSWORD", "p")]);
    let file = |text: &'static str| Some(("bob-runner.toml", text));
    let complete = "[queue]\nurl = \"amqp://u@h\"\npassword = \"p\"\n";
    assert!(loaded(file(complete), Environment::default(), &[]).is_ok());
    assert!(loaded(file("[queue]\nurl = \"amqp://u:p@h\"\n"), Environment::default(), &[]).is_ok());
    // A flag overrides the URL in the file.
    assert!(loaded(file(complete), Environment::default(), &["queue.url=amqp://h"]).is_ok());
    // The stream's URL contains its own login, so the password from the variable is not sent.
    let stream = "[stream]\nurl = \"amqp://u:p@h\"\n";
    assert!(loaded(file(stream), password(), &[]).is_ok());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bob-runner.toml");
    std::fs::write(&path, "[queue]\nurl = \"amqp://h\"\n").unwrap();
    let load_from = |config: Option<&Path>, system_dir: &Path| {
        load(&Sources {
            flags: Flags { config: config.map(Path::to_owned), set: Vec::new() },
            environment: password(),
            working_dir: directory.path().to_owned(),
            system_dir: system_dir.to_owned(),
        })
    };
    let other_dir = directory.path().join("etc");
    assert!(load_from(None, &other_dir).is_err());
    assert!(load_from(Some(&path), &other_dir).is_ok());
    // The system's settings directory stays trusted if it is also the working directory.
    assert!(load_from(None, directory.path()).is_ok());
}

#[test]
fn a_settings_file_that_others_can_change_is_rejected_in_every_location() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bob-runner.toml");
    std::fs::write(&path, "mode = \"embedded\"\n").unwrap();
    let missing = directory.path().join("missing");
    let load_as = |mode: u32, config: Option<&Path>, working_dir: &Path, system_dir: &Path| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        load(&Sources {
            flags: Flags { config: config.map(Path::to_owned), set: Vec::new() },
            environment: Environment::default(),
            working_dir: working_dir.to_owned(),
            system_dir: system_dir.to_owned(),
        })
    };
    for (config, working_dir, system_dir) in [
        (Some(path.as_path()), missing.as_path(), missing.as_path()),
        (None, directory.path(), &missing),
        (None, &missing, directory.path()),
    ] {
        assert!(load_as(0o644, config, working_dir, system_dir).is_ok());
        for mode in [0o664, 0o646] {
            let faults = load_as(mode, config, working_dir, system_dir).unwrap_err().to_string();
            assert!(faults.contains("can be changed by other users"), "{faults}");
        }
    }
}
