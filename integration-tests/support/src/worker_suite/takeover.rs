//! Tests of runs whose owner is lost or releases them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::event::{Event, Reason, Severity};
use protocol::id::{Epoch, RunId};
use protocol::names;
use protocol::pipeline::PullPolicy;
use protocol::run::{Cause, RunRecord, Status};
use serde_json::{Value, json};

use super::commands::pipeline_model;
use super::hard::Unruly;
use super::{Rig, new_node, options, reason_of, until};
use runner::ports::{RunScope, StopSignal, Txn};

/// A file that a step waits for.
pub(super) struct Sign(tempfile::TempDir);

impl Sign {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn step(&self) -> String {
        format!("wait-for {}", self.0.path().join("sign").display())
    }

    pub(super) fn give(&self) {
        std::fs::write(self.0.path().join("sign"), "").unwrap();
    }
}

/// Three steps: one writes a file, one waits, and one prints the file.
fn steps(sign: &Sign) -> Vec<String> {
    vec!["put /a kept".into(), sign.step(), "show /a".into()]
}

fn pipeline(rig: &Rig, name: &str, steps: &[String]) -> Value {
    rig.pipeline(name, &steps.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Returns the events of a run grouped by epoch, without late ones.
async fn epochs(rig: &Rig, run: &RunId) -> Vec<Vec<Event>> {
    let mut epochs: std::collections::BTreeMap<_, Vec<Event>> = std::collections::BTreeMap::new();
    for event in rig.events_of(run).await {
        epochs.entry(event.epoch.unwrap()).or_default().push(event);
    }
    epochs.into_values().collect()
}

fn reasons(events: &[Event]) -> Vec<String> {
    let logs = |event: &&Event| !matches!(event.reason, Reason::Log { .. });
    events.iter().filter(logs).map(|event| reason_of(&event.reason)).collect()
}

fn assert_gapless(events: &[Event]) {
    let seqs: Vec<u64> = events.iter().map(|event| event.seq.unwrap()).collect();
    assert_eq!(seqs, (0..seqs.len() as u64).collect::<Vec<_>>(), "no gap within an epoch");
}

async fn is_in_second_step(rig: &Rig, run: &RunId) -> RunRecord {
    rig.record(run, |record| record.steps.len() == 2).await
}

/// Committed steps run once and the interrupted step runs again. The second owner publishes where
/// it resumes, and the first one changes nothing after its loss.
pub async fn a_run_goes_on_with_another_worker_after_its_last_kept_step(mut rig: Rig) {
    let (unruly, sign) = (Unruly::over(&rig), Sign::new());
    let mut short = options(new_node(), 1);
    short.lease_ttl = Duration::from_secs(2);
    let first = unruly.worker(&mut rig, short).await;
    let run = rig.run("passed-on");
    rig.start(&run, &pipeline(&rig, "passed-on", &steps(&sign))).await;
    let before = is_in_second_step(&rig, &run).await;
    let second = rig.worker(1).await;
    unruly.cut().await;
    let resumed = rig.event(&run, "PipelineRunResumed").await;
    assert_eq!(resumed.node.as_ref(), Some(&second));
    assert_eq!(resumed.severity, Severity::Warning);
    let Reason::PipelineRunResumed {
        from_step,
        previous_node,
        previous_epoch,
        previous_seq,
        cause,
        repeats,
    } = resumed.reason
    else {
        panic!("{resumed:?}");
    };
    assert_eq!((from_step.as_str(), cause.as_str()), ("1", "lost"));
    assert_eq!((previous_node, Some(previous_epoch)), (first, before.epoch));
    assert!(previous_seq >= before.steps[0].last_seq, "up to where the first had come");
    assert_eq!(repeats.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1"]);
    unruly.mend();
    sign.give();
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 2));
    assert_eq!(record.losses, 0, "a step was kept since");
    assert_eq!(record.steps.iter().map(|step| step.attempt).collect::<Vec<_>>(), [1, 2, 1]);
    assert_eq!(record.steps[0].epoch, before.epoch);
    assert!(record.steps[1].epoch > before.epoch);
    let epochs = epochs(&rig, &run).await;
    assert_gapless(&epochs[1]);
    assert_eq!(
        reasons(&epochs[1]),
        [
            "PipelineRunResumed",
            "StepCompleted",
            "StepStarted",
            "StepCompleted",
            "StepStarted",
            "StepCompleted",
            "PipelineSuccessful"
        ]
    );
    assert!(matches!(epochs[1][1].reason, Reason::StepCompleted { repeated: true, .. }));
    let shown: Vec<u8> = epochs[1].iter().filter_map(Event::log_bytes).flatten().collect();
    assert_eq!(shown, b"kept", "the second owner's steps see what the first one's left");
    rig.end().await;
}

/// A worker that lost its lease resumes its own runs, which is not a loss.
pub async fn a_worker_goes_on_with_its_own_run_after_its_lease_was_lost(mut rig: Rig) {
    let (unruly, sign) = (Unruly::over(&rig), Sign::new());
    let mut short = options(new_node(), 1);
    short.lease_ttl = Duration::from_secs(2);
    unruly.worker(&mut rig, short).await;
    let run = rig.run("own");
    rig.start(&run, &pipeline(&rig, "own", &steps(&sign))).await;
    is_in_second_step(&rig, &run).await;
    unruly.forgets.store(true, Ordering::Relaxed);
    let resumed = rig.record(&run, |record| record.attempt == 2).await;
    assert_eq!(resumed.losses, 0);
    rig.event(&run, "PipelineRunResumed").await;
    sign.give();
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 2));
    rig.end().await;
}

