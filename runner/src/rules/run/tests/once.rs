//! Steps that must not run twice, in a run that changes its owner.

use protocol::pipeline::OnLost;

use super::*;

/// A call, then a step on the image.
const CALLS: &str =
    r#"[{"name": "call", "cmd": "a", "executor": "ssh"}, {"name": "1", "cmd": "b"}]"#;
/// A call in parallel with a step on the image.
pub(super) const BESIDE: &str = r#"[{"name": "call", "cmd": "a", "executor": "ssh", "needs": []},
    {"name": "1", "cmd": "b", "needs": []}]"#;
const RETRIED: &str = r#"[{"name": "call", "cmd": "a", "executor": "ssh",
    "retry": {"attempts": 2, "delay": "1s"}}]"#;
const PATIENT: &str = r#"[{"name": "call", "cmd": "a", "executor": "ssh", "kill-grace": "5m"}]"#;

fn overdue() -> Input {
    Input::Expired(Timer::HandOver(at(0)))
}

fn ends_with(code: i32) -> Input {
    Input::Exited(at(0), Exited { code, ..Exited::default() })
}

/// A run that is handed over while its first step runs.
fn handed_over(steps: &str) -> (Run, Vec<String>) {
    let mut run = run(steps);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    let ordered = words(&run.on(NOW, hand_over_asked()));
    (run, ordered)
}

/// The record of a released run under its next owner.
fn next_owner(left: &Run, handed_over: bool) -> (Run, Vec<String>) {
    let past = PreviousOwner {
        node: NodeId::from_stored("bob/runner-0"),
        epoch: Epoch(7),
        handed_over,
        last_seq: None,
    };
    let mut run =
        Run::claimed(left.record().clone(), NodeId::from_stored("bob/runner-2"), Epoch(9), 2);
    let first = words(&run.resume(NOW, past, 3));
    (run, first)
}

#[test]
fn a_call_finishes_during_a_hand_over_and_its_result_counts() {
    let (mut run, ordered) = handed_over(CALLS);
    assert_eq!(ordered, ["interruptrepeatable", "settimer(handover(0), 10s)"]);
    let ended = words(&run.on(NOW, ends_with(0)));
    assert_eq!(
        ended,
        ["canceltimer(step(0))", "discard(0)", "save running", "StepCompleted", "release"]
    );
    assert_eq!(run.record().steps[0].status, StepStatus::Passed);
    assert!(run.record().released.is_some());
    let (next, _) = next_owner(&run, true);
    assert_eq!(next.record().status, Status::Running, "the run continues");
}

#[test]
fn a_call_that_is_still_running_after_the_drain_ends_its_run_lost() {
    let (mut run, _) = handed_over(CALLS);
    assert_eq!(words(&run.on(NOW, overdue())), ["killstep(0)"]);
    let ended = words(&run.on(NOW, ends_with(143)));
    assert_eq!(
        ended,
        ["canceltimer(step(0))", "discard(0)", "save running", "StepCompleted", "finish"]
    );
    let record = run.record();
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
    let why = record.message.clone().unwrap_or_default();
    assert!(why.contains("step call was still running when its worker ended"), "{why}");
    assert_eq!(record.steps[0].cause, Some(Cause::Lost));
    assert!(record.released.is_none());
}

#[test]
fn a_call_that_breaks_after_the_drain_ends_its_run_lost_too() {
    let (mut run, _) = handed_over(CALLS);
    drop(run.on(NOW, overdue()));
    let broke = Input::Broke(Some(at(0)), Broke::new(Cause::Engine, "gone".into()));
    assert_eq!(words(&run.on(NOW, broke)).last().map(String::as_str), Some("finish"));
    assert_eq!(run.record().cause, Some(Cause::Lost));
}

#[test]
fn a_call_that_passed_before_it_was_killed_counts() {
    let (mut run, _) = handed_over(CALLS);
    drop(run.on(NOW, overdue()));
    let ended = words(&run.on(NOW, ends_with(0)));
    assert_eq!(ended.last().map(String::as_str), Some("release"));
    assert_eq!(run.record().steps[0].status, StepStatus::Passed);
}

#[test]
fn a_call_that_fails_during_a_hand_over_is_not_repeated() {
    let (mut run, _) = handed_over(CALLS);
    let ended = words(&run.on(NOW, ends_with(3)));
    assert_eq!(ended.last().map(String::as_str), Some("release"));
    assert_eq!(run.record().steps[0].cause, Some(Cause::ExitCode));
    let (mut next, _) = next_owner(&run, true);
    let ended = words(&next.on(NOW, Input::Adopted { missing: Vec::new() }));
    assert_eq!(ended.last().map(String::as_str), Some("finish"), "{ended:?}");
    let record = next.record();
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::ExitCode)));
}

#[test]
fn a_call_that_is_due_for_a_retry_is_retried_by_the_next_owner() {
    let (mut run, _) = handed_over(RETRIED);
    let ended = words(&run.on(NOW, ends_with(3)));
    assert_eq!(
        ended,
        ["canceltimer(step(0))", "discard(0)", "save running", "StepCompleted", "release"]
    );
    let step = &run.record().steps[0];
    assert_eq!((step.status, step.cause, step.attempt), (StepStatus::Failed, None, 1));
    let (mut next, _) = next_owner(&run, true);
    drop(next.on(NOW, Input::Prepared));
    assert_eq!(next.record().steps[0].attempt, 2, "{:?}", next.record());
}

