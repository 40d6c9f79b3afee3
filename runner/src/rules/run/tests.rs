#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for single orders")]

use proptest::prelude::*;

use super::*;

const NOW: Millis = Millis(1_000);

fn record(steps: &str) -> RunRecord {
    let pipeline = serde_json::json!({
        "group": "dev", "name": "x", "image": "busybox", "timeout": "1h",
        "resources": [{"name": "src", "type": "external", "provider": "git"}],
        "steps": serde_json::from_str::<serde_json::Value>(steps).unwrap(),
    });
    serde_json::from_value(serde_json::json!({
        "group": "dev", "name": "x", "run-id": "r-1", "status": "pending", "attempt": 1,
        "scheduled-at": "2026-01-01T00:00:00.000Z", "pipeline": pipeline,
    }))
    .unwrap()
}

const TWO: &str = r#"[{"name": "0", "cmd": "a"}, {"name": "1", "cmd": "b", "timeout": "5s"}]"#;
const RICH: &str = r#"[{"name": "0", "cmd": "a", "needs_resource": "src"},
    {"name": "1", "cmd": "b", "needs_resource": "src",
     "produces_artifact": {"name": "x", "path": "y", "store": "s"}}]"#;

fn run(steps: &str) -> Run {
    Run::claimed(record(steps), NodeId::found("bob/runner-1"), Epoch(7))
}

fn words(effects: &[Effect]) -> Vec<String> {
    effects
        .iter()
        .map(|effect| match effect {
            Effect::Save(record) => format!("save {}", record.status),
            Effect::Emit(draft) => {
                let json = serde_json::to_value(&draft.reason).unwrap();
                json["reason"].as_str().unwrap().to_owned()
            }
            other => format!("{other:?}").to_lowercase(),
        })
        .collect()
}

fn committed(image: &str) -> Input {
    Input::Committed { image: image.into(), engine: "e".into() }
}

#[test]
fn a_run_that_passes_goes_through_every_status_and_saves_before_it_tells() {
    let mut run = run(TWO);
    assert_eq!(
        words(&run.begin(NOW)),
        ["prepare", "save initializing", "StartPipelineRun", "ImagePull", "settimer(run, 3600s)"]
    );
    assert_eq!(
        words(&run.on(NOW, Input::Prepared)),
        [
            "save initialized",
            "start(0)",
            "save running",
            "PipelineRunning",
            "StepStarted",
            "opengate"
        ]
    );
    let exited = Input::Exited(Exited::default());
    assert_eq!(words(&run.on(NOW, exited.clone())), ["canceltimer(step(0))", "commit(0)"]);
    assert_eq!(
        words(&run.on(NOW, committed("i0"))),
        [
            "start(1)",
            "save running",
            "StepCompleted",
            "StepStarted",
            "opengate",
            "settimer(step(1), 5s)"
        ]
    );
    drop(run.on(NOW, exited));
    assert_eq!(words(&run.on(NOW, committed("i1"))), ["save running", "StepCompleted", "finish"]);
    assert_eq!(run.record().status, Status::Passed);
    assert_eq!(run.ending().unwrap().reason, Reason::PipelineSuccessful);
}

#[test]
fn a_resource_is_fetched_once_and_an_artifact_is_sent_before_the_commit() {
    let mut run = run(RICH);
    drop(run.begin(NOW));
    assert_eq!(
        words(&run.on(NOW, Input::Prepared))[1..],
        ["save running", "PipelineRunning", "ResourceFetch", "fetch(0)"]
    );
    assert_eq!(words(&run.on(NOW, Input::Fetched))[0], "start(0)");
    drop(run.on(NOW, Input::Exited(Exited::default())));
    assert_eq!(words(&run.on(NOW, committed("i")))[0], "start(1)");
    assert_eq!(
        words(&run.on(NOW, Input::Exited(Exited::default()))),
        ["canceltimer(step(1))", "ArtifactUpload", "upload(1)"]
    );
    assert_eq!(words(&run.on(NOW, Input::Uploaded)), ["commit(1)"]);
}

#[test]
fn a_failing_step_stops_the_rest_and_its_code_is_told() {
    let mut run = run(TWO);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    let list = run.on(NOW, Input::Exited(Exited { code: 3, ..Exited::default() }));
    assert_eq!(
        words(&list),
        ["canceltimer(step(0))", "discard", "save running", "StepCompleted", "finish"]
    );
    let Reason::PipelineFailed { cause, exit_code } = run.ending().unwrap().reason else {
        panic!("not failed")
    };
    assert_eq!((cause, exit_code), (Cause::ExitCode, Some(3)));
    assert!(run.ending().unwrap().message.contains("step 0: exit code 3"));
}

