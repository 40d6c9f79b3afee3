//! A worker and its engine's disk: it starts nothing without room, and frees some.

use std::sync::Arc;
use std::time::Duration;

use protocol::id::RunId;
use protocol::names;
use protocol::pipeline::ExecutorKind;
use protocol::run::{Cause, NodeDisk, Status};
use protocol::time::Millis;
use runner::host;
use runner::ports::{BaseImage, Disk, Images as _, Route, Steps as _, Txn};
use runner::worker::{DiskOptions, Options};
use serde_json::{Value, json};
use test_support::scripted::Scripted;
use test_support::worker_suite::{Rig, new_node, options, until};

use crate::rig_on;

/// A worker with one slot that checks the disk all the time.
fn watchful() -> Options {
    let mut options = options(new_node(), 1);
    options.disk.look = Duration::from_millis(20);
    options.node_refresh = Duration::from_millis(50);
    options
}

/// A disk of 1000 bytes.
fn disk(percent: u64) -> Disk {
    Disk { total: 1000, free: 1000 - percent * 10 }
}

fn says(percent: u64, full: bool) -> Option<NodeDisk> {
    let Disk { total, free } = disk(percent);
    Some(NodeDisk { free, total, full })
}

/// A file that a step waits for.
struct FlagFile(tempfile::TempDir);

impl FlagFile {
    fn step(&self) -> String {
        format!("wait-for {}", self.0.path().join("sign").display())
    }

    fn give(&self) {
        std::fs::write(self.0.path().join("sign"), "").unwrap();
    }
}

async fn is_known(rig: &Rig, run: &RunId) -> bool {
    rig.ports.store.get(&names::run_key(run)).await.unwrap().is_some()
}

/// A run that another worker had started and left.
async fn orphan(rig: &Rig, name: &str) -> RunId {
    let run = rig.run(name);
    let record = json!({
        "group": rig.tag, "name": name, "run-id": run, "status": "running", "attempt": 1,
        "scheduled-at": "2026-01-01T00:00:00.000Z", "node": "gone/runner-1", "epoch": 1, "steps": [],
        "pipeline": {
            "group": rig.tag, "name": name, "image": "scripted",
            "steps": [{ "name": "0", "cmd": "exit 0", "executor": "podman" }],
        },
    });
    let txn = Txn::new()
        .put(names::run_key(&run), record.to_string().into_bytes())
        .put(names::open_key(&run), b"{}".to_vec());
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    run
}

fn base(name: &str, hours: i64, in_use: bool) -> BaseImage {
    let (id, names) = (format!("id-{name}"), vec![format!("docker.io/library/{name}:latest")]);
    BaseImage { id, names, bytes: 100, used: Millis(hours * 3_600_000), in_use }
}

