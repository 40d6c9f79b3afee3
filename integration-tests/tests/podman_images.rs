//! Images in a real engine: settings of base images, pulls from registries, import and export of
//! files.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use protocol::pipeline::{PullPolicy, Shell, Vars};
use runner::exec::podman::Options;
use runner::ports::{
    ByteStream, ExecError, Images as _, Script, StepSpec, Steps as _, StopLevel, Workspace,
};
use serde_json::json;
use test_support::engine::{Api, Bench, collect, files_of, shell, step, tar_of};
use test_support::services::Services;

fn stream_of(bytes: Vec<u8>) -> ByteStream {
    stream::iter([Ok(Bytes::from(bytes))]).boxed()
}

/// Commits an image with unusual settings and returns its id.
async fn odd_image(bench: &Bench, name: Option<&str>) -> String {
    let base = bench.prepare().await;
    let line = "mkdir -p /srv/deep /data; echo 'svc:x:7:7::/srv:/bin/sh' >> /etc/passwd; \
                printf '#!/bin/sh\\necho entry; exec \"$@\"\\n' > /entry; chmod 755 /entry";
    let (outcome, _) = bench.step(&base, &shell(0, line)).await;
    #[expect(clippy::panic, reason = "a test may panic")]
    let Workspace::Container { id, .. } = &outcome.workspace else {
        panic!("{:?}", outcome.workspace)
    };
    let changes = [
        "ENV GREETING=hello",
        "ENTRYPOINT [\"/entry\"]",
        "USER svc",
        "WORKDIR /srv/deep",
        "VOLUME /data",
        "LABEL bob.run=",
    ];
    let image = Api::of(&bench.url).commit(id, name, &changes).await;
    bench.destroy().await;
    image
}

#[tokio::test]
async fn the_settings_of_the_base_image_apply_to_every_step() {
    let Some(maker) = Bench::from_env() else { return };
    let name = format!("localhost/odd-{}", uuid::Uuid::new_v4());
    odd_image(&maker, Some(&name)).await;
    let bench = Bench::new(&Options::new(&maker.url), &name);
    let mut workspace = bench.prepare().await;
    for position in 0..3 {
        let line = "echo $GREETING; pwd; whoami; ls /data; echo more > /tmp/mine";
        let spec =
            StepSpec { work_dir: (position == 1).then(|| "/".into()), ..shell(position, line) };
        let (next, output) = bench.pass(&workspace, &spec).await;
        let dir = if position == 1 { "/" } else { "/srv/deep" };
        assert_eq!(output.text(), format!("entry\nhello\n{dir}\nsvc\n"), "step {position}");
        workspace = next;
    }
    bench.destroy().await;
    let api = Api::of(&bench.url);
    assert!(api.has_image(&name).await, "the base image was removed");
    api.remove_image(&name).await;
}

/// A script for `sh`.
fn script(position: usize, program: &str) -> StepSpec {
    let programs = vec![program.to_owned()];
    let script = Script { shell: Shell::Sh, programs, goes_on: false };
    StepSpec { script: Some(script), words: Vec::new(), ..step(position, &[]) }
}

#[tokio::test]
async fn a_script_ignores_the_images_entrypoint_and_a_step_can_set_its_own() {
    let Some(maker) = Bench::from_env() else { return };
    let api = Api::of(&maker.url);
    let name = format!("localhost/entry-{}:latest", uuid::Uuid::new_v4());
    for (entrypoint, command_code) in [("[\"sh\",\"-c\"]", 0), ("[\"true\"]", 0), ("[]", 4)] {
        let dockerfile =
            format!("FROM {}\nENTRYPOINT {entrypoint}\nCMD [\"exit 3\"]\n", maker.run.image);
        api.build(&name, &dockerfile).await;
        let bench = Bench::new(&Options::new(&maker.url), &name);
        let mut workspace = bench.prepare().await;
        let custom_entrypoint =
            |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        // An entrypoint of `sh -c` or `true` hides the command's exit code, as the image intends.
        let command = step(0, &["sh", "-c", "exit 4"]);
        for (step, code) in [
            (script(0, "exit 7"), 7),
            (command.clone(), command_code),
            (StepSpec { entrypoint: custom_entrypoint(&[]), ..command.clone() }, 4),
            (
                StepSpec { entrypoint: custom_entrypoint(&["env", "A=1"]), ..script(0, "exit $A") },
                1,
            ),
        ] {
            let (outcome, _) = bench.step(&workspace, &step).await;
            assert_eq!(outcome.exit.code, code, "{entrypoint}: {:?} {:?}", step.words, step.script);
            bench.podman.discard(&bench.run, outcome.workspace).await;
        }
        // The entrypoint of one step does not affect the next one.
        workspace = bench.pass(&workspace, &script(1, "echo made > /made")).await.0;
        let (outcome, _) = bench.step(&workspace, &script(2, "[ -e /made ] && exit 5")).await;
        assert_eq!(outcome.exit.code, 5, "{entrypoint}");
        bench.podman.discard(&bench.run, outcome.workspace).await;
        bench.destroy().await;
        api.remove_image(&name).await;
    }
}

