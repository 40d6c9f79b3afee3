//! The guard of a worker: a worker's steps end with it, even if there is no other worker.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use test_support::engine::{Api, until};
use test_support::services::OwnServices;

use crate::after::assert_nothing_is_left;
use crate::place::{Server, TestEnv, in_time};
use crate::reader;
use crate::takeover::Outside;

/// Whether a process exists and is a guard.
fn is_guard(pid: i32) -> bool {
    // The command line of a zombie is empty.
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).nth(1) == Some(b"guard")
}

/// The guards of a worker.
fn guards(server: &Server) -> Vec<i32> {
    let parent = format!("PPid:\t{}", server.pid());
    let is_child = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == parent)
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_child).filter(|pid| is_guard(*pid)).collect()
}

/// Waits for a guard of the worker other than `other`.
async fn guard(server: &Server, other: Option<i32>) -> i32 {
    let found = || guards(server).into_iter().find(|pid| Some(*pid) != other);
    until("the worker has a guard", || async { found().is_some() }).await;
    found().unwrap()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Waits until no container of a run is running.
async fn nothing_runs(place: &TestEnv, run: &str) {
    let api = Api::of(place.services.get("CONTAINER_ENGINE_URL"));
    let run = run.parse().unwrap();
    until("nothing of the run runs", || async { !api.runs(&run).await }).await;
}

/// Starts a run and waits until it is in its fourth step, which waits.
async fn in_the_fourth_step(place: &TestEnv, outside: &Outside, name: &str) -> String {
    let run = place.run(name);
    place.start(&run, &place.pipeline(name, &outside.steps())).await;
    in_time("the fourth step", outside.reaches("/gate", 1)).await;
    run
}

/// Lets an interrupted run repeat its fourth step, and checks that nothing else was lost.
async fn assert_resumes(place: &TestEnv, outside: &Outside, run: &str) {
    in_time("the fourth step, again", outside.reaches("/gate", 2)).await;
    outside.open.send_replace(true);
    let record = place.keys.settled(run).await;
    assert_eq!(record["status"], "passed", "{record}");
    for (step, times) in [(0, 1), (1, 1), (2, 1), (3, 2), (4, 1), (5, 1)] {
        assert_eq!(outside.count(&format!("/{step}")), times, "step {step}");
    }
    let events = reader::events_of(place, run).await;
    assert!(events.iter().all(|event| event["reason"] != "PipelineStepFailed"), "{events:?}");
    assert_nothing_is_left(place, run, &events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guard_kills_the_step_of_a_frozen_worker_without_any_other_worker() {
    let Some(place) = TestEnv::new().await else { return };
    let outside = Outside::new().await;
    // When the worker wakes up, etcd still accepts its writes, but the step's end must not be
    // recorded.
    let server = place.serve(&[("BOB_LEASE_TTL_SECONDS", "15")]).await;
    let run = in_the_fourth_step(&place, &outside, "frozen").await;
    server.signal(Signal::STOP);
    nothing_runs(&place, &run).await;
    server.signal(Signal::CONT);
    assert_resumes(&place, &outside, &run).await;
    assert_eq!(guards(&server).len(), 1, "the worker is still guarded");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guard_kills_the_step_of_a_killed_worker_and_exits() {
    let Some(place) = TestEnv::new().await else { return };
    let outside = Outside::new().await;
    let settings = [("BOB_LEASE_TTL_SECONDS", "6")];
    let mut server = place.serve(&settings).await;
    let run = in_the_fourth_step(&place, &outside, "killed").await;
    let guard = guard(&server, None).await;
    // Signals from a terminal or a service manager must not end the guard.
    for asked in [Signal::INT, Signal::TERM, Signal::HUP] {
        signal(guard, asked);
    }
    server.signal(Signal::KILL);
    server.ended().await;
    nothing_runs(&place, &run).await;
    until("the guard has ended", || async { !is_guard(guard) }).await;
    let log = server.log();
    assert!(log.contains("are killed: its worker "), "{log}");
    let next = place.serve(&settings).await;
    assert_resumes(&place, &outside, &run).await;
    next.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_that_dies_is_replaced_by_one_with_the_same_knowledge() {
    let Some(place) = TestEnv::new().await else { return };
    let outside = Outside::new().await;
    let server = place.serve(&[("BOB_LEASE_TTL_SECONDS", "6")]).await;
    let run = in_the_fourth_step(&place, &outside, "bereft").await;
    let first = guard(&server, None).await;
    signal(first, Signal::KILL);
    guard(&server, Some(first)).await;
    server.signal(Signal::STOP);
    nothing_runs(&place, &run).await;
    server.signal(Signal::CONT);
    assert_resumes(&place, &outside, &run).await;
    assert_eq!(server.log().matches("the guard of this worker has died").count(), 1);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guard_of_a_draining_worker_exits_with_it_and_kills_nothing() {
    let Some(place) = TestEnv::new().await else { return };
    let outside = Outside::new().await;
    let leaving = [("BOB_LEASE_TTL_SECONDS", "3600"), ("BOB_DRAIN_SECONDS", "0")];
    let mut server = place.serve(&leaving).await;
    let run = in_the_fourth_step(&place, &outside, "leaves").await;
    let guard = guard(&server, None).await;
    let next = place.serve(&[]).await;
    server.signal(Signal::TERM);
    assert_eq!(server.ended().await, Some(0));
    assert!(!is_guard(guard), "the guard has outlived its worker");
    let log = server.log();
    assert!(!log.contains("are killed") && !log.contains("guard"), "{log}");
    assert_resumes(&place, &outside, &run).await;
    let events = reader::events_of(&place, &run).await;
    let resumed = events.iter().find(|event| event["reason"] == "PipelineRunResumed").unwrap();
    assert_eq!(resumed["cause"], json!("handed-over"));
    next.end().await;
}

/// Whether conmon is running for a container of a run. It ends with the container.
fn is_watched(run: &str) -> bool {
    let begins = format!("bob-{run}-");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.into_iter().any(|process| {
        let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        words.next().is_some_and(|program| program.ends_with(b"conmon"))
            && words.any(|word| word.starts_with(begins.as_bytes()))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guard_kills_the_step_of_a_killed_worker_without_the_engine() {
    let Some(place) = TestEnv::new().await else { return };
    let Some(engine) = OwnServices::start("podman", &[]) else { return };
    let url = engine.services().get("CONTAINER_ENGINE_URL").to_owned();
    let outside = Outside::new().await;
    let settings = [("BOB_LEASE_TTL_SECONDS", "6"), ("CONTAINER_ENGINE_URL", &*url)];
    let mut server = place.serve(&settings).await;
    let run = in_the_fourth_step(&place, &outside, "engineless").await;
    assert!(is_watched(&run));
    engine.control("kill", "podman").await;
    server.signal(Signal::KILL);
    server.ended().await;
    until("its processes have ended", || async { !is_watched(&run) }).await;
    engine.control("start", "podman").await;
    let next = place.serve(&settings).await;
    in_time("the fourth step, again", outside.reaches("/gate", 2)).await;
    outside.open.send_replace(true);
    assert_eq!(place.keys.settled(&run).await["status"], "passed");
    next.end().await;
}
