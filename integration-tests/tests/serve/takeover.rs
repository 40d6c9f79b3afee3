//! Workers die, freeze and leave; their runs go on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::after::assert_nothing_is_left;
use crate::place::{Place, Server};
use crate::{reader, server};

/// What steps do outside: they count, and one of them waits until it may go on.
struct Outside {
    server: server::Server,
    counts: Arc<Mutex<BTreeMap<String, usize>>>,
    changed: watch::Sender<()>,
    open: watch::Sender<bool>,
}

impl Outside {
    async fn new() -> Self {
        let counts: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
        let (changed, open) = (watch::Sender::new(()), watch::Sender::new(false));
        let (counted, told, gate) = (Arc::clone(&counts), changed.clone(), open.clone());
        let server = server::Server::start(move |request| {
            let path = request.line.split(' ').nth(1).unwrap_or_default().to_owned();
            *counted.lock().unwrap().entry(path.clone()).or_default() += 1;
            told.send_replace(());
            let mut gate = gate.subscribe();
            async move {
                if path == "/gate" {
                    gate.wait_for(|open| *open).await.unwrap();
                }
                request.answer(200, b"").await;
            }
        })
        .await;
        Self { server, counts, changed, open }
    }

    fn count(&self, path: &str) -> usize {
        self.counts.lock().unwrap().get(path).copied().unwrap_or(0)
    }

    async fn reaches(&self, path: &str, times: usize) {
        let mut changed = self.changed.subscribe();
        while self.count(path) < times {
            changed.changed().await.unwrap();
        }
    }

    /// Six steps that count; the fourth waits.
    fn steps(&self) -> Value {
        let url = self.server.url();
        (0..6)
            .map(|step| {
                let wait =
                    if step == 3 { format!("; wget -q -O - {url}/gate") } else { String::new() };
                let line =
                    format!("echo {step} >> /did; wget -q -O - {url}/{step}{wait}; cat /did");
                json!({ "cmd": ["sh", "-c", line], "network": "host" })
            })
            .collect()
    }
}

/// A run whose owner is in its fourth step, that owner, and another worker.
async fn in_the_fourth_step(place: &Place, outside: &Outside, name: &str) -> (Server, Server) {
    let first = place.serve(&[("BOB_LEASE_TTL_SECONDS", "3")]).await;
    let run = place.run(name);
    place.start(&run, &place.pipeline(name, &outside.steps())).await;
    outside.reaches("/gate", 1).await;
    let second = place.serve(&[]).await;
    (first, second)
}

async fn assert_it_went_on(place: &Place, outside: &Outside, run: &str, cause: &str) {
    let record = place.keys.settled(run).await;
    assert_eq!((&record["status"], &record["attempt"]), (&json!("passed"), &json!(2)), "{record}");
    for step in [0, 1, 2, 4, 5] {
        assert_eq!(outside.count(&format!("/{step}")), 1, "step {step} ran once");
    }
    assert_eq!(outside.count("/3"), 2, "the step that was cut off ran again");
    let events = reader::events_of(place, run).await;
    let newest = events.iter().filter_map(|event| event["epoch"].as_i64()).max().unwrap();
    let (late, new): (Vec<Value>, Vec<Value>) =
        events.into_iter().partition(|event| event["epoch"] != newest);
    assert_eq!(new[0]["reason"], "PipelineRunResumed");
    assert_eq!((&new[0]["cause"], &new[0]["from-step"]), (&json!(cause), &json!("3")));
    let repeated = new.iter().filter(|event| event["repeated"] == true).count();
    assert_eq!(repeated, 3, "the steps that were kept are told once more");
    reader::assert_gapless(&new);
    reader::assert_gapless(&late);
    // What an earlier owner's steps wrote stands in its epoch.
    let own: Vec<Value> = new.iter().filter(|event| event["repeated"] != true).cloned().collect();
    let outputs = reader::outputs(&own);
    let last = String::from_utf8(outputs[&("5".to_owned(), "stdout".to_owned())].clone()).unwrap();
    assert_eq!(last, "0\n1\n2\n3\n4\n5\n", "nothing of the first try at step 3 was kept");
    let all: Vec<Value> = late.into_iter().chain(new).collect();
    assert_nothing_is_left(place, run, &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_run_of_a_worker_that_was_killed_goes_on_at_the_step_that_it_was_in() {
    let Some(place) = Place::new().await else { return };
    let outside = Outside::new().await;
    let (mut first, second) = in_the_fourth_step(&place, &outside, "killed").await;
    first.signal(Signal::KILL);
    first.ended().await;
    outside.reaches("/gate", 2).await;
    outside.open.send_replace(true);
    assert_it_went_on(&place, &outside, &place.run("killed"), "lost").await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_frozen_changes_nothing_when_it_wakes() {
    let Some(place) = Place::new().await else { return };
    let outside = Outside::new().await;
    let (first, second) = in_the_fourth_step(&place, &outside, "frozen").await;
    let run = place.run("frozen");
    first.signal(Signal::STOP);
    outside.reaches("/gate", 2).await;
    outside.open.send_replace(true);
    let settled = place.keys.settled(&run).await;
    first.signal(Signal::CONT);
    // It has heard that its lease is gone once it has taken another.
    let pid = first.pid();
    place.keys.clone().below("bob.node/", |node| node["pid"] == pid).await;
    let next = place.run("next");
    place.start(&next, &place.pipeline("next", &json!([{ "cmd": "true" }]))).await;
    place.keys.settled(&next).await;
    assert_eq!(place.keys.settled(&run).await, settled, "the first owner has changed nothing");
    assert_it_went_on(&place, &outside, &run, "lost").await;
    first.end().await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_leaves_hands_its_run_over() {
    let Some(place) = Place::new().await else { return };
    let outside = Outside::new().await;
    // Nobody could wait for this lease.
    let leaving = [("BOB_LEASE_TTL_SECONDS", "3600"), ("BOB_DRAIN_SECONDS", "0")];
    let first = place.serve(&leaving).await;
    let run = place.run("leaves");
    place.start(&run, &place.pipeline("leaves", &outside.steps())).await;
    outside.reaches("/gate", 1).await;
    let second = place.serve(&[]).await;
    first.end().await;
    outside.reaches("/gate", 2).await;
    outside.open.send_replace(true);
    assert_it_went_on(&place, &outside, &run, "handed-over").await;
    second.end().await;
}