/// An ending worker hands unfinished runs over, and the next owner need not wait for a lease.
pub async fn a_hand_over_goes_on_at_once_and_is_no_loss(mut rig: Rig) {
    let sign = Sign::new();
    let mut leaving = options(new_node(), 1);
    leaving.drain = Duration::ZERO;
    // Too long for any test to wait until it expires.
    leaving.lease_ttl = Duration::from_secs(3600);
    let ports = (rig.make)(&leaving.node).await;
    let first = rig.worker_with(leaving, ports).await;
    let run = rig.run("handed");
    rig.start(&run, &pipeline(&rig, "handed", &steps(&sign))).await;
    is_in_second_step(&rig, &run).await;
    rig.worker(1).await;
    rig.end_worker(&first).await;
    let resumed = rig.event(&run, "PipelineRunResumed").await;
    assert_eq!(resumed.severity, Severity::Normal);
    assert!(
        matches!(&resumed.reason, Reason::PipelineRunResumed { cause, previous_node, .. }
            if cause == "handed-over" && *previous_node == first),
        "{resumed:?}"
    );
    let record = rig.record(&run, |record| record.attempt == 2).await;
    assert_eq!((record.losses, record.released), (0, None));
    sign.give();
    assert_eq!(rig.settled(&run).await.status, Status::Passed);
    let epochs = epochs(&rig, &run).await;
    assert_gapless(&epochs[0]);
    assert_gapless(&epochs[1]);
    let last = epochs[0].last().unwrap();
    assert_eq!(reason_of(&last.reason), "StepStarted", "what did not fit is not told as ended");
    rig.end().await;
}

/// Creates an orphan as a dead worker leaves it, with the definition in its record, as in older
/// versions.
pub(super) async fn orphan(
    rig: &Rig,
    name: &str,
    steps: &[&str],
    change: impl FnOnce(&mut Value),
) -> RunId {
    let run = rig.run(name);
    let mut record = json!({
        "group": rig.tag, "name": name, "run-id": run, "status": "running", "attempt": 1,
        "scheduled-at": "2026-01-01T00:00:00.000Z", "node": "gone/runner-1", "epoch": 1,
        "initiated-at": "2026-01-01T00:00:00.000Z", "started-at": "2026-01-01T00:00:00.000Z",
        "pipeline": pipeline_model(&rig.pipeline(name, steps)),
        "steps": [{ "name": "0", "status": "started", "attempt": 1, "epoch": 1, "last-seq": 4 }],
    });
    change(&mut record);
    let txn = Txn::new()
        .put(names::run_key(&run), record.to_string().into_bytes())
        .put(names::open_key(&run), b"{}".to_vec());
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    run
}

/// `on-lost`: `fail` ends the run, and `restart` starts over without keeping anything.
pub async fn a_pipeline_says_what_becomes_of_a_lost_run(mut rig: Rig) {
    let fails = orphan(&rig, "fails", &["exit 0"], |record| {
        record["pipeline"]["on-lost"] = "fail".into();
    })
    .await;
    let restarts = orphan(&rig, "restarts", &["exit 0", "show /a"], |record| {
        record["pipeline"]["on-lost"] = "restart".into();
        record["steps"][0]["status"] = "passed".into();
        record["steps"][0]["image"] = "kept".into();
    })
    .await;
    rig.worker(2).await;
    let record = rig.settled(&fails).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
    let record = rig.settled(&restarts).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::ExitCode)));
    assert_eq!(record.steps[0].attempt, 2, "the first step ran again");
    rig.end().await;
}

