//! A command becomes a run, and both kinds of readers see it as docs/wire.md specifies (section 4).

use serde_json::{Value, json};

use crate::place::TestEnv;
use crate::{native, reader};

/// Checks the fields that every event of a run has, and the expected ones.
fn assert_event(event: &Value, seq: usize, run: &str, place: &TestEnv, expected: &Value) {
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&event[field], value, "{field} of {event}");
    }
    assert!(event["at"].as_i64().unwrap() > 1_700_000_000_000, "{event}");
    assert_eq!(event["kind"], "Pipeline", "{event}");
    assert_eq!(event["run-id"], run, "{event}");
    assert_eq!(event["group"], place.tag.as_str(), "{event}");
    assert!(event["name"].is_string(), "{event}");
    assert!(event["node"].as_str().unwrap().starts_with("bob/runner-"), "{event}");
    assert!(event["epoch"].as_u64().unwrap() > 0, "{event}");
    assert_eq!(event["seq"], seq, "{event}");
    let names_run = event["message"].as_str().unwrap().contains(run);
    assert!(names_run || event["reason"] == "Log", "{event}");
    for field in event.as_object().unwrap().keys() {
        assert!(!field.contains('_'), "{field} is not in kebab-case");
    }
    if event["reason"] == "StepCompleted" {
        assert!(event["duration-ms"].is_u64(), "{event}");
        assert!(event["exit-code"] != 0 || event["image"].is_string(), "{event}");
    }
}

fn assert_events(place: &TestEnv, run: &str, events: &[Value], expected: &[Value]) {
    let reasons: Vec<&str> =
        expected.iter().map(|event| event["reason"].as_str().unwrap()).collect();
    assert_eq!(reader::reasons(events), reasons);
    reader::assert_gapless(events);
    for (seq, (event, expected)) in events.iter().zip(expected).enumerate() {
        assert_event(event, seq, run, place, expected);
    }
}

/// The events before the first step.
fn begun(place: &TestEnv) -> Vec<Value> {
    vec![
        json!({ "reason": "PipelineRunScheduled", "type": "Normal" }),
        json!({ "reason": "StartPipelineRun", "type": "Normal" }),
        json!({ "reason": "ImagePull", "type": "Normal", "image": place.image() }),
        json!({ "reason": "PipelineRunning", "type": "Normal" }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_inline_and_named_starts_read_the_same_over_amqp_and_stream() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[]).await;
    let steps = json!([
        { "cmd": "sh -c 'echo one; echo two'" },
        { "name": "second", "cmd": ["sh", "-c", "echo \"  $0\" >&2; exit 0", "three"] },
    ]);
    let pipeline = place.pipeline("passes", &steps);
    place.keys.put(&format!("bob.pipeline/{}:passes", place.tag), &pipeline).await;
    let (inline, named) = (place.run("inline"), place.run("named"));
    place.start(&inline, &pipeline).await;
    // A message can use a second spelling of a key, and unknown keys.
    let body =
        json!({ "run_id": named, "group": place.tag, "name": "passes", "backoff": 5, "x": 1 });
    place.publish("bob.jobs", "pipeline/start", &body).await;
    let mut expected = begun(&place);
    expected.extend([
        json!({ "reason": "StepStarted", "type": "Normal", "step": "0", "attempt": 1,
            "executor": "podman" }),
        json!({ "reason": "Log", "type": "Normal", "step": "0", "attempt": 1, "stream": "stdout",
            "offset": 0, "message": "one\ntwo" }),
        json!({ "reason": "StepCompleted", "type": "Normal", "step": "0", "attempt": 1,
            "exit-code": 0, "stdout-bytes": 8, "stderr-bytes": 0 }),
        json!({ "reason": "StepStarted", "type": "Normal", "step": "second", "attempt": 1,
            "executor": "podman" }),
        json!({ "reason": "Log", "type": "Normal", "step": "second", "attempt": 1,
            "stream": "stderr", "offset": 0, "message": "  three" }),
        json!({ "reason": "StepCompleted", "type": "Normal", "step": "second", "attempt": 1,
            "exit-code": 0, "stdout-bytes": 0, "stderr-bytes": 8 }),
        json!({ "reason": "PipelineSuccessful", "type": "Normal" }),
    ]);
    for run in [&inline, &named] {
        let events = reader::events_of(&place, run).await;
        assert_events(&place, run, &events, &expected);
        assert!(events[4]["command"].as_str().unwrap().contains("echo one; echo two"));
        assert_eq!(native::events_of(&place, run).await, events);
        assert_eq!(place.keys.settled(run).await["status"], "passed");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_run_reports_its_step_and_exit_code_and_runs_no_later_step() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[]).await;
    let steps = json!([{ "name": "breaks", "cmd": "sh -c 'exit 3'" }, { "cmd": "echo never" }]);
    let run = place.run("fails");
    place.start(&run, &place.pipeline("fails", &steps)).await;
    let mut expected = begun(&place);
    expected.extend([
        json!({ "reason": "StepStarted", "type": "Normal", "step": "breaks" }),
        json!({ "reason": "StepCompleted", "type": "Warning", "step": "breaks", "exit-code": 3 }),
        json!({ "reason": "PipelineFailed", "type": "Warning", "cause": "exit-code",
            "step": "breaks", "exit-code": 3 }),
    ]);
    let events = reader::events_of(&place, &run).await;
    assert_events(&place, &run, &events, &expected);
    assert_eq!(native::events_of(&place, &run).await, events);
    let record = place.keys.settled(&run).await;
    assert_eq!((&record["status"], &record["cause"]), (&json!("failed"), &json!("exit-code")));
    assert_eq!(record["steps"].as_array().unwrap().len(), 1);
    assert_eq!(record["steps"][0]["exit-code"], 3);
    server.end().await;
}
