//! Tests of wait lists: which runs of a pipeline start, wait, and are replaced or refused.

use std::time::Duration;

use protocol::event::Reason;
use protocol::id::{PipelineId, RunId};
use protocol::names;
use protocol::run::{Cause, Status};
use protocol::wait_list::WaitList;
use serde_json::{Value, json};

use super::hard::Unruly;
use super::takeover::Sign;
use super::{Rig, new_node, options, until};

/// A pipeline with a policy, whose only step waits for the sign.
fn pipeline(rig: &Rig, admission: &Value, step: &str) -> Value {
    let mut pipeline = rig.pipeline("limited", &[step]);
    pipeline["admission"] = admission.clone();
    pipeline
}

fn key(rig: &Rig) -> String {
    names::wait_key(&PipelineId::new(&rig.tag, "limited").unwrap())
}

async fn list(rig: &Rig) -> WaitList {
    let entry = rig.ports.store.get(&key(rig)).await.unwrap();
    entry.map_or_else(WaitList::default, |entry| serde_json::from_slice(&entry.value).unwrap())
}

/// Starts a run, and waits until it is in the list.
async fn enter(rig: &Rig, name: &str, pipeline: &Value) -> RunId {
    let run = rig.run(name);
    rig.start(&run, pipeline).await;
    is_in_list(rig, &run).await;
    run
}

async fn is_in_list(rig: &Rig, run: &RunId) {
    until("the run is in the list", || async {
        let list = list(rig).await;
        (list.running.contains(run) || list.position(run).is_some()).then_some(())
    })
    .await;
}

/// With one place, the second and the third run wait, start in the order of their arrival, and never
/// overlap. The list disappears with its last run.
pub async fn runs_beyond_the_limit_wait_and_start_in_order(mut rig: Rig) {
    let sign = Sign::new();
    rig.worker(3).await;
    let pipeline = pipeline(&rig, &json!({ "concurrency": 1 }), &sign.step());
    let first = enter(&rig, "first", &pipeline).await;
    let second = enter(&rig, "second", &pipeline).await;
    let third = enter(&rig, "third", &pipeline).await;
    assert_eq!(list(&rig).await.running, std::slice::from_ref(&first));
    let waiting = rig.event(&second, "PipelineRunScheduled").await;
    assert!(
        matches!(waiting.reason, Reason::PipelineRunScheduled { waiting: true }),
        "{waiting:?}"
    );
    sign.give();
    let mut ends = Vec::new();
    for run in [first, second, third] {
        let record = rig.settled(&run).await;
        assert_eq!((record.status, record.attempt, record.losses), (Status::Passed, 1, 0));
        ends.push((record.started_at.unwrap(), record.completed_at.unwrap()));
    }
    assert!(ends.windows(2).all(|runs| runs[0].1 <= runs[1].0), "they do not overlap: {ends:?}");
    assert!(rig.ports.store.get(&key(&rig)).await.unwrap().is_none());
    rig.end().await;
}

/// A run that can neither start nor wait is recorded as failed, and the list stays as it is.
pub async fn a_run_that_finds_the_list_full_is_refused(mut rig: Rig) {
    let sign = Sign::new();
    rig.worker(2).await;
    let pipeline = pipeline(&rig, &json!({ "concurrency": 1, "limit": 0 }), &sign.step());
    let first = enter(&rig, "first", &pipeline).await;
    let refused = rig.run("refused");
    rig.start(&refused, &pipeline).await;
    let record = rig.settled(&refused).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Rejected)));
    sign.give();
    assert_eq!(rig.settled(&first).await.status, Status::Passed);
    rig.end().await;
}

/// With `replace`, a run takes the place of the last waiting one, which ends as stopped.
pub async fn a_replaced_run_ends_as_stopped_without_running(mut rig: Rig) {
    let sign = Sign::new();
    rig.worker(2).await;
    let policy = json!({ "concurrency": 1, "limit": 1, "strategy": "replace" });
    let pipeline = pipeline(&rig, &policy, &sign.step());
    let first = enter(&rig, "first", &pipeline).await;
    let old = enter(&rig, "old", &pipeline).await;
    let new = enter(&rig, "new", &pipeline).await;
    let record = rig.settled(&old).await;
    assert_eq!((record.status, record.cause), (Status::Stopped, Some(Cause::Replaced)));
    assert!(record.steps.is_empty(), "{record:?}");
    sign.give();
    for run in [first, new] {
        assert_eq!(rig.settled(&run).await.status, Status::Passed);
    }
    rig.end().await;
}

