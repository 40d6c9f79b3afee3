//! Tests with an engine that accepts calls and then hangs or closes the connection.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{self, Read as _, Write as _};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use protocol::event::LogStream;
use protocol::id::Epoch;
use protocol::pipeline::{ExecutorKind, PullPolicy, Shell};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::call::{Body, Fault, empty};
use super::http::Http;
use super::pull::{Pulls, Registries};
use super::{Options, Podman};
use crate::exec::fast_clock::quickly;
use crate::exec::job::tests::docker_step;
use crate::ports::{
    ExecError, Gate, LogSink, RunScope, Script, StepSpec, Steps as _, StopLevel, StopSignal,
    Workspace,
};

/// How the engine answers a call.
enum Answer {
    Json(u16, serde_json::Value),
    /// These bytes, without the end of the body.
    Begins(&'static [u8]),
    /// A connection to a container that writes these bytes and stays open.
    Attached(&'static [u8]),
    Hangs,
    /// The connection breaks.
    Breaks,
}

type Answers = dyn Fn(&str, &[String]) -> Answer + Send + Sync;

struct Engine {
    url: String,
    /// The calls so far: `GET /containers/c/json`.
    asked: Arc<Mutex<Vec<String>>>,
    tasks: TaskTracker,
    _dir: TempDir,
}

impl Engine {
    /// `answers` gets the call and all earlier ones.
    fn new(answers: impl Fn(&str, &[String]) -> Answer + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (asked, answers): (_, Arc<Answers>) =
            (Arc::<Mutex<Vec<_>>>::default(), Arc::new(answers));
        let tasks = TaskTracker::new();
        let (noted, connections) = (Arc::clone(&asked), tasks.clone());
        drop(tasks.spawn(async move {
            while let Ok((wire, _)) = listener.accept().await {
                let (noted, answers) = (Arc::clone(&noted), Arc::clone(&answers));
                let upgrades = connections.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let path = request.uri().to_string().replacen("/v4.0.0/libpod", "", 1);
                    let call = format!("{} {path}", request.method());
                    let mut noted = noted.lock();
                    let answer = answers(&call, &noted);
                    noted.push(call);
                    answered(request, answer, upgrades.clone())
                });
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(wire), service);
                drop(connections.spawn(async move { connection.with_upgrades().await.ok() }));
            }
        }));
        Self { url: format!("unix://{}", socket.display()), asked, tasks, _dir: dir }
    }

    fn http(&self) -> Arc<Http> {
        Http::new(&self.url).unwrap()
    }

    fn podman(&self) -> Podman {
        Podman::connect(Options::new(&self.url)).unwrap()
    }

    fn count(&self, call: &str) -> usize {
        self.asked.lock().iter().filter(|asked| asked.starts_with(call)).count()
    }

    /// Returns once the engine has received this call.
    async fn is_asked(&self, call: &str) {
        while self.count(call) == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.tasks.close();
    }
}

async fn answered(
    request: Request<Incoming>,
    answer: Answer,
    tasks: TaskTracker,
) -> io::Result<Response<Body>> {
    let never = |never| match never {};
    match answer {
        Answer::Hangs => std::future::pending().await,
        Answer::Breaks => Err(io::Error::other("on purpose")),
        Answer::Json(status, json) => {
            request.into_body().collect().await.map_err(io::Error::other)?;
            let body = Full::from(json.to_string()).map_err(never).boxed_unsync();
            Ok(Response::builder().status(status).body(body).unwrap())
        }
        Answer::Begins(bytes) => {
            let first = stream::iter([Ok(Frame::data(Bytes::from_static(bytes)))]);
            Ok(Response::new(StreamBody::new(first.chain(stream::pending())).boxed_unsync()))
        }
        Answer::Attached(bytes) => {
            drop(tasks.spawn(async move {
                let mut wire = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                wire.write_all(bytes).await.unwrap();
                std::future::pending::<()>().await;
            }));
            let answer = Response::builder().status(101);
            let answer = answer.header("connection", "Upgrade").header("upgrade", "tcp");
            Ok(answer.body(Full::default().map_err(never).boxed_unsync()).unwrap())
        }
    }
}

