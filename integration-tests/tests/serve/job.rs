//! Jobs in a cluster. Each test names the rows of the job runner's table that it covers.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::place::{TestEnv, in_time};
use crate::reader;

const ALL: (&str, &str) = ("BOB_EXECUTORS", "podman,docker,local,custom");

fn lines(events: &[Value], step: &str) -> String {
    let of_step = reader::outputs(events).remove(&(step.to_owned(), "stdout".to_owned()));
    String::from_utf8(of_step.unwrap_or_default()).unwrap()
}

/// The pipeline of a job file, as `plan` shows it and `submit` sends it.
fn pipeline(place: &TestEnv, file: &Value) -> Value {
    let parsed = protocol::dialect::parse(Some("jobs.json"), file.to_string().as_bytes());
    assert!(parsed.diagnostics.is_empty(), "{:#?}", parsed.diagnostics);
    let mut pipeline = serde_json::to_value(&parsed.pipelines[0]).unwrap();
    let own = place.pipeline("jobs", &json!([]));
    pipeline["group"] = own["group"].clone();
    pipeline
}

// Rows: A9, A10, A12, A13, A19
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_all_kinds_run_in_order_and_pass_on_their_results() {
    let Some(place) = TestEnv::new().await else { return };
    let image = place.pipeline("p", &json!([]))["image"].clone();
    let server = place.serve(&[ALL, ("RUNNER_ID", "one")]).await;
    let found = r#"echo '{"success":true,"data":{"id":7}}' > $JOB_WORKDIR/result.json"#;
    let file = json!([
        { "id": "made", "executor": "docker", "variables": { "MODE": "fast" }, "product": {
            "image": image, "before_script": ["X=first"], "commands": ["echo $X $MODE $RUNNER_ID $JOB_ID"],
            "script": found, "env": { "MORE": true }, "namespace": "team", "tty": false } },
        { "id": "wrong", "executor": "local", "product": { "commands": "exit 3" } },
        { "id": "uses", "job_id": "nightly", "executor": "docker", "product": {
            "image": image, "script": ["echo ${made.data.id} ${made.result.data.id}", "echo $JOB_ID",
            "test -t 1 && echo terminal"], "tty": true } },
        { "id": "last", "executor": "custom", "product": {
            "script": ["echo ${PREVIOUS_JOB_ID}", "false", "true"] } },
    ]);
    let run = place.run("jobs");
    place.start(&run, &pipeline(&place, &file)).await;
    let events = reader::events_of(&place, &run).await;
    let last = events.last().unwrap();
    assert_eq!(last["reason"], "PipelineFailed", "one of them has failed: {events:#?}");
    reader::assert_gapless(&events);
    let made = lines(&events, "made");
    let words: Vec<&str> = made.split_whitespace().collect();
    assert_eq!(words[..3], ["first", "fast", "one"], "{made}");
    assert_eq!(words[3].len(), 10, "{made}");
    let uses = lines(&events, "uses").replace('\r', "");
    assert_eq!(uses, "7 7\nnightly\nterminal\n");
    assert_eq!(lines(&events, "last"), "nightly\n");
    let record = place.keys.settled(&run).await;
    let of = |step: usize, key: &str| record["steps"][step][key].clone();
    assert_eq!(of(0, "result"), json!({ "success": true, "data": { "id": 7 } }));
    assert_eq!((of(1, "status"), of(1, "exit-code")), (json!("failed"), json!(3)));
    assert_eq!((of(2, "status"), of(3, "status")), (json!("passed"), json!("passed")));
    server.end().await;
    crate::after::assert_nothing_is_left(&place, &run, &events).await;
}

// Rows: A7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undeliverable_callback_does_not_block_its_run_and_another_worker_retries_it() {
    let Some(place) = TestEnv::new().await else { return };
    // Reserve an address at which no server listens yet.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    drop(listener);
    let server = place.serve(&[ALL]).await;
    let file = json!({ "id": "told", "job_id": "told", "executor": "local",
        "product": { "commands": "true" },
        "callback": { "url": format!("http://{at}/hook"), "secret": "" } });
    let run = place.run("told");
    place.start(&run, &pipeline(&place, &file)).await;
    assert_eq!(place.keys.settled(&run).await["status"], "passed");
    server.end().await;
    let listener = TcpListener::bind(at).await.unwrap();
    let next = place.serve(&[ALL]).await;
    // A callback of the worker's own run makes it check the outbox.
    let other = json!({ "executor": "local", "product": { "commands": "true" },
        "callback": { "url": format!("http://{at}/hook") } });
    let second = place.run("wakes");
    place.start(&second, &pipeline(&place, &other)).await;
    let told = async {
        let mut statuses = Vec::new();
        while statuses.len() < 2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = Vec::new();
            // The head, and the body on one line.
            while !text.ends_with(b"}") {
                let mut piece = [0; 1024];
                let read = stream.read(&mut piece).await.unwrap();
                assert!(read > 0, "{}", String::from_utf8_lossy(&text));
                text.extend_from_slice(&piece[..read]);
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            let text = String::from_utf8(text).unwrap();
            let (_, body) = text.split_once("\r\n\r\n").unwrap();
            let body: Value = serde_json::from_str(body).unwrap();
            if body["job_id"] == "told" {
                statuses.push(body["status"].clone());
            }
        }
        statuses
    };
    let mut statuses = Vec::new();
    in_time("both callbacks", async { statuses = told.await }).await;
    assert_eq!(statuses, ["running", "success"]);
    assert_eq!(place.keys.settled(&second).await["status"], "passed");
    let empty = async {
        for which in [0, 1] {
            while place.keys.get(&format!("bob.run.callback/{run}/0-{which}")).await.is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    in_time("nothing is left to tell", empty).await;
    next.end().await;
}
