use super::*;

#[tokio::test]
async fn a_pipeline_is_stored_changed_listed_and_deleted() {
    let fleet = Fleet::open().await;
    let path = "/api/v1/pipelines/dev/x";
    fleet.get(path).await.problem(404);
    assert_eq!(fleet.put(path, pipeline("true")).await.is(201)["result"], "created");
    assert_eq!(fleet.put(path, pipeline("true")).await.is(200)["result"], "unchanged");
    let list = fleet.get("/api/v1/pipelines").await.is(200);
    let expected = json!([{
        "group": "dev", "name": "x", "paused": false, "image": "localhost/i", "steps": 2,
    }]);
    assert_eq!(list["pipelines"], expected);
    assert_eq!(fleet.get("/api/v1/pipelines?group=ops").await.is(200)["pipelines"], json!([]));

    let yaml = "group: dev\nname: x\nimage: i\nsteps:\n  - cmd: make\n";
    let changed = Request::put(path).header(header::CONTENT_TYPE, "application/yaml");
    let changed = fleet.send(changed.body(Body::from(yaml)).unwrap()).await;
    assert_eq!(changed.is(200)["result"], "changed");
    assert_eq!(fleet.get(path).await.is(200)["steps"][0]["cmd"], "make");

    assert_eq!(fleet.post(&format!("{path}/pause"), json!({})).await.is(202)["paused"], true);
    assert_eq!(fleet.post(&format!("{path}/unpause"), json!({})).await.is(202)["paused"], false);
    fleet.post("/api/v1/pipelines/dev/y/pause", json!({})).await.problem(404);

    fleet.add_run(&record("r-1", "running", 1)).await;
    assert!(fleet.delete(path).await.problem(409).contains("r-1"));
    let stopped = Txn::new().put(
        names::run_key(&"r-1".parse().unwrap()),
        record("r-1", "stopped", 1).to_string().into(),
    );
    assert!(fleet.embedded.store().txn(stopped).await.unwrap().committed);
    fleet.delete(path).await.is(204);
    assert_eq!(fleet.get("/api/v1/pipelines").await.is(200)["pipelines"], json!([]));
    fleet.delete(path).await.problem(404);
}

#[tokio::test]
async fn every_fault_of_a_pipeline_is_reported_with_its_place() {
    let fleet = Fleet::open().await;
    let answered = fleet.put("/api/v1/pipelines/dev/y", pipeline("true")).await;
    assert!(answered.problem(422).contains("as in the path"));
    assert_eq!(answered.body["errors"][0]["field"], "name");
    let broken = json!({ "group": "dev", "name": "x", "imag": "i", "steps": [{ "cmd": {} }] });
    let answered = fleet.put("/api/v1/pipelines/dev/x", broken).await;
    answered.problem(422);
    assert!(answered.body["errors"].as_array().unwrap().len() > 1, "{}", answered.body);
    fleet.put("/api/v1/pipelines/d%3Aev/x", pipeline("true")).await.problem(400);
}

#[tokio::test]
async fn a_name_with_a_slash_is_one_segment_of_the_path() {
    let fleet = Fleet::open().await;
    let mut definition = pipeline("true");
    definition["name"] = "a/b".into();
    fleet.put("/api/v1/pipelines/dev/a%2Fb", definition).await.is(201);
    assert_eq!(fleet.get("/api/v1/pipelines/dev/a%2Fb").await.is(200)["name"], "a/b");
}

#[tokio::test]
async fn services_are_registered_and_shown_without_credentials() {
    let fleet = Fleet::open().await;
    for kind in ["providers", "stores", "loggers"] {
        let (all, one) = (format!("/api/v1/{kind}"), format!("/api/v1/{kind}/one"));
        let put = async |url: &str| fleet.put(&one, json!({ "url": url })).await;
        assert_eq!(put("http://u:hunter2@h/").await.is(201)["result"], "created");
        let list = fleet.get(&all).await.is(200);
        assert_eq!(list["services"][0]["name"], "one");
        assert!(!list.to_string().contains("hunter2"), "{list}");
        assert!(put("ftp://h").await.problem(422).contains("http://host"));
        fleet.put(&one, json!({ "url": "http://h", "name": "two" })).await.problem(422);
        fleet.delete(&one).await.is(204);
        fleet.delete(&one).await.problem(404);
        assert_eq!(fleet.get(&all).await.is(200)["services"], json!([]));
    }
}

#[tokio::test]
async fn nodes_are_listed_with_their_ids() {
    let fleet = Fleet::open().await;
    let node = NodeId::from_stored("bob/runner-1");
    let entry = json!({
        "host": "h", "pid": 1, "version": "1", "state": "ready", "slots": 4, "runs": [],
        "executors": ["podman"], "engine": "e", "cpu": { "count": 1, "load": 0.5 },
        "memory": { "free": 1, "total": 2 }, "started-at": "2026-01-01T00:00:00.000Z",
    });
    let put = Txn::new().put(names::node_key(&node), entry.to_string().into_bytes());
    assert!(fleet.embedded.store().txn(put).await.unwrap().committed);
    fleet.projection.node_until(|nodes| nodes.len() == 1).await;
    let list = fleet.get("/api/v1/nodes").await.is(200);
    assert_eq!(list["nodes"][0]["node"], "bob/runner-1");
    assert_eq!(list["nodes"][0]["slots"], 4);
}