/// The answers of an engine to all calls for a step in container `c`. `status` is the state of the
/// container.
fn around_a_step(call: &str, status: &str) -> Answer {
    if call.starts_with("GET /images/i/json") {
        return Answer::Json(200, json!({ "Id": "i", "Size": 1, "RepoTags": ["x:y"] }));
    }
    match call.split(['?']).next().unwrap() {
        "POST /containers/create" => Answer::Json(201, json!({ "Id": "c", "Warnings": [] })),
        "POST /containers/c/attach" => Answer::Attached(b""),
        "GET /containers/c/json" => {
            Answer::Json(200, json!({ "Id": "c", "State": { "Status": status } }))
        }
        _ => Answer::Json(200, json!({})),
    }
}

fn scope() -> RunScope {
    RunScope {
        run: "r-1".parse().unwrap(),
        epoch: Epoch(1),
        cluster: "c".into(),
        image: "i".into(),
        pull: PullPolicy::Missing,
        has_own_images: false,
    }
}

fn step() -> StepSpec {
    let programs = vec!["true".to_owned()];
    let script = Some(Script { shell: Shell::Sh, programs, goes_on: false });
    StepSpec { script, words: Vec::new(), executor: ExecutorKind::Podman, ..docker_step(json!({})) }
}

fn image() -> Workspace {
    Workspace::Image { id: "i".into(), depth: 0 }
}

/// Takes this long to accept bytes.
#[derive(Default)]
struct Sink {
    takes: Duration,
    taken: Mutex<Vec<u8>>,
}

#[async_trait]
impl LogSink for Sink {
    async fn write(&self, _stream: LogStream, bytes: Bytes) {
        sleep(self.takes).await;
        self.taken.lock().extend_from_slice(&bytes);
    }
}

#[tokio::test]
async fn an_answer_that_does_not_begin_is_late() {
    let engine = Engine::new(|_, _| Answer::Hangs);
    let http = engine.http();
    let opened = quickly(http.open(&Method::GET, "/x", &[], empty())).await;
    assert!(matches!(opened.unwrap_err(), Fault::TimedOut(_)));
}

#[tokio::test]
async fn an_archive_that_stalls_breaks_off() {
    let engine = Engine::new(|_, _| Answer::Begins(b"x"));
    let podman = engine.podman();
    let archive = podman.archive("c", "/").await.unwrap();
    let read: io::Result<Vec<Bytes>> = quickly(archive.try_collect()).await;
    assert!(read.unwrap_err().to_string().contains("no answer within"));
}

#[tokio::test]
async fn an_archive_that_the_engine_does_not_take_is_an_error_and_a_slow_source_is_none() {
    let engine = Engine::new(|call, _| match call {
        "PUT /containers/c/archive?path=/slow" => Answer::Json(200, json!({})),
        _ => Answer::Hangs,
    });
    let podman = engine.podman();
    let slow = stream::unfold(3, |left: u32| async move {
        sleep(Duration::from_secs(900)).await;
        (left > 0).then(|| (Ok(Bytes::from_static(b"x")), left - 1))
    });
    quickly(podman.put("c", "/slow", slow.boxed())).await.unwrap();
    let tar = stream::iter([Ok(Bytes::from_static(b"x"))]).boxed();
    let put = quickly(podman.put("c", "/", tar)).await;
    assert!(put.unwrap_err().to_string().contains("no answer within"));
}

