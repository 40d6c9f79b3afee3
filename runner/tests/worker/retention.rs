//! Ended runs are removed by their retention, and never run again.

use std::time::Duration;

use protocol::id::RunId;
use protocol::names;
use protocol::run::Status;
use test_support::worker_suite::{Rig, new_node, options, until};

use crate::rig;

/// Runs a pipeline of this rig that keeps one ended run. Returns the run.
async fn run(rig: &Rig, name: &str) -> RunId {
    let run = rig.run(name);
    let mut pipeline = rig.pipeline("limited", &["exit 0"]);
    pipeline["retention-count"] = 1.into();
    rig.start(&run, &pipeline).await;
    run
}

async fn has(rig: &Rig, key: String) -> bool {
    rig.ports.store.get(&key).await.unwrap().is_some()
}

// Rows: D17
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_run_above_the_count_is_removed_and_its_start_is_not_accepted_again() {
    let (mut rig, _embedded) = rig().await;
    let mut options = options(new_node(), 1);
    (options.lease_ttl, options.sweep) = (Duration::from_secs(1), Duration::from_millis(100));
    rig.worker_as(options).await;
    let first = run(&rig, "first").await;
    assert_eq!(rig.settled(&first).await.status, Status::Passed);
    let second = run(&rig, "second").await;
    assert_eq!(rig.settled(&second).await.status, Status::Passed);
    until("the older run is removed", || async {
        (!has(&rig, names::run_key(&first)).await).then_some(())
    })
    .await;
    assert!(!has(&rig, names::definition_key(&first)).await);
    assert!(has(&rig, names::run_key(&second)).await);
    run(&rig, "first").await;
    rig.event(&first, "CommandIgnored").await;
    assert!(!has(&rig, names::run_key(&first)).await, "it has not run again");
    rig.end().await;
}
