//! Tests of stopping a step: the signal, the grace, SIGKILL, and that no process survives.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use runner::ports::{Gate, LogSink, StepOutcome, StepSpec, Steps as _, StopLevel};
use test_support::engine::{Bench, OutputRecorder, collect, files_of, shell, step, until};

/// Runs a step and raises the stop level once the step has written `ready`. Returns the step's
/// result and output.
async fn run_and_stop(
    bench: &Bench,
    step: &StepSpec,
    level: StopLevel,
) -> (StepOutcome, Arc<OutputRecorder>) {
    let base = bench.prepare().await;
    let recorder = Arc::new(OutputRecorder::default());
    let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&recorder);
    let gate = Gate::open();
    let running = bench.podman.run_step(&bench.run, &base, step, gate, out, &bench.stop);
    let raising = async {
        until("the step writes that it is ready", || async { recorder.text().contains("ready") })
            .await;
        bench.stop.raise(level);
    };
    let (outcome, ()) = tokio::join!(running, raising);
    (outcome.unwrap(), recorder)
}

/// A stop whose grace does not expire during a test.
const STOP_WITH_LONG_GRACE: StopLevel = StopLevel::Stop { grace: Duration::from_secs(600) };

#[tokio::test]
async fn the_command_receives_sigterm_although_it_is_not_process_1() {
    let Some(bench) = Bench::from_env() else { return };
    let line = "trap 'echo asked; exit 9' TERM; echo ready; while true; do sleep 0.1; done";
    let (outcome, recorder) = run_and_stop(&bench, &shell(0, line), STOP_WITH_LONG_GRACE).await;
    assert_eq!((outcome.exit.code, recorder.text().as_str()), (9, "ready\nasked\n"));
    bench.destroy().await;
}

#[tokio::test]
async fn a_command_without_signal_handlers_ends_on_sigterm() {
    let Some(bench) = Bench::from_env() else { return };
    // As process 1 it would ignore the signal, and only SIGKILL after the grace would end it.
    let (outcome, _) = run_and_stop(
        &bench,
        &step(0, &["sh", "-c", "echo ready; exec sleep 1000"]),
        STOP_WITH_LONG_GRACE,
    )
    .await;
    assert_eq!(outcome.exit.code, 143);
    bench.destroy().await;
}

#[tokio::test]
async fn a_step_that_ignores_sigterm_is_killed_after_its_grace() {
    let Some(bench) = Bench::from_env() else { return };
    let line = "trap '' TERM; echo ready; while true; do sleep 0.1; done";
    let stop = StopLevel::Stop { grace: Duration::from_millis(300) };
    let (outcome, _) = run_and_stop(&bench, &shell(0, line), stop).await;
    assert_eq!(outcome.exit.code, 137);
    bench.destroy().await;
}

#[tokio::test]
async fn a_kill_cuts_the_grace_short() {
    let Some(bench) = Bench::from_env() else { return };
    let line = "trap 'echo asked' TERM; echo ready; while true; do sleep 0.1; done";
    let base = bench.prepare().await;
    let recorder = Arc::new(OutputRecorder::default());
    let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&recorder);
    let (gate, step) = (Gate::open(), shell(0, line));
    let running = bench.podman.run_step(&bench.run, &base, &step, gate, out, &bench.stop);
    let raising = async {
        until("the step is ready", || async { recorder.text().contains("ready") }).await;
        bench.stop.raise(STOP_WITH_LONG_GRACE);
        until("the step received the signal", || async { recorder.text().contains("asked") }).await;
        bench.stop.raise(StopLevel::Kill);
    };
    let (outcome, ()) = tokio::join!(running, raising);
    assert_eq!(outcome.unwrap().exit.code, 137);
    bench.destroy().await;
}

#[tokio::test]
async fn no_process_survives_the_stop_of_its_step() {
    let Some(bench) = Bench::from_env() else { return };
    // A signal to the command does not reach a child in its own session.
    let mark = format!("9{}", uuid::Uuid::new_v4().as_u128() % 1_000_000_000);
    let line = format!("setsid sleep {mark} & echo ready; exec sleep {mark}");
    let (_, _) = run_and_stop(&bench, &shell(0, &line), STOP_WITH_LONG_GRACE).await;
    let is_running = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|words| words.split(|byte| *byte == 0).any(|word| word == mark.as_bytes()))
    });
    assert!(!is_running, "a process of the step is still running");
    bench.destroy().await;
}

#[tokio::test]
async fn files_of_a_stopped_step_can_still_be_read() {
    let Some(bench) = Bench::from_env() else { return };
    let line = "echo half > /tmp/result; echo ready; exec sleep 1000";
    let (outcome, _) = run_and_stop(&bench, &shell(0, line), StopLevel::Kill).await;
    let tar = bench.podman.export(&bench.run, &outcome.workspace, "tmp/result").await.unwrap();
    let files = files_of(&collect(tar).await).await;
    assert_eq!(files, [("result".to_owned(), b"half\n".to_vec())]);
    bench.destroy().await;
}

#[tokio::test]
async fn destroying_a_run_ends_its_running_containers() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let recorder = Arc::new(OutputRecorder::default());
    let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&recorder);
    let (gate, step) = (Gate::open(), shell(0, "echo ready; exec sleep 1000"));
    {
        let running = bench.podman.run_step(&bench.run, &base, &step, gate, out, &bench.stop);
        let ready = until("the step is ready", || async { recorder.text().contains("ready") });
        tokio::select! {
            outcome = running => panic!("the step ended: {outcome:?}"),
            () = ready => {}
        }
        // The future is dropped here, as if the worker had died. The step continues.
    }
    let other_process = bench.another_process();
    assert!(other_process.is_left(&bench.run.run).await);
    other_process.destroy().await;
    assert!(!other_process.is_left(&bench.run.run).await);
}