#[tokio::test]
async fn a_pull_that_hangs_ends_and_the_next_one_begins_anew() {
    let engine = Engine::new(|_, earlier| match earlier.len() {
        0 => Answer::Begins(b"{\"stream\":\"Copying blob\"}\n"),
        1 => Answer::Hangs,
        _ => Answer::Json(200, json!({ "images": ["a1"], "id": "a1" })),
    });
    let (pulls, http, registries) = (Pulls::default(), engine.http(), Registries::default());
    for _ in 0..2 {
        let pulled = quickly(pulls.pull(&http, &registries, "h:1/x")).await;
        let said = pulled.unwrap_err();
        assert!(matches!(said, ExecError::Image { .. }), "{said}");
    }
    assert_eq!(pulls.pull(&http, &registries, "h:1/x").await.unwrap(), "a1");
}

#[tokio::test]
async fn an_engine_that_does_not_say_what_it_is_is_unreachable() {
    let engine = Engine::new(|_, _| Answer::Hangs);
    let podman = engine.podman();
    let error = quickly(podman.info()).await.unwrap_err();
    assert!(matches!(error, ExecError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&engine.url), "{error}");
}

#[tokio::test]
async fn a_step_that_is_being_prepared_hears_a_stop() {
    let engine = Engine::new(|call, _| match call.starts_with("PUT ") {
        true => Answer::Hangs,
        false => around_a_step(call, "created"),
    });
    let (podman, scope, stop) = (engine.podman(), scope(), StopSignal::default());
    // A script of this length is put into the container as a file.
    let programs = vec![": ".repeat(40_000)];
    let script = Some(Script { shell: Shell::Sh, programs, goes_on: false });
    let step = StepSpec { script, ..step() };
    let on = image();
    let running =
        podman.run_step(&scope, &on, &step, Gate::open(), Arc::new(Sink::default()), &stop);
    let stopping = async {
        engine.is_asked("PUT ").await;
        stop.raise(StopLevel::Stop { grace: Duration::from_secs(600) });
    };
    let (ran, ()) = quickly(futures::future::join(running, stopping)).await;
    assert!(matches!(ran, Err(ExecError::NotStarted)), "{ran:?}");
    assert_eq!(engine.count("POST /containers/c/start"), 0);
}

/// An engine with a step that prints `out` and runs until it is killed. The connection to the step
/// stays open after that.
fn with_an_endless_output() -> Engine {
    Engine::new(|call, earlier| {
        let was_killed = earlier.iter().any(|call| call.starts_with("POST /containers/c/kill"));
        match call.starts_with("POST /containers/c/attach") {
            true => Answer::Attached(b"\x01\0\0\0\0\0\0\x03out"),
            false => around_a_step(call, if was_killed { "exited" } else { "running" }),
        }
    })
}

#[tokio::test]
async fn a_killed_step_whose_output_does_not_end_has_ended() {
    let engine = with_an_endless_output();
    let (podman, scope, step, stop) = (engine.podman(), scope(), step(), StopSignal::default());
    let on = image();
    let sink = Arc::new(Sink::default());
    let running =
        podman.run_step(&scope, &on, &step, Gate::open(), Arc::<Sink>::clone(&sink), &stop);
    let stopping = async {
        engine.is_asked("POST /containers/c/start").await;
        stop.raise(StopLevel::Kill);
    };
    let (ran, ()) = quickly(futures::future::join(running, stopping)).await;
    assert_eq!(ran.unwrap().exit.code, 137);
    assert!(sink.taken.lock().starts_with(b"out"));
}

#[tokio::test]
async fn a_killed_step_waits_for_a_sink_that_takes_its_time() {
    let engine = with_an_endless_output();
    let (podman, scope, step, stop) = (engine.podman(), scope(), step(), StopSignal::default());
    let on = image();
    let sink = Arc::new(Sink { takes: Duration::from_secs(1800), ..Sink::default() });
    let running =
        podman.run_step(&scope, &on, &step, Gate::open(), Arc::<Sink>::clone(&sink), &stop);
    let stopping = async {
        engine.is_asked("POST /containers/c/start").await;
        stop.raise(StopLevel::Kill);
    };
    let (ran, ()) = quickly(futures::future::join(running, stopping)).await;
    assert_eq!(ran.unwrap().exit.code, 137);
    assert!(sink.taken.lock().starts_with(b"out"), "its output was dropped");
}

