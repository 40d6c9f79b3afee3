//! Ending steps: the signal, the grace, SIGKILL, and proof that no process is left.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use integration_tests::engine::{Bench, OutputRecorder, collect, files_of, shell, step, until};
use runner::ports::{Gate, LogSink, StepOutcome, StepSpec, Steps as _, StopLevel};

/// Runs a step, raises the stop level once it has written `ready`, and returns its result.
async fn stopped(
    bench: &Bench,
    step: &StepSpec,
    level: StopLevel,
) -> (StepOutcome, Arc<OutputRecorder>) {
    let base = bench.prepare().await;
    let kept = Arc::new(OutputRecorder::default());
    let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
    let gate = Gate::open();
    let running = bench.podman.run_step(&bench.run, &base, step, gate, out, &bench.stop);
    let raising = async {
        until("the step writes that it is ready", || async { kept.text().contains("ready") }).await;
        bench.stop.raise(level);
    };
    let (ran, ()) = tokio::join!(running, raising);
    (ran.unwrap(), kept)
}

const LONG: StopLevel = StopLevel::Stop { grace: Duration::from_secs(600) };

#[tokio::test]
async fn the_command_receives_sigterm_although_it_is_not_process_1() {
    let Some(bench) = Bench::of_environment() else { return };
    let line = "trap 'echo asked; exit 9' TERM; echo ready; while true; do sleep 0.1; done";
    let (ran, kept) = stopped(&bench, &shell(0, line), LONG).await;
    assert_eq!((ran.exit.code, kept.text().as_str()), (9, "ready\nasked\n"));
    bench.destroy().await;
}

#[tokio::test]
async fn a_command_without_signal_handlers_ends_on_sigterm() {
    let Some(bench) = Bench::of_environment() else { return };
    // As process 1 it would ignore the signal, and only SIGKILL after the grace would end it.
    let (ran, _) =
        stopped(&bench, &step(0, &["sh", "-c", "echo ready; exec sleep 1000"]), LONG).await;
    assert_eq!(ran.exit.code, 143);
    bench.destroy().await;
}

#[tokio::test]
async fn a_step_that_ignores_sigterm_is_killed_after_its_grace() {
    let Some(bench) = Bench::of_environment() else { return };
    let line = "trap '' TERM; echo ready; while true; do sleep 0.1; done";
    let grace = StopLevel::Stop { grace: Duration::from_millis(300) };
    let (ran, _) = stopped(&bench, &shell(0, line), grace).await;
    assert_eq!(ran.exit.code, 137);
    bench.destroy().await;
}

#[tokio::test]
async fn a_kill_cuts_the_grace_short() {
    let Some(bench) = Bench::of_environment() else { return };
    let line = "trap 'echo asked' TERM; echo ready; while true; do sleep 0.1; done";
    let base = bench.prepare().await;
    let kept = Arc::new(OutputRecorder::default());
    let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
    let (gate, step) = (Gate::open(), shell(0, line));
    let running = bench.podman.run_step(&bench.run, &base, &step, gate, out, &bench.stop);
    let raising = async {
        until("the step is ready", || async { kept.text().contains("ready") }).await;
        bench.stop.raise(LONG);
        until("the step received the signal", || async { kept.text().contains("asked") }).await;
        bench.stop.raise(StopLevel::Kill);
    };
    let (ran, ()) = tokio::join!(running, raising);
    assert_eq!(ran.unwrap().exit.code, 137);
    bench.destroy().await;
}

#[tokio::test]
async fn no_process_survives_the_stop_of_its_step() {
    let Some(bench) = Bench::of_environment() else { return };
    // A child in its own session, which no signal to the command reaches.
    let mark = format!("9{}", uuid::Uuid::new_v4().as_u128() % 1_000_000_000);
    let line = format!("setsid sleep {mark} & echo ready; exec sleep {mark}");
    let (_, _) = stopped(&bench, &shell(0, &line), LONG).await;
    let found = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|words| words.split(|byte| *byte == 0).any(|word| word == mark.as_bytes()))
    });
    assert!(!found, "a process of the step is still running");
    bench.destroy().await;
}

#[tokio::test]
async fn files_of_a_stopped_step_can_still_be_read() {
    let Some(bench) = Bench::of_environment() else { return };
    let line = "echo half > /tmp/result; echo ready; exec sleep 1000";
    let (ran, _) = stopped(&bench, &shell(0, line), StopLevel::Kill).await;
    let tar = bench.podman.export(&bench.run, &ran.left, "tmp/result").await.unwrap();
    let files = files_of(&collect(tar).await).await;
    assert_eq!(files, [("result".to_owned(), b"half\n".to_vec())]);
    bench.destroy().await;
}

#[tokio::test]
async fn destroying_a_run_ends_its_running_containers() {
    let Some(bench) = Bench::of_environment() else { return };
    let base = bench.prepare().await;
    let kept = Arc::new(OutputRecorder::default());
    let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
    let (gate, step) = (Gate::open(), shell(0, "echo ready; exec sleep 1000"));
    {
        let running = bench.podman.run_step(&bench.run, &base, &step, gate, out, &bench.stop);
        let ready = until("the step is ready", || async { kept.text().contains("ready") });
        tokio::select! {
            ran = running => panic!("it ended: {ran:?}"),
            () = ready => {}
        }
        // Dropped here, as if the worker had died. The step continues.
    }
    let other = bench.another_process();
    assert!(other.is_left(&bench.run.run).await);
    other.destroy().await;
    assert!(!other.is_left(&bench.run.run).await);
}
