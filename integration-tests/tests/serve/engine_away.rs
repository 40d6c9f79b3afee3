//! A real engine, one per test, that is killed and restarted late.

use protocol::names;
use serde_json::json;
use test_support::services::OwnServices;

use crate::place::TestEnv;
use crate::takeover::Outside;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_survive_their_engine_and_lose_no_committed_step() {
    let Some(place) = TestEnv::new().await else { return };
    let Some(engine) = OwnServices::start("podman", &[]) else { return };
    let url = engine.services().get("CONTAINER_ENGINE_URL").to_owned();
    let server = place.serve(&[("CONTAINER_ENGINE_URL", &url)]).await;
    let mut keys = place.keys.clone();

    // A running step survives the outage, and the next step follows it.
    let outside = Outside::new().await;
    let begun = place.run("begun");
    place.start(&begun, &place.pipeline("begun", &outside.steps())).await;
    outside.reaches("/gate", 1).await;
    engine.control("kill", "podman").await;

    // A run that starts meanwhile is released without a failure.
    let new = place.run("new");
    place.start(&new, &place.pipeline("new", &json!([{ "cmd": ["true"] }]))).await;
    let owned = |record: &serde_json::Value| record["attempt"] == 1;
    keys.record(&new, owned).await;
    keys.gone(&names::owner_key(&new.parse().unwrap())).await;
    let record = keys.record(&new, owned).await;
    assert!(record.get("ended-at").is_none(), "{record}\n{}", server.log());

    engine.control("start", "podman").await;
    outside.open.send_replace(true);
    for (run, attempt) in [(&begun, 1), (&new, 2)] {
        let record = keys.settled(run).await;
        assert_eq!(
            (&record["status"], &record["attempt"]),
            (&json!("passed"), &json!(attempt)),
            "{record}\n{}",
            server.log()
        );
    }
    for step in 0..6 {
        assert_eq!(outside.count(&format!("/{step}")), 1, "step {step}");
    }
    server.end().await;
}
