//! Runs that continue under another owner.

use super::*;

#[test]
fn the_next_owner_resumes_after_the_last_committed_step() {
    let left = left_with(&[("0", StepStatus::Passed), ("1", StepStatus::Started)]);
    let (mut run, first) = resumed(left, false);
    assert_eq!(first[1], "settimer(run, 3599s)", "the run's time limit continues");
    assert!(first[0].starts_with("adopt([keptstep { position: 0, image: \"i\""), "{first:?}");
    // The resource of the first step is in the image.
    assert_eq!(
        words(&run.on(NOW, had())),
        [
            "start(1)",
            "save running",
            "PipelineRunResumed",
            "StepCompleted",
            "StepStarted",
            "opengate(1)"
        ]
    );
    assert_eq!(run.record().steps[1].attempt, 2);
}

#[test]
fn if_an_image_is_lost_the_run_resumes_from_the_previous_one_and_reports_it() {
    let mut left = left_with(&[("0", StepStatus::Passed), ("1", StepStatus::Passed)]);
    let steps = &mut left.pipeline.as_mut().unwrap().steps;
    steps.push(serde_json::from_str(r#"{"name": "2", "cmd": "c"}"#).unwrap());
    let (mut run, first) = resumed(left, false);
    assert!(first[0].starts_with("adopt([keptstep { position: 1,"), "{first:?}");
    let before = words(&run.on(NOW, lost(1)));
    assert!(before[0].starts_with("adopt([keptstep { position: 0,"), "{before:?}");
    let orders = run.on(NOW, had());
    let told = orders.iter().find_map(|order| match order {
        Effect::Emit(EventDraft {
            reason: Reason::PipelineRunResumed { cause, repeats, .. },
            ..
        }) => Some((cause.as_str(), repeats.len())),
        _ => None,
    });
    assert_eq!(told, Some(("image-lost", 1)), "the second step runs again");
    assert_eq!(run.record().steps[1].attempt, 2);
}

#[test]
fn a_push_is_recorded_at_once_by_its_digest() {
    let mut run = run(TWO);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    drop(run.on(NOW, exited(0)));
    drop(run.on(NOW, committed(0, "i0")));
    let pushed =
        |attempt| Input::Pushed { step: StepName::position(0), attempt, digest: "d".into() };
    assert_eq!(words(&run.on(NOW, pushed(2))), [""; 0], "of another attempt");
    assert_eq!(words(&run.on(NOW, pushed(1))), ["save running"]);
    assert_eq!(run.record().steps[0].digest.as_deref(), Some("d"));
}

#[test]
fn a_run_without_a_committed_step_restarts_from_its_first_step() {
    let (mut run, first) = resumed(left_with(&[("0", StepStatus::Started)]), false);
    assert_eq!(
        first,
        ["prepare", "save running", "PipelineRunResumed", "ImagePull", "settimer(run, 3599s)"]
    );
    assert!(words(&run.on(NOW, Input::Prepared)).contains(&"ResourceFetch".to_owned()));
    drop(run.on(NOW, Input::Fetched(at(0))));
    assert_eq!(run.record().steps[0].attempt, 2);
    assert_eq!(run.record().status, Status::Running, "no status is left for an earlier one");
}

#[test]
fn a_run_whose_steps_have_all_passed_runs_no_step_again() {
    let left = left_with(&[("0", StepStatus::Passed), ("1", StepStatus::Passed)]);
    let (mut run, _) = resumed(left, true);
    let ended = words(&run.on(NOW, had()));
    assert_eq!(ended.last().unwrap(), "finish");
    assert!(!ended.iter().any(|word| word.starts_with("start(")), "{ended:?}");
    assert_eq!(run.record().status, Status::Passed);
}

#[test]
fn a_stop_or_a_hand_over_during_the_adoption_takes_effect() {
    let left = left_with(&[("0", StepStatus::Passed)]);
    let (mut run, _) = resumed(left.clone(), false);
    drop(run.on(NOW, Input::StopAsked(StopWhy::User { reason: None })));
    assert_eq!(words(&run.on(NOW, had())), ["finish"]);
    assert_eq!(run.record().status, Status::Stopped);
    let (mut run, _) = resumed(left, false);
    assert_eq!(words(&run.on(NOW, hand_over_asked())), ["interruptrepeatable"]);
    assert_eq!(words(&run.on(NOW, lost(0))), ["release"]);
}

#[test]
fn a_hand_over_waits_for_the_commit_and_interrupts_running_steps() {
    let mut keeps = run(TWO);
    drop(keeps.begin(NOW));
    drop(keeps.on(NOW, Input::Prepared));
    drop(keeps.on(NOW, exited(0)));
    assert_eq!(words(&keeps.on(NOW, hand_over_asked())), ["interruptrepeatable"]);
    let last = words(&keeps.on(NOW, committed(0, "i0")));
    assert_eq!(last, ["save running", "StepCompleted", "push(0)", "release"]);
    assert_eq!(keeps.record().steps[0].status, StepStatus::Passed);

    let mut gives_up = run(TWO);
    drop(gives_up.begin(NOW));
    drop(gives_up.on(NOW, Input::Prepared));
    drop(gives_up.on(NOW, hand_over_asked()));
    // It may have ended by itself or because of the hand-over.
    let given_up = words(&gives_up.on(NOW, exited(0)));
    assert_eq!(given_up, ["canceltimer(step(0))", "discard(0)", "release"]);
    assert_eq!(gives_up.record().steps[0].status, StepStatus::Started);
}

#[test]
fn a_stop_takes_precedence_over_a_hand_over() {
    let mut run = run(TWO);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    drop(run.on(NOW, hand_over_asked()));
    let asked = Input::StopAsked(StopWhy::User { reason: None });
    assert_eq!(words(&run.on(NOW, asked)), ["interrupt", "PipelineStopping"]);
    drop(run.on(NOW, Input::Exited(at(0), Exited { code: 143, ..Exited::default() })));
    assert_eq!((run.record().status, run.record().released.clone()), (Status::Stopped, None));
}