async fn bases(executor: &Scripted) -> Vec<String> {
    let bases = executor.bases(&Default::default(), Millis(0)).await.unwrap();
    let mut names: Vec<String> = bases.iter().map(|base| base.id.replace("id-", "")).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn above_the_high_watermark_a_worker_pauses_until_usage_is_below_the_low_one() {
    let executor = Arc::new(Scripted::default());
    let (mut rig, _embedded) =
        rig_on(Arc::clone(&executor), Arc::new(host::Linux::default())).await;
    executor.fill_disk(disk(85));
    let left = orphan(&rig, "left").await;
    let node = rig.worker_as(watchful()).await;
    rig.node(&node, |node| node.disk == says(85, true)).await;
    let (waits, sent) = (rig.run("waits"), rig.run("sent"));
    let pipeline = rig.pipeline("waits", &["exit 0"]);
    rig.start(&waits, &pipeline).await;
    // A command for this worker is forwarded to all.
    let body = json!({ "run-id": sent, "pipeline": pipeline });
    rig.publish(Route::Node(node.clone()), protocol::command::START, &body).await;
    // A full worker still handles the control queue. Once this stop is recorded, it has seen it.
    let never = rig.run("never");
    rig.stop(&never).await;
    rig.stop_is_recorded(&never).await;
    // Between the watermarks the state does not change.
    executor.fill_disk(disk(80));
    rig.node(&node, |node| node.disk == says(80, true)).await;
    assert!(!is_known(&rig, &waits).await && !is_known(&rig, &sent).await);
    assert_eq!(rig.record(&left, |_| true).await.attempt, 1, "an abandoned run is not adopted");
    executor.fill_disk(disk(79));
    for run in [&waits, &sent, &left] {
        assert_eq!(rig.settled(run).await.status, Status::Passed);
    }
    assert_eq!(rig.settled(&left).await.attempt, 2);
    executor.fill_disk(disk(84));
    rig.node(&node, |node| node.disk == says(84, false)).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_a_run_no_space_and_the_worker_resumes_when_space_is_free() {
    let executor = Arc::new(Scripted::default());
    let (mut rig, _embedded) =
        rig_on(Arc::clone(&executor), Arc::new(host::Linux::default())).await;
    executor.fill_disk(disk(50));
    let node = rig.worker_as(watchful()).await;
    let sign = FlagFile(tempfile::tempdir().unwrap());
    let run = rig.run("fills");
    let mut pipeline = rig.pipeline("fills", &[&sign.step(), "fill", "exit 0"]);
    // Neither retention nor retries apply to a full disk.
    pipeline["retention"] = "1h".into();
    pipeline["steps"][1]["retry"] = json!({ "attempts": 3, "delay": "1ms" });
    rig.start(&run, &pipeline).await;
    rig.event(&run, "StepStarted").await;
    executor.fill_disk(disk(95));
    rig.node(&node, |node| node.disk == says(95, true)).await;
    // Running steps continue.
    sign.give();
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::NoSpace)));
    assert_eq!(record.steps.iter().map(|step| step.attempt).collect::<Vec<_>>(), [1, 1]);
    assert!(executor.leftovers().await.unwrap().is_empty(), "no leftovers use space");
    let next = rig.run("next");
    rig.start(&next, &rig.pipeline("next", &["exit 0"])).await;
    let never = rig.run("never");
    rig.stop(&never).await;
    rig.stop_is_recorded(&never).await;
    assert!(!is_known(&rig, &next).await);
    executor.fill_disk(disk(50));
    assert_eq!(rig.settled(&next).await.status, Status::Passed);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_on_a_full_disk_ends_its_run_no_space() {
    let executor = Arc::new(Scripted::default());
    let (mut rig, _embedded) =
        rig_on(Arc::clone(&executor), Arc::new(host::Linux::default())).await;
    executor.fill_disk(disk(50));
    // The failure itself reports the disk, and the removal triggers the next check.
    let mut seldom = watchful();
    seldom.disk.look = Duration::from_secs(3600);
    rig.worker_as(seldom).await;
    let sign = FlagFile(tempfile::tempdir().unwrap());
    let run = rig.run("fails");
    let mut pipeline = rig.pipeline("fails", &[&sign.step(), "exit 3"]);
    pipeline["steps"][1]["retry"] = json!({ "attempts": 3, "delay": "1ms" });
    rig.start(&run, &pipeline).await;
    rig.event(&run, "StepStarted").await;
    executor.fill_disk(disk(100));
    executor.have_bases(vec![
        base("old", 1, false),
        base("new", 2, false),
        base("newer", 3, false),
    ]);
    sign.give();
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::NoSpace)));
    assert_eq!((record.steps[1].attempt, record.steps[1].exit_code), (1, Some(3)));
    // Three images were removed, so there is room.
    let next = rig.run("next");
    rig.start(&next, &rig.pipeline("next", &["exit 0"])).await;
    assert_eq!(rig.settled(&next).await.status, Status::Passed);
    assert!(bases(&executor).await.is_empty());
    rig.end().await;
}