#[tokio::test]
async fn the_image_of_a_step_has_the_configuration_of_the_base_image() {
    let Some(maker) = Bench::from_env() else { return };
    let api = Api::of(&maker.url);
    let name = format!("localhost/configured-{}:latest", uuid::Uuid::new_v4());
    let dockerfile = format!(
        "FROM {}\nENV GREETING=\"hello there\"\nENV PLAIN=a\nENV EMPTY=\n\
         ENV QUOTED=\"it's \\\"q\\\"\"\nENV SLASH=\"back\\\\slash\"\nENV DOLLAR=\"\\$HOME\"\n\
         ENTRYPOINT [\"sh\",\"-c\"]\nCMD [\"exit 3\"]\n\
         HEALTHCHECK --interval=5s CMD true\nWORKDIR /srv\nSTOPSIGNAL SIGINT\n",
        maker.run.image
    );
    api.build(&name, &dockerfile).await;
    let bench = Bench::new(&Options::new(&maker.url), &name);
    let base = bench.prepare().await;
    let base_settings = api.settings_of(&name).await;
    let values = [
        ("GREETING", "hello there"),
        ("PLAIN", "a"),
        ("EMPTY", ""),
        ("QUOTED", "it's \"q\""),
        ("SLASH", "back\\slash"),
        ("DOLLAR", "$HOME"),
    ];
    // The step overrides each of them.
    let env = values.map(|(name, _)| (name.to_owned(), "from the step".to_owned()));
    let env = Vars::from_iter(env);
    let first = StepSpec { env, work_dir: Some("/tmp".into()), ..script(0, "echo made > /made") };
    let (workspace, _) = bench.pass(&base, &first).await;
    let tar = stream_of(tar_of("note", b"kept\n").await);
    let workspace = bench.podman.import(&bench.run, &workspace, "/data", tar).await.unwrap();
    let (workspace, _) = bench.pass(&workspace, &script(1, "cat /made /data/note")).await;
    let step_settings = api.settings_of(workspace.image().unwrap()).await;
    assert!(base_settings["health"]["Test"].is_array(), "{base_settings}");
    assert_eq!(step_settings["health"], base_settings["health"]);
    for key in ["Cmd", "Entrypoint", "WorkingDir", "User", "StopSignal"] {
        assert_eq!(step_settings["config"][key], base_settings["config"][key], "{key}");
    }
    for (name, value) in values {
        let pair = json!(format!("{name}={value}"));
        assert!(
            base_settings["config"]["Env"].as_array().unwrap().contains(&pair),
            "{pair}: {base_settings}"
        );
    }
    for pair in base_settings["config"]["Env"].as_array().unwrap() {
        let step_env = step_settings["config"]["Env"].as_array().unwrap();
        assert!(step_env.contains(pair), "{pair} is not in {step_env:?}");
    }
    bench.destroy().await;
    api.remove_image(&name).await;
}

