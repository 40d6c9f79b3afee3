//! A disk that is full, for real: an engine on a small one of its own.

use integration_tests::engine::Api;
use integration_tests::services::OwnServices;
use serde_json::{Value, json};

use crate::place::{Place, Server};
use crate::reader;

fn shell(line: &str) -> Value {
    json!({ "cmd": ["sh", "-c", line], "retry": { "attempts": 3, "delay": "1ms" } })
}

/// A worker on a small engine, and what becomes of its runs.
struct Small {
    place: Place,
    api: Api,
    server: Server,
    _engine: OwnServices,
}

impl Small {
    async fn new() -> Option<Self> {
        let place = Place::new().await?;
        let engine = OwnServices::small_engine("64m").await?;
        let url = engine.services().get("CONTAINER_ENGINE_URL").to_owned();
        let marks = [("BOB_DISK_HIGH", "85"), ("BOB_DISK_LOW", "80")];
        let settings = [&[("CONTAINER_ENGINE_URL", url.as_str())], &marks[..]].concat();
        let server = place.serve(&settings).await;
        place.keys.clone().below("bob.node/", |node| node["disk"]["full"] == false).await;
        Some(Self { api: Api::of(&url), place, server, _engine: engine })
    }

    /// Asserts that a run ends for want of space at its last step, at the first try, and leaves
    /// nothing, whatever its retention; the step's record.
    async fn ends_with_no_space(&self, name: &str, steps: &[Value]) -> Value {
        let run = self.place.run(name);
        let mut pipeline = self.place.pipeline(name, &json!(steps));
        pipeline["retention"] = "1h".into();
        self.place.start(&run, &pipeline).await;
        let record = self.place.keys.settled(&run).await;
        assert_eq!(
            (&record["status"], &record["cause"]),
            (&json!("failed"), &json!("no-space")),
            "{record}\n{}",
            self.server.log()
        );
        let ending = reader::events_of(&self.place, &run).await.pop().unwrap();
        assert_eq!(
            (&ending["reason"], &ending["cause"]),
            (&json!("PipelineFailed"), &json!("no-space"))
        );
        let id = run.parse().unwrap();
        assert_eq!(self.api.labelled("containers", &id).await, 0, "containers are left");
        assert_eq!(self.api.labelled("images", &id).await, 0, "images are left");
        let step = record["steps"][steps.len() - 1].clone();
        assert_eq!(step["attempt"], 1, "{record}");
        step
    }
}

fn fill(megabytes: u32) -> Value {
    shell(&format!("dd if=/dev/urandom of=/much bs=1048576 count={megabytes}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_commit_has_no_room_ends_with_no_space_and_the_next_one_passes() {
    let Some(small) = Small::new().await else { return };
    let step = small.ends_with_no_space("commit", &[fill(40)]).await;
    assert_eq!(step["exit-code"], 0, "{step}");
    // There is room again, and it is taken.
    let next = small.place.run("after");
    let little = shell("dd if=/dev/urandom of=/little bs=1048576 count=4");
    let steps = json!([little, shell("wc -c /little")]);
    small.place.start(&next, &small.place.pipeline("after", &steps)).await;
    let record = small.place.keys.settled(&next).await;
    assert_eq!(record["status"], "passed", "{record}\n{}", small.server.log());
    let has_room = |node: &Value| node["disk"]["full"] == false;
    let node = small.place.keys.clone().below("bob.node/", has_room).await;
    assert_eq!(node["disk"]["total"], 64 << 20, "{node}");
    small.server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fills_the_disk_to_the_last_byte_ends_its_run_with_no_space() {
    let Some(small) = Small::new().await else { return };
    let step = small.ends_with_no_space("command", &[shell("echo 1 > /a"), fill(200)]).await;
    // Podman 5 keeps its own database on that disk, and may not come to note how the command ended.
    assert!([json!(1), Value::Null].contains(&step["exit-code"]), "{step}");
    small.server.end().await;
}
