//! Workers die, freeze and drain; their runs continue.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::{Value, json};
use test_support::engine::Api;
use test_support::services::OwnServices;
use tokio::sync::watch;

use crate::after::assert_nothing_is_left;
use crate::place::{Server, TestEnv};
use crate::{reader, server};

/// A repository in the test registry, and the settings of a worker that pushes to it.
struct Checkpoints {
    host: String,
    repository: String,
}

impl Checkpoints {
    fn of(place: &TestEnv) -> Self {
        let host = place.services.get("BOB_TEST_REGISTRY").to_owned();
        Self { host, repository: format!("checkpoints/{}", place.tag) }
    }

    fn settings<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![
            ("BOB_LEASE_TTL_SECONDS", "3"),
            ("BOB_CHECKPOINT_REGISTRY", name),
            ("BOB_REGISTRY_INSECURE", &self.host),
        ]
    }

    fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    async fn tags(&self) -> Value {
        let url = format!("http://{}/v2/{}/tags/list", self.host, self.repository);
        let list: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
        list["tags"].clone()
    }
}

/// A server that counts requests of steps and makes one of them wait.
pub(crate) struct Outside {
    server: server::Server,
    counts: Arc<Mutex<BTreeMap<String, usize>>>,
    changed: watch::Sender<()>,
    pub(crate) open: watch::Sender<bool>,
}