#[tokio::test]
async fn files_in_a_declared_volume_of_the_image_are_committed() {
    let Some(maker) = Bench::from_env() else { return };
    let name = format!("localhost/odd-{}", uuid::Uuid::new_v4());
    odd_image(&maker, Some(&name)).await;
    let bench = Bench::new(&Options::new(&maker.url), &name);
    let base = bench.prepare().await;
    let tar = stream_of(tar_of("note", b"kept\n").await);
    let workspace = bench.podman.import(&bench.run, &base, "/data", tar).await.unwrap();
    let (workspace, _) = bench.pass(&workspace, &shell(0, "true")).await;
    let (_, output) = bench.pass(&workspace, &shell(1, "cat /data/note")).await;
    assert_eq!(output.text(), "entry\nkept\n");
    bench.destroy().await;
    Api::of(&bench.url).remove_image(&name).await;
}

#[tokio::test]
async fn an_untagged_base_image_outlives_the_run_that_used_it() {
    let Some(maker) = Bench::from_env() else { return };
    let id = odd_image(&maker, None).await;
    let bench = Bench::new(&Options::new(&maker.url), &id);
    let base = bench.prepare().await;
    let (workspace, _) = bench.pass(&base, &shell(0, "true")).await;
    bench.pass(&workspace, &shell(1, "true")).await;
    bench.destroy().await;
    let api = Api::of(&bench.url);
    assert!(api.has_image(&id).await, "the base image was removed");
    api.remove_image(&id).await;
}

#[tokio::test]
async fn a_missing_image_is_reported_with_its_name_and_the_reason() {
    let Some(mut bench) = Bench::from_env() else { return };
    bench.run.image = "localhost/no-such-image:1".into();
    bench.run.pull = PullPolicy::Never;
    let message = bench.podman.prepare(&bench.run, &bench.stop).await.unwrap_err().to_string();
    assert!(message.contains("localhost/no-such-image:1"), "{message}");
    assert!(message.contains("never"), "{message}");
    bench.run.pull = PullPolicy::Missing;
    bench.run.image = "NOT A//name".into();
    let error = bench.podman.prepare(&bench.run, &bench.stop).await.unwrap_err();
    assert!(matches!(error, ExecError::Image { .. }), "{error}");
}

const REGISTRY_VARIABLES: &[&str] = &[
    "CONTAINER_ENGINE_URL",
    "BOB_TEST_IMAGE",
    "BOB_TEST_REGISTRY",
    "BOB_TEST_REGISTRY_AUTH",
    "BOB_TEST_REGISTRY_USER",
    "BOB_TEST_REGISTRY_PASSWORD",
];

/// A registry with an image that the engine does not have.
struct Registry {
    services: Services,
    host: String,
    image: String,
    auth_dir: tempfile::TempDir,
}

impl Registry {
    /// Pushes the base image under a unique name to the registry whose host is in this environment
    /// variable.
    async fn with_image(variable: &str) -> Option<Self> {
        let services = Services::from_env(REGISTRY_VARIABLES)?;
        let host = services.get(variable).to_owned();
        let image = format!("{host}/t-{}:good", uuid::Uuid::new_v4());
        let registry = Self { services, host, image, auth_dir: tempfile::tempdir().unwrap() };
        let api = Api::of(registry.services.get("CONTAINER_ENGINE_URL"));
        let user = registry.services.get("BOB_TEST_REGISTRY_USER");
        let password = registry.services.get("BOB_TEST_REGISTRY_PASSWORD");
        api.push(registry.services.get("BOB_TEST_IMAGE"), &registry.image, user, password).await;
        Some(registry)
    }

    /// Creates an executor that logs in to the registry with this password, or not at all.
    fn bench(&self, image: &str, password: Option<&str>) -> Bench {
        let file = self.auth_dir.path().join(format!("auth-{}.json", uuid::Uuid::new_v4()));
        let user = self.services.get("BOB_TEST_REGISTRY_USER");
        let login = password
            .map(|password| json!({ &self.host: { "username": user, "password": password } }));
        let auths = json!({ "auths": login.unwrap_or_else(|| json!({})) });
        std::fs::write(&file, auths.to_string()).unwrap();
        let options = Options {
            auth_files: vec![file],
            auth_asked_for: true,
            insecure_registries: vec![self.host.clone()],
            ..Options::new(self.services.get("CONTAINER_ENGINE_URL"))
        };
        Bench::new(&options, image)
    }
}

