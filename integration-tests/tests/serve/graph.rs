//! Concurrent steps, in containers and on the worker's host.

use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::place::{TestEnv, in_time};
use crate::reader::{self, Reader};

const BOTH: (&str, &str) = ("BOB_EXECUTORS", "podman,local");

fn lines(events: &[Value], step: &str) -> String {
    let of_step = reader::outputs(events).remove(&(step.to_owned(), "stdout".to_owned()));
    String::from_utf8(of_step.unwrap_or_default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_graph_can_have_container_steps_and_host_steps() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[BOTH]).await;
    // Each branch waits for the other one's output, so the run ends only if they are concurrent.
    let dir = place.dir.path().join("meet");
    std::fs::create_dir(&dir).unwrap();
    let meet = |own: &str, other: &str| {
        let dir = dir.display();
        format!("touch {dir}/{own}; until [ -e {dir}/{other} ]; do sleep 0.05; done; pwd")
    };
    let steps = json!([
        { "name": "made", "cmd": ["sh", "-c", "echo made > /a"] },
        { "name": "one", "needs": ["made"], "executor": "local", "script": [meet("l", "r")] },
        { "name": "two", "needs": ["made"], "executor": "local", "script": [meet("r", "l")] },
        { "name": "left", "needs": ["made"], "cmd": ["sh", "-c", "echo left >> /a"] },
        { "name": "right", "needs": ["made"], "cmd": ["sh", "-c", "echo right >> /a"] },
        { "name": "last", "needs": ["one", "two", "left", "right"], "from": "right",
          "cmd": ["cat", "/a"] },
    ]);
    let run = place.run("graph");
    place.start(&run, &place.pipeline("graph", &steps)).await;
    let events = reader::events_of(&place, &run).await;
    assert_eq!(events.last().unwrap()["reason"], "PipelineSuccessful", "{events:#?}");
    reader::assert_gapless(&events);
    assert_eq!(lines(&events, "last"), "made\nright\n", "files of another branch must not exist");
    let (one, two) = (lines(&events, "one"), lines(&events, "two"));
    assert!(one == two && one.contains(&run), "steps of the host share their run's directory");
    server.end().await;
    crate::after::assert_nothing_is_left(&place, &run, &events).await;
    assert!(!Path::new(one.trim()).exists(), "the directory of the run is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_process_dies_with_its_worker_and_its_run_restarts_on_another() {
    let Some(place) = TestEnv::new().await else { return };
    let settings = [BOTH, ("BOB_LEASE_TTL_SECONDS", "6")];
    let server = place.serve(&settings).await;
    let dir = place.dir.path().display().to_string();
    let second = format!(
        "[ -e {dir}/second ] && exit 0; touch {dir}/second; echo $$ > {dir}/pid; echo begun; exec sleep 1000"
    );
    let steps = json!([
        { "name": "first", "executor": "local", "script": [format!("echo x >> {dir}/first")] },
        { "name": "second", "executor": "local", "script": [second] },
    ]);
    let run = place.run("host");
    place.start(&run, &place.pipeline("host", &steps)).await;
    let begun = |event: &Value| event["run-id"] == run && event["message"] == "begun";
    Reader::new(&place).await.find(begun).await;
    let pid = std::fs::read_to_string(format!("{dir}/pid")).unwrap();
    server.signal(Signal::KILL);
    let gone = async {
        while Path::new(&format!("/proc/{}", pid.trim())).exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    in_time("the process ends", gone).await;
    let next = place.serve(&settings).await;
    let record = place.keys.settled(&run).await;
    assert_eq!((&record["status"], &record["attempt"]), (&json!("passed"), &json!(2)));
    let first = std::fs::read_to_string(format!("{dir}/first")).unwrap();
    assert_eq!(
        first, "x\nx\n",
        "files on the host of the worker might be lost, so every step runs again"
    );
    next.end().await;
}
