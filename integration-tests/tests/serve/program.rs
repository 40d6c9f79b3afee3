//! `bob-runner serve` as a process: its user, its end, and its errors at the start.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use test_support::engine::tar_of;
use tokio::process::Command;
use tokio::sync::Notify;

use crate::place::{TestEnv, in_time};
use crate::reader::{self, Reader};
use crate::server;

async fn find(place: &TestEnv, reason: &str) -> Value {
    Reader::new(place).await.find(|event| event["reason"] == reason).await
}

/// Changes the owner of a directory and everything below it.
fn give(path: &Path, user: u32) {
    std::os::unix::fs::chown(path, Some(user), None).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), user);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_user_runs_a_worker_without_privileges() {
    let Some(place) = TestEnv::new().await else { return };
    // The user of the rootless engine.
    let socket = place.services.get("CONTAINER_ENGINE_URL").trim_start_matches("unix://");
    let owner = std::fs::metadata(socket).unwrap().uid();
    assert_ne!(owner, 0, "the engine is not root's");
    let mut command = place.program(&["serve"], &[]);
    if rustix::process::geteuid().is_root() {
        // That user might not be able to access the build directory.
        let program = place.dir.path().join("bob-runner");
        std::fs::copy(command.as_std().get_program(), &program).unwrap();
        std::fs::set_permissions(place.dir.path(), Permissions::from_mode(0o755)).unwrap();
        give(place.dir.path(), owner);
        let mut other = Command::new(program);
        let variables = command.as_std().get_envs();
        let variables = variables.filter_map(|(name, value)| Some((name, value?)));
        other.arg("serve").env_clear().envs(variables).current_dir(place.dir.path());
        other.stdin(std::process::Stdio::null()).kill_on_drop(true).uid(owner).gid(owner);
        command = other;
    }
    let server = place.served(command).await;
    let ids: Vec<String> = server.status("Uid").split('\t').map(str::to_owned).collect();
    assert!(ids.iter().all(|id| *id == owner.to_string()), "{ids:?}");
    assert_eq!(server.status("CapEff"), "0000000000000000");
    let steps = json!([{ "cmd": "touch /made" }, { "cmd": "ls /made" }]);
    let run = place.run("rootless");
    place.start(&run, &place.pipeline("rootless", &steps)).await;
    let events = reader::events_of(&place, &run).await;
    assert!(events.iter().any(|event| event["message"] == "/made"), "{events:?}");
    assert_eq!(place.keys.settled(&run).await["status"], "passed");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_signal_lets_runs_in_progress_finish() {
    let Some(place) = TestEnv::new().await else { return };
    // The run continues when the test lets the provider answer.
    let may_answer = Arc::new(Notify::new());
    let told = Arc::clone(&may_answer);
    let tar = tar_of("file", b"fetched\n").await;
    let outside = server::Server::start(move |request| {
        let (told, tar) = (Arc::clone(&told), tar.clone());
        async move {
            told.notified().await;
            request.answer(200, &tar).await;
        }
    })
    .await;
    let provider = json!({ "name": place.tag, "url": outside.url() });
    place.keys.put(&format!("bob.resource-provider/{}", place.tag), &provider).await;
    for (name, signal) in [("terminated", Signal::TERM), ("interrupted", Signal::INT)] {
        let mut server = place.serve(&[]).await;
        let mut pipeline =
            place.pipeline(name, &json!([{ "cmd": "cat file", "needs_resource": "src" }]));
        pipeline["resources"] =
            json!([{ "name": "src", "type": "external", "provider": place.tag }]);
        let run = place.run(name);
        place.start(&run, &pipeline).await;
        let fetches = |event: &Value| event["run-id"] == run && event["reason"] == "ResourceFetch";
        let node = Reader::new(&place).await.find(fetches).await["node"].clone();
        server.signal(signal);
        let drains = |event: &Value| event["reason"] == "RunnerDraining" && event["node"] == node;
        Reader::new(&place).await.find(drains).await;
        may_answer.notify_one();
        assert_eq!(place.keys.settled(&run).await["status"], "passed");
        assert_eq!(server.ended().await, Some(0));
        assert!(server.log().contains("the next signal hands it over"), "{}", server.log());
        assert_eq!(place.keys.get(&format!("bob.node/{}", node.as_str().unwrap())).await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_signal_hands_over_runs_in_progress() {
    let Some(place) = TestEnv::new().await else { return };
    let mut server = place.serve(&[("BOB_DRAIN_SECONDS", "3600")]).await;
    let run = place.run("long");
    let steps = json!([{ "cmd": ["sh", "-c", "echo begun; exec sleep 1000"] }]);
    place.start(&run, &place.pipeline("long", &steps)).await;
    find(&place, "Log").await;
    server.signal(Signal::TERM);
    find(&place, "RunnerDraining").await;
    // Signals within half a second count as one, by specification.
    tokio::time::sleep(Duration::from_millis(600)).await;
    server.signal(Signal::TERM);
    assert_eq!(server.ended().await, Some(0));
    let record = place.keys.get(&format!("bob.pipeline.run/{run}")).await.unwrap();
    assert_eq!((&record["status"], &record["attempt"]), (&json!("running"), &json!(1)));
    assert_eq!(record["released"]["by"], record["node"]);
    assert_eq!(
        place.keys.get(&format!("bob.run.owner/{run}")).await,
        None,
        "it no longer has an owner"
    );
    assert!(server.log().contains("ends the program at once"), "{}", server.log());
    // The next worker resumes the run and carries out a stop sent in between.
    place.stop(&run).await;
    let _next = place.serve(&[]).await;
    let record = place.keys.settled(&run).await;
    assert_eq!((&record["status"], &record["cause"]), (&json!("stopped"), &json!("user")));
}

/// The program's error if it cannot start. It must exit by itself without a panic.
async fn refused(place: &TestEnv, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = place.program(&["serve"], settings).output();
    let Output { status, stdout, stderr } = in_time("the program ends", output).await.unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(stdout.is_empty() && !said.contains("panicked"), "{said}");
    (status.code(), said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_wrong_settings_are_reported_together() {
    let Some(place) = TestEnv::new().await else { return };
    let settings = [
        ("BOB_MAX_PARALLEL_RUNS", "many"),
        ("BOB_QUEUE_URL", "http://bob:hunter2@localhost"),
        ("BOB_STORAGE_URLS", "ftp://localhost"),
        ("CONTAINER_ENGINE_URL", "podman"),
        ("BOB_PULL_POLICY", "sometimes"),
        ("BOB_LOG_LEVEL", "loud"),
        ("BOB_KILL_GRACE_SECONDS", "-1"),
        ("BOB_STORAGE_PASSWORD_FILE", "/nowhere/password"),
        ("BOB_QUEUE_PASSWORD_FILE", "/nowhere/else"),
    ];
    let (code, said) = refused(&place, &settings).await;
    assert_eq!(code, Some(78), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    for (name, value) in settings {
        assert!(said.contains(name), "{name} is not named: {said}");
        let hides = value.contains("hunter2") || name == "BOB_QUEUE_PASSWORD_FILE";
        assert_eq!(said.contains(value), !hides, "{value}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unusable_service_is_named_in_one_sentence() {
    let Some(place) = TestEnv::new().await else { return };
    let nobody = server::nobody().await;
    let (amqp, http) = (format!("amqp://{nobody}"), format!("http://{nobody}"));
    let no_socket = format!("unix://{}/no.sock", place.dir.path().display());
    let elsewhere = format!("{}-not-there", place.variables()[0].1);
    let cases = [
        ("BOB_QUEUE_PASSWORD", "hunter2", "check BOB_QUEUE_USER"),
        ("BOB_QUEUE_URL", &amqp, &amqp),
        ("BOB_QUEUE_URL", &elsewhere, "vhost"),
        ("BOB_STORAGE_URLS", &http, &http),
        ("CONTAINER_ENGINE_URL", &http, &http),
        ("CONTAINER_ENGINE_URL", &no_socket, "no.sock"),
    ];
    for (name, value, named) in cases {
        let once = [("BOB_CONNECTION_RETRY_ATTEMPTS", "1"), ("BOB_CONNECTION_RETRY_DELAY", "0")];
        let settings = [&once[..], &[(name, value), ("BOB_LOG_LEVEL", "error")]].concat();
        let (code, said) = refused(&place, &settings).await;
        assert_eq!(code, Some(69), "{name}: {said}");
        assert!(said.starts_with("error: ") && said.lines().count() == 1, "{name}: {said}");
        assert!(said.contains(named), "{name}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}