#[tokio::test]
async fn an_image_is_pulled_once_for_concurrent_requests_and_then_reused() {
    let Some(registry) = Registry::with_image("BOB_TEST_REGISTRY").await else { return };
    let bench = registry.bench(&registry.image, None);
    let (first, second) = tokio::join!(bench.prepare(), bench.prepare());
    assert_eq!(first, second);
    let (_, output) = bench.pass(&first, &step(0, &["echo", "pulled"])).await;
    assert_eq!(output.text(), "pulled\n");
    bench.destroy().await;
    // The engine now has the image. Only `always` contacts the registry again.
    for pull in [PullPolicy::Never, PullPolicy::Missing, PullPolicy::Always] {
        let mut bench = registry.bench(&registry.image, None);
        bench.run.pull = pull;
        assert_eq!(bench.prepare().await, first, "{pull:?}");
        bench.destroy().await;
    }
    Api::of(&bench.url).remove_image(&registry.image).await;
}

#[tokio::test]
async fn a_missing_tag_is_distinguished_from_an_image_that_needs_credentials() {
    let Some(registry) = Registry::with_image("BOB_TEST_REGISTRY_AUTH").await else { return };
    let valid_password = registry.services.get("BOB_TEST_REGISTRY_PASSWORD").to_owned();
    let pull_error = async |image: &str, password: Option<&str>| {
        let bench = registry.bench(image, password);
        let error = bench.podman.prepare(&bench.run, &bench.stop).await.unwrap_err();
        assert!(matches!(error, ExecError::Image { .. }), "{error:?}");
        error.to_string()
    };
    let missing = registry.image.replace(":good", ":bad");
    let message = pull_error(&missing, Some(&valid_password)).await;
    assert!(message.contains("no such image or tag") && message.contains(&missing), "{message}");
    for password in [Some("wrong"), None] {
        let message = pull_error(&registry.image, password).await;
        assert!(message.contains("BOB_REGISTRY_AUTH_FILE"), "{message}");
        assert!(!message.contains("wrong"), "the password is in {message}");
    }
    let bench = registry.bench(&registry.image, Some(&valid_password));
    bench.prepare().await;
    bench.destroy().await;
    Api::of(&bench.url).remove_image(&registry.image).await;
}

#[tokio::test]
async fn credentials_come_from_the_first_file_that_names_the_registry() {
    let Some(registry) = Registry::with_image("BOB_TEST_REGISTRY_AUTH").await else { return };
    let file = |name: &str, host: &str, password: &str| {
        let user = registry.services.get("BOB_TEST_REGISTRY_USER");
        let auths = json!({ host: { "username": user, "password": password } });
        let path = registry.auth_dir.path().join(name);
        std::fs::write(&path, json!({ "auths": auths }).to_string()).unwrap();
        path
    };
    let password = registry.services.get("BOB_TEST_REGISTRY_PASSWORD");
    let options = Options {
        auth_files: vec![
            registry.auth_dir.path().join("missing.json"),
            file("other.json", "other.example", "x"),
            file("good.json", &registry.host, password),
            file("later.json", &registry.host, "wrong"),
        ],
        insecure_registries: vec![registry.host.clone()],
        ..Options::new(registry.services.get("CONTAINER_ENGINE_URL"))
    };
    let bench = Bench::new(&options, &registry.image);
    bench.prepare().await;
    bench.destroy().await;
    Api::of(&bench.url).remove_image(&registry.image).await;
}

#[tokio::test]
async fn a_registry_that_is_down_or_has_no_tls_is_reported_as_such() {
    let Some(registry) = Registry::with_image("BOB_TEST_REGISTRY").await else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unreachable_image = format!("{}/x:1", listener.local_addr().unwrap());
    // Close the port so that the engine cannot connect to it.
    drop(listener);
    let mut options = Options::new(registry.services.get("CONTAINER_ENGINE_URL"));
    options.insecure_registries = vec![unreachable_image.split('/').next().unwrap().to_owned()];
    let bench = Bench::new(&options, &unreachable_image);
    let message = bench.podman.prepare(&bench.run, &bench.stop).await.unwrap_err().to_string();
    assert!(
        message.contains("cannot be reached") && message.contains(&unreachable_image),
        "{message}"
    );
    options.insecure_registries.clear();
    let bench = Bench::new(&options, &registry.image);
    let message = bench.podman.prepare(&bench.run, &bench.stop).await.unwrap_err().to_string();
    assert!(message.contains("BOB_REGISTRY_INSECURE"), "{message}");
}

