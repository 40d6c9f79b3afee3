//! The engine's service is killed while steps run. Nothing of them is lost.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use runner::exec::podman::Options;
use runner::ports::{
    ExecError, Gate, Images as _, LogSink, StepOutcome, Steps as _, StopLevel, Workspace,
};
use test_support::engine::{Api, Bench, OutputRecorder, shell, until};
use test_support::services::{ENGINE, OwnServices, Services};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::TaskTracker;

struct Engine {
    own: OwnServices,
    bench: Bench,
}

impl Engine {
    fn start() -> Option<Self> {
        // Start no engine unless the environment asks for such tests.
        let _asked_for = Services::from_env(ENGINE)?;
        let own = OwnServices::start("podman", &[])?;
        let services = own.services();
        let options = Options::new(services.get("CONTAINER_ENGINE_URL"));
        let bench = Bench::new(&options, services.get("BOB_TEST_IMAGE"));
        Some(Self { own, bench })
    }

    async fn crash(&self) {
        self.own.control("kill", "podman").await;
    }

    async fn come_back(&self) {
        self.own.control("start", "podman").await;
    }

    /// Makes the engine forget all its containers, as if it had been killed while creating them. It
    /// creates a container's storage before it records the container.
    async fn forget_containers(&self) {
        self.crash().await;
        let services = Path::new(self.bench.url.strip_prefix("unix://").unwrap()).ancestors();
        let data = services.map(|dir| dir.join("data/podman")).find(|dir| dir.exists()).unwrap();
        let stores = std::fs::read_dir(data).unwrap().map(|store| store.unwrap().path());
        let known = stores.flat_map(|store| KNOWN.map(|name| store.join("graph").join(name)));
        let forgotten = known.filter(|file| std::fs::remove_file(file).is_ok()).count();
        assert_eq!(forgotten, 1, "the engine has one database");
        self.come_back().await;
    }
}

/// The files in which podman 4 and 5 record containers.
const KNOWN: [&str; 2] = ["libpod/bolt_state.db", "db.sql"];

/// Runs a line of shell, and calls `then` once it has written `ready`.
async fn meanwhile<F: Future<Output = ()>>(
    bench: &Bench,
    line: &str,
    then: F,
) -> (Result<StepOutcome, ExecError>, Arc<OutputRecorder>) {
    let base = bench.prepare().await;
    let kept = Arc::new(OutputRecorder::default());
    let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
    let (gate, step) = (Gate::open(), shell(0, line));
    let running = bench.podman.run_step(&bench.run, &base, &step, gate, out, &bench.stop);
    let then = async {
        until("the step is ready", || async { kept.text().contains("ready") }).await;
        then.await;
    };
    let (ran, ()) = tokio::join!(running, then);
    (ran, kept)
}

fn lines(to: u32) -> String {
    (1..=to).map(|n| format!("{n}\n")).collect()
}

#[tokio::test]
async fn a_step_that_outlives_its_engine_loses_no_output() {
    let Some(engine) = Engine::start() else { return };
    let line = "echo ready; for n in $(seq 1 200); do echo $n; echo $n >&2; usleep 10000; done; \
                seq 201 60000; printf 'the end'; exit 7";
    let restarting = async {
        engine.crash().await;
        engine.come_back().await;
    };
    let (ran, kept) = meanwhile(&engine.bench, line, restarting).await;
    assert_eq!(ran.unwrap().exit.code, 7);
    assert!(
        kept.text() == format!("ready\n{}the end", lines(60_000)),
        "{} bytes",
        kept.text().len()
    );
    assert_eq!(String::from_utf8(kept.stderr()).unwrap(), lines(200));
    engine.bench.destroy().await;
}

#[tokio::test]
async fn the_output_of_a_step_that_ends_while_its_engine_is_down_is_read_to_the_end() {
    let Some(engine) = Engine::start() else { return };
    let mark = format!("8{}", uuid::Uuid::new_v4().as_u128() % 1_000_000_000);
    // The marker in the command line shows whether the shell still runs.
    let line = format!("echo ready; sleep 1; seq 1 5000; head -c 70000 /dev/zero; exit 6 # {mark}");
    let runs = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|words| String::from_utf8_lossy(&words).contains(&mark))
        })
    };
    let away = async {
        engine.crash().await;
        until("the step has ended", || async { !runs() }).await;
        engine.come_back().await;
    };
    let (ran, kept) = meanwhile(&engine.bench, &line, away).await;
    assert_eq!(ran.unwrap().exit.code, 6);
    let expected = format!("ready\n{}{}", lines(5000), "\0".repeat(70_000));
    assert!(kept.text() == expected, "{} bytes came", kept.text().len());
    engine.bench.destroy().await;
}

