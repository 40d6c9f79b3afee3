//! Jobs added to a cluster as shell commands. Test names begin with the row of the acceptance
//! table. Rows about the queue file are tested in embedded mode.

use std::path::Path;

use serde_json::{Value, json};

use crate::place::TestEnv;
use crate::reader;

const LOCAL: (&str, &str) = ("BOB_EXECUTORS", "local");

/// Adds a job and returns its run id.
async fn add(place: &TestEnv, typed: &[&str]) -> String {
    place.id_of(&[&["add"], typed].concat()).await
}

fn of<'a>(events: &'a [Value], reason: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["reason"] == reason).collect()
}

// Rows: C1, C9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_jobs_start_in_order_and_a_multiline_command_is_one_job() {
    let Some(place) = TestEnv::new().await else { return };
    let order = place.dir.path().join("order");
    let mut runs = Vec::new();
    for job in ["a", "b", "c"] {
        let command = format!("x={job}\necho $x >> {}", order.display());
        runs.push(add(&place, &[&command]).await);
    }
    let server = place.serve(&[LOCAL, ("BOB_MAX_PARALLEL_RUNS", "1")]).await;
    for run in &runs {
        assert_eq!(place.keys.settled(run).await["status"], "passed");
    }
    assert_eq!(std::fs::read_to_string(order).unwrap(), "a\nb\nc\n");
    server.end().await;
}

// Rows: C3, C4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_cluster_job_is_retried_up_to_its_limit_with_a_constant_delay() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[LOCAL]).await;
    let failing = add(&place, &["--attempts", "3", "--delay", "20ms", "exit 3"]).await;
    let flag = place.dir.path().join("flag").display().to_string();
    let second = format!("[ -e {flag} ] || {{ touch {flag}; exit 1; }}");
    let passing = add(&place, &["--attempts", "2", "--delay", "1s", &second]).await;

    let events = reader::events_of(&place, &failing).await;
    let retries = of(&events, "StepRetry");
    let said: Vec<_> = retries.iter().map(|retry| (&retry["type"], &retry["delay-ms"])).collect();
    assert_eq!(said, vec![(&json!("Warning"), &json!(20)); 2]);
    assert_eq!(of(&events, "StepStarted").len(), 3);
    let record = place.keys.settled(&failing).await;
    let ending = (&record["status"], &record["cause"], &record["group"]);
    assert_eq!(ending, (&json!("failed"), &json!("retries-exhausted"), &json!("ci")));

    let events = reader::events_of(&place, &passing).await;
    assert_eq!(of(&events, "StepRetry").len(), 1);
    assert_eq!(place.keys.settled(&passing).await["status"], "passed");
    server.end().await;
}

// Rows: C10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_job_over_its_time_limit_ends_with_all_its_processes() {
    let Some(place) = TestEnv::new().await else { return };
    let server = place.serve(&[LOCAL, ("BOB_KILL_GRACE_SECONDS", "2")]).await;
    let pid = place.dir.path().join("pid");
    let job = format!("setsid sleep 1000 & echo $! > {}; wait", pid.display());
    let run = add(&place, &["--attempts", "1", "--timeout", "2s", &job]).await;
    let record = place.keys.settled(&run).await;
    assert_eq!((&record["status"], &record["cause"]), (&json!("failed"), &json!("timeout")));
    let pid = std::fs::read_to_string(pid).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "its process has ended");
    server.end().await;
}
