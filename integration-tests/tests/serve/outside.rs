//! Resource providers, artifact stores and loggers: HTTP servers of the test.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use test_support::engine::{files_of, tar_of};

use crate::place::TestEnv;
use crate::reader;
use crate::server::{Request, Server, nobody};
use crate::writing::{binary, odd_lines, step, writes, written};

/// The requests that a server received: their lines, and the body stored for each path.
#[derive(Clone, Default)]
struct ReceivedRequests {
    lines: Arc<Mutex<Vec<String>>>,
    bodies: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl ReceivedRequests {
    fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }

    fn body(&self, path: &str) -> Option<Vec<u8>> {
        self.bodies.lock().get(path).cloned()
    }

    /// Stores the bodies of PUT and POST requests, and returns stored ones.
    async fn serve(self, mut request: Request) {
        self.lines.lock().push(request.line.clone());
        let body = request.whole().await;
        let (verb, target) = request.line.split_once(' ').unwrap();
        let path = target.split('?').next().unwrap();
        let found = if verb == "GET" {
            self.body(path)
        } else {
            self.bodies.lock().entry(path.to_owned()).or_default().extend(body);
            Some(b"Ok".to_vec())
        };
        match found {
            Some(body) => request.answer(200, &body).await,
            None => request.answer(404, b"there is no such thing").await,
        }
    }
}

/// Starts a server and registers it as services of these kinds.
async fn register(place: &TestEnv, kinds: &[&str]) -> (Server, ReceivedRequests) {
    let kept = ReceivedRequests::default();
    let serving = kept.clone();
    let server = Server::start(move |request| serving.clone().serve(request)).await;
    for kind in kinds {
        enlist(place, kind, &place.tag, &server.url()).await;
    }
    (server, kept)
}

async fn enlist(place: &TestEnv, kind: &str, name: &str, url: &str) {
    let value = json!({ "name": name, "url": url });
    place.keys.put(&format!("bob.{kind}/{name}"), &value).await;
}

