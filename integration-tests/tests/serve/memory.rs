//! The program's memory use with much output and with many runs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::place::{Server, TestEnv};
use crate::reader::{self, Reader};

const LIMIT: u64 = 100 << 20;

fn assert_small(server: &Server) {
    let resident = server.resident_at_most();
    assert!(resident < LIMIT, "{resident} bytes were resident");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worker_memory_does_not_grow_with_a_gibibyte_of_output() {
    let Some(place) = TestEnv::new().await else { return };
    // The broker keeps only the end of the stream, because test hosts can have small disks.
    let limit = json!({
        "pattern": ".*", "apply-to": "queues",
        "definition": { "max-length-bytes": 50_000_000, "stream-max-segment-size-bytes": 10_000_000 },
    });
    let path = format!("policies/{}/small", place.vhost.name);
    let management = &place.vhost.management;
    management.send(reqwest::Method::PUT, &path, Some(&limit.to_string())).await;
    let server = place.serve(&[("BOB_LOG_LEVEL", "warn")]).await;
    let line = "x".repeat(1023);
    let steps = json!([{ "cmd": ["sh", "-c", format!("yes {line} | head -c 1073741824")] }]);
    let run = place.run("gibibyte");
    place.start(&run, &place.pipeline("gibibyte", &steps)).await;
    assert_eq!(place.keys.settled(&run).await["status"], "passed");
    assert_small(&server);
    // The remaining events have no gap, and every byte was counted.
    let events = reader::events_of(&place, &run).await;
    let first = events[0]["seq"].as_u64().unwrap();
    let mut end = None;
    for (seq, event) in (first..).zip(&events) {
        assert_eq!(event["seq"], seq);
        if event["reason"] == "Log" {
            let offset = event["offset"].as_u64().unwrap();
            assert!(end.is_none_or(|end| end == offset), "{offset} follows {end:?}");
            end = Some(offset + event["message"].as_str().unwrap().len() as u64 + 1);
        }
    }
    assert_eq!(end, Some(1 << 30));
    assert_eq!(events[events.len() - 2]["stdout-bytes"], 1 << 30);
    server.end().await;
}

const RUNS: usize = 100;
/// Writes whole lines until it is stopped.
const CHATTERS: &str = "trap 'exit 0' TERM; while :; do seq 1 50; sleep 1 & wait; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_concurrent_runs_stay_within_the_same_memory_and_lose_nothing() {
    let Some(place) = TestEnv::new().await else { return };
    let slots = RUNS.to_string();
    let settings = [("BOB_MAX_PARALLEL_RUNS", slots.as_str()), ("BOB_LOG_LEVEL", "warn")];
    let server = place.serve(&settings).await;
    let steps = json!([{ "cmd": ["sh", "-c", CHATTERS] }]);
    let runs: Vec<String> = (0..RUNS).map(|number| place.run(&number.to_string())).collect();
    for run in &runs {
        place.start(run, &place.pipeline("chatters", &steps)).await;
    }
    // All of them write before the first one is stopped.
    let mut all: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut reader = Reader::new(&place).await;
    let (mut writing, mut ended, mut stopping) = (0, 0, false);
    while ended < RUNS {
        let event = reader.next().await;
        let Some(run) = event["run-id"].as_str().filter(|_| event["seq"].is_u64()) else {
            continue;
        };
        let events = all.entry(run.to_owned()).or_default();
        let is_first = event["reason"] == "Log" && event["offset"] == 0;
        writing += usize::from(is_first);
        ended += usize::from(reader::is_ending(&event));
        events.push(event);
        assert!(stopping || ended == 0, "{events:?}");
        if writing == RUNS && !stopping {
            stopping = true;
            for run in &runs {
                place.stop(run).await;
            }
        }
    }
    assert_small(&server);
    let once: String = (1..=50).map(|number| format!("{number}\n")).collect();
    for run in &runs {
        let events = &all[run];
        reader::assert_gapless(events);
        assert_eq!(events.last().unwrap()["reason"], "PipelineStopped", "{events:?}");
        assert_eq!(place.keys.settled(run).await["status"], "stopped");
        for (_, bytes) in reader::outputs(events) {
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(text, once.repeat(text.len() / once.len()), "{run}");
        }
    }
    server.end().await;
}