#[test]
fn a_step_in_parallel_to_a_call_is_interrupted_and_runs_again() {
    let (mut run, _) = handed_over(BESIDE);
    let given_up =
        words(&run.on(NOW, Input::Exited(at(1), Exited { code: 143, ..Exited::default() })));
    assert_eq!(given_up, ["canceltimer(step(1))", "discard(1)"], "the call still runs");
    assert_eq!(words(&run.on(NOW, ends_with(0))).last().map(String::as_str), Some("release"));
    let statuses: Vec<StepStatus> = run.record().steps.iter().map(|step| step.status).collect();
    assert_eq!(statuses, [StepStatus::Passed, StepStatus::Started]);
}

#[test]
fn an_overdue_call_ends_its_run_once_parallel_steps_have_ended() {
    let (mut run, _) = handed_over(BESIDE);
    drop(run.on(NOW, overdue()));
    drop(run.on(NOW, ends_with(137)));
    let ended =
        words(&run.on(NOW, Input::Exited(at(1), Exited { code: 143, ..Exited::default() })));
    assert_eq!(ended, ["canceltimer(step(1))", "discard(1)", "finish"]);
    assert_eq!(run.record().cause, Some(Cause::Lost));
}

#[test]
fn a_longer_kill_grace_of_a_call_is_respected() {
    let (_, ordered) = handed_over(PATIENT);
    assert_eq!(ordered, ["interruptrepeatable", "settimer(handover(0), 300s)"]);
}

#[test]
fn a_stop_ends_a_call_during_a_hand_over() {
    let (mut run, _) = handed_over(CALLS);
    let asked = Input::StopAsked(StopWhy::User { reason: None });
    assert_eq!(words(&run.on(NOW, asked)), ["interrupt", "PipelineStopping"]);
    drop(run.on(NOW, ends_with(143)));
    assert_eq!(run.record().status, Status::Stopped);
}

#[test]
fn a_call_in_doubt_ends_its_run_whoever_released_it() {
    let mut left = run(CALLS);
    drop(left.begin(NOW));
    drop(left.on(NOW, Input::Prepared));
    assert_eq!(left.record().steps[0].status, StepStatus::Started);
    for handed_over in [true, false] {
        let (next, first) = next_owner(&left, handed_over);
        assert_eq!(first, ["finish"], "handed over: {handed_over}");
        assert_eq!(next.record().cause, Some(Cause::Lost));
    }
}

/// A run whose first step, on the image, failed, and whose on-error step is started.
fn with_on_error(on_error: &str) -> Run {
    let mut run = run(r#"[{"name": "0", "cmd": "a"}]"#);
    let on_error: Step = serde_json::from_str(on_error).unwrap();
    run.record.pipeline.as_mut().unwrap().on_error = Some(Box::new(on_error));
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    drop(run.on(NOW, ends_with(3)));
    let statuses: Vec<StepStatus> = run.record().steps.iter().map(|step| step.status).collect();
    assert_eq!(statuses, [StepStatus::Failed, StepStatus::Started]);
    run
}

#[test]
fn an_on_error_call_in_doubt_is_not_repeated() {
    let mut left = with_on_error(r#"{"name": "tell", "cmd": "x", "executor": "ssh"}"#);
    for on_lost in [None, Some(OnLost::Restart)] {
        left.record.pipeline.as_mut().unwrap().on_lost = on_lost;
        for handed_over in [true, false] {
            let (next, first) = next_owner(&left, handed_over);
            assert_eq!(first, ["finish"], "{on_lost:?}, handed over: {handed_over}");
            let record = next.record();
            assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
            let why = record.message.clone().unwrap_or_default();
            assert!(why.contains("step tell") && why.contains("step 0 had failed"), "{why}");
        }
    }
}

#[test]
fn a_finished_on_error_call_prevents_a_restart_of_its_run() {
    let mut left = with_on_error(r#"{"name": "tell", "cmd": "x", "executor": "ssh"}"#);
    left.record.steps[1].status = StepStatus::Passed;
    left.record.pipeline.as_mut().unwrap().on_lost = Some(OnLost::Restart);
    let (next, first) = next_owner(&left, false);
    assert_eq!(first, ["finish"]);
    assert_eq!(next.record().cause, Some(Cause::Lost));
}

#[test]
fn an_on_error_step_that_was_interrupted_runs_again_with_the_next_owner() {
    let left = with_on_error(r#"{"name": "tidy", "cmd": "x"}"#);
    for handed_over in [true, false] {
        let (mut next, _) = next_owner(&left, handed_over);
        drop(next.on(NOW, Input::Adopted { missing: Vec::new() }));
        let ordered = words(&next.on(NOW, Input::Prepared));
        assert!(ordered.contains(&"start(1)".to_owned()), "{ordered:?}");
        drop(next.on(NOW, exited(1)));
        drop(next.on(NOW, committed(1, "i1")));
        let record = next.record();
        assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::ExitCode)));
    }
}
