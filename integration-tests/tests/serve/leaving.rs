//! Ending a worker while a service it needs is unavailable.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::place::{Server, TestEnv, in_time};
use crate::reader::Reader;
use crate::server;

/// Waits until a file exists.
async fn exists(place: &TestEnv, name: &str) {
    in_time(name, async {
        while !place.dir.path().join(name).exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Reads a run's events of one epoch and returns the texts of its `Log` events.
async fn epoch_of(place: &TestEnv, run: &str, epoch: &Value, last: u64) -> Vec<String> {
    let mut reader = Reader::new(place).await;
    let (mut seqs, mut texts) = (std::collections::BTreeSet::new(), Vec::new());
    while seqs.len() as u64 <= last {
        let event = reader.find(|event| event["run-id"] == run && event["epoch"] == *epoch).await;
        if seqs.insert(event["seq"].as_u64().unwrap()) && event["reason"] == "Log" {
            texts.extend(event["message"].as_str().unwrap().lines().map(str::to_owned));
        }
    }
    texts
}

/// Checks that no wait of an exiting worker has reached its time limit. The worker logs each one
/// that does. Otherwise it exits within its drain time, its kill grace, and the time that it allows
/// an unavailable broker.
pub(crate) fn assert_no_wait_ran_out(worker: &Server) {
    let log = worker.log();
    for late in ["have not ended in time", "has ended in time"] {
        assert!(!log.contains(late), "{late}\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unpublished_output_survives_the_worker_and_does_not_prolong_its_drain() {
    let Some((place, broker)) = TestEnv::with_its_own_broker().await else { return };
    let settings =
        [("BOB_EXECUTORS", "local"), ("BOB_DRAIN_SECONDS", "1"), ("BOB_KILL_GRACE_SECONDS", "1")];
    let mut worker = place.serve(&settings).await;
    let here = place.dir.path().display();
    let print =
        format!("touch {here}/waits; while [ ! -e {here}/go ]; do sleep 0.05; done; seq 1000");
    let sleep = format!("seq 2001 4000; touch {here}/prints; exec sleep 1000");
    let step = |cmd: &str| json!({ "cmd": ["sh", "-c", cmd], "executor": "local" });
    let steps = json!([step("echo first"), step(&print), step(&sleep)]);
    let run = place.run("spilled");
    let mut pipeline = place.pipeline("spilled", &steps);
    pipeline.as_object_mut().unwrap().remove("image");
    pipeline.as_object_mut().unwrap().remove("network");
    place.start(&run, &pipeline).await;
    exists(&place, "waits").await;
    broker.control("kill", "rabbitmq").await;
    place.write("go", "");
    exists(&place, "prints").await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await, Some(0), "{}", worker.log());
    assert_no_wait_ran_out(&worker);
    let record = place.keys.get(&format!("bob.pipeline.run/{run}")).await.unwrap();
    assert_eq!(record["released"]["by"], record["node"], "{record}");
    let last = record["last-seq"].as_u64().unwrap();
    assert!(worker.log().contains("the next worker that uses this directory"), "{}", worker.log());

    broker.control("start", "rabbitmq").await;
    // After a SIGKILL the stream takes some time to have a leader again.
    let patient = [&settings[..], &[("BOB_CONNECTION_RETRY_ATTEMPTS", "100")]].concat();
    let _next = place.serve(&patient).await;
    let texts = epoch_of(&place, &run, &record["epoch"], last).await;
    let expected: Vec<String> = ["first".to_owned()]
        .into_iter()
        .chain((1..=1000).chain(2001..=4000).map(|n| n.to_string()))
        .collect();
    assert_eq!(texts, expected, "no line is lost");
    let resumed = |event: &Value| event["run-id"] == run && event["reason"] == "PipelineRunResumed";
    let resumed = Reader::new(&place).await.find(resumed).await;
    assert_eq!(resumed["previous-seq"], last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_signal_hands_over_while_the_broker_is_unavailable() {
    let Some((place, broker)) = TestEnv::with_its_own_broker().await else { return };
    let settings = [
        ("BOB_EXECUTORS", "local"),
        ("BOB_DRAIN_SECONDS", "3600"),
        ("BOB_KILL_GRACE_SECONDS", "1"),
    ];
    let mut worker = place.serve(&settings).await;
    let here = place.dir.path().display();
    let cmd = format!("touch {here}/runs; exec sleep 1000");
    let steps = json!([{ "cmd": ["sh", "-c", cmd], "executor": "local" }]);
    let run = place.run("twice");
    let mut pipeline = place.pipeline("twice", &steps);
    pipeline.as_object_mut().unwrap().remove("image");
    pipeline.as_object_mut().unwrap().remove("network");
    place.start(&run, &pipeline).await;
    exists(&place, "runs").await;
    broker.control("kill", "rabbitmq").await;
    worker.signal(Signal::TERM);
    worker.logged("the drain", |line| line.contains("the next signal hands it over")).await;
    // Signals within half a second count as one, by specification.
    tokio::time::sleep(Duration::from_millis(600)).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await, Some(0), "{}", worker.log());
    let record = place.keys.get(&format!("bob.pipeline.run/{run}")).await.unwrap();
    assert_eq!(record["released"]["by"], record["node"], "{record}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_while_it_connects_exits_at_once() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    // Accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().unwrap();
    let nobody = server::nobody().await;
    let cases = [
        ("BOB_QUEUE_URL", format!("amqp://{nobody}")),
        ("BOB_QUEUE_URL", format!("amqp://{silent}")),
        ("BOB_STORAGE_URLS", format!("http://{nobody}")),
        ("BOB_STORAGE_URLS", format!("http://{silent}")),
        ("CONTAINER_ENGINE_URL", format!("http://{nobody}")),
        ("CONTAINER_ENGINE_URL", format!("http://{silent}")),
    ];
    for (name, value) in cases {
        let settings = [(name, value.as_str()), ("BOB_CONNECTION_RETRY_ATTEMPTS", "1000")];
        let mut worker = place.begun(place.program(&["serve"], &settings)).await;
        worker.logged("it connects", |line| line.contains("bob-runner starts")).await;
        worker.signal(Signal::TERM);
        assert_eq!(worker.ended().await, Some(0), "{name}={value}: {}", worker.log());
        assert!(!worker.log().contains("draining"), "{name}={value}: {}", worker.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_redeclare_a_deleted_exchange() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let server = place.serve(&[("BOB_EXECUTORS", "local")]).await;
    let path = format!("exchanges/{}/bob.direct", place.vhost.name);
    place.vhost.management.send(reqwest::Method::DELETE, &path, None).await;
    // Wait for the binding too, or the command would be returned.
    let bindings = format!("bindings/{}/e/bob.direct/q/bob.jobs", place.vhost.name);
    in_time("the exchange", async {
        while place.vhost.management.find(&bindings).await.is_none_or(|all| all == json!([])) {}
    })
    .await;
    // A command arrives as before.
    place.publish("bob.jobs", "pipeline/start", &json!({ "run-id": "r-1" })).await;
    let rejected = |event: &Value| event["reason"] == "CommandRejected";
    Reader::new(&place).await.find(rejected).await;
    let names_it = |line: &str| line.contains("a command for run r-1 cannot be understood");
    server.logged("the log names it", names_it).await;
    server.end().await;
}
