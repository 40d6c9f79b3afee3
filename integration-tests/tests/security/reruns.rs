//! A rerun takes over the images and results of a run, and must not disclose them to other steps.

use serde_json::json;

use crate::place::TestEnv;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rerun_with_changed_steps_takes_no_images_over() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[]).await;
    let definition = |second: &str| {
        let steps = json!([
            { "name": "build", "cmd": ["sh", "-c", "echo confidential >/kept"] },
            { "name": "next", "cmd": ["sh", "-c", second] },
        ]);
        let mut pipeline = place.pipeline("victim", &steps);
        pipeline["retention"] = "1h".into();
        pipeline
    };
    let victim = place.run("victim");
    place.start(&victim, &definition("exit 3")).await;
    assert_eq!(place.keys.settled(&victim).await["status"], "failed");
    let rerun = async |name: &str, pipeline, vars| {
        let run = place.run(name);
        let parent = json!({ "run-id": victim });
        let body = json!({ "run-id": run, "pipeline": pipeline, "parent": parent, "vars": vars });
        place.publish("bob.jobs", "pipeline/start", &body).await;
        place.keys.settled(&run).await
    };
    for (name, pipeline, vars) in [
        ("steals", definition("cat /kept"), json!({})),
        ("injects", definition("exit 3"), json!({ "ENV": "/tmp/x" })),
    ] {
        let record = rerun(name, pipeline, vars).await;
        assert_eq!(record["cause"], "rejected", "{record:#}");
        assert_eq!(record["steps"], json!([]), "{record:#}");
        let why = record["message"].as_str().unwrap();
        assert!(why.contains("had a different definition"), "{why}");
    }
    let record = rerun("repeats", definition("exit 3"), json!({})).await;
    assert_eq!(
        record["cause"], "exit-code",
        "the same definition takes its steps over: {record:#}"
    );
    assert_eq!(record["steps"][0]["status"], "passed", "{record:#}");
    server.end().await;
}
