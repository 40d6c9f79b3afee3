//! Leftovers of runs, and the isolation of their steps.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use test_support::engine::Api;

use crate::place::{Server, TestEnv};
use crate::reader::{self, Reader};

/// Runs until it is stopped by a signal.
const LONG: &str = "echo begun; exec sleep 1000";
/// Handles SIGTERM and ends.
const TRAPS: &str = "trap 'echo caught; exit 7' TERM; echo begun; sleep 1000 & wait";
/// Ignores SIGTERM. Its loop restarts the child, which SIGTERM ends.
const IGNORES: &str = "trap '' TERM; echo begun; while :; do sleep 1000; done";

fn shell(script: &str) -> Value {
    json!({ "cmd": ["sh", "-c", script] })
}

/// Waits for a step's first line.
async fn begun(place: &TestEnv, run: &str) {
    let is_it = |event: &Value| event["run-id"] == run && event["message"] == "begun";
    Reader::new(place).await.find(is_it).await;
}

/// All events of these runs, including those after the ending, up to the program's last event.
async fn all_events(place: &TestEnv, server: Server) -> BTreeMap<String, Vec<Value>> {
    server.end().await;
    let mut reader = Reader::new(place).await;
    let mut all: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    loop {
        let event = reader.next().await;
        if event["reason"] == "RunnerStopped" {
            return all;
        }
        if let Some(run) = event["run-id"].as_str().filter(|_| event["seq"].is_u64()) {
            all.entry(run.to_owned()).or_default().push(event);
        }
    }
}

/// Checks that the engine has nothing with the run's label, and none of the images in its events.
pub(crate) async fn assert_nothing_is_left(place: &TestEnv, run: &str, events: &[Value]) {
    let api = Api::of(place.services.get("CONTAINER_ENGINE_URL"));
    let id = run.parse().unwrap();
    assert_eq!(api.labelled("containers", &id).await, 0, "containers of {run} are left");
    assert_eq!(api.labelled("images", &id).await, 0, "images of {run} are left");
    for image in events.iter().filter_map(|event| event["image"].as_str()) {
        assert_eq!(api.has_image(image).await, image == place.image(), "{image} after {run}");
    }
    for key in ["bob.run.open/", "bob.run.owner/", "bob.run.stop/"] {
        assert_eq!(place.keys.get(&format!("{key}{run}")).await, None, "{key} of {run} is left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_ending_removes_the_objects_of_a_run_and_keeps_the_base_image() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[]).await;
    let pipelines = [
        ("passed", json!([shell("echo 1 > /a"), shell("cat /a"), shell("rm /a")])),
        ("failed", json!([shell("echo 1 > /a"), shell("exit 9"), shell("echo never")])),
        ("stopped", json!([shell("echo 1 > /a"), shell(LONG), shell("echo never")])),
    ];
    for (name, steps) in &pipelines {
        place.start(&place.run(name), &place.pipeline(name, steps)).await;
    }
    begun(&place, &place.run("stopped")).await;
    place.stop(&place.run("stopped")).await;
    for (name, _) in &pipelines {
        assert_eq!(place.keys.settled(&place.run(name)).await["status"], *name);
    }
    let all = all_events(&place, server).await;
    for (name, _) in &pipelines {
        let run = place.run(name);
        let events = &all[&run];
        assert!(events.iter().any(|event| event["image"].is_string() && event["step"] == "0"));
        assert_nothing_is_left(&place, &run, events).await;
    }
    let api = Api::of(place.services.get("CONTAINER_ENGINE_URL"));
    assert!(api.has_image(place.image()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_sees_earlier_files_but_not_the_variables_of_earlier_steps() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[]).await;
    let told = "echo \"$OF_ALL $OF_START $OF_ONE $BOTH\"; pwd; echo \"$PATH\"";
    let steps = json!([
        shell(told),
        { "cmd": ["sh", "-c", format!("{told}; cd /tmp; export LOST=1; echo kept > /tmp/file")],
          "vars": { "OF_ONE": "one", "BOTH": "step" } },
        shell(&format!("{told}; echo \"$LOST\"; cat /tmp/file")),
    ]);
    let mut pipeline = place.pipeline("leaks", &steps);
    pipeline["vars"] = json!({ "OF_ALL": "all", "BOTH": "pipeline" });
    let run = place.run("leaks");
    let body = json!({ "run-id": run, "pipeline": pipeline, "vars": { "OF_START": 7 } });
    place.publish("bob.jobs", "pipeline/start", &body).await;
    let outputs = reader::outputs(&reader::events_of(&place, &run).await);
    let text = |step: &str| {
        String::from_utf8(outputs[&(step.to_owned(), "stdout".to_owned())].clone()).unwrap()
    };
    let path = "/usr/local/bin:/usr/bin:/bin";
    assert_eq!(text("0"), format!("all 7  pipeline\n/\n{path}\n"));
    assert_eq!(text("1"), format!("all 7 one step\n/\n{path}\n"));
    assert_eq!(text("2"), format!("all 7  pipeline\n/\n{path}\n\nkept\n"));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_a_step_end_on_its_own() {
    let Some(place) = TestEnv::new().await else { return };
    // With such a grace, steps must end by SIGTERM.
    let server = place.serve(&[("BOB_KILL_GRACE_SECONDS", "3600")]).await;
    for (name, script) in [("sleeps", LONG), ("traps", TRAPS)] {
        let run = place.run(name);
        place.start(&run, &place.pipeline(name, &json!([shell(script), shell("echo no")]))).await;
        begun(&place, &run).await;
        place.stop(&run).await;
    }
    assert_stopped(&place, server, ["sleeps", "traps"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_ignores_a_stop_is_killed_after_the_grace() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[("BOB_KILL_GRACE_SECONDS", "1")]).await;
    let run = place.run("ignores");
    place.start(&run, &place.pipeline("ignores", &json!([shell(IGNORES)]))).await;
    begun(&place, &run).await;
    place.stop(&run).await;
    assert_stopped(&place, server, ["ignores"]).await;
}

async fn assert_stopped<const N: usize>(place: &TestEnv, server: Server, names: [&str; N]) {
    for name in names {
        let record = place.keys.settled(&place.run(name)).await;
        assert_eq!((&record["status"], &record["cause"]), (&json!("stopped"), &json!("user")));
    }
    let all = all_events(place, server).await;
    for name in names {
        let run = place.run(name);
        let events = &all[&run];
        reader::assert_gapless(events);
        assert_eq!(events.last().unwrap()["reason"], "PipelineStopped", "{events:?}");
        let count = |reason: &str| reader::reasons(events).iter().filter(|r| **r == reason).count();
        assert_eq!((count("PipelineStopping"), count("PipelineStopped")), (1, 1));
        assert_eq!(count("StepStarted"), 1, "no step is started after a stop");
        let caught = events.iter().any(|event| event["message"] == "caught");
        assert_eq!(caught, name == "traps", "the last output of a step is published");
        assert_nothing_is_left(place, &run, events).await;
    }
}