/// A step that kills its workers does not kill all of them.
pub async fn a_run_that_loses_workers_at_one_step_ends_lost(mut rig: Rig) {
    let often = orphan(&rig, "often", &["exit 0"], |record| record["losses"] = 3.into()).await;
    let seldom = orphan(&rig, "seldom", &["exit 0"], |record| record["losses"] = 2.into()).await;
    let handed = orphan(&rig, "handed", &["exit 0"], |record| {
        record["losses"] = 3.into();
        record["released"] = json!({ "by": "gone/runner-1", "reason": "its worker ends" });
    })
    .await;
    rig.worker(2).await;
    let record = rig.settled(&often).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
    assert_eq!(record.losses, 4);
    assert_eq!(rig.settled(&seldom).await.status, Status::Passed);
    assert_eq!(rig.settled(&handed).await.status, Status::Passed);
    rig.end().await;
}

/// If the engine has lost the image, the run starts over and says so.
pub async fn a_run_whose_image_is_gone_starts_from_the_top_and_says_so(mut rig: Rig) {
    let engine = rig.ports.executor.info().await.unwrap().id;
    let run = orphan(&rig, "gone", &["put /a again", "show /a"], |record| {
        record["steps"][0] = json!({
            "name": "0", "status": "passed", "attempt": 1, "epoch": 1, "last-seq": 9,
            "exit-code": 0, "image": "gone", "engine": engine,
        });
    })
    .await;
    rig.worker(1).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.steps[0].attempt), (Status::Passed, 2));
    let resumed = rig.event(&run, "PipelineRunResumed").await;
    let Reason::PipelineRunResumed { from_step, cause, repeats, previous_seq, .. } = resumed.reason
    else {
        panic!("{resumed:?}");
    };
    assert_eq!((from_step.as_str(), cause.as_str()), ("0", "image-lost"));
    assert_eq!((repeats.len(), previous_seq), (1, Some(9)));
    rig.end().await;
}

/// A registry that hangs does not keep a run from being stopped.
pub async fn a_stop_is_obeyed_while_an_image_is_fetched(mut rig: Rig) {
    let engine = rig.ports.executor.info().await.unwrap().id;
    let run = orphan(&rig, "fetched", &["exit 0", "exit 0"], |record| {
        record["steps"][0] = json!({
            "name": "0", "status": "passed", "attempt": 1, "epoch": 1, "last-seq": 9,
            "exit-code": 0, "image": "far", "digest": "hangs", "engine": engine,
        });
    })
    .await;
    rig.worker(1).await;
    rig.record(&run, |record| record.attempt == 2).await;
    rig.stop(&run).await;
    assert_eq!(rig.settled(&run).await.status, Status::Stopped);
    rig.end().await;
}

/// The next owner does not retry a recorded failure, and publishes a recorded ending unchanged.
pub async fn an_end_that_was_decided_is_the_end(mut rig: Rig) {
    let failed = orphan(&rig, "failed", &["exit 0"], |record| {
        record["cause"] = "exit-code".into();
        record["message"] = "step 0: exit code 7".into();
        record["steps"][0] =
            json!({ "name": "0", "status": "failed", "attempt": 1, "exit-code": 7 });
    })
    .await;
    let stopped = orphan(&rig, "stopped", &["exit 0"], |record| {
        record["cause"] = "user".into();
        record["steps"][0]["status"] = "stopped".into();
    })
    .await;
    let passed = orphan(&rig, "passed", &["exit 0"], |record| {
        record["status"] = "passed".into();
        record["ending-event"] = json!({
            "at": 1, "type": "Normal", "kind": "Pipeline", "reason": "PipelineSuccessful",
            "message": "run passed", "run-id": record["run-id"], "group": record["group"],
            "name": "passed", "node": "gone/runner-1", "epoch": 1, "seq": 12,
        });
    })
    .await;
    rig.worker(1).await;
    let record = rig.settled(&failed).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::ExitCode)));
    let ending = rig.event(&failed, "PipelineFailed").await;
    assert!(ending.message.contains("exit code 7"), "{ending:?}");
    let record = rig.settled(&stopped).await;
    assert_eq!((record.status, record.cause), (Status::Stopped, Some(Cause::User)));
    let record = rig.settled(&passed).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 1));
    let ending = rig.event(&passed, "PipelineSuccessful").await;
    assert_eq!((ending.seq, ending.epoch.map(|epoch| epoch.0)), (Some(12), Some(1)));
    rig.end().await;
}

