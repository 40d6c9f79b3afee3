//! The run record in each of its revisions.

use serde_json::{Value, json};

use crate::place::TestEnv;
use crate::reader::Reader;

/// The statuses of a run's record, in the order in which etcd stored them.
async fn statuses(place: &TestEnv, run: &str) -> Vec<String> {
    place.keys.settled(run).await;
    let history = place.keys.history(&format!("bob.pipeline.run/{run}")).await;
    let mut statuses: Vec<String> =
        history.iter().map(|record| record["status"].as_str().unwrap().to_owned()).collect();
    statuses.dedup();
    assert_times(&history);
    statuses
}

/// Checks that times in the record never change and are in order.
fn assert_times(history: &[Value]) {
    let names = ["scheduled-at", "initiated-at", "initialized-at", "started-at", "completed-at"];
    let last = history.last().unwrap();
    for record in history {
        for name in names {
            assert!(record.get(name).is_none() || record[name] == last[name], "{name}: {record}");
        }
        assert_eq!(record["attempt"], 1, "{record}");
    }
    let times: Vec<&str> = names.iter().filter_map(|name| last[*name].as_str()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(times.iter().all(|time| time.ends_with('Z') && time.len() == 24), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_passes_through_every_status_and_ends_once() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[]).await;
    let steps = |script: &str| json!([{ "cmd": ["sh", "-c", script] }, { "cmd": "echo done" }]);
    let scripts =
        [("passed", "echo begun"), ("failed", "exit 1"), ("stopped", "echo begun; sleep 1000")];
    for (name, script) in scripts {
        let run = place.run(name);
        place.start(&run, &place.pipeline(name, &steps(script))).await;
        if name == "stopped" {
            let begun = |event: &Value| event["run-id"] == run && event["message"] == "begun";
            Reader::new(&place).await.find(begun).await;
            place.stop(&run).await;
        }
        let expected = ["pending", "initializing", "initialized", "running", name];
        assert_eq!(statuses(&place, &run).await, expected);
    }
    server.end().await;
}
