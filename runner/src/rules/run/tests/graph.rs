//! Steps that run in parallel.

use super::*;

/// `0`, then `1` and `2` in parallel, then `3` after both.
fn diamond(more: &str) -> String {
    format!(
        r#"[{{"name": "0", "cmd": "a", "needs": []}},
            {{"name": "1", "cmd": "b", "needs": ["0"]}},
            {{"name": "2", "cmd": "c", "needs": ["0"] {more}}},
            {{"name": "3", "cmd": "d", "needs": ["1", "2"], "from": "1"}}]"#
    )
}

/// A run of [`diamond`] with `1` and `2` in progress.
fn in_the_middle(more: &str) -> Run {
    let mut run = run(&diamond(more));
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    drop(run.on(NOW, exited(0)));
    let both = words(&run.on(NOW, committed(0, "i0")));
    assert_eq!(both[..2], ["start(1)", "start(2)"]);
    assert_eq!(both.iter().filter(|word| *word == "save running").count(), 1, "one write for both");
    run
}

fn failed(index: usize) -> Input {
    Input::Exited(at(index), Exited { code: 3, ..Exited::default() })
}

fn in_mode(mut run: Run, mode: FailureMode) -> Run {
    run.record.pipeline.as_mut().unwrap().failure = mode;
    run
}

#[test]
fn a_step_starts_when_all_its_needs_have_passed() {
    let mut run = in_the_middle("");
    drop(run.on(NOW, exited(2)));
    assert_eq!(words(&run.on(NOW, committed(2, "i2"))), ["save running", "StepCompleted"]);
    drop(run.on(NOW, exited(1)));
    let last = words(&run.on(NOW, committed(1, "i1")));
    assert_eq!(last[0], "start(3)");
    assert!(last.contains(&"push(1)".to_owned()), "the last step continues from it: {last:?}");
    drop(run.on(NOW, exited(3)));
    assert_eq!(words(&run.on(NOW, committed(3, "i3"))).last().unwrap(), "finish");
    assert_eq!(run.record().status, Status::Passed);
}

