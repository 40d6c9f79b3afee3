use axum::http::HeaderValue;
use protocol::command::Disposition;

use super::*;

#[tokio::test]
async fn runs_are_listed_in_pages_and_filtered() {
    let fleet = Fleet::open().await;
    for (run, status, second) in [("r-1", "passed", 1), ("r-2", "failed", 2), ("r-3", "running", 3)]
    {
        fleet.add_run(&record(run, status, second)).await;
    }
    let first = fleet.get("/api/v1/runs?limit=2").await.is(200);
    assert_eq!(run_ids(&first), ["r-3", "r-2"]);
    let next = first["next"].as_str().unwrap();
    let second = fleet.get(&format!("/api/v1/runs?limit=2&cursor={next}")).await.is(200);
    assert_eq!(run_ids(&second), ["r-1"]);
    assert!(second.get("next").is_none());
    for (query, expected) in [
        ("status=failed,passed", vec!["r-2", "r-1"]),
        ("pipeline=dev/x&since=2026-01-01T00:00:02Z", vec!["r-3", "r-2"]),
        ("until=2026-01-01T00:00:02Z", vec!["r-1"]),
        ("group=ops", vec![]),
        ("text=R-3&status=", vec!["r-3"]),
    ] {
        let list = fleet.get(&format!("/api/v1/runs?{query}")).await.is(200);
        assert_eq!(run_ids(&list), expected, "{query}");
    }
    let failed = &fleet.get("/api/v1/runs?status=failed").await.is(200)["runs"][0];
    assert_eq!(failed["failed-step"], "build");
    assert_eq!(failed["steps"], json!({ "running": 0, "passed": 0, "failed": 1, "stopped": 1 }));
}

#[tokio::test]
async fn a_run_is_shown_with_its_definition_and_without_secrets() {
    let fleet = Fleet::open().await;
    fleet.add_run(&record("r-1", "failed", 1)).await;
    let shown = fleet.get("/api/v1/runs/r-1").await.is(200);
    assert_eq!(shown["pipeline"]["steps"][0]["name"], "build");
    assert!(!shown.to_string().contains("hunter2"), "{shown}");
    let failed = fleet.get("/api/v1/runs/r-1/failed-steps").await.is(200);
    assert_eq!(failed["steps"].as_array().unwrap().len(), 1);
    assert_eq!(failed["steps"][0]["exit-code"], 3);
    fleet.get("/api/v1/runs/r-9").await.problem(404);
    fleet.get("/api/v1/runs/nine").await.problem(400);
}

#[tokio::test]
async fn a_repeated_start_with_the_same_key_is_the_same_run() {
    let fleet = Fleet::open().await;
    let start = async |key: &'static str| {
        let body = json!({ "pipeline": pipeline("true"), "vars": { "A": 1 } });
        let mut request = request(Method::POST, "/api/v1/runs", Some(body));
        request.headers_mut().insert("idempotency-key", HeaderValue::from_static(key));
        let answered = fleet.send(request).await;
        let location = answered.headers[header::LOCATION].to_str().unwrap().to_owned();
        let run = answered.is(202)["run-id"].as_str().unwrap().to_owned();
        assert_eq!(location, format!("/api/v1/runs/{run}"));
        run
    };
    let run = start("k-1").await;
    let other = start("k-2").await;
    assert_ne!(run, other);
    assert_eq!(start("\"k-1\"").await, run);
    let mut jobs = fleet.jobs().await;
    for expected in [&run, &other, &run] {
        let delivery = jobs.next().await.unwrap();
        assert_eq!(delivery.message.id.as_deref(), Some(expected.as_str()));
        delivery.settle(Disposition::Ack).await.unwrap();
    }
    fleet.add_run(&record(&run, "running", 1)).await;
    assert_eq!(start("k-1").await, run, "a run that has a record is not started again");
    let fresh = start("k-3").await;
    let delivery = jobs.next().await.unwrap();
    assert_eq!(delivery.message.id, Some(fresh), "the next start in the queue is another one");
}