/// The standard output of a step, counted from 0.
fn stdout(events: &[Value], step: &str) -> String {
    let outputs = reader::outputs(events);
    let bytes = outputs.get(&(step.to_owned(), "stdout".to_owned()));
    String::from_utf8(bytes.cloned().unwrap_or_default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_is_mounted_once_and_an_artifact_is_a_resource_of_a_later_run() {
    let Some(place) = TestEnv::new().await else { return };
    let (_outside, kept) = register(&place, &["resource-provider", "artifact-store"]).await;
    let tar = tar_of("sub/file", b"fetched\n").await;
    kept.bodies.lock().insert("/bob_resource".to_owned(), tar);
    let server = place.serve(&[]).await;

    let on_source = |script: &str| json!({ "cmd": ["sh", "-c", script], "needs_resource": "src" });
    let mut makes = on_source("mkdir made; cp sub/file made/; echo 42 > made/answer");
    makes["produces_artifact"] = json!({ "name": "out", "path": "made", "store": place.tag });
    let steps = json!([
        on_source("pwd; cat sub/file; echo changed > sub/file"),
        on_source("pwd; cat sub/file"),
        { "cmd": ["sh", "-c", "pwd; cat /root/src/sub/file"] },
        makes,
    ]);
    let mut pipeline = place.pipeline("makes it", &steps);
    pipeline["resources"] = json!([{ "name": "src", "type": "external", "provider": place.tag,
        "params": { "repo": "https://h/a b?c=d&e", "branch": "main" } }]);
    let first = place.run("first");
    place.start(&first, &pipeline).await;
    let events = reader::events_of(&place, &first).await;
    let reads = ["StepStarted", "Log", "StepCompleted"];
    let uploads = ["StepStarted", "ArtifactUpload", "StepCompleted", "PipelineSuccessful"];
    // Fetched only for the first step.
    let of_steps = [&["ResourceFetch"][..], &reads, &reads, &reads, &uploads].concat();
    assert_eq!(reader::reasons(&events)[4..], of_steps);
    reader::assert_gapless(&events);
    assert_eq!((&events[4]["resource"], &events[4]["step"]), (&json!("src"), &json!("0")));
    let upload = &events[15];
    assert_eq!((&upload["artifact"], &upload["store"]), (&json!("out"), &json!(place.tag)));
    assert_eq!(stdout(&events, "0"), "/root/src\nfetched\n");
    assert_eq!(stdout(&events, "1"), "/root/src\nchanged\n");
    assert_eq!(stdout(&events, "2"), "/\nchanged\n", "the working directory does not leak");

    let path = format!("/bob_artifact/{}/makes%20it/{first}/out", place.tag);
    let asked = "GET /bob_resource?repo=https%3A%2F%2Fh%2Fa%20b%3Fc%3Dd%26e&branch=main";
    assert_eq!(kept.lines(), [asked.to_owned(), format!("POST {path}")]);
    let files: BTreeMap<_, _> = files_of(&kept.body(&path).unwrap()).await.into_iter().collect();
    assert_eq!(files["made/answer"], b"42\n");
    assert_eq!(files["made/file"], b"changed\n");

    let steps = json!([{ "cmd": ["sh", "-c", "pwd; cat made/answer made/file"],
        "needs_resource": "out" }]);
    let mut pipeline = place.pipeline("uses", &steps);
    pipeline["resources"] = json!([{ "name": "out", "type": "internal", "provider": place.tag,
        "params": { "group": place.tag, "name": "makes it", "run_id": first } }]);
    let second = place.run("second");
    place.start(&second, &pipeline).await;
    let events = reader::events_of(&place, &second).await;
    assert_eq!(stdout(&events, "0"), "/root/out\n42\nchanged\n");
    assert_eq!(kept.lines()[2..], [format!("GET {path}")]);
    assert_eq!(place.keys.settled(&second).await["status"], "passed");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_fetch_or_upload_fails_the_run_with_the_reason() {
    let Some(place) = TestEnv::new().await else { return };
    let (_outside, _kept) = register(&place, &["resource-provider", "artifact-store"]).await;
    let away = format!("{}-away", place.tag);
    enlist(&place, "resource-provider", &away, &format!("http://{}", nobody().await)).await;
    let server = place.serve(&[]).await;
    let fetches = |provider: &str| {
        let resource = json!({ "name": "src", "type": "external", "provider": provider });
        json!({ "resources": [resource], "steps": [{ "cmd": "echo no", "needs_resource": "src" }] })
    };
    let artifact = json!({ "name": "out", "path": "not-made", "store": place.tag });
    let uploads = json!({ "steps": [{ "cmd": "true", "produces_artifact": artifact }] });
    let cases = [
        ("unknown", fetches("never-registered"), "resource", "never-registered"),
        ("refuses", fetches(&place.tag), "resource", "there is no such thing"),
        ("away", fetches(&away), "resource", "refused"),
        ("not-made", uploads, "artifact", "not-made"),
    ];
    for (name, parts, cause, said) in cases {
        let mut pipeline = place.pipeline(name, &parts["steps"]);
        if let Some(resources) = parts.get("resources") {
            pipeline["resources"] = resources.clone();
        }
        let run = place.run(name);
        place.start(&run, &pipeline).await;
        let record = place.keys.settled(&run).await;
        assert_eq!((&record["status"], &record["cause"]), (&json!("failed"), &json!(cause)));
        let message = record["message"].as_str().unwrap();
        assert!(message.contains(said), "{name}: {message}");
        let events = reader::events_of(&place, &run).await;
        let last = events.last().unwrap();
        assert_eq!((&last["reason"], &last["cause"]), (&json!("PipelineFailed"), &json!(cause)));
        assert!(!reader::reasons(&events).contains(&"Log"), "the step is not run: {events:?}");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logger_receives_the_output_of_steps_byte_for_byte() {
    let Some(place) = TestEnv::new().await else { return };
    let (_outside, kept) = register(&place, &["logger"]).await;
    let server = place.serve(&[]).await;
    // One stream at a time, because the order between the two is undefined.
    let of = |to: u8, texts: Vec<(u8, Vec<u8>)>| -> Vec<(u8, Vec<u8>)> {
        texts.into_iter().filter(|text| text.0 == to).collect()
    };
    let parts = [of(1, odd_lines()), of(2, odd_lines()), of(1, binary())];
    let mut steps: Vec<Value> =
        parts.iter().enumerate().map(|(n, texts)| step(&n.to_string(), &writes(texts))).collect();
    steps.push(step("many", "seq 1 100000"));
    let run = place.run("logged");
    let pipeline = place.pipeline("logged", &json!(steps));
    let body = json!({ "run-id": run, "pipeline": pipeline, "logger": place.tag });
    place.publish("bob.jobs", "pipeline/start", &body).await;
    assert_eq!(place.keys.settled(&run).await["status"], "passed");
    let mut expected: Vec<u8> = Vec::new();
    for texts in &parts {
        expected.extend(written(texts, texts[0].0));
        // A last line without a newline is not merged with others' text.
        if !expected.ends_with(b"\n") {
            expected.push(b'\n');
        }
    }
    for number in 1..=100_000 {
        expected.extend(format!("{number}\n").bytes());
    }
    expected.extend(b"[bob] run successful\n");
    let got = kept.body(&format!("/bob_logs/{run}")).unwrap();
    assert!(
        got == expected,
        "it got {} bytes, not {}: {}...",
        got.len(),
        expected.len(),
        got[..got.len().min(2000)].escape_ascii(),
    );
    assert!(kept.lines().iter().all(|line| line.starts_with("PUT ")), "{:?}", kept.lines());
    let events = reader::events_of(&place, &run).await;
    assert!(!reader::reasons(&events).contains(&"LoggerDropped"));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_logger_costs_a_run_only_its_log_there() {
    let Some(place) = TestEnv::new().await else { return };
    enlist(&place, "logger", &place.tag, &format!("http://{}", nobody().await)).await;
    let server = place.serve(&[]).await;
    let run = place.run("unlogged");
    let pipeline = place.pipeline("unlogged", &json!([{ "cmd": "echo hello" }]));
    let body = json!({ "run-id": run, "pipeline": pipeline, "logger": place.tag });
    place.publish("bob.jobs", "pipeline/start", &body).await;
    let events = reader::events_of(&place, &run).await;
    assert_eq!(stdout(&events, "0"), "hello\n");
    let dropped: Vec<&Value> =
        events.iter().filter(|event| event["reason"] == "LoggerDropped").collect();
    assert_eq!(dropped.len(), 1);
    // Includes the program's own line about the end of the run.
    assert_eq!(dropped[0]["bytes"], "hello\n[bob] run successful\n".len());
    assert_eq!(dropped[0]["type"], "Warning");
    assert_eq!(events.last().unwrap()["reason"], "PipelineSuccessful");
    server.end().await;
}