#[test]
fn no_more_steps_run_in_parallel_than_the_worker_allows() {
    let four: Vec<String> =
        (0..4).map(|n| format!(r#"{{"name": "{n}", "cmd": "a", "needs": []}}"#)).collect();
    let mut run = run(&format!("[{}]", four.join(",")));
    drop(run.begin(NOW));
    let first = words(&run.on(NOW, Input::Prepared));
    assert_eq!(first.iter().filter(|word| word.starts_with("start(")).count(), 2, "{first:?}");
    drop(run.on(NOW, exited(1)));
    assert_eq!(words(&run.on(NOW, committed(1, "i")))[0], "start(2)");
}

#[test]
fn a_failing_step_stops_parallel_ones_and_no_other_step_starts() {
    let mut run = in_the_middle("");
    let orders = words(&run.on(NOW, failed(1)));
    assert_eq!(
        orders,
        ["canceltimer(step(1))", "discard(1)", "save running", "StepCompleted", "interruptstep(2)"]
    );
    let last = words(&run.on(NOW, failed(2)));
    assert_eq!(last.last().unwrap(), "finish");
    let record = run.record();
    let statuses: Vec<StepStatus> = record.steps.iter().map(|step| step.status).collect();
    assert_eq!(statuses, [StepStatus::Passed, StepStatus::Failed, StepStatus::Stopped]);
    assert_eq!(record.message.as_deref(), Some("step 1: exit code 3"));
    assert_eq!(run.ending().unwrap().step.unwrap().0.as_str(), "1");
}

#[test]
fn if_the_pipeline_continues_only_dependents_of_the_failed_step_are_skipped() {
    let mut run = in_mode(in_the_middle(""), FailureMode::Continue);
    let orders = words(&run.on(NOW, failed(1)));
    assert_eq!(orders.last().unwrap(), "StepCompleted", "the other one continues");
    assert_eq!(run.record().cause, None, "nothing is decided yet");
    drop(run.on(NOW, exited(2)));
    assert_eq!(words(&run.on(NOW, committed(2, "i2"))).last().unwrap(), "finish");
    assert_eq!((run.record().status, run.record().steps.len()), (Status::Failed, 3));
}

#[test]
fn the_state_of_a_step_that_is_allowed_to_fail_is_used_by_its_successors() {
    let mut run = in_the_middle(r#", "allow-failure": true"#);
    assert_eq!(words(&run.on(NOW, failed(2))), ["canceltimer(step(2))", "commit(2)"]);
    drop(run.on(NOW, committed(2, "i2")));
    assert_eq!(run.record().steps[2].status, StepStatus::Failed);
    drop(run.on(NOW, exited(1)));
    assert_eq!(words(&run.on(NOW, committed(1, "i1")))[0], "start(3)");
    drop(run.on(NOW, exited(3)));
    drop(run.on(NOW, committed(3, "i3")));
    assert_eq!(run.record().status, Status::Passed);
}

#[test]
fn a_step_that_times_out_is_ended_alone_and_retried() {
    let mut run = in_the_middle(r#", "timeout": "1m", "retry": {"attempts": 2}"#);
    assert_eq!(words(&run.on(NOW, Input::Expired(Timer::Step(at(2))))), ["interruptstep(2)"]);
    let orders = words(&run.on(NOW, failed(2)));
    assert!(orders.contains(&"StepRetry".to_owned()), "{orders:?}");
    drop(run.on(NOW, Input::Expired(Timer::Retry(at(2)))));
    drop(run.on(NOW, Input::Expired(Timer::Step(at(2)))));
    let last = words(&run.on(NOW, failed(2)));
    assert_eq!(last.last().unwrap(), "interruptstep(1)", "{last:?}");
    drop(run.on(NOW, failed(1)));
    let said = run.record().message.as_deref();
    assert_eq!(said, Some("step 2 took longer than 1m, at attempt 2"));
}

#[test]
fn a_step_without_a_command_passes_once_its_needs_have() {
    let mut run =
        run(r#"[{"name": "0", "cmd": "a", "needs": []}, {"name": "all", "needs": ["0"]}]"#);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    drop(run.on(NOW, exited(0)));
    let last = words(&run.on(NOW, committed(0, "i")));
    assert_eq!(last, ["save running", "StepCompleted", "StepCompleted", "finish"]);
    assert_eq!(run.record().steps[1].status, StepStatus::Passed);
}

#[test]
fn the_on_error_step_runs_last_and_the_run_still_fails() {
    let mut run = in_the_middle("");
    let last: Step = serde_json::from_str(r#"{"name": "on_error", "cmd": "x"}"#).unwrap();
    run.record.pipeline.as_mut().unwrap().on_error = Some(Box::new(last));
    drop(run.on(NOW, failed(1)));
    assert_eq!(words(&run.on(NOW, failed(2)))[2], "start(4)", "behind all others");
    drop(run.on(NOW, exited(4)));
    assert_eq!(words(&run.on(NOW, committed(4, "i4"))).last().unwrap(), "finish");
    assert_eq!(run.record().message.as_deref(), Some("step 1: exit code 3"));
    // A stop is not an error.
    let mut stopped = in_the_middle("");
    let last: Step = serde_json::from_str(r#"{"name": "on_error", "cmd": "x"}"#).unwrap();
    stopped.record.pipeline.as_mut().unwrap().on_error = Some(Box::new(last));
    drop(stopped.on(NOW, Input::StopAsked(StopWhy::User { reason: None })));
    drop(stopped.on(NOW, failed(1)));
    assert_eq!(words(&stopped.on(NOW, failed(2))).last().unwrap(), "finish");
}

/// The record of a run of [`diamond`] whose owner was lost.
fn lost_with(steps: &[(&str, StepStatus)]) -> RunRecord {
    let pipeline = record(&diamond("")).pipeline;
    RunRecord { pipeline, ..left_with(steps) }
}

#[test]
fn the_next_owner_adopts_only_images_that_later_steps_start_from() {
    let passed = StepStatus::Passed;
    let (_, both) = resumed(lost_with(&[("0", passed), ("1", StepStatus::Started)]), false);
    assert!(both[0].starts_with("adopt([keptstep { position: 0,"), "{both:?}");
    let (mut run, last) = resumed(lost_with(&[("0", passed), ("1", passed), ("2", passed)]), false);
    assert!(last[0].starts_with("adopt([keptstep { position: 1,"), "{last:?}");
    // Only the image of the second step is gone. It runs again from the image of the first.
    let before = words(&run.on(NOW, lost(1)));
    assert!(before[0].starts_with("adopt([keptstep { position: 0,"), "{before:?}");
    let orders = words(&run.on(NOW, had()));
    assert_eq!(orders.iter().filter(|word| word.starts_with("start(")).count(), 1, "{orders:?}");
    assert_eq!(orders[0], "start(1)");
}

#[test]
fn the_failure_recorded_by_an_earlier_owner_is_kept() {
    let mut left = lost_with(&[("0", StepStatus::Passed), ("1", StepStatus::Failed)]);
    left.pipeline.as_mut().unwrap().failure = FailureMode::Continue;
    (left.steps[1].cause, left.steps[1].message) =
        (Some(Cause::ExitCode), Some("exit code 3".into()));
    let (mut run, _) = resumed(left, false);
    assert_eq!(words(&run.on(NOW, had()))[0], "start(2)", "the other branch continues");
    drop(run.on(NOW, exited(2)));
    drop(run.on(NOW, committed(2, "i2")));
    let record = run.record();
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::ExitCode)));
}

#[test]
fn a_call_that_might_have_taken_effect_is_not_repeated() {
    let call = r#"[{"name": "0", "cmd": "a", "executor": "ssh", "with": {"host": "h"}}]"#;
    let left =
        RunRecord { pipeline: record(call).pipeline, ..left_with(&[("0", StepStatus::Started)]) };
    let (run, orders) = resumed(left, false);
    assert_eq!(
        (orders.as_slice(), run.record().cause),
        (&["finish".to_owned()][..], Some(Cause::Lost))
    );
    let again = call.replace(r#""host": "h""#, r#""host": "h", "idempotent": true"#);
    let left =
        RunRecord { pipeline: record(&again).pipeline, ..left_with(&[("0", StepStatus::Started)]) };
    let (_, orders) = resumed(left, false);
    assert_eq!(orders[0], "prepare");
}

#[test]
fn steps_passed_before_a_restart_do_not_count_as_progress() {
    let two = r#"[{"name": "0", "cmd": "a"}, {"name": "1", "cmd": "b"}]"#;
    let pipeline = record(two).pipeline.map(|pipeline| protocol::pipeline::Pipeline {
        on_lost: Some(protocol::pipeline::OnLost::Restart),
        ..pipeline
    });
    let left = left_with(&[("0", StepStatus::Passed), ("1", StepStatus::Started)]);
    let (mut run, _) = resumed(RunRecord { pipeline, losses: 2, furthest: 1, ..left }, false);
    drop(run.on(NOW, Input::Prepared));
    drop(run.on(NOW, exited(0)));
    drop(run.on(NOW, committed(0, "i0")));
    assert_eq!(run.record().losses, 2, "it has been here before");
    drop(run.on(NOW, exited(1)));
    drop(run.on(NOW, committed(1, "i1")));
    assert_eq!((run.record().losses, run.record().furthest), (0, 2));
}

#[test]
fn a_run_that_is_about_to_fail_adopts_no_unneeded_image() {
    let mut left = lost_with(&[("0", StepStatus::Passed), ("1", StepStatus::Failed)]);
    (left.steps[1].cause, left.steps[1].message) = (Some(Cause::ExitCode), Some("no".into()));
    let (mut run, orders) = resumed(left, false);
    assert_eq!(orders[0], "adopt([])", "what still runs of it ends");
    assert_eq!(words(&run.on(NOW, had())).last().unwrap(), "finish");
    assert_eq!(run.record().status, Status::Failed);
}

#[test]
fn steps_that_can_never_start_are_found_in_any_order() {
    let steps = r#"[{"name": "0", "cmd": "a", "needs": ["1"], "when": "ended"},
        {"name": "1", "cmd": "b", "needs": ["2"]},
        {"name": "2", "cmd": "c", "needs": ["3"]},
        {"name": "3", "cmd": "d", "needs": []}]"#;
    let mut run = in_mode(run(steps), FailureMode::Continue);
    drop(run.begin(NOW));
    assert!(words(&run.on(NOW, Input::Prepared)).contains(&"start(3)".to_owned()));
    let orders = words(&run.on(NOW, failed(3)));
    assert!(orders.contains(&"start(0)".to_owned()), "{orders:?}");
    drop(run.on(NOW, exited(0)));
    assert_eq!(words(&run.on(NOW, committed(0, "i0"))).last().unwrap(), "finish");
    let record = run.record();
    let recorded: Vec<&str> = record.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!((recorded.as_slice(), record.status), (&["3", "0"][..], Status::Failed));
}

#[test]
fn the_next_owner_adopts_the_nearest_image_across_steps_without_one() {
    let chain = r#"[{"name": "0", "cmd": "a"}, {"name": "1", "cmd": "b", "allow-failure": true},
        {"name": "2", "cmd": "c", "allow-failure": true}, {"name": "3", "cmd": "d"}]"#;
    let failed = StepStatus::Failed;
    let mut left = left_with(&[("0", StepStatus::Passed), ("1", failed), ("2", failed)]);
    left.pipeline = record(chain).pipeline;
    left.steps[1].cause = Some(Cause::ExitCode);
    left.steps[2].cause = Some(Cause::ExitCode);
    let (_, orders) = resumed(left, false);
    assert!(orders[0].starts_with("adopt([keptstep { position: 0,"), "{orders:?}");
}
