//! A hostile script template fails its own step and does not affect the worker.

use serde_json::json;

use crate::place::TestEnv;

/// A template whose actions each double a text. It has no loop, so a limit on loops does not stop
/// it.
fn doubling() -> String {
    let double = r#"{{ $t := printf "%s%s" $t $t }}"#.repeat(60);
    format!("{{{{ $t := .t }}}}{double}")
}

/// A template with a long loop. Each action in it copies all values of the run.
fn looping() -> String {
    format!("{{{{range .l}}}}{}{{{{end}}}}", "{{if $.t}}{{end}}".repeat(100))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_templates_do_not_cost_a_worker_its_lease() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let settings = [("BOB_EXECUTORS", "local"), ("BOB_LEASE_TTL_SECONDS", "5")];
    let server = place.serve(&settings).await;
    let items: Vec<u32> = (0..1000).collect();
    let params = json!({ "t": "x".repeat(200_000), "l": items });
    let hostile = [doubling(), doubling(), looping()];
    for (index, script) in hostile.iter().enumerate() {
        let run = place.run(&format!("hostile-{index}"));
        let step = json!({
            "name": "render", "executor": "local", "template": "go", "script": [script],
        });
        let pipeline = json!({ "group": place.tag, "name": "hostile", "steps": [step] });
        let body = json!({ "run-id": run, "pipeline": pipeline, "params": params });
        place.publish("bob.jobs", "pipeline/start", &body).await;
    }
    for index in 0..hostile.len() {
        let record = place.keys.settled(&place.run(&format!("hostile-{index}"))).await;
        let outcome = json!([record["status"], record["cause"]]);
        assert_eq!(outcome, json!(["failed", "template"]), "{record}");
        assert_eq!(record["attempt"], 1, "its worker must keep its lease: {record}");
    }
    // The worker still runs other pipelines.
    let run = place.run("good");
    let step =
        json!({ "name": "a", "executor": "local", "template": "go", "script": ["true {{ .a }}"] });
    let pipeline = json!({ "group": place.tag, "name": "good", "steps": [step] });
    let body = json!({ "run-id": run, "pipeline": pipeline, "params": { "a": 1 } });
    place.publish("bob.jobs", "pipeline/start", &body).await;
    let record = place.keys.settled(&run).await;
    assert_eq!(record["status"], "passed", "{record}");
    server.end().await;
}
