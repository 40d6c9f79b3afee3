//! Steps that are retried.

use protocol::pipeline::OnLost;

use super::*;

const THRICE: &str = r#"[{"name": "0", "cmd": "a", "retry": {"attempts": 3, "delay": "10s"}}]"#;

fn failing() -> Input {
    Input::Exited(at(0), Exited { code: 7, ..Exited::default() })
}

/// Returns the delay of the retry timer in a list of orders.
fn wait_of(effects: &[Effect]) -> Option<u128> {
    effects.iter().find_map(|effect| match effect {
        Effect::SetTimer(Timer::Retry(position), wait) if *position == at(0) => {
            Some(wait.as_millis())
        }
        _ => None,
    })
}

#[test]
fn a_step_is_retried_up_to_its_limit_with_growing_delays() {
    let mut run = run(THRICE);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    let first = run.on(NOW, failing());
    assert!(wait_of(&first).is_some_and(|wait| (10_000..11_000).contains(&wait)), "{first:?}");
    assert_eq!(
        words(&first)[..5],
        ["canceltimer(step(0))", "discard(0)", "save running", "StepCompleted", "StepRetry"]
    );
    let again = words(&run.on(NOW, Input::Expired(Timer::Retry(at(0)))));
    assert_eq!(again, ["start(0)", "save running", "StepStarted", "opengate(0)"]);
    assert_eq!((run.record().steps.len(), run.record().steps[0].attempt), (1, 2));
    let second = run.on(NOW, failing());
    assert!(wait_of(&second).is_some_and(|wait| (20_000..22_000).contains(&wait)), "{second:?}");
    drop(run.on(NOW, Input::Expired(Timer::Retry(at(0)))));
    assert_eq!(words(&run.on(NOW, failing())).last().unwrap(), "finish");
    let record = run.record();
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::RetriesExhausted)));
    assert!(record.message.as_ref().unwrap().contains("exit code 7, at attempt 3"));
}

#[test]
fn a_step_can_be_retried_with_a_constant_delay() {
    let mut run = run(&THRICE.replace("\"10s\"", "\"10s\", \"backoff\": \"constant\""));
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    assert_eq!(wait_of(&run.on(NOW, failing())), Some(10_000));
    drop(run.on(NOW, Input::Expired(Timer::Retry(at(0)))));
    assert_eq!(wait_of(&run.on(NOW, failing())), Some(10_000));
}

#[test]
fn a_step_that_passes_on_a_retry_has_passed() {
    let mut run = run(THRICE);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    drop(run.on(NOW, failing()));
    drop(run.on(NOW, Input::Expired(Timer::Retry(at(0)))));
    drop(run.on(NOW, exited(0)));
    assert_eq!(words(&run.on(NOW, committed(0, "i"))).last().unwrap(), "finish");
    assert_eq!((run.record().status, run.record().steps[0].attempt), (Status::Passed, 2));
}

#[test]
fn a_stop_does_not_wait_for_the_next_attempt() {
    let mut run = run(THRICE);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    drop(run.on(NOW, failing()));
    let asked = Input::StopAsked(StopWhy::User { reason: None });
    assert_eq!(words(&run.on(NOW, asked)), ["PipelineStopping", "finish"]);
    assert_eq!(run.record().status, Status::Stopped);
    assert!(run.on(NOW, Input::Expired(Timer::Retry(at(0)))).is_empty());
}

/// A run whose worker was lost in the first attempt of its only step, resumed by the next owner.
fn lost_in_the_first_of(attempts: u32, on: &[&str]) -> (Run, Vec<String>) {
    let mut left = left_with(&[("0", StepStatus::Started)]);
    let pipeline = left.pipeline.as_mut().unwrap();
    pipeline.on_lost = Some(OnLost::Fail);
    let retry = serde_json::json!({ "attempts": attempts, "on": on });
    pipeline.steps[0].retry = Some(serde_json::from_value(retry).unwrap());
    resumed(left, false)
}

#[test]
fn a_step_can_limit_its_attempts_after_lost_workers() {
    let (run, orders) = lost_in_the_first_of(2, &["failure", "lost"]);
    assert_eq!((orders[0].as_str(), run.record().cause), ("prepare", None));

    let (run, orders) = lost_in_the_first_of(1, &["lost"]);
    assert_eq!(
        (orders.as_slice(), run.record().status),
        (&["finish".to_owned()][..], Status::Failed)
    );
    assert_eq!(run.record().cause, Some(Cause::RetriesExhausted));
    let said = run.record().message.clone().unwrap();
    assert!(said.contains("bob/runner-0 was lost in step 0, at attempt 1"), "{said}");

    let (run, _) = lost_in_the_first_of(2, &["failure"]);
    assert_eq!(run.record().cause, Some(Cause::Lost), "the pipeline's on-lost holds");
}

#[test]
fn a_step_that_is_only_retried_after_a_loss_is_not_retried_after_a_failure() {
    let once = THRICE.replace("\"10s\"", "\"10s\", \"on\": [\"lost\"]");
    let mut run = run(&once);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    assert_eq!(words(&run.on(NOW, failing())).last().unwrap(), "finish");
    assert_eq!(run.record().cause, Some(Cause::ExitCode));
}

#[test]
fn an_owner_that_dies_before_the_next_attempt_adds_none() {
    let steps = r#"[{"name": "0", "cmd": "c", "retry": {"attempts": 3}}]"#;
    let mut left = record(steps);
    left.status = Status::Running;
    left.initiated_at = Some(Timestamp(Millis(0)));
    left.steps = serde_json::from_str(
        r#"[{"name": "0", "status": "failed", "exit-code": 3, "attempt": 2, "epoch": 5}]"#,
    )
    .unwrap();
    let (second, _) = resumed(left, false);
    // Its record is all that the next owner knows.
    let saved: RunRecord = serde_json::from_value(serde_json::to_value(second.record()).unwrap())
        .map(|saved: RunRecord| RunRecord { pipeline: second.record().pipeline.clone(), ..saved })
        .unwrap();
    assert!(saved.steps.is_empty(), "the step is yet to start again: {:?}", saved.steps);
    let (mut third, _) = resumed(saved, false);
    let orders = words(&third.on(NOW, Input::Prepared));
    assert!(orders.iter().any(|order| order == "start(0)"), "{orders:?}");
    assert_eq!(third.attempt(at(0)), 3);
    assert!(third.record().attempts.is_empty(), "the step has a record now");
    drop(third.on(NOW, failing()));
    assert_eq!(third.record().cause, Some(Cause::RetriesExhausted), "there is no fourth attempt");
}