/// With `partitioned-replace`, a run of a full partition replaces the last one of that partition, and
/// goes to the end of the list.
pub async fn a_full_partition_replaces_its_own_last_run(mut rig: Rig) {
    let sign = Sign::new();
    rig.worker(2).await;
    let policy =
        json!({ "concurrency": 1, "strategy": "partitioned-replace", "partition-limit": 2 });
    let pipeline = pipeline(&rig, &policy, &sign.step());
    let first = enter(&rig, "first", &pipeline).await;
    let mut runs = Vec::new();
    for (name, partition) in
        [("a", "1"), ("b", "2"), ("c", "1"), ("d", "2"), ("e", "2"), ("f", "1")]
    {
        let run = rig.run(name);
        rig.start_in_partition(&run, &pipeline, partition).await;
        is_in_list(&rig, &run).await;
        runs.push(run);
    }
    let [a, b, c, d, e, f] = <[RunId; 6]>::try_from(runs).unwrap();
    for replaced in [d, c] {
        let record = rig.settled(&replaced).await;
        assert_eq!((record.status, record.cause), (Status::Stopped, Some(Cause::Replaced)));
    }
    let waiting: Vec<RunId> = list(&rig).await.waiting.into_iter().map(|one| one.run_id).collect();
    assert_eq!(waiting, [&a, &b, &e, &f].map(RunId::clone));
    sign.give();
    for run in [first, a, b, e, f] {
        assert_eq!(rig.settled(&run).await.status, Status::Passed);
    }
    rig.end().await;
}

/// A waiting run that is stopped leaves the list, and the runs behind it move up.
pub async fn a_waiting_run_can_be_stopped(mut rig: Rig) {
    let sign = Sign::new();
    rig.worker(2).await;
    let pipeline = pipeline(&rig, &json!({ "concurrency": 1, "limit": 1 }), &sign.step());
    let first = enter(&rig, "first", &pipeline).await;
    let stopped = enter(&rig, "stopped", &pipeline).await;
    rig.stop(&stopped).await;
    let record = rig.settled(&stopped).await;
    assert_eq!((record.status, record.cause), (Status::Stopped, Some(Cause::User)));
    let next = enter(&rig, "next", &pipeline).await;
    assert_eq!(list(&rig).await.position(&next), Some(0));
    sign.give();
    for run in [first, next] {
        assert_eq!(rig.settled(&run).await.status, Status::Passed);
    }
    rig.end().await;
}

/// A delayed run starts at its due time, although the worker that accepted it is gone.
pub async fn a_delayed_run_starts_on_another_worker_if_its_own_has_ended(mut rig: Rig) {
    let first = rig.worker(1).await;
    let policy = json!({ "concurrency": 1, "limit": 3, "start-delay": "2s" });
    let pipeline = pipeline(&rig, &policy, "exit 0");
    let run = enter(&rig, "delayed", &pipeline).await;
    rig.end_worker(&first).await;
    let second = rig.worker(1).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 1));
    assert_eq!(record.node.as_ref(), Some(&second));
    rig.end().await;
}

/// A run keeps its place while its owner is lost, and the next run starts only after its end.
pub async fn a_run_keeps_its_place_when_its_owner_is_lost(mut rig: Rig) {
    let (unruly, sign) = (Unruly::over(&rig), Sign::new());
    let mut short = options(new_node(), 1);
    short.lease_ttl = Duration::from_secs(2);
    unruly.worker(&mut rig, short).await;
    let pipeline = pipeline(&rig, &json!({ "concurrency": 1 }), &sign.step());
    let first = enter(&rig, "first", &pipeline).await;
    rig.event(&first, "StepStarted").await;
    rig.worker(2).await;
    let second = enter(&rig, "second", &pipeline).await;
    unruly.cut().await;
    rig.record(&first, |record| record.attempt == 2).await;
    assert_eq!(list(&rig).await.running, std::slice::from_ref(&first));
    assert_eq!(list(&rig).await.position(&second), Some(0));
    unruly.mend();
    sign.give();
    for run in [first, second] {
        assert_eq!(rig.settled(&run).await.status, Status::Passed);
    }
    rig.end().await;
}
