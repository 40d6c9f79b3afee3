#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for single orders")]

use proptest::prelude::*;
use protocol::id::{Epoch, NodeId, StepName};
use protocol::pipeline::{FailureMode, Step};
use protocol::run::{RunRecord, StepStatus};

use super::*;

mod graph;
mod limits;
mod once;
mod resume;
mod retry;

const NOW: Millis = Millis(1_000);

pub(super) fn record(steps: &str) -> RunRecord {
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
    Run::claimed(record(steps), NodeId::from_stored("bob/runner-1"), Epoch(7), 2)
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

fn hand_over_asked() -> Input {
    Input::HandOverAsked { grace: Duration::from_secs(10) }
}

fn at(index: usize) -> StepPosition {
    StepPosition::new(index)
}

fn committed(index: usize, image: &str) -> Input {
    Input::Committed { position: at(index), image: image.into(), engine: "e".into() }
}

/// The fact that a step's command exited with 0.
fn exited(index: usize) -> Input {
    Input::Exited(at(index), Exited::default())
}

#[test]
fn a_passing_run_has_every_status_and_is_saved_before_events_are_published() {
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
            "opengate(0)"
        ]
    );
    assert_eq!(words(&run.on(NOW, exited(0))), ["canceltimer(step(0))", "commit(0)"]);
    assert_eq!(
        words(&run.on(NOW, committed(0, "i0"))),
        [
            "start(1)",
            "save running",
            "StepCompleted",
            "push(0)",
            "StepStarted",
            "opengate(1)",
            "settimer(step(1), 5s)"
        ]
    );
    drop(run.on(NOW, exited(1)));
    assert_eq!(
        words(&run.on(NOW, committed(1, "i1"))),
        ["save running", "StepCompleted", "finish"]
    );
    assert_eq!(run.record().status, Status::Passed);
    assert_eq!(run.ending().unwrap().reason, Reason::PipelineSuccessful);
}

#[test]
fn a_resource_is_fetched_once_and_an_artifact_is_uploaded_before_the_commit() {
    let mut run = run(RICH);
    drop(run.begin(NOW));
    assert_eq!(
        words(&run.on(NOW, Input::Prepared))[1..],
        ["save running", "PipelineRunning", "ResourceFetch", "fetch(0)"]
    );
    assert_eq!(words(&run.on(NOW, Input::Fetched(at(0))))[0], "start(0)");
    drop(run.on(NOW, exited(0)));
    assert_eq!(words(&run.on(NOW, committed(0, "i")))[0], "start(1)");
    assert_eq!(
        words(&run.on(NOW, exited(1))),
        ["canceltimer(step(1))", "ArtifactUpload", "upload(1)"]
    );
    assert_eq!(words(&run.on(NOW, Input::Uploaded(at(1)))), ["commit(1)"]);
}

#[test]
fn a_failing_step_stops_the_run_and_its_exit_code_is_reported() {
    let mut run = run(TWO);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    let list = run.on(NOW, Input::Exited(at(0), Exited { code: 3, ..Exited::default() }));
    assert_eq!(
        words(&list),
        ["canceltimer(step(0))", "discard(0)", "save running", "StepCompleted", "finish"]
    );
    let Reason::PipelineFailed { cause, exit_code } = run.ending().unwrap().reason else {
        panic!("not failed")
    };
    assert_eq!((cause, exit_code), (Cause::ExitCode, Some(3)));
    assert!(run.ending().unwrap().message.contains("step 0: exit code 3"));
}

