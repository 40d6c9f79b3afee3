//! A run whose engine becomes unreachable.

use std::sync::Arc;
use std::time::Duration;

use protocol::names;
use protocol::run::{Cause, Status};
use runner::host;
use runner::ports::{Disk, Ports};
use test_support::scripted::Scripted;
use test_support::worker_suite::{new_node, options, until};

use crate::rig_on;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_engine_is_unavailable_is_released_and_resumes_afterwards() {
    let executor = Arc::new(Scripted::default());
    let (mut rig, _embedded) =
        rig_on(Arc::clone(&executor), Arc::new(host::Linux::default())).await;
    rig.worker(1).await;
    let run = rig.run("away");
    rig.start(&run, &rig.pipeline("away", &["put it kept", "lose", "show it"])).await;
    until("the run is open and has no owner", || async {
        let owner = rig.ports.store.get(&names::owner_key(&run)).await.unwrap();
        let open = rig.ports.store.get(&names::open_key(&run)).await.unwrap();
        let record = rig.record(&run, |_| true).await;
        (owner.is_none() && open.is_some() && record.steps.len() == 2).then_some(())
    })
    .await;
    // The worker starts nothing else, which would fail the same way.
    let other = rig.run("other");
    rig.start(&other, &rig.pipeline("other", &["exit 0"])).await;
    let never = rig.run("never");
    rig.stop(&never).await;
    rig.stop_is_recorded(&never).await;
    assert!(rig.ports.store.get(&names::run_key(&other)).await.unwrap().is_none());
    executor.come_back();
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 2), "{record:?}");
    assert_eq!(executor.ran(&run, "0"), 1, "committed steps do not run again");
    assert_eq!(rig.settled(&other).await.status, Status::Passed);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_engine_fails_on_a_full_disk_ends_no_space() {
    let executor = Arc::new(Scripted::default());
    let (mut rig, _embedded) =
        rig_on(Arc::clone(&executor), Arc::new(host::Linux::default())).await;
    rig.worker(1).await;
    let run = rig.run("full");
    let dir = tempfile::tempdir().unwrap();
    let wait = format!("wait-for {}", dir.path().join("full").display());
    rig.start(&run, &rig.pipeline("full", &[&wait, "lose"])).await;
    rig.event(&run, "StepStarted").await;
    executor.fill_disk(Disk { total: 1 << 30, free: 0 });
    std::fs::write(dir.path().join("full"), "").unwrap();
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::NoSpace)), "{record:?}");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_of_a_released_run_are_ended_even_if_nobody_can_resume_it() {
    let executor = Arc::new(Scripted::default());
    let (mut rig, _embedded) =
        rig_on(Arc::clone(&executor), Arc::new(host::Linux::default())).await;
    let node = rig.worker(1).await;
    let run = rig.run("alone");
    let dir = tempfile::tempdir().unwrap();
    let wait = format!("wait-for {}", dir.path().join("filled").display());
    rig.start(&run, &rig.pipeline("alone", &[&wait, "lose"])).await;
    rig.event(&run, "StepStarted").await;
    // Too full for new runs, but not full enough to explain a failure.
    executor.fill_disk(Disk { total: 1000, free: 100 });
    std::fs::write(dir.path().join("filled"), "").unwrap();
    rig.node(&node, |entry| entry.engine_away).await;
    let let_go = rig.record(&run, |_| true).await.epoch;
    assert_eq!(executor.ended_up_to(&run), None);
    executor.come_back();
    rig.node(&node, |entry| entry.disk.is_some_and(|disk| disk.full)).await;
    assert_eq!((executor.ended_up_to(&run), let_go.is_some()), (let_go, true));
    executor.fill_disk(Disk { total: 1000, free: 900 });
    rig.stop(&run).await;
    assert_eq!(rig.settled(&run).await.status, Status::Stopped);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_engine_resumes_the_run_of_an_engine_that_stays_unavailable() {
    let executor = Arc::new(Scripted::default());
    let (mut rig, _embedded) =
        rig_on(Arc::clone(&executor), Arc::new(host::Linux::default())).await;
    let short = |slots| {
        let mut options = options(new_node(), slots);
        options.lease_ttl = Duration::from_secs(1);
        options
    };
    let first = rig.worker_as(short(1)).await;
    let run = rig.run("elsewhere");
    rig.start(&run, &rig.pipeline("elsewhere", &["put it kept", "lose", "show it"])).await;
    rig.node(&first, |entry| entry.engine_away).await;
    let elsewhere = Arc::new(Scripted::named("elsewhere"));
    let ports = Ports { executor: Arc::clone(&elsewhere) as _, ..rig.ports.clone() };
    rig.worker_with(short(1), ports).await;
    // The run starts over, because its commits are on an unreachable engine.
    until("the second step ran on the other engine too", || async {
        (elsewhere.ran(&run, "1") == 1).then_some(())
    })
    .await;
    assert_eq!((elsewhere.ran(&run, "0"), executor.ran(&run, "0")), (1, 1));
    elsewhere.come_back();
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 3), "{record:?}");
    rig.end().await;
}