impl Engine {
    /// An engine whose own copies of step outputs are small.
    fn with_small_copies() -> Option<Self> {
        let mut engine = Self::start()?;
        let options = Options { log_bytes: Some(64 * 1024), ..Options::new(&engine.bench.url) };
        engine.bench = Bench::new(&options, &engine.bench.run.image);
        Some(engine)
    }
}

#[tokio::test]
async fn an_engine_log_that_lost_its_beginning_is_read_from_the_last_known_byte() {
    let Some(engine) = Engine::with_small_copies() else { return };
    let line = "seq 1 20000; echo ready; for n in $(seq 1 200); do echo $n; usleep 10000; done; \
                printf 'the end'";
    let restarting = async {
        engine.crash().await;
        engine.come_back().await;
    };
    let (ran, kept) = meanwhile(&engine.bench, line, restarting).await;
    assert_eq!(ran.unwrap().exit.code, 0);
    let expected = format!("{}ready\n{}the end", lines(20_000), lines(200));
    assert!(kept.text() == expected, "{} bytes: {}", kept.text().len(), tail(&kept));
    assert_eq!(kept.notes(), "");
    engine.bench.destroy().await;
}

#[tokio::test]
async fn output_that_the_engine_no_longer_has_is_reported_as_missing() {
    let Some(engine) = Engine::with_small_copies() else { return };
    let mark = format!("8{}", uuid::Uuid::new_v4().as_u128() % 1_000_000_000);
    // The marker in the command line shows whether the shell still runs.
    let line = format!("echo ready; sleep 1; seq 1 60000; printf 'the end' # {mark}");
    let runs = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|words| String::from_utf8_lossy(&words).contains(&mark))
        })
    };
    let away = async {
        engine.crash().await;
        until("the step has ended", || async { !runs() }).await;
        engine.come_back().await;
    };
    let (ran, kept) = meanwhile(&engine.bench, &line, away).await;
    assert_eq!(ran.unwrap().exit.code, 0);
    let text = kept.text();
    assert!(text.starts_with("ready\n") && text.ends_with("60000\nthe end"), "{}", tail(&kept));
    assert!(text.len() < lines(60_000).len(), "the engine keeps all of it: {}", text.len());
    assert!(kept.notes().contains("is missing here"), "{}", kept.notes());
    engine.bench.destroy().await;
}

fn tail(kept: &OutputRecorder) -> String {
    let text = kept.text();
    text.get(text.len().saturating_sub(200)..).unwrap_or_default().to_owned()
}

/// The workspace of a step after the engine was killed while it created the next step's container.
async fn half_made(engine: &Engine) -> Workspace {
    let Bench { podman, run, stop, .. } = &engine.bench;
    let (kept, _) =
        engine.bench.pass(&engine.bench.prepare().await, &shell(0, "echo 0 > /a")).await;
    let out: Arc<dyn LogSink> = Arc::new(OutputRecorder::default());
    let next = shell(1, "sleep 1000");
    let running = podman.run_step(run, &kept, &next, Gate::open(), out, stop);
    let forgetting = async {
        let api = Api::of(&engine.bench.url);
        until("the step runs", || api.runs(&run.run)).await;
        engine.forget_containers().await;
    };
    let (ran, ()) = tokio::join!(running, forgetting);
    let said = ran.unwrap_err().to_string();
    assert!(said.contains("removed by another client"), "{said}");
    kept
}

#[tokio::test]
async fn the_name_of_a_container_that_an_engine_kill_left_can_be_used_again() {
    let Some(engine) = Engine::start() else { return };
    let kept = half_made(&engine).await;
    let (_, out) = engine.bench.pass(&kept, &shell(1, "cat /a")).await;
    assert_eq!(out.text(), "0\n");
    engine.bench.destroy().await;
}

#[tokio::test]
async fn images_below_a_container_that_an_engine_kill_left_are_removed_with_its_run() {
    let Some(engine) = Engine::start() else { return };
    half_made(&engine).await;
    let Bench { podman, run, url, .. } = &engine.bench;
    podman.destroy(&run.run).await.unwrap();
    assert_eq!(Api::of(url).labelled("images", &run.run).await, 0);
    let left = podman.leftovers().await.unwrap();
    assert!(left.iter().all(|left| left.run != run.run), "{left:?}");
}

#[tokio::test]
async fn a_stop_without_an_engine_is_carried_out_when_the_engine_returns() {
    let Some(engine) = Engine::start() else { return };
    let stopping = async {
        engine.crash().await;
        engine.bench.stop.raise(StopLevel::Kill);
        engine.come_back().await;
    };
    let (ran, _) = meanwhile(&engine.bench, "echo ready; exec sleep 1000", stopping).await;
    assert_eq!(ran.unwrap().exit.code, 137);
    engine.bench.destroy().await;
}

