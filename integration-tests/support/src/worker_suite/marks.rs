//! The leases of claims.

use std::time::Duration;

use protocol::id::RunId;
use protocol::names;
use protocol::run::Status;
use serde_json::json;

use super::commands::pipeline_model;
use super::{Rig, new_node, options};
use runner::ports::Txn;

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