#[tokio::test]
async fn a_stop_during_an_image_pull_takes_effect_at_once() {
    let Some(bench) = Bench::from_env() else { return };
    // A registry that accepts the connection and never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let options = Options { insecure_registries: vec![host.clone()], ..Options::new(&bench.url) };
    let bench = Bench::new(&options, &format!("{host}/x:1"));
    let preparation = bench.podman.prepare(&bench.run, &bench.stop);
    let stop = async {
        let connection = listener.accept().await.unwrap();
        bench.stop.raise(StopLevel::Kill);
        connection
    };
    let (result, _connection) = tokio::join!(preparation, stop);
    assert!(matches!(result, Err(ExecError::NotStarted)), "{result:?}");
}

#[tokio::test]
async fn a_resource_is_unpacked_for_later_steps() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let tar = stream_of(tar_of("src/note.txt", b"mounted\n").await);
    let workspace = bench.podman.import(&bench.run, &base, "/root", tar).await.unwrap();
    let spec = StepSpec { work_dir: Some("/root/src".into()), ..shell(0, "cat note.txt") };
    let (workspace, output) = bench.pass(&workspace, &spec).await;
    assert_eq!(output.text(), "mounted\n");
    // A missing directory is created.
    let tar = stream_of(tar_of("more", b"2\n").await);
    let workspace =
        bench.podman.import(&bench.run, &workspace, "/not/there/yet", tar).await.unwrap();
    let (_, output) =
        bench.pass(&workspace, &shell(1, "cat /not/there/yet/more /root/src/note.txt")).await;
    assert_eq!(output.text(), "2\nmounted\n");
    bench.destroy().await;
}

#[tokio::test]
async fn a_truncated_or_invalid_archive_is_reported_as_an_error_of_the_resource() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let partial = tar_of("src/note.txt", &[b'x'; 5000]).await[..2000].to_vec();
    let truncated =
        stream::iter([Ok(Bytes::from(partial)), Err(std::io::Error::other("source unavailable"))]);
    let error =
        bench.podman.import(&bench.run, &base, "/root", truncated.boxed()).await.unwrap_err();
    assert!(
        matches!(&error, ExecError::Input(text) if text.contains("source unavailable")),
        "{error:?}"
    );
    let noise = stream_of(vec![b'x'; 4096]);
    let error = bench.podman.import(&bench.run, &base, "/root", noise).await.unwrap_err();
    assert!(matches!(error, ExecError::Input(_)), "{error:?}");
    bench.destroy().await;
}

#[tokio::test]
async fn an_artifact_path_is_relative_to_the_working_directory_of_its_step() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let line = "mkdir -p out/deep; echo one > out/a; echo two > out/deep/b; echo three > /tmp/c";
    let spec = StepSpec { work_dir: Some("/root".into()), ..shell(0, line) };
    let (outcome, _) = bench.step(&base, &spec).await;
    let export_files = async |path: &str| {
        let tar = bench.podman.export(&bench.run, &outcome.workspace, path).await.unwrap();
        files_of(&collect(tar).await).await
    };
    assert_eq!(export_files("out/a").await, [("a".to_owned(), b"one\n".to_vec())]);
    assert_eq!(export_files("/tmp/c").await, [("c".to_owned(), b"three\n".to_vec())]);
    let tree = export_files("out").await;
    assert!(tree.contains(&("out/deep/b".to_owned(), b"two\n".to_vec())), "{tree:?}");
    let missing = bench.podman.export(&bench.run, &outcome.workspace, "out/none").await;
    let absolute = "/root/out/none";
    assert!(matches!(missing, Err(ExecError::NoSuchPath { path }) if path == absolute));
    bench.destroy().await;
}
