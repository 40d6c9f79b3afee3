//! Settings files that others can write, and what they must not redirect.

use super::*;

#[test]
fn a_file_in_the_working_directory_cannot_redirect_credentials() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "hunter2\n").unwrap();
    let password_file =
        format!("[queue]\nurl = \"amqp://evil\"\npassword-file = {:?}\n", secret.path());
    let none = Environment::default;
    let password = || Environment::from([("BOB_QUEUE_PASSWORD", "p")]);
    let keys = [("BOB_OUTPUTS_S3_ACCESS_KEY", "k"), ("BOB_OUTPUTS_S3_SECRET_KEY", "s")];
    let broker = "[queue]\nurl = \"amqp://evil\"\n";
    for (toml, environment, at, source) in [
        (broker, password(), "queue.url", "BOB_QUEUE_PASSWORD"),
        (broker, Environment::from([("BOB_QUEUE_USER", "u")]), "queue.url", "BOB_QUEUE_USER"),
        (&password_file, none(), "queue.url", "queue.password-file"),
        (broker, Environment::from([("BOB_SECRET_TOKEN", "t")]), "queue.url", "BOB_SECRET_TOKEN"),
        (broker, Environment::from([("BOB_SECRETS_DIR", "/s")]), "queue.url", "BOB_SECRETS_DIR"),
        ("[stream]\nurl = \"amqp://evil\"\n", password(), "stream.url", "BOB_QUEUE_PASSWORD"),
        (
            "[stream]\nurl = \"amqp://evil\"\n",
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
            Environment::from(keys),
            "outputs.s3-endpoint",
            "BOB_OUTPUTS_S3_ACCESS_KEY and BOB_OUTPUTS_S3_SECRET_KEY",
        ),
        ("[outputs]\nstore = \"s3://b\"\n", none(), "outputs.store", "the role of this machine"),
        (
            "[outputs]\ns3-region = \"evil/#\"\n",
            Environment::from([("BOB_OUTPUTS", "s3://b"), keys[0], keys[1]]),
            "outputs.s3-region",
            "BOB_OUTPUTS_S3_ACCESS_KEY",
        ),
    ] {
        let faults = loaded(Some(("bob-runner.toml", toml)), environment, &[]).unwrap_err();
        let fault = faults.0.iter().find(|fault| fault.at.ends_with(&format!(": {at}"))).unwrap();
        assert!(
            fault.expected.contains("is not combined with credentials from elsewhere"),
            "{fault}"
        );
        assert!(fault.expected.contains(source), "{source}: {fault}");
        assert!(fault.expected.contains("name it with `--config "), "{fault}");
    }
}

#[test]
fn a_file_in_the_working_directory_cannot_set_the_authority_of_another_server() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let toml = format!("[queue]\nca = {:?}\n", file.path());
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
fn a_file_in_the_working_directory_cannot_redirect_registry_secrets() {
    for (toml, name) in [
        ("[engine]\nurl = \"http://evil:1\"\n", "engine.url"),
        ("[engine]\ndocker-url = \"http://evil:1\"\n", "engine.docker-url"),
        ("[engine]\nregistry-insecure = [\"evil\"]\n", "engine.registry-insecure"),
        ("[worker]\ncheckpoint-registry = \"evil/x\"\n", "worker.checkpoint-registry"),
        ("[worker]\nsecrets-scopes = [\"*=*\"]\n", "worker.secrets-scopes"),
    ] {
        let faults = loaded(Some(("bob-runner.toml", toml)), Environment::default(), &[]);
        let faults = faults.unwrap_err().to_string();
        assert!(
            faults.contains(&format!("{name}: is not accepted from a settings file")),
            "{faults}"
        );
    }
}

#[test]
fn credentials_can_be_in_the_same_file_and_a_named_file_is_trusted() {
    let password = || Environment::from([("BOB_QUEUE_PASSWORD", "p")]);
    let file = |text: &'static str| Some(("bob-runner.toml", text));
    let whole = "[queue]\nurl = \"amqp://u@h\"\npassword = \"p\"\n";
    assert!(loaded(file(whole), Environment::default(), &[]).is_ok());
    assert!(loaded(file("[queue]\nurl = \"amqp://u:p@h\"\n"), Environment::default(), &[]).is_ok());
    // The URL in the file is overridden.
    assert!(loaded(file(whole), Environment::default(), &["queue.url=amqp://h"]).is_ok());
    // The stream's URL has its own login.
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
    let elsewhere = directory.path().join("etc");
    assert!(load_from(None, &elsewhere).is_err());
    assert!(load_from(Some(&path), &elsewhere).is_ok());
    // A service can use its settings directory as working directory.
    assert!(load_from(None, directory.path()).is_ok());
}

#[test]
fn a_settings_file_that_others_can_change_is_rejected_everywhere() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bob-runner.toml");
    std::fs::write(&path, "mode = \"embedded\"\n").unwrap();
    let nowhere = directory.path().join("nowhere");
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
        (Some(path.as_path()), nowhere.as_path(), nowhere.as_path()),
        (None, directory.path(), &nowhere),
        (None, &nowhere, directory.path()),
    ] {
        assert!(load_as(0o644, config, working_dir, system_dir).is_ok());
        for mode in [0o664, 0o646] {
            let faults = load_as(mode, config, working_dir, system_dir).unwrap_err().to_string();
            assert!(faults.contains("can be changed by other users"), "{faults}");
        }
    }
}
