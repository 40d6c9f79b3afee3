//! Tests of runs that start from the steps of another run.

use protocol::event::{Event, Reason};
use protocol::run::{Cause, Status};
use serde_json::{Value, json};

use super::Rig;

/// A new run starts from the committed steps of an ended one, or without them.
pub async fn a_new_run_goes_on_where_an_ended_one_has_come_to(mut rig: Rig) {
    rig.worker(2).await;
    let steps = |second: &str| {
        let mut pipeline = rig.pipeline("parent", &["put /a kept", second, "show /a"]);
        pipeline["retention"] = "1h".into();
        pipeline
    };
    let parent = rig.run("parent");
    rig.start(&parent, &steps("exit 3")).await;
    assert_eq!(rig.settled(&parent).await.status, Status::Failed);
    let begin = async |name: &str, of: Value, pipeline: Value| {
        let run = rig.run(name);
        let body = json!({ "run-id": run, "pipeline": pipeline, "parent": of });
        rig.publish(runner::ports::Route::Jobs, protocol::command::START, &body).await;
        run
    };
    let run = begin("child", json!({ "run-id": parent }), steps("exit 0")).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.steps.len()), (Status::Passed, 3), "{record:?}");
    assert_eq!(record.parent.map(|parent| parent.run_id), Some(parent.clone()));
    let events = rig.events_of(&run).await;
    let began: Vec<String> = events
        .iter()
        .filter(|event| matches!(event.reason, Reason::StepStarted { .. }))
        .filter_map(|event| Some(event.step.as_ref()?.to_string()))
        .collect();
    assert_eq!(began, ["1", "2"], "the first step was taken over");
    assert!(events.iter().any(|event| event.message == "kept"), "so was what it left");
    let repeated =
        |event: &&Event| matches!(event.reason, Reason::StepCompleted { repeated: true, .. });
    assert_eq!(events.iter().filter(repeated).count(), 1);
    // From the first step, if that is requested.
    let of = json!({ "run-id": parent, "from": "0" });
    let run = begin("whole", of, steps("exit 0")).await;
    assert_eq!(rig.settled(&run).await.status, Status::Passed);
    for (name, of, why) in [
        (
            "too-far",
            json!({ "run-id": parent, "from": "2" }),
            "step 1, which is needed for that, was not committed",
        ),
        ("no-step", json!({ "run-id": parent, "from": "x" }), "has no step x"),
        ("unknown", json!({ "run-id": rig.run("nobody") }), "is not known"),
    ] {
        let run = begin(name, of, steps("exit 0")).await;
        let record = rig.settled(&run).await;
        assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Rejected)));
        let message = record.message.unwrap_or_default();
        assert!(message.contains(why), "{message}");
    }
    // Removed images are not invented, and steps that were taken over do not run again.
    rig.ports.executor.destroy(&parent).await.unwrap();
    for run in ["child", "whole"] {
        rig.ports.executor.destroy(&rig.run(run)).await.unwrap();
    }
    let run = begin("late", json!({ "run-id": parent }), steps("exit 0")).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::ImageLost)));
    rig.end().await;
}
