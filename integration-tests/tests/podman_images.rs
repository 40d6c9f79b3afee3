//! Images: settings of base images, pulls from real registries, files in and out.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use integration_tests::engine::{Api, Bench, collect, files_of, shell, step, tar_of};
use integration_tests::services::Services;
use protocol::pipeline::{PullPolicy, Shell, Vars};
use runner::exec::podman::Options;
use runner::ports::{
    ByteStream, ExecError, Images as _, Script, StepSpec, Steps as _, StopLevel, Workspace,
};
use serde_json::json;

fn stream_of(bytes: Vec<u8>) -> ByteStream {
    stream::iter([Ok(Bytes::from(bytes))]).boxed()
}

/// A busybox image with unusual settings.
async fn odd_image(bench: &Bench, name: Option<&str>) -> String {
    let base = bench.prepare().await;
    let line = "mkdir -p /srv/deep /data; echo 'svc:x:7:7::/srv:/bin/sh' >> /etc/passwd; \
                printf '#!/bin/sh\\necho entry; exec \"$@\"\\n' > /entry; chmod 755 /entry";
    let (ran, _) = bench.step(&base, &shell(0, line)).await;
    #[expect(clippy::panic, reason = "a test may panic")]
    let Workspace::Container { id, .. } = &ran.left else { panic!("{:?}", ran.left) };
    let changes = [
        "ENV GREETING=hello",
        "ENTRYPOINT [\"/entry\"]",
        "USER svc",
        "WORKDIR /srv/deep",
        "VOLUME /data",
        "LABEL bob.run=",
    ];
    let made = Api::of(&bench.url).commit(id, name, &changes).await;
    bench.destroy().await;
    made
}

