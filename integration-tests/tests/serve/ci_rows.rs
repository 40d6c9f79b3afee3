//! More rows of the CI runner's table, for jobs added to a cluster.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::place::{TestEnv, in_time};
use crate::reader;

const LOCAL: (&str, &str) = ("BOB_EXECUTORS", "local");

/// The lines of a file written by jobs.
fn lines(place: &TestEnv, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(place.dir.path().join(name)).unwrap_or_default();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// Waits for an effect of jobs.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time(what, waiting).await;
}

// Rows: C2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_runs_as_many_jobs_at_once_as_its_workers_have_slots() {
    let Some(place) = TestEnv::new().await else { return };
    std::fs::create_dir(place.dir.path().join("running")).unwrap();
    // Each job records the number of concurrent jobs, in total and on its own worker.
    let job = "touch $D/running/$$.$RUNNER_ID; ls $D/running | wc -l >> $D/seen; \
               ls $D/running | grep -c $RUNNER_ID >> $D/seen.$RUNNER_ID; \
               until [ -e $D/go ]; do sleep 0.05; done; rm $D/running/$$.$RUNNER_ID";
    let dir = place.dir.path().display().to_string();
    let settings =
        |id, slots| [LOCAL, ("D", &*dir), ("RUNNER_ID", id), ("BOB_MAX_PARALLEL_RUNS", slots)];
    let two = place.serve(&settings("two", "2")).await;
    let three = place.serve(&settings("three", "3")).await;
    let mut runs = Vec::new();
    for _ in 0..20 {
        runs.push(place.id_of(&["add", job]).await);
    }
    until("all slots are taken", || lines(&place, "seen").len() == 5).await;
    place.write("go", "");
    for run in &runs {
        assert_eq!(place.keys.settled(run).await["status"], "passed");
    }
    let most = |name: &str| {
        let seen = lines(&place, name).into_iter();
        seen.map(|line| line.parse::<u32>().unwrap()).max().unwrap()
    };
    assert_eq!(lines(&place, "seen").len(), 20, "each is run once");
    assert_eq!((most("seen"), most("seen.two"), most("seen.three")), (5, 2, 3));
    two.end().await;
    three.end().await;
}

// Rows: C5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_level_hides_lower_levels_in_the_log_of_a_worker() {
    let Some(place) = TestEnv::new().await else { return };
    for (level, shown) in [("error", 1), ("warn", 2), ("info", 3), ("debug", 4)] {
        let settings = [LOCAL, ("BOB_LOG_FORMAT", "ci"), ("BOB_LOG_LEVEL", level)];
        let mut server = place.serve(&settings).await;
        let run = place.id_of(&["add", "--attempts", "2", "--delay", "10ms", "exit 3"]).await;
        assert_eq!(place.keys.settled(&run).await["status"], "failed");
        server.signal(Signal::TERM);
        assert_eq!(server.ended().await, Some(0));
        let log = server.log();
        let levels: BTreeSet<&str> =
            log.lines().map(|line| line.split(' ').nth(2).unwrap_or(line)).collect();
        let all = ["[ERROR]", "[WARN]", "[INFO]", "[DEBUG]"];
        assert_eq!(levels, all[..shown].iter().copied().collect(), "{level}: {log}");
        let has = |text: &str| log.lines().any(|line| line.contains(&run) && line.contains(text));
        assert!(has("exit code 3"), "{level}: {log}");
        assert_eq!(has("attempt 1 of 2 has failed"), shown >= 2, "{level}: {log}");
    }
}

// Rows: C8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cluster_job_is_lost_with_its_worker_and_no_second_run_is_silent() {
    let Some(place) = TestEnv::new().await else { return };
    let dir = place.dir.path().display().to_string();
    let settings =
        [LOCAL, ("D", &*dir), ("BOB_MAX_PARALLEL_RUNS", "2"), ("BOB_LEASE_TTL_SECONDS", "3")];
    let job = |name: &str| {
        format!(
            "echo >> $D/{name}.begun; echo $$ > $D/{name}.pid; \
             until [ -e $D/go ]; do sleep 0.05; done; echo >> $D/{name}.ended"
        )
    };
    let names = ["a", "b", "c", "d", "e", "later"];
    let mut runs = Vec::new();
    for name in &names[..5] {
        runs.push(place.id_of(&["add", &job(name)]).await);
    }
    let mut first = place.serve(&settings).await;
    until("two jobs run", || ["a.pid", "b.pid"].iter().all(|name| lines(&place, name).len() == 1))
        .await;
    first.signal(Signal::KILL);
    first.ended().await;
    let pids = ["a.pid", "b.pid"].map(|name| lines(&place, name).remove(0));
    until("the jobs of the killed worker have ended", || {
        !pids.iter().any(|pid| Path::new("/proc").join(pid).exists())
    })
    .await;
    // No worker is running.
    runs.push(place.id_of(&["add", &job("later")]).await);
    place.write("go", "");
    let second = place.serve(&settings).await;
    for (run, name) in runs.iter().zip(names) {
        let twice = usize::from(["a", "b"].contains(&name));
        let record = place.keys.settled(run).await;
        assert_eq!((&record["status"], &record["attempt"]), (&json!("passed"), &json!(1 + twice)));
        let counts = ["begun", "ended"].map(|what| lines(&place, &format!("{name}.{what}")).len());
        assert_eq!(counts, [1 + twice, 1], "{name}");
        let events = reader::events_of(&place, run).await;
        let is_reported =
            |event: &Value| event["reason"] == "PipelineRunResumed" && event["cause"] == "lost";
        assert_eq!(events.iter().filter(|event| is_reported(event)).count(), twice, "{name}");
    }
    second.end().await;
}

// Rows: C11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_additions_to_a_cluster_lose_no_job() {
    let Some(place) = TestEnv::new().await else { return };
    let dir = place.dir.path().display().to_string();
    let server = place.serve(&[LOCAL, ("D", &*dir), ("BOB_MAX_PARALLEL_RUNS", "8")]).await;
    let jobs: Vec<String> = (0..50).map(|job| format!("x={job}\necho $x >> $D/done")).collect();
    let adding = jobs.iter().map(|job| {
        let place = &place;
        async move { place.id_of(&["add", job]).await }
    });
    let runs: BTreeSet<String> = futures::future::join_all(adding).await.into_iter().collect();
    assert_eq!(runs.len(), 50);
    for run in &runs {
        assert_eq!(place.keys.settled(run).await["status"], "passed");
    }
    let mut done: Vec<u32> =
        lines(&place, "done").iter().map(|line| line.parse().unwrap()).collect();
    done.sort_unstable();
    assert_eq!(done, (0..50).collect::<Vec<u32>>());
    server.end().await;
}

// Rows: C12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_test_helpers_pass_against_a_cluster() {
    let Some(place) = TestEnv::new().await else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/ci/test");
    let program = place.program(&[], &[]);
    let settings =
        [("BOB_MODE", "cluster"), ("BOB_RUNNER", program.as_std().get_program().to_str().unwrap())];
    let mut command = place.command(Path::new("bash"), &[script], &settings);
    let said = in_time("the suites", command.output()).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{out}\n{err}");
    assert!(out.ends_with("0 failed\n"), "{out}");
}
