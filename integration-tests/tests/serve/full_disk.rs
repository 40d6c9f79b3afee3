//! A disk that is full, for real: an engine on a small one of its own.

use integration_tests::engine::Api;
use integration_tests::services::OwnServices;
use serde_json::{Value, json};

use crate::place::Place;
use crate::reader;

fn shell(line: &str) -> Value {
    json!({ "cmd": ["sh", "-c", line], "retry": { "attempts": 3, "delay": "1ms" } })
}

/// The command that has no room, and the commit of what a command has left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_fills_the_disk_ends_with_no_space_and_the_next_one_passes() {
    let Some(mut place) = Place::new().await else { return };
    let Some(small) = OwnServices::small_engine("64m").await else { return };
    let url = small.services().get("CONTAINER_ENGINE_URL").to_owned();
    let marks = [("BOB_DISK_HIGH", "85"), ("BOB_DISK_LOW", "80")];
    let settings = [&[("CONTAINER_ENGINE_URL", url.as_str())], &marks[..]].concat();
    let server = place.serve(&settings).await;
    let api = Api::of(&url);
    for (name, step, megabytes) in [("command", 1, 200), ("commit", 0, 40)] {
        let run = place.run(name);
        let fills = shell(&format!("dd if=/dev/urandom of=/much bs=1048576 count={megabytes}"));
        let steps = if step == 0 { json!([fills]) } else { json!([shell("echo 1 > /a"), fills]) };
        let mut pipeline = place.pipeline(name, &steps);
        pipeline["retention"] = "1h".into();
        place.start(&run, &pipeline).await;
        let record = place.keys.settled(&run).await;
        assert_eq!(
            (&record["status"], &record["cause"]),
            (&json!("failed"), &json!("no-space")),
            "{record}\n{}",
            server.log()
        );
        assert_eq!(record["steps"][step]["attempt"], 1, "{record}");
        let code = &record["steps"][step]["exit-code"];
        // Podman 5 keeps its own database on that disk, and may not come to note how the command ended.
        let expected =
            if name == "command" { [json!(1), Value::Null] } else { [json!(0), json!(0)] };
        assert!(expected.contains(code), "{record}");
        let ending = reader::events_of(&place, &run).await.pop().unwrap();
        assert_eq!(
            (&ending["reason"], &ending["cause"]),
            (&json!("PipelineFailed"), &json!("no-space"))
        );
        let id = run.parse().unwrap();
        assert_eq!(api.labelled("containers", &id).await, 0, "containers are left");
        assert_eq!(api.labelled("images", &id).await, 0, "images are left");
        // There is room again, and it is taken.
        let next = place.run(&format!("after-{name}"));
        let little = shell("dd if=/dev/urandom of=/little bs=1048576 count=4");
        place.start(&next, &place.pipeline(name, &json!([little, shell("wc -c /little")]))).await;
        let record = place.keys.settled(&next).await;
        assert_eq!(record["status"], "passed", "{record}\n{}", server.log());
    }
    let has_room = |node: &Value| node["disk"]["full"] == false;
    let node = place.keys.below("bob.node/", has_room).await;
    assert_eq!(node["disk"]["total"], 64 << 20, "{node}");
    server.end().await;
}
