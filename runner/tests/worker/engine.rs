//! What becomes of a run whose engine goes away.

use std::sync::Arc;

use protocol::names;
use protocol::run::Status;
use runner::exec::scripted::Scripted;
use runner::host;
use runner::worker::suite::until;

use crate::rig_on;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_engine_goes_away_is_let_go_and_goes_on_when_it_answers_again() {
    let executor = Arc::new(Scripted::default());
    let (mut rig, _embedded) =
        rig_on(Arc::clone(&executor), Arc::new(host::Linux::default())).await;
    rig.worker(1).await;
    let run = rig.run("away");
    rig.start(&run, &rig.pipeline("away", &["put it kept", "lose", "show it"])).await;
    until("nobody owns the run, which is open", || async {
        let owner = rig.ports.store.get(&names::owner_key(&run)).await.unwrap();
        let open = rig.ports.store.get(&names::open_key(&run)).await.unwrap();
        let record = rig.record(&run, |_| true).await;
        (owner.is_none() && open.is_some() && record.steps.len() == 2).then_some(())
    })
    .await;
    // Nor is anything else begun, which would only meet the same.
    let other = rig.run("other");
    rig.start(&other, &rig.pipeline("other", &["exit 0"])).await;
    let never = rig.run("never");
    rig.stop(&never).await;
    rig.stop_is_recorded(&never).await;
    assert!(rig.ports.store.get(&names::run_key(&other)).await.unwrap().is_none());
    executor.come_back();
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 2), "{record:?}");
    assert_eq!(executor.ran(&run, "0"), 1, "what was kept is not run again");
    assert_eq!(rig.settled(&other).await.status, Status::Passed);
    rig.end().await;
}
