//! Long leases, which serve many keys, and the leases of claims.

use std::time::Duration;

use protocol::id::RunId;
use protocol::names;
use protocol::run::Status;
use serde_json::json;

use super::commands::pipeline_model;
use super::{Rig, new_node, options};
use crate::ports::Txn;
use crate::worker::{Worker, marks};

/// A long lease is replaced after a number of keys, because etcd deletes them all at its end.
pub async fn a_lease_of_days_serves_a_limited_number_of_keys(rig: Rig) {
    let node = new_node();
    let ports = (rig.make)(&node).await;
    let worker = Worker::new(ports.clone(), options(node, 1)).await.unwrap();
    let seen = &worker.shared.seen;
    let first = seen.current(&ports).await.unwrap();
    for key in 2..=1000 {
        assert_eq!(seen.current(&ports).await.unwrap(), first, "key {key}");
    }
    assert_ne!(seen.current(&ports).await.unwrap(), first);
    rig.end().await;
}

/// The mark of an open run is renewed, even beyond its time to live. An ended run has its own.
pub async fn the_mark_of_an_open_run_is_renewed(rig: Rig) {
    let node = new_node();
    let ports = (rig.make)(&node).await;
    let worker = Worker::new(ports, options(node, 1)).await.unwrap();
    let (store, [open, ended]) = (&rig.ports.store, ["open", "ended"].map(|name| rig.run(name)));
    let short = store.grant(Duration::from_secs(600)).await.unwrap().lease;
    let mut txn = Txn::new().put(names::open_key(&open), b"{}".to_vec());
    for run in [&open, &ended] {
        txn = txn.put_leased(names::seen_key(run), Vec::new(), short);
    }
    assert!(store.txn(txn).await.unwrap().committed);
    marks::renew_once(&worker.shared).await.unwrap();
    store.revoke(short).await.unwrap();
    let is_there = async |run: &RunId| store.get(&names::seen_key(run)).await.unwrap().is_some();
    assert!(is_there(&open).await);
    assert!(!is_there(&ended).await, "a run that is not open has no mark to renew");
    let gone = Txn::new().delete(names::open_key(&open)).delete(names::seen_key(&open));
    assert!(store.txn(gone).await.unwrap().committed);
    rig.end().await;
}

/// A claim under an earlier lease of the same worker is not adopted: it expires with that lease.
pub async fn a_claim_under_an_earlier_lease_is_not_adopted(mut rig: Rig) {
    let node = new_node();
    let earlier = rig.ports.store.grant(Duration::from_secs(600)).await.unwrap().lease;
    let claimed = unowned(&rig, "claimed").await;
    let owner = json!({ "node": node, "lease": format!("{:x}", earlier.0) }).to_string();
    let txn = Txn::new().put_leased(names::owner_key(&claimed), owner.into_bytes(), earlier);
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    // The key of the first run sorts first, so the scan that found this run has seen that one.
    let free = unowned(&rig, "free").await;
    rig.worker_as(options(node, 2)).await;
    assert_eq!(rig.settled(&free).await.status, Status::Passed);
    let record = rig.record(&claimed, |_| true).await;
    assert_eq!((record.status, record.attempt), (Status::Pending, 1), "{record:?}");
    rig.ports.store.revoke(earlier).await.unwrap();
    let record = rig.settled(&claimed).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 2));
    rig.end().await;
}

/// A run that was claimed but not started, without its owner key.
async fn unowned(rig: &Rig, name: &str) -> RunId {
    let run = rig.run(name);
    let pipeline = pipeline_model(&rig.pipeline(name, &["exit 0"]));
    let record = json!({
        "group": rig.tag, "name": name, "run-id": run, "status": "pending", "attempt": 1,
        "scheduled-at": "2026-01-01T00:00:00.000Z", "pipeline": pipeline,
    });
    let txn = Txn::new()
        .put(names::run_key(&run), record.to_string().into_bytes())
        .put(names::open_key(&run), b"{}".to_vec());
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    run
}
