//! Script templates: a hostile one fails its own step and does not affect its worker.

use serde_json::json;

use crate::place::TestEnv;

/// Doubles a text with each action, which a limit on loops does not detect.
fn doubling() -> String {
    let double = r#"{{ $t := printf "%s%s" $t $t }}"#.repeat(60);
    format!("{{{{ $t := .t }}}}{double}")
}

/// Each round copies all values of the run.
fn looping() -> String {
    format!("{{{{range .l}}}}{}{{{{end}}}}", "{{if $.t}}{{end}}".repeat(100))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_templates_do_not_cost_a_worker_its_lease() {
    let Some(place) = TestEnv::without_an_engine().await else { return };
    let settings = [("BOB_EXECUTORS", "local"), ("BOB_LEASE_TTL_SECONDS", "5")];
    let server = place.serve(&settings).await;
    let list: Vec<u32> = (0..1000).collect();
    let params = json!({ "t": "x".repeat(200_000), "l": list });
    let hostile = [doubling(), doubling(), looping()];
    for (at, script) in hostile.iter().enumerate() {
        let run = place.run(&format!("hostile-{at}"));
        let step = json!({
            "name": "render", "executor": "local", "template": "go", "script": [script],
        });
        let pipeline = json!({ "group": place.tag, "name": "hostile", "steps": [step] });
        let body = json!({ "run-id": run, "pipeline": pipeline, "params": params });
        place.publish("bob.jobs", "pipeline/start", &body).await;
    }
    for at in 0..hostile.len() {
        let record = place.keys.settled(&place.run(&format!("hostile-{at}"))).await;
        let ended = json!([record["status"], record["cause"]]);
        assert_eq!(ended, json!(["failed", "template"]), "{record}");
        assert_eq!(record["attempt"], 1, "its worker must keep its lease: {record}");
    }
    // The worker still works.
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