#[tokio::test]
async fn a_start_that_no_worker_would_run_is_refused_at_once() {
    let fleet = Fleet::open().await;
    let stored = json!({ "group": "dev", "name": "x" });
    let answered = fleet.post("/api/v1/runs", stored.clone()).await;
    assert!(answered.problem(404).contains("dev/x"));
    fleet.put("/api/v1/pipelines/dev/x", pipeline("true")).await.is(201);
    fleet.post("/api/v1/runs", stored.clone()).await.is(202);

    let paused = json!({ "paused": true }).as_object().cloned().unwrap();
    let mut definition = pipeline("true");
    definition.as_object_mut().unwrap().extend(paused);
    let id = protocol::id::PipelineId::new("dev", "x").unwrap();
    let pause = Txn::new().put(names::pipeline_key(&id), definition.to_string().into_bytes());
    assert!(fleet.embedded.store().txn(pause).await.unwrap().committed);
    assert!(fleet.post("/api/v1/runs", stored).await.problem(409).contains("paused"));

    let unknown = json!({ "group": "dev", "name": "x", "var": {} });
    let answered = fleet.post("/api/v1/runs", unknown).await;
    answered.problem(422);
    assert_eq!(answered.body["errors"][0]["field"], "var");
    let mut secret = pipeline("true");
    secret["steps"][0]["callback"] = json!({ "url": "http://h/", "secret": "hunter2" });
    let answered = fleet.post("/api/v1/runs", json!({ "pipeline": secret })).await;
    assert!(answered.problem(422).contains("secret in clear text"));
    assert!(!answered.body.to_string().contains("hunter2"));
    let both = json!({ "run-id": "r-1", "pipeline": pipeline("true") });
    let mut request = request(Method::POST, "/api/v1/runs", Some(both));
    request.headers_mut().insert("idempotency-key", HeaderValue::from_static("k"));
    fleet.send(request).await.problem(400);
}

#[tokio::test]
async fn a_stop_is_sent_unless_the_run_has_ended() {
    let fleet = Fleet::open().await;
    fleet.add_run(&record("r-1", "running", 1)).await;
    fleet.add_run(&record("r-2", "passed", 2)).await;
    let stop = async |run: &str| fleet.post(&format!("/api/v1/runs/{run}/stop"), json!({})).await;
    assert_eq!(stop("r-1").await.is(202), json!({ "run-id": "r-1", "known": true }));
    assert_eq!(stop("r-9").await.is(202)["known"], false);
    assert!(stop("r-2").await.problem(409).contains("ended already"));
    let empty = request(Method::POST, "/api/v1/runs/r-1/stop", None);
    fleet.send(empty).await.is(202);
    let queue = fleet.embedded.queue(&NodeId::from_stored("bob/runner-test"));
    let mut control = queue.open(Source::Control).await.unwrap();
    let sent = control.next().await.unwrap();
    assert_eq!(sent.message.kind.as_deref(), Some(protocol::command::STOP));
}

#[tokio::test]
async fn an_ended_run_is_rerun_from_a_step() {
    let fleet = Fleet::open().await;
    fleet.add_run(&record("r-1", "failed", 1)).await;
    fleet.add_run(&record("r-2", "running", 2)).await;
    let answered = fleet.post("/api/v1/runs/r-1/rerun", json!({ "from": "build" })).await;
    let run = answered.is(202)["run-id"].as_str().unwrap().to_owned();
    let start = fleet.jobs().await.next().await.unwrap();
    assert_eq!(start.message.id, Some(run));
    let body: Value = serde_json::from_slice(&start.message.body).unwrap();
    assert_eq!(body["parent"], json!({ "run-id": "r-1", "from": "build" }));
    fleet.post("/api/v1/runs/r-1/rerun", json!({ "from": "deploy" })).await.problem(422);
    fleet.post("/api/v1/runs/r-2/rerun", json!({})).await.problem(409);
    fleet.post("/api/v1/runs/r-9/rerun", json!({})).await.problem(404);
}