#[test]
fn a_step_that_broke_tells_its_own_counts_and_the_code_of_a_command_that_ended() {
    let completed = |effects: &[Effect]| {
        let of_step = |effect: &Effect| match effect {
            Effect::Emit(draft) => match draft.reason {
                Reason::StepCompleted { exit_code, stdout_bytes, .. } => {
                    Some((exit_code, stdout_bytes))
                }
                _ => None,
            },
            _ => None,
        };
        effects.iter().find_map(of_step)
    };
    let mut run = run(RICH);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    drop(run.on(NOW, Input::Fetched));
    drop(run.on(NOW, Input::Exited(Exited { stdout_bytes: 920, ..Exited::default() })));
    assert_eq!(completed(&run.on(NOW, committed("i0"))), Some((Some(0), 920)));
    let broke =
        |said| Input::Broke { cause: Cause::Artifact, message: "x".into(), exit_code: None, said };
    let exited = Input::Exited(Exited { stdout_bytes: 7, ..Exited::default() });
    drop(run.on(NOW, exited));
    assert_eq!(completed(&run.on(NOW, broke(None))), Some((Some(0), 7)), "the upload broke");
    let mut run = self::run(TWO);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    assert_eq!(completed(&run.on(NOW, broke(Some((3, 4))))), Some((None, 3)), "the command broke");
}

#[test]
fn a_stop_is_heard_in_every_state_and_the_run_ends_stopped() {
    let stop = || Input::StopAsked(StopWhy::User { reason: None });
    let before: [&[Input]; 5] = [
        &[],
        &[Input::Prepared],
        &[Input::Prepared, Input::Fetched],
        &[
            Input::Prepared,
            Input::Fetched,
            Input::Exited(Exited { code: 0, oom: false, stdout_bytes: 0, stderr_bytes: 0 }),
        ],
        &[Input::Prepared],
    ];
    for inputs in before {
        let mut run = run(RICH);
        drop(run.begin(NOW));
        for input in inputs {
            drop(run.on(NOW, input.clone()));
        }
        assert_eq!(words(&run.on(NOW, stop())), ["interrupt", "PipelineStopping"]);
        assert!(run.on(NOW, stop()).is_empty(), "a second stop says nothing");
        let end = [
            Input::Prepared,
            Input::Fetched,
            Input::Exited(Exited { code: 143, ..Exited::default() }),
            committed("i"),
        ];
        let finishes = end
            .into_iter()
            .flat_map(|input| run.on(NOW, input))
            .filter(|e| *e == Effect::Finish)
            .count();
        assert_eq!(finishes, 1, "after {inputs:?}");
        assert_eq!(run.record().status, Status::Stopped, "after {inputs:?}");
    }
}

#[test]
fn a_step_that_takes_too_long_fails_with_timeout() {
    let mut run = run(TWO);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    assert!(run.on(NOW, Input::Expired(Timer::Step(1))).is_empty(), "not this step's timer");
    assert_eq!(words(&run.on(NOW, Input::Expired(Timer::Step(0)))), ["interrupt"]);
    drop(run.on(NOW, Input::Exited(Exited { code: 137, ..Exited::default() })));
    assert_eq!((run.record().status, run.record().cause), (Status::Failed, Some(Cause::Timeout)));
}

#[test]
fn a_run_without_steps_passes() {
    let mut run = run("[]");
    drop(run.begin(NOW));
    assert_eq!(words(&run.on(NOW, Input::Prepared)).last().unwrap(), "finish");
    assert_eq!(run.record().status, Status::Passed);
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        4 => Just(Input::Prepared),
        4 => Just(Input::Fetched),
        6 => (prop_oneof![4 => Just(0), 1 => any::<i32>()], any::<bool>(), 0u8..8).prop_map(|(code, oom, rare)|
            Input::Exited(Exited { code, oom: oom && rare == 0, ..Exited::default() })),
        4 => Just(Input::Uploaded),
        6 => Just(committed("sha256:1")),
        1 => Just(Input::Broke { cause: Cause::Engine, message: "x".into(), exit_code: None, said: None }),
        1 => Just(Input::StopAsked(StopWhy::User { reason: None })),
        1 => Just(Input::StopAsked(StopWhy::Shutdown)),
        1 => (0usize..4).prop_map(|n| Input::Expired(Timer::Step(n))),
        1 => Just(Input::Expired(Timer::Run)),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_a_run_ends_at_most_once_and_starts_nothing_unrecorded(
        inputs in prop::collection::vec(any_input(), 0..40), rich in any::<bool>()
    ) {
        let mut run = run(if rich { RICH } else { TWO });
        let mut all = run.begin(NOW);
        let mut ended = false;
        for input in inputs {
            let list = run.on(NOW, input);
            prop_assert!(!ended || list.is_empty(), "orders after the end: {list:?}");
            ended |= list.contains(&Effect::Finish);
            all.extend(list);
        }
        prop_assert_eq!(ended, run.record().status.is_ended());
        let mut recorded = 0;
        for effect in &all {
            match effect {
                Effect::Save(record) => {
                    prop_assert!(!record.status.is_ended(), "an ending is written by finish alone");
                    recorded = recorded.max(record.steps.len());
                }
                Effect::OpenGate => {
                    let started = all.iter().filter(|e| matches!(e, Effect::Start(_))).count();
                    prop_assert!(started >= recorded);
                }
                _ => {}
            }
        }
        let mut seen = 0usize;
        for effect in &all {
            if let Effect::Start(position) = effect {
                prop_assert_eq!(*position, seen, "steps run once, in order");
                seen += 1;
            }
        }
    }
}