/// An orphan gets the slot of the open subscription, or the next free one, before new starts.
pub async fn an_orphan_gets_the_slot_of_a_worker_that_has_but_one(mut rig: Rig) {
    let sign = Sign::new();
    rig.worker(1).await;
    let idle = lose(&rig, "idle").await;
    assert_eq!(rig.settled(&idle).await.status, Status::Passed);
    let full = rig.run("full");
    rig.start(&full, &pipeline(&rig, "full", &[sign.step()])).await;
    rig.event(&full, "StepStarted").await;
    let waits = lose(&rig, "waits").await;
    let next = rig.run("next");
    rig.start(&next, &rig.pipeline("next", &["exit 0"])).await;
    sign.give();
    for run in [&full, &waits, &next] {
        assert_eq!(rig.settled(run).await.status, Status::Passed);
    }
    rig.end().await;
}

/// Creates a run whose owner's lease ends now.
async fn lose(rig: &Rig, name: &str) -> RunId {
    let lease = rig.ports.store.grant(Duration::from_secs(600)).await.unwrap().lease;
    let key = names::owner_key(&rig.run(name));
    let owned = Txn::new().put_leased(key, br#"{"node":"gone/runner-1"}"#.to_vec(), lease);
    assert!(rig.ports.store.txn(owned).await.unwrap().committed);
    let run = orphan(rig, name, &["exit 0"], |_| {}).await;
    rig.ports.store.revoke(lease).await.unwrap();
    run
}

/// If the owner of a rejected start dies before it publishes that, the next owner does so.
pub async fn a_refused_start_is_never_run(mut rig: Rig) {
    let run = orphan(&rig, "refused", &["exit 0"], |record| {
        record["status"] = "pending".into();
        record["cause"] = "paused".into();
        record["message"] = "the pipeline is paused".into();
        record["steps"] = json!([]);
        record.as_object_mut().unwrap().remove("epoch");
    })
    .await;
    rig.worker(1).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Paused)));
    assert!(record.steps.is_empty());
    rig.end().await;
}

/// What steps left is kept for the pipeline's retention and then removed, even if the record is
/// gone. Resources of another store are left alone.
pub async fn what_is_left_of_a_run_is_swept_in_time(mut rig: Rig) {
    let mut options = options(new_node(), 1);
    (options.lease_ttl, options.sweep) = (Duration::from_secs(1), Duration::from_millis(100));
    let ports = (rig.make)(&options.node).await;
    let executor = std::sync::Arc::clone(&ports.executor);
    rig.worker_with(options, ports).await;
    let is_left =
        async |run: &RunId| executor.leftovers().await.unwrap().iter().any(|left| left.run == *run);
    let foreign = RunScope {
        run: rig.run("foreign"),
        epoch: Epoch(1),
        cluster: "another store".into(),
        image: "base".into(),
        pull: PullPolicy::Missing,
        has_own_images: false,
    };
    executor.prepare(&foreign, &StopSignal::default()).await.unwrap();
    let [kept, forgotten] = ["kept", "forgotten"].map(|name| rig.run(name));
    for (run, name) in [(&kept, "kept"), (&forgotten, "forgotten")] {
        let mut pipeline = rig.pipeline(name, &["put /a x"]);
        pipeline["retention"] = "1h".into();
        rig.start(run, &pipeline).await;
        assert_eq!(rig.settled(run).await.status, Status::Passed);
        assert!(is_left(run).await, "what its step left is kept");
    }
    let key = names::run_key(&kept);
    let mut ended = serde_json::to_value(rig.settled(&kept).await).unwrap();
    ended["completed-at"] = "2020-01-01T00:00:00.000Z".into();
    let txn =
        Txn::new().put(key, ended.to_string().into_bytes()).delete(names::run_key(&forgotten));
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    for run in [&kept, &forgotten] {
        until("what it left is swept", || async { (!is_left(run).await).then_some(()) }).await;
    }
    assert!(is_left(&foreign.run).await, "another store knows that one");
    executor.destroy(&foreign.run).await.unwrap();
    rig.end().await;
}