/// A run in its first step, on an image.
async fn begun_on(rig: &Rig, image: &str, sign: &FlagFile) -> RunId {
    let run = rig.run("stands");
    let mut pipeline: Value = rig.pipeline("stands", &[&sign.step()]);
    pipeline["image"] = image.into();
    rig.start(&run, &pipeline).await;
    rig.event(&run, "StepStarted").await;
    run
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn least_recently_used_base_images_go_first_but_none_that_a_run_names() {
    let executor = Arc::new(Scripted::default());
    let (mut rig, _embedded) =
        rig_on(Arc::clone(&executor), Arc::new(host::Linux::default())).await;
    let mut options = watchful();
    options.lease_ttl = Duration::from_secs(1);
    options.sweep = Duration::from_millis(50);
    options.disk = DiskOptions { base_images_bytes: 300, ..options.disk };
    rig.worker_as(options).await;
    let sign = FlagFile(tempfile::tempdir().unwrap());
    let run = begun_on(&rig, "a", &sign).await;
    let all = [("a", 1, false), ("b", 2, false), ("c", 3, false), ("built-upon", 0, true)];
    executor.have_bases(all.iter().map(|(name, hours, used)| base(name, *hours, *used)).collect());
    until("only as many as allowed", || async {
        (bases(&executor).await == ["a", "built-upon", "c"]).then_some(())
    })
    .await;
    // Above the high watermark, every unused image may be removed.
    executor.fill_disk(disk(95));
    until("unused objects are removed", || async {
        (bases(&executor).await == ["a", "built-upon"]).then_some(())
    })
    .await;
    sign.give();
    assert_eq!(rig.settled(&run).await.status, Status::Passed);
    until("it is no longer used", || async {
        (bases(&executor).await == ["built-upon"]).then_some(())
    })
    .await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_volumes_and_then_retained_runs_are_removed_oldest_first() {
    let executor = Arc::new(Scripted::default());
    let (mut rig, _embedded) =
        rig_on(Arc::clone(&executor), Arc::new(host::Linux::default())).await;
    executor.weigh_runs(100);
    executor.fill_disk(disk(50));
    let mut options = watchful();
    options.executors.push(ExecutorKind::Docker);
    rig.worker_as(options).await;
    let mut retained = Vec::new();
    for name in ["older", "newer"] {
        let run = rig.run(name);
        let mut pipeline = rig.pipeline(name, &["put /a x"]);
        pipeline["retention"] = "365d".into();
        rig.start(&run, &pipeline).await;
        assert_eq!(rig.settled(&run).await.status, Status::Passed);
        retained.push(run);
    }
    let (sign, run) = (FlagFile(tempfile::tempdir().unwrap()), rig.run("mounts"));
    let mut pipeline = rig.pipeline("mounts", &[&sign.step()]);
    pipeline["steps"][0]["executor"] = "docker".into();
    pipeline["steps"][0]["with"] = json!({ "image": "i", "mounts": ["named:/x", "/dir:/y"] });
    rig.start(&run, &pipeline).await;
    rig.event(&run, "StepStarted").await;
    executor.have_volumes(&[("old", 100), ("named", 100), ("new", 100), ("newest", 100)]);

    // Below the low watermark nothing more is removed.
    executor.fill_disk(disk(95));
    let volumes = async || executor.shared_volumes().await.unwrap();
    until("there is room", || async { (volumes().await == ["named", "newest"]).then_some(()) })
        .await;
    until("the disk was checked", || async {
        (executor.disk().await.unwrap() == Some(disk(75))).then_some(())
    })
    .await;
    let left = async || {
        let left = executor.leftovers().await.unwrap();
        let is_left = |run: &&RunId| left.iter().any(|left| left.run == **run);
        retained.iter().filter(is_left).cloned().collect::<Vec<_>>()
    };
    assert_eq!(left().await, retained, "a run is given up only if that is needed");

    executor.fill_disk(disk(95));
    until("the oldest is given up", || async { (left().await == retained[1..]).then_some(()) })
        .await;
    assert_eq!(volumes().await, ["named"], "a run that has not ended names it");
    sign.give();
    assert_eq!(rig.settled(&run).await.status, Status::Passed);
    assert_eq!(left().await, retained[1..]);
    rig.end().await;
}