#[test]
fn a_broken_step_reports_its_byte_counts_and_the_exit_code_of_its_command() {
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
    drop(run.on(NOW, Input::Fetched(at(0))));
    drop(run.on(NOW, Input::Exited(at(0), Exited { stdout_bytes: 920, ..Exited::default() })));
    assert_eq!(completed(&run.on(NOW, committed(0, "i0"))), Some((Some(0), 920)));
    let broke = |index, output_bytes| {
        let broke = Broke { output_bytes, ..Broke::new(Cause::Artifact, "x".into()) };
        Input::Broke(Some(at(index)), broke)
    };
    drop(run.on(NOW, Input::Exited(at(1), Exited { stdout_bytes: 7, ..Exited::default() })));
    assert_eq!(completed(&run.on(NOW, broke(1, None))), Some((Some(0), 7)), "the upload broke");
    let mut run = self::run(TWO);
    drop(run.begin(NOW));
    drop(run.on(NOW, Input::Prepared));
    assert_eq!(
        completed(&run.on(NOW, broke(0, Some((3, 4))))),
        Some((None, 3)),
        "the command broke"
    );
}

#[test]
fn a_stop_takes_effect_in_every_state_and_the_run_ends_stopped() {
    let stop = || Input::StopAsked(StopWhy::User { reason: None });
    let before: [&[Input]; 5] = [
        &[],
        &[Input::Prepared],
        &[Input::Prepared, Input::Fetched(at(0))],
        &[
            Input::Prepared,
            Input::Fetched(at(0)),
            Input::Exited(at(0), Exited { code: 0, oom: false, stdout_bytes: 0, stderr_bytes: 0 }),
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
            Input::Fetched(at(0)),
            Input::Exited(at(0), Exited { code: 143, ..Exited::default() }),
            committed(0, "i"),
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
    assert!(run.on(NOW, Input::Expired(Timer::Step(at(1)))).is_empty(), "not this step's timer");
    assert_eq!(words(&run.on(NOW, Input::Expired(Timer::Step(at(0))))), ["interruptstep(0)"]);
    drop(run.on(NOW, Input::Exited(at(0), Exited { code: 137, ..Exited::default() })));
    assert_eq!((run.record().status, run.record().cause), (Status::Failed, Some(Cause::Timeout)));
}

#[test]
fn a_run_without_steps_passes() {
    let mut run = run("[]");
    drop(run.begin(NOW));
    assert_eq!(words(&run.on(NOW, Input::Prepared)).last().unwrap(), "finish");
    assert_eq!(run.record().status, Status::Passed);
}

const FORKED: &str = r#"[{"name": "0", "cmd": "a", "needs": []},
    {"name": "1", "cmd": "b", "needs": ["0"], "allow-failure": true},
    {"name": "2", "cmd": "c", "needs": ["0"], "retry": {"attempts": 2}},
    {"name": "3", "cmd": "d", "needs": ["1", "2"], "from": "1", "when": "ended"}]"#;

fn any_input() -> impl Strategy<Value = Input> {
    let at = || (0usize..4).prop_map(StepPosition::new);
    let exited = (at(), prop_oneof![4 => Just(0), 1 => any::<i32>()], any::<bool>(), 0u8..8);
    prop_oneof![
        4 => Just(Input::Prepared),
        4 => at().prop_map(Input::Fetched),
        9 => exited.prop_map(|(at, code, oom, rare)| {
            Input::Exited(at, Exited { code, oom: oom && rare == 0, ..Exited::default() })
        }),
        4 => at().prop_map(Input::Uploaded),
        9 => (0usize..4).prop_map(|index| committed(index, "sha256:1")),
        1 => prop::option::of(at()).prop_map(|at| {
            Input::Broke(at, Broke::new(Cause::Engine, "x".into()))
        }),
        1 => Just(Input::StopAsked(StopWhy::User { reason: None })),
        1 => Just(Input::StopAsked(StopWhy::Shutdown)),
        1 => Just(Input::HandOverAsked { grace: Duration::from_secs(10) }),
        1 => at().prop_map(|n| Input::Expired(Timer::HandOver(n))),
        2 => prop::collection::vec(at(), 0..3).prop_map(|missing| Input::Adopted { missing }),
        1 => at().prop_map(|n| Input::Expired(Timer::Step(n))),
        2 => at().prop_map(|n| Input::Expired(Timer::Retry(n))),
        1 => Just(Input::Expired(Timer::Run)),
    ]
}

proptest! {
    #[test]
    fn any_facts_end_a_run_at_most_once_and_start_no_unrecorded_attempt(
        inputs in prop::collection::vec(any_input(), 0..60),
        steps in prop::sample::select(vec![TWO, RICH, FORKED, once::BESIDE]),
    ) {
        let mut run = run(steps);
        let mut all = run.begin(NOW);
        let (mut ended, mut left) = (false, false);
        for input in inputs {
            let list = run.on(NOW, input);
            prop_assert!(!(ended || left) || list.is_empty(), "orders after the end: {list:?}");
            ended |= list.contains(&Effect::Finish);
            left |= list.contains(&Effect::Release);
            all.extend(list);
        }
        prop_assert!(!(ended && left), "a run that is handed over has not ended");
        prop_assert_eq!(ended, run.record().status.is_ended());
        prop_assert_eq!(left, run.record().released.is_some());
        nothing_runs_unrecorded(&all, &run);
    }
}

/// Asserts that a gate opens once per attempt, after the step was recorded as started, and after
/// all steps that it needs have passed.
fn nothing_runs_unrecorded(all: &[Effect], run: &Run) {
    let pipeline = run.record().pipeline.clone().unwrap();
    let graph = pipeline.graph();
    let (mut saved, mut opened) = (Vec::new(), Vec::new());
    for effect in all {
        match effect {
            Effect::Save(record) => {
                assert!(!record.status.is_ended(), "an ending is written by finish alone");
                saved.clone_from(&record.steps);
            }
            Effect::OpenGate(position) => {
                let of = |at: StepPosition| {
                    saved.iter().find(|it| it.name == pipeline.steps[at.index()].name)
                };
                let own = of(*position).expect("it is recorded");
                assert_eq!(own.status, StepStatus::Started);
                assert!(!opened.contains(&(*position, own.attempt)), "an attempt runs once");
                opened.push((*position, own.attempt));
                for needed in graph.needs(*position) {
                    let status = of(*needed).map(|it| it.status);
                    let usual =
                        pipeline.steps[position.index()].when == protocol::pipeline::When::Passed;
                    let is_good = status == Some(StepStatus::Passed)
                        || (status == Some(StepStatus::Failed)
                            && (pipeline.steps[needed.index()].allow_failure || !usual));
                    assert!(is_good, "step {position} runs with {needed} {status:?}");
                }
            }
            _ => {}
        }
    }
}

fn past(handed_over: bool) -> PreviousOwner {
    PreviousOwner {
        node: NodeId::from_stored("bob/runner-0"),
        epoch: Epoch(5),
        handed_over,
        last_seq: None,
    }
}

/// The record of a run whose last owner left it with these steps.
fn left_with(steps: &[(&str, StepStatus)]) -> RunRecord {
    let mut record = record(RICH);
    record.status = Status::Running;
    record.initiated_at = Some(Timestamp(Millis(0)));
    record.steps = steps
        .iter()
        .map(|(name, status)| {
            let passed = *status == StepStatus::Passed;
            serde_json::from_value(serde_json::json!({
                "name": name, "status": status, "attempt": 1, "epoch": 5, "last-seq": 8,
                "image": passed.then_some("i"), "engine": passed.then_some("e"),
            }))
            .unwrap()
        })
        .collect();
    record
}

fn resumed(record: RunRecord, handed_over: bool) -> (Run, Vec<String>) {
    let mut run = Run::claimed(record, NodeId::from_stored("bob/runner-1"), Epoch(7), 2);
    let first = words(&run.resume(NOW, past(handed_over), 3));
    (run, first)
}

/// The fact that all requested checkpoints are available.
fn had() -> Input {
    Input::Adopted { missing: Vec::new() }
}

fn lost(index: usize) -> Input {
    Input::Adopted { missing: vec![at(index)] }
}