impl Outside {
    pub(crate) async fn new() -> Self {
        let counts: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
        let (changed, open) = (watch::Sender::new(()), watch::Sender::new(false));
        let (counted, told, gate) = (Arc::clone(&counts), changed.clone(), open.clone());
        let server = server::Server::start(move |request| {
            let path = request.line.split(' ').nth(1).unwrap_or_default().to_owned();
            *counted.lock().entry(path.clone()).or_default() += 1;
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

    pub(crate) fn count(&self, path: &str) -> usize {
        self.counts.lock().get(path).copied().unwrap_or(0)
    }

    pub(crate) async fn reaches(&self, path: &str, times: usize) {
        let mut changed = self.changed.subscribe();
        while self.count(path) < times {
            changed.changed().await.unwrap();
        }
    }

    /// Six steps that count. The fourth one waits.
    pub(crate) fn steps(&self) -> Value {
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

/// Starts two workers and a run, and waits for its fourth step. Returns the owner and the other
/// worker.
async fn in_the_fourth_step(place: &TestEnv, outside: &Outside, name: &str) -> (Server, Server) {
    let first = place.serve(&[("BOB_LEASE_TTL_SECONDS", "3")]).await;
    let run = place.run(name);
    place.start(&run, &place.pipeline(name, &outside.steps())).await;
    outside.reaches("/gate", 1).await;
    let second = place.serve(&[]).await;
    (first, second)
}

async fn assert_resumed(place: &TestEnv, outside: &Outside, run: &str, cause: &str) {
    let all = resumed_events(place, outside, run, cause).await;
    assert_nothing_is_left(place, run, &all).await;
}

/// Checks that a run was resumed at its fourth step. Returns its events.
async fn resumed_events(place: &TestEnv, outside: &Outside, run: &str, cause: &str) -> Vec<Value> {
    let record = place.keys.settled(run).await;
    assert_eq!((&record["status"], &record["attempt"]), (&json!("passed"), &json!(2)), "{record}");
    for step in [0, 1, 2, 4, 5] {
        assert_eq!(outside.count(&format!("/{step}")), 1, "step {step} ran once");
    }
    assert_eq!(outside.count("/3"), 2, "the interrupted step ran again");
    let events = reader::events_of(place, run).await;
    let newest = events.iter().filter_map(|event| event["epoch"].as_i64()).max().unwrap();
    let (late, new): (Vec<Value>, Vec<Value>) =
        events.into_iter().partition(|event| event["epoch"] != newest);
    assert_eq!(new[0]["reason"], "PipelineRunResumed");
    assert_eq!((&new[0]["cause"], &new[0]["from-step"]), (&json!(cause), &json!("3")));
    let repeated = new.iter().filter(|event| event["repeated"] == true).count();
    assert_eq!(repeated, 3, "the committed steps are reported again");
    reader::assert_gapless(&new);
    reader::assert_gapless(&late);
    // Output from an earlier owner's steps is in that owner's epoch.
    let own: Vec<Value> = new.iter().filter(|event| event["repeated"] != true).cloned().collect();
    let outputs = reader::outputs(&own);
    let last = String::from_utf8(outputs[&("5".to_owned(), "stdout".to_owned())].clone()).unwrap();
    assert_eq!(last, "0\n1\n2\n3\n4\n5\n", "nothing of the first attempt of step 3 was committed");
    late.into_iter().chain(new).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_run_of_a_killed_worker_resumes_at_its_current_step() {
    let Some(place) = TestEnv::new().await else { return };
    let outside = Outside::new().await;
    let (mut first, second) = in_the_fourth_step(&place, &outside, "killed").await;
    first.signal(Signal::KILL);
    first.ended().await;
    outside.reaches("/gate", 2).await;
    outside.open.send_replace(true);
    assert_resumed(&place, &outside, &place.run("killed"), "lost").await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_wakes_after_a_freeze_changes_nothing() {
    let Some(place) = TestEnv::new().await else { return };
    let outside = Outside::new().await;
    let (first, second) = in_the_fourth_step(&place, &outside, "frozen").await;
    let run = place.run("frozen");
    first.signal(Signal::STOP);
    outside.reaches("/gate", 2).await;
    outside.open.send_replace(true);
    let settled = place.keys.settled(&run).await;
    // It stays frozen for three times its lease time.
    let long = place.run("long");
    place.start(&long, &place.pipeline("long", &json!([{ "cmd": "sleep 9" }]))).await;
    place.keys.settled(&long).await;
    first.signal(Signal::CONT);
    // It has noticed the loss of its lease once it has another one.
    let pid = first.pid();
    place.keys.clone().below("bob.node/", |node| node["pid"] == pid).await;
    let next = place.run("next");
    place.start(&next, &place.pipeline("next", &json!([{ "cmd": "true" }]))).await;
    place.keys.settled(&next).await;
    assert_eq!(
        place.keys.settled(&run).await,
        settled,
        "the first owner must not change the record"
    );
    assert_resumed(&place, &outside, &run, "lost").await;
    first.end().await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_worker_hands_over_its_run() {
    let Some(place) = TestEnv::new().await else { return };
    let outside = Outside::new().await;
    // Too long for any test to wait for its expiry.
    let leaving = [("BOB_LEASE_TTL_SECONDS", "3600"), ("BOB_DRAIN_SECONDS", "0")];
    let first = place.serve(&leaving).await;
    let run = place.run("leaves");
    place.start(&run, &place.pipeline("leaves", &outside.steps())).await;
    outside.reaches("/gate", 1).await;
    let second = place.serve(&[]).await;
    first.end().await;
    outside.reaches("/gate", 2).await;
    outside.open.send_replace(true);
    assert_resumed(&place, &outside, &run, "handed-over").await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_resumes_from_the_registry_on_another_engine() {
    let Some(place) = TestEnv::new().await else { return };
    let far = tokio::task::spawn_blocking(|| OwnServices::start("podman", &[])).await.unwrap();
    let far = far.unwrap();
    let far_engine = far.services().get("CONTAINER_ENGINE_URL").to_owned();
    let (outside, checkpoints) = (Outside::new().await, Checkpoints::of(&place));
    let name = checkpoints.name();
    let mut settings = checkpoints.settings(&name);
    let mut first = place.serve(&settings).await;
    let run = place.run("travels");
    place.start(&run, &place.pipeline("travels", &outside.steps())).await;
    outside.reaches("/gate", 1).await;
    // The fourth step runs while the third step's checkpoint is pushed.
    place.keys.record(&run, |record| record["steps"][2]["digest"].is_string()).await;
    settings.push(("CONTAINER_ENGINE_URL", &far_engine));
    let second = place.serve(&settings).await;
    first.signal(Signal::KILL);
    first.ended().await;
    outside.reaches("/gate", 2).await;
    outside.open.send_replace(true);
    resumed_events(&place, &outside, &run, "lost").await;
    second.end().await;
    let (api, id) = (Api::of(&far_engine), run.parse().unwrap());
    assert_eq!(api.labelled("containers", &id).await, 0, "containers are left");
    assert_eq!(api.labelled("images", &id).await, 0, "images are left");
    assert_eq!(checkpoints.tags().await, Value::Null, "checkpoints are left in the registry");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_worker_hands_over_its_run_to_another_engine() {
    let Some(place) = TestEnv::new().await else { return };
    let far = tokio::task::spawn_blocking(|| OwnServices::start("podman", &[])).await.unwrap();
    let far = far.unwrap();
    let far_engine = far.services().get("CONTAINER_ENGINE_URL").to_owned();
    let (outside, checkpoints) = (Outside::new().await, Checkpoints::of(&place));
    let name = checkpoints.name();
    let mut settings = checkpoints.settings(&name);
    settings.extend([("BOB_LEASE_TTL_SECONDS", "3600"), ("BOB_DRAIN_SECONDS", "0")]);
    let first = place.serve(&settings).await;
    let run = place.run("leaves-far");
    place.start(&run, &place.pipeline("leaves-far", &outside.steps())).await;
    outside.reaches("/gate", 1).await;
    settings.push(("CONTAINER_ENGINE_URL", &far_engine));
    let second = place.serve(&settings).await;
    // The hand-over waits for pending pushes.
    first.end().await;
    outside.reaches("/gate", 2).await;
    outside.open.send_replace(true);
    resumed_events(&place, &outside, &run, "handed-over").await;
    second.end().await;
    assert_eq!(checkpoints.tags().await, Value::Null, "checkpoints are left in the registry");
}