/// A process with the name of a runtime, as of a container that is not started.
struct PreparedProcess {
    process: std::process::Child,
    _dir: TempDir,
}

impl PreparedProcess {
    /// Returns once the process has its name, which can be after `spawn` returns: the kernel resumes
    /// the parent first.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("crun");
        std::os::unix::fs::symlink("/bin/cat", &runtime).unwrap();
        let mut command = std::process::Command::new(runtime);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        process.stdin.as_mut().unwrap().write_all(b"+").unwrap();
        process.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self { process, _dir: dir }
    }
}

impl Drop for PreparedProcess {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// An engine that breaks the connection at each start. After a thousand calls it rejects starts, so
/// that a test cannot run forever. `pid` is the process of the container, which is in this state.
fn that_breaks_at_a_start(status: &'static str, pid: u32) -> Engine {
    Engine::new(move |call, earlier| match call {
        "POST /containers/c/start" if earlier.len() > 1000 => Answer::Json(500, json!({})),
        "POST /containers/c/start" => Answer::Breaks,
        "GET /containers/c/json" => {
            Answer::Json(200, json!({ "Id": "c", "State": { "Status": status, "Pid": pid } }))
        }
        _ => around_a_step(call, status),
    })
}

#[tokio::test]
async fn a_container_that_may_have_run_is_not_started_again() {
    // This process is not a runtime, so it has executed its command.
    for (status, pid) in [("created", 0), ("initialized", std::process::id())] {
        let engine = that_breaks_at_a_start(status, pid);
        let (podman, scope, step, stop) = (engine.podman(), scope(), step(), StopSignal::default());
        let on = image();
        let running =
            podman.run_step(&scope, &on, &step, Gate::open(), Arc::new(Sink::default()), &stop);
        let error = quickly(running).await.unwrap_err();
        assert!(matches!(error, ExecError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("does not know whether the step ran"), "{error}");
        assert_eq!(engine.count("POST /containers/c/start"), 1);
    }
}

#[tokio::test]
async fn an_engine_that_breaks_at_each_start_is_asked_a_few_times() {
    let prepared = PreparedProcess::start();
    let engine = that_breaks_at_a_start("initialized", prepared.process.id());
    let (podman, scope, step, stop) = (engine.podman(), scope(), step(), StopSignal::default());
    let on = image();
    let running =
        podman.run_step(&scope, &on, &step, Gate::open(), Arc::new(Sink::default()), &stop);
    let error = quickly(running).await.unwrap_err();
    assert!(matches!(error, ExecError::Unreachable { .. }), "{error}");
    let starts = engine.count("POST /containers/c/start");
    assert!((2..10).contains(&starts), "{starts} starts");
}

#[tokio::test]
async fn a_step_is_not_started_again_after_a_stop_or_for_a_former_owner() {
    let prepared = PreparedProcess::start();
    for is_stopped in [true, false] {
        let engine = that_breaks_at_a_start("initialized", prepared.process.id());
        let (podman, scope, step, stop) = (engine.podman(), scope(), step(), StopSignal::default());
        let on = image();
        let (asked, raised) = (Arc::clone(&engine.asked), stop.clone());
        // The executor asks the gate right before each start.
        let gate = Gate::new(std::future::ready(true), move || {
            let starts = |call: &String| call == "POST /containers/c/start";
            is_stopped || !asked.lock().iter().any(starts)
        });
        let running = podman.run_step(&scope, &on, &step, gate, Arc::new(Sink::default()), &stop);
        let stopping = async {
            engine.is_asked("POST /containers/c/start").await;
            if is_stopped {
                raised.raise(StopLevel::Stop { grace: Duration::from_secs(600) });
            }
        };
        let (ran, ()) = quickly(futures::future::join(running, stopping)).await;
        assert!(matches!(ran, Err(ExecError::NotStarted)), "{ran:?}");
        assert!(engine.count("POST /containers/c/start") < 4);
    }
}
