//! Commands on the committed steps of an ended run.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use runner::exec::podman::{Options, Podman};
use runner::ports::Steps as _;
use serde_json::{Value, json};

use crate::place::{TestEnv, in_time};
use crate::server::Server;

/// The program's output and exit status.
async fn typed(place: &TestEnv, words: &[&str]) -> Output {
    in_time("the program", place.program(words, &[]).output()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_run_can_be_rerun_and_inspected() {
    let Some(place) = TestEnv::new().await else { return };
    let (answer, first) = (Arc::new(AtomicU16::new(500)), Arc::new(AtomicUsize::new(0)));
    let (says, counts) = (Arc::clone(&answer), Arc::clone(&first));
    let outside = Server::start(move |request| {
        if request.line.contains("/first") {
            counts.fetch_add(1, Ordering::Relaxed);
        }
        let status =
            if request.line.contains("/flaky") { says.load(Ordering::Relaxed) } else { 200 };
        async move { request.answer(status, b"").await }
    })
    .await;
    let url = outside.url();
    let shell = |name: &str, line: String| json!({ "name": name, "cmd": ["sh", "-c", line], "network": "host" });
    let steps = json!([
        shell(
            "build",
            format!("wget -q -O - {url}/first; echo built > /built; rm /etc/hostname; true")
        ),
        shell("test", format!("wget -q -O - {url}/flaky && echo tested >> /built")),
        shell("show", "cat /built".into()),
    ]);
    let worker = place.serve(&[]).await;
    let mut pipeline = place.pipeline("kept", &steps);
    pipeline["retention"] = "1h".into();
    let run = place.run("fails");
    place.start(&run, &pipeline).await;
    assert_eq!(place.keys.settled(&run).await["status"], "failed");

    // The files that the step changed, and their content.
    let diff = typed(&place, &["diff", &run, "build", "-o", "json"]).await;
    assert!(diff.status.success(), "{}", text(&diff.stderr));
    let changes: Vec<Value> = serde_json::from_slice(&diff.stdout).unwrap();
    assert!(changes.contains(&json!({ "path": "/built", "change": "added" })), "{changes:?}");
    let refused = typed(&place, &["diff", &run, "test"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("was not committed"), "{}", text(&refused.stderr));

    let shell = typed(&place, &["shell", &run, "--", "cat", "/built"]).await;
    assert_eq!(text(&shell.stdout), "built\n", "{}", text(&shell.stderr));

    // Starts from the failed step. The service works now.
    answer.store(200, Ordering::Relaxed);
    let rerun = typed(&place, &["rerun", &run, "--run-id", &place.run("again"), "--follow"]).await;
    assert!(rerun.status.success(), "{}", text(&rerun.stderr));
    assert_eq!(text(&rerun.stdout), "built\ntested\n");
    assert_eq!(first.load(Ordering::Relaxed), 1, "the first step ran once in all");
    let record = place.keys.settled(&place.run("again")).await;
    assert_eq!(record["parent"], json!({ "run-id": run }));

    // A run that passed can be rerun from any step.
    let all = typed(&place, &["rerun", &place.run("again")]).await;
    let wanted = "cannot be rerun: all of its steps have passed; name a step with --from";
    assert!(text(&all.stderr).contains(wanted), "{}", text(&all.stderr));
    let third = place.run("third");
    let words = ["rerun", &place.run("again"), "--from", "show", "--follow", "--run-id", &third];
    let last = typed(&place, &words).await;
    assert!(last.status.success(), "{}", text(&last.stderr));
    assert_eq!(text(&last.stdout), "built\ntested\n");
    let unknown = typed(&place, &["rerun", &run, "--from", "nothing"]).await;
    assert!(text(&unknown.stderr).contains("build, test, show"), "{}", text(&unknown.stderr));
    worker.end().await;
    assert_images_stay(&place, &third).await;
}

/// Asserts that the images that a run took over stay when it is removed, because they belong to another
/// run. Removes what all runs have left.
async fn assert_images_stay(place: &TestEnv, third: &str) {
    let engine = Options::new(place.services.get("CONTAINER_ENGINE_URL"));
    let podman = Podman::connect(engine).unwrap();
    podman.destroy(&third.parse().unwrap()).await.unwrap();
    let kept = typed(place, &["diff", &place.run("again"), "test"]).await;
    assert_eq!(text(&kept.stdout), "C /built\n", "{}", text(&kept.stderr));
    for run in podman.leftovers().await.unwrap().into_iter().map(|left| left.run) {
        if run.as_str().contains(&place.tag) {
            podman.destroy(&run).await.unwrap();
        }
    }
}