#[tokio::test]
async fn the_settings_of_the_base_image_apply_to_every_step() {
    let Some(maker) = Bench::of_environment() else { return };
    let name = format!("localhost/odd-{}", uuid::Uuid::new_v4());
    odd_image(&maker, Some(&name)).await;
    let bench = Bench::new(&Options::new(&maker.url), &name);
    let mut on = bench.prepare().await;
    for position in 0..3 {
        let line = "echo $GREETING; pwd; whoami; ls /data; echo more > /tmp/mine";
        let spec =
            StepSpec { work_dir: (position == 1).then(|| "/".into()), ..shell(position, line) };
        let (left, kept) = bench.pass(&on, &spec).await;
        let dir = if position == 1 { "/" } else { "/srv/deep" };
        assert_eq!(kept.text(), format!("entry\nhello\n{dir}\nsvc\n"), "step {position}");
        on = left;
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
    let Some(maker) = Bench::of_environment() else { return };
    let api = Api::of(&maker.url);
    let name = format!("localhost/entry-{}:latest", uuid::Uuid::new_v4());
    for (entrypoint, of_command) in [("[\"sh\",\"-c\"]", 0), ("[\"true\"]", 0), ("[]", 4)] {
        let dockerfile =
            format!("FROM {}\nENTRYPOINT {entrypoint}\nCMD [\"exit 3\"]\n", maker.run.image);
        api.build(&name, &dockerfile).await;
        let bench = Bench::new(&Options::new(&maker.url), &name);
        let mut on = bench.prepare().await;
        let own = |entrypoint: &[&str]| {
            Some(entrypoint.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        // An entrypoint of `sh -c` or `true` hides the command's exit code, as the image intends.
        let command = step(0, &["sh", "-c", "exit 4"]);
        for (step, code) in [
            (script(0, "exit 7"), 7),
            (command.clone(), of_command),
            (StepSpec { entrypoint: own(&[]), ..command.clone() }, 4),
            (StepSpec { entrypoint: own(&["env", "A=1"]), ..script(0, "exit $A") }, 1),
        ] {
            let (ran, _) = bench.step(&on, &step).await;
            assert_eq!(ran.exit.code, code, "{entrypoint}: {:?} {:?}", step.words, step.script);
            bench.podman.discard(&bench.run, ran.left).await;
        }
        // The entrypoint of one step does not affect the next one.
        on = bench.pass(&on, &script(1, "echo made > /made")).await.0;
        let (ran, _) = bench.step(&on, &script(2, "[ -e /made ] && exit 5")).await;
        assert_eq!(ran.exit.code, 5, "{entrypoint}");
        bench.podman.discard(&bench.run, ran.left).await;
        bench.destroy().await;
        api.remove_image(&name).await;
    }
}

#[tokio::test]
async fn the_image_of_a_step_has_the_configuration_of_the_base_image() {
    let Some(maker) = Bench::of_environment() else { return };
    let api = Api::of(&maker.url);
    let name = format!("localhost/configured-{}:latest", uuid::Uuid::new_v4());
    let dockerfile = format!(
        "FROM {}\nENV GREETING=\"hello there\"\nENV PLAIN=a\nENV EMPTY=\n\
         ENV QUOTED=\"it's \\\"q\\\"\"\nENV SLASH=\"back\\\\slash\"\nENV DOLLAR=\"\\$HOME\"\nENTRYPOINT [\"sh\",\"-c\"]\nCMD [\"exit 3\"]\n\
         HEALTHCHECK --interval=5s CMD true\nWORKDIR /srv\nSTOPSIGNAL SIGINT\n",
        maker.run.image
    );
    api.build(&name, &dockerfile).await;
    let bench = Bench::new(&Options::new(&maker.url), &name);
    let base = bench.prepare().await;
    let before = api.settings_of(&name).await;
    let values = [
        ("GREETING", "hello there"),
        ("PLAIN", "a"),
        ("EMPTY", ""),
        ("QUOTED", "it's \"q\""),
        ("SLASH", "back\\slash"),
        ("DOLLAR", "$HOME"),
    ];
    // Each is overridden by the step.
    let env = values.map(|(name, _)| (name.to_owned(), "of the step".to_owned()));
    let env = Vars::from_iter(env);
    let first = StepSpec { env, work_dir: Some("/tmp".into()), ..script(0, "echo made > /made") };
    let (left, _) = bench.pass(&base, &first).await;
    let tar = stream_of(tar_of("note", b"kept\n").await);
    let left = bench.podman.import(&bench.run, &left, "/data", tar).await.unwrap();
    let (left, _) = bench.pass(&left, &script(1, "cat /made /data/note")).await;
    let after = api.settings_of(left.image().unwrap()).await;
    assert!(before["health"]["Test"].is_array(), "{before}");
    assert_eq!(after["health"], before["health"]);
    for key in ["Cmd", "Entrypoint", "WorkingDir", "User", "StopSignal"] {
        assert_eq!(after["config"][key], before["config"][key], "{key}");
    }
    for (name, value) in values {
        let pair = json!(format!("{name}={value}"));
        assert!(before["config"]["Env"].as_array().unwrap().contains(&pair), "{pair}: {before}");
    }
    for pair in before["config"]["Env"].as_array().unwrap() {
        let there = after["config"]["Env"].as_array().unwrap();
        assert!(there.contains(pair), "{pair} is not in {there:?}");
    }
    bench.destroy().await;
    api.remove_image(&name).await;
}

#[tokio::test]
async fn files_in_a_declared_volume_of_the_image_are_committed() {
    let Some(maker) = Bench::of_environment() else { return };
    let name = format!("localhost/odd-{}", uuid::Uuid::new_v4());
    odd_image(&maker, Some(&name)).await;
    let bench = Bench::new(&Options::new(&maker.url), &name);
    let base = bench.prepare().await;
    let tar = stream_of(tar_of("note", b"kept\n").await);
    let left = bench.podman.import(&bench.run, &base, "/data", tar).await.unwrap();
    let (left, _) = bench.pass(&left, &shell(0, "true")).await;
    let (_, kept) = bench.pass(&left, &shell(1, "cat /data/note")).await;
    assert_eq!(kept.text(), "entry\nkept\n");
    bench.destroy().await;
    Api::of(&bench.url).remove_image(&name).await;
}

#[tokio::test]
async fn an_untagged_base_image_outlives_the_run_that_used_it() {
    let Some(maker) = Bench::of_environment() else { return };
    let id = odd_image(&maker, None).await;
    let bench = Bench::new(&Options::new(&maker.url), &id);
    let base = bench.prepare().await;
    let (left, _) = bench.pass(&base, &shell(0, "true")).await;
    bench.pass(&left, &shell(1, "true")).await;
    bench.destroy().await;
    let api = Api::of(&bench.url);
    assert!(api.has_image(&id).await, "the base image was removed");
    api.remove_image(&id).await;
}

#[tokio::test]
async fn a_missing_image_is_reported_with_its_name_and_the_reason() {
    let Some(mut bench) = Bench::of_environment() else { return };
    bench.run.image = "localhost/no-such-image:1".into();
    bench.run.pull = PullPolicy::Never;
    let said = bench.podman.prepare(&bench.run, &bench.stop).await.unwrap_err().to_string();
    assert!(said.contains("localhost/no-such-image:1") && said.contains("never"), "{said}");
    bench.run.pull = PullPolicy::Missing;
    bench.run.image = "NOT A//name".into();
    let error = bench.podman.prepare(&bench.run, &bench.stop).await.unwrap_err();
    assert!(matches!(error, ExecError::Image { .. }), "{error}");
}

const REGISTRIES: &[&str] = &[
    "CONTAINER_ENGINE_URL",
    "BOB_TEST_IMAGE",
    "BOB_TEST_REGISTRY",
    "BOB_TEST_REGISTRY_AUTH",
    "BOB_TEST_REGISTRY_USER",
    "BOB_TEST_REGISTRY_PASSWORD",
];

struct Registry {
    services: Services,
    host: String,
    name: String,
    auth: tempfile::TempDir,
}

impl Registry {
    /// A registry with the base image under a unique name that the engine does not have.
    async fn with_image(variable: &str) -> Option<Self> {
        let services = Services::of_environment(REGISTRIES)?;
        let host = services.get(variable).to_owned();
        let name = format!("{host}/t-{}:good", uuid::Uuid::new_v4());
        let registry = Self { services, host, name, auth: tempfile::tempdir().unwrap() };
        let api = Api::of(registry.services.get("CONTAINER_ENGINE_URL"));
        let user = registry.services.get("BOB_TEST_REGISTRY_USER");
        let password = registry.services.get("BOB_TEST_REGISTRY_PASSWORD");
        api.push(registry.services.get("BOB_TEST_IMAGE"), &registry.name, user, password).await;
        Some(registry)
    }

    fn bench(&self, image: &str, password: Option<&str>) -> Bench {
        let file = self.auth.path().join(format!("auth-{}.json", uuid::Uuid::new_v4()));
        let user = self.services.get("BOB_TEST_REGISTRY_USER");
        let login = password.map(|password| {
            serde_json::json!({ &self.host: { "username": user, "password": password } })
        });
        let auths = serde_json::json!({ "auths": login.unwrap_or_else(|| serde_json::json!({})) });
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
    let bench = registry.bench(&registry.name, None);
    let (one, two) = tokio::join!(bench.prepare(), bench.prepare());
    assert_eq!(one, two);
    let (_, kept) = bench.pass(&one, &step(0, &["echo", "pulled"])).await;
    assert_eq!(kept.text(), "pulled\n");
    bench.destroy().await;
    // Now the engine has it. Only `always` contacts the registry again.
    for pull in [PullPolicy::Never, PullPolicy::Missing, PullPolicy::Always] {
        let mut bench = registry.bench(&registry.name, None);
        bench.run.pull = pull;
        assert_eq!(bench.prepare().await, one, "{pull:?}");
        bench.destroy().await;
    }
    Api::of(&bench.url).remove_image(&registry.name).await;
}

#[tokio::test]
async fn a_missing_tag_is_distinguished_from_one_that_needs_credentials() {
    let Some(registry) = Registry::with_image("BOB_TEST_REGISTRY_AUTH").await else { return };
    let good = registry.services.get("BOB_TEST_REGISTRY_PASSWORD").to_owned();
    let said = async |image: &str, password: Option<&str>| {
        let bench = registry.bench(image, password);
        let error = bench.podman.prepare(&bench.run, &bench.stop).await.unwrap_err();
        assert!(matches!(error, ExecError::Image { .. }), "{error:?}");
        error.to_string()
    };
    let missing = registry.name.replace(":good", ":bad");
    let text = said(&missing, Some(&good)).await;
    assert!(text.contains("no such image or tag") && text.contains(&missing), "{text}");
    for password in [Some("wrong"), None] {
        let text = said(&registry.name, password).await;
        assert!(text.contains("BOB_REGISTRY_AUTH_FILE"), "{text}");
        assert!(!text.contains("wrong"), "the password is in {text}");
    }
    let bench = registry.bench(&registry.name, Some(&good));
    bench.prepare().await;
    bench.destroy().await;
    Api::of(&bench.url).remove_image(&registry.name).await;
}

#[tokio::test]
async fn credentials_come_from_the_first_file_that_knows_the_registry() {
    let Some(registry) = Registry::with_image("BOB_TEST_REGISTRY_AUTH").await else { return };
    let file = |name: &str, host: &str, password: &str| {
        let user = registry.services.get("BOB_TEST_REGISTRY_USER");
        let auths = serde_json::json!({ host: { "username": user, "password": password } });
        let path = registry.auth.path().join(name);
        std::fs::write(&path, serde_json::json!({ "auths": auths }).to_string()).unwrap();
        path
    };
    let good = registry.services.get("BOB_TEST_REGISTRY_PASSWORD");
    let options = Options {
        auth_files: vec![
            registry.auth.path().join("not-there.json"),
            file("other.json", "other.example", "x"),
            file("good.json", &registry.host, good),
            file("late.json", &registry.host, "wrong"),
        ],
        insecure_registries: vec![registry.host.clone()],
        ..Options::new(registry.services.get("CONTAINER_ENGINE_URL"))
    };
    let bench = Bench::new(&options, &registry.name);
    bench.prepare().await;
    bench.destroy().await;
    Api::of(&bench.url).remove_image(&registry.name).await;
}

#[tokio::test]
async fn a_registry_that_is_down_or_has_no_tls_is_reported_as_such() {
    let Some(registry) = Registry::with_image("BOB_TEST_REGISTRY").await else { return };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let down = format!("{}/x:1", closed.local_addr().unwrap());
    drop(closed);
    let mut options = Options::new(registry.services.get("CONTAINER_ENGINE_URL"));
    options.insecure_registries = vec![down.split('/').next().unwrap().to_owned()];
    let bench = Bench::new(&options, &down);
    let text = bench.podman.prepare(&bench.run, &bench.stop).await.unwrap_err().to_string();
    assert!(text.contains("cannot be reached") && text.contains(&down), "{text}");
    options.insecure_registries.clear();
    let bench = Bench::new(&options, &registry.name);
    let text = bench.podman.prepare(&bench.run, &bench.stop).await.unwrap_err().to_string();
    assert!(text.contains("BOB_REGISTRY_INSECURE"), "{text}");
}

#[tokio::test]
async fn a_stop_during_an_image_pull_takes_effect_at_once() {
    let Some(bench) = Bench::of_environment() else { return };
    // A registry that accepts the connection and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let options = Options { insecure_registries: vec![host.clone()], ..Options::new(&bench.url) };
    let bench = Bench::new(&options, &format!("{host}/x:1"));
    let preparing = bench.podman.prepare(&bench.run, &bench.stop);
    let stopping = async {
        let held = silent.accept().await.unwrap();
        bench.stop.raise(StopLevel::Kill);
        held
    };
    let (prepared, _held) = tokio::join!(preparing, stopping);
    assert!(matches!(prepared, Err(ExecError::NotStarted)), "{prepared:?}");
}

#[tokio::test]
async fn a_resource_is_unpacked_for_later_steps() {
    let Some(bench) = Bench::of_environment() else { return };
    let base = bench.prepare().await;
    let tar = stream_of(tar_of("src/note.txt", b"mounted\n").await);
    let on = bench.podman.import(&bench.run, &base, "/root", tar).await.unwrap();
    let spec = StepSpec { work_dir: Some("/root/src".into()), ..shell(0, "cat note.txt") };
    let (on, kept) = bench.pass(&on, &spec).await;
    assert_eq!(kept.text(), "mounted\n");
    // A missing directory is created.
    let tar = stream_of(tar_of("more", b"2\n").await);
    let on = bench.podman.import(&bench.run, &on, "/not/there/yet", tar).await.unwrap();
    let (_, kept) = bench.pass(&on, &shell(1, "cat /not/there/yet/more /root/src/note.txt")).await;
    assert_eq!(kept.text(), "2\nmounted\n");
    bench.destroy().await;
}

#[tokio::test]
async fn a_truncated_or_invalid_archive_is_reported_as_an_error_of_the_resource() {
    let Some(bench) = Bench::of_environment() else { return };
    let base = bench.prepare().await;
    let half = tar_of("src/note.txt", &[b'x'; 5000]).await[..2000].to_vec();
    let broken = stream::iter([Ok(Bytes::from(half)), Err(std::io::Error::other("went away"))]);
    let said = bench.podman.import(&bench.run, &base, "/root", broken.boxed()).await.unwrap_err();
    assert!(matches!(&said, ExecError::Input(text) if text.contains("went away")), "{said:?}");
    let noise = stream_of(vec![b'x'; 4096]);
    let said = bench.podman.import(&bench.run, &base, "/root", noise).await.unwrap_err();
    assert!(matches!(said, ExecError::Input(_)), "{said:?}");
    bench.destroy().await;
}

#[tokio::test]
async fn an_artifact_path_is_relative_to_the_directory_of_its_step() {
    let Some(bench) = Bench::of_environment() else { return };
    let base = bench.prepare().await;
    let line = "mkdir -p out/deep; echo one > out/a; echo two > out/deep/b; echo three > /tmp/c";
    let spec = StepSpec { work_dir: Some("/root".into()), ..shell(0, line) };
    let (ran, _) = bench.step(&base, &spec).await;
    let names = async |path: &str| {
        let tar = bench.podman.export(&bench.run, &ran.left, path).await.unwrap();
        files_of(&collect(tar).await).await
    };
    assert_eq!(names("out/a").await, [("a".to_owned(), b"one\n".to_vec())]);
    assert_eq!(names("/tmp/c").await, [("c".to_owned(), b"three\n".to_vec())]);
    let tree = names("out").await;
    assert!(tree.contains(&("out/deep/b".to_owned(), b"two\n".to_vec())), "{tree:?}");
    let missing = bench.podman.export(&bench.run, &ran.left, "out/none").await;
    let path = "/root/out/none";
    assert!(matches!(missing, Err(ExecError::NoSuchPath { path: said }) if said == path));
    bench.destroy().await;
}