#[tokio::test]
async fn a_step_whose_monitor_was_killed_does_not_run_forever() {
    let Some(engine) = Engine::start() else { return };
    let api = Api::of(&engine.bench.url);
    let killing = async {
        let conmon = api.conmon_of(&engine.bench.run.run).await;
        let killed = std::process::Command::new("kill").args(["-9", &conmon.to_string()]).status();
        assert!(killed.unwrap().success());
    };
    let (ran, _) = meanwhile(&engine.bench, "echo ready; exec sleep 1000", killing).await;
    let said = ran.unwrap_err().to_string();
    assert!(said.contains("conmon"), "{said}");
    engine.bench.destroy().await;
}

#[tokio::test]
async fn an_unreachable_engine_is_named_in_the_error() {
    let Some(engine) = Engine::start() else { return };
    engine.bench.podman.ping().await.unwrap();
    engine.crash().await;
    let error =
        engine.bench.podman.prepare(&engine.bench.run, &engine.bench.stop).await.unwrap_err();
    assert!(error.retryable(), "{error}");
    assert!(error.to_string().contains("podman.sock"), "{error}");
    engine.come_back().await;
    engine.bench.prepare().await;
}

/// A proxy of an engine that loses the first start of a container. The runtime carries it out, but the
/// engine does not record it, as when it is killed at that moment.
struct LostStart {
    url: String,
    _dir: tempfile::TempDir,
}

impl LostStart {
    fn before(engine: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (engine, tasks) = (engine.to_owned(), TaskTracker::new());
        tasks.clone().spawn(async move {
            let is_lost = Arc::new(AtomicBool::new(false));
            while let Ok((client, _)) = listener.accept().await {
                tasks.spawn(forward(client, engine.clone(), Arc::clone(&is_lost)));
            }
        });
        Self { url: format!("unix://{}", path.display()), _dir: dir }
    }
}

/// Forwards one connection. If it carries the first start, carries that out without the engine, and
/// closes the connection once the command has ended.
async fn forward(client: UnixStream, engine: String, is_lost: Arc<AtomicBool>) {
    let server = UnixStream::connect(engine.strip_prefix("unix://").unwrap()).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = async { tokio::io::copy(&mut from_server, &mut to_client).await };
    let requests = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
            let text = String::from_utf8_lossy(&bytes[..count]);
            if let Some((path, _)) = text.split_once("/start HTTP")
                && !is_lost.swap(true, Ordering::Relaxed)
            {
                return start_unseen(&engine, path.rsplit('/').next().unwrap()).await;
            }
            if to_server.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
        // The engine still answers a client that sends nothing more.
        to_server.shutdown().await.ok();
        std::future::pending().await
    };
    tokio::select! {
        () = requests => {}
        _ = answers => {}
    }
}

/// Starts an initialized container as crun does, and waits until the engine has cleaned up after it.
async fn start_unseen(engine: &str, id: &str) {
    let dir = Path::new(engine.strip_prefix("unix://").unwrap()).parent().unwrap();
    let fifo = dir.join("crun").join(id).join("exec.fifo");
    tokio::fs::write(&fifo, "0").await.unwrap();
    tokio::fs::remove_file(&fifo).await.unwrap();
    let api = Api::of(engine);
    until("the engine has cleaned up", || async {
        let described: serde_json::Value = serde_json::from_str(&api.described(id).await).unwrap();
        described["State"]["Status"] == "created"
    })
    .await;
}

#[tokio::test]
async fn a_container_that_ran_unknown_to_its_engine_is_not_started_again() {
    let Some(bench) = Bench::from_env() else { return };
    let proxy = LostStart::before(&bench.url);
    let bench = Bench::new(&Options::new(&proxy.url), &bench.run.image);
    let base = bench.prepare().await;
    let kept = Arc::new(OutputRecorder::default());
    let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
    let step = shell(0, "echo did >> /log; cat /log");
    let ran = bench.podman.run_step(&bench.run, &base, &step, Gate::open(), out, &bench.stop).await;
    match ran {
        // An engine that finds out that the container has run.
        Ok(outcome) => assert_eq!(outcome.exit.code, 0),
        Err(error) => {
            assert!(matches!(error, ExecError::Unreachable { .. }), "{error}");
            assert!(error.to_string().contains("does not know whether the step ran"), "{error}");
        }
    }
    assert!(!kept.text().contains("did\ndid"), "it ran twice");
    bench.destroy().await;
}
