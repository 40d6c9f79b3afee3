//! Records of other versions: older ones can be read, and additions of later ones are kept.

use protocol::names;
use protocol::run::Status;
use serde_json::{Value, json};

use super::Rig;
use super::takeover::orphan;
use runner::ports::Txn;

/// Returns the value of a key as JSON.
async fn value(rig: &Rig, key: String) -> Option<Value> {
    let entry = rig.ports.store.get(&key).await.unwrap()?;
    Some(serde_json::from_slice(&entry.value).unwrap())
}

/// A record with an embedded definition is adopted, and the definition moves to its own key.
pub async fn a_record_of_an_older_version_is_taken_over(mut rig: Rig) {
    let run = orphan(&rig, "older", &["exit 0"], |record| {
        record["vars"] = json!({ "A": "1" });
        record["pipeline"]["steps"][0]["cmd"] = "env A".into();
    })
    .await;
    rig.worker(1).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 2), "{:?}", record.message);
    let stored = value(&rig, names::run_key(&run)).await.unwrap();
    assert!(stored.get("pipeline").is_none() && stored.get("vars").is_none(), "{stored}");
    let definition = value(&rig, names::definition_key(&run)).await.unwrap();
    assert_eq!(definition["vars"], json!({ "A": "1" }));
    assert_eq!(definition["pipeline"]["steps"][0]["cmd"], "env A");
    rig.end().await;
}

/// Unknown fields are preserved until the run has ended.
pub async fn fields_of_later_versions_are_kept_when_a_record_is_rewritten(mut rig: Rig) {
    let run = orphan(&rig, "later", &["exit 0", "exit 0"], |record| {
        record["steps"][0] = json!({
            "name": "0", "status": "failed", "attempt": 1, "cause": "exit-code", "mood": "bad",
        });
        record["approved-by"] = json!(["a", { "b": 1 }]);
    })
    .await;
    rig.worker(1).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt), (Status::Failed, 2));
    let stored = value(&rig, names::run_key(&run)).await.unwrap();
    assert_eq!(stored["approved-by"], json!(["a", { "b": 1 }]));
    assert_eq!(stored["steps"][0]["mood"], "bad");
    rig.end().await;
}

/// A run whose definition has unknown keys is left alone. It can be stopped.
pub async fn a_definition_with_unknown_keys_is_left_to_a_worker_that_knows_them(mut rig: Rig) {
    let unknown = orphan(&rig, "unknown", &["exit 0"], |record| {
        record["pipeline"]["steps"][0]["only-if"] = "the moon is full".into();
    })
    .await;
    let known = orphan(&rig, "known", &["exit 0"], |_| {}).await;
    rig.worker(1).await;
    assert_eq!(rig.settled(&known).await.status, Status::Passed);
    let record = rig.record(&unknown, |_| true).await;
    assert_eq!((record.status, record.attempt), (Status::Running, 1), "nobody claimed it");
    rig.stop(&unknown).await;
    assert_eq!(rig.settled(&unknown).await.status, Status::Stopped);
    let definition = value(&rig, names::definition_key(&unknown)).await.unwrap();
    assert_eq!(definition["pipeline"]["steps"][0]["only-if"], "the moon is full");
    rig.end().await;
}

/// A stop of a run whose record this worker cannot read waits for a worker that can.
pub async fn a_stop_of_a_run_whose_record_cannot_be_read_is_recorded(mut rig: Rig) {
    let run = orphan(&rig, "unreadable", &["exit 0"], |record| {
        record["status"] = "pondering".into();
    })
    .await;
    let key = names::run_key(&run);
    rig.worker(1).await;
    rig.stop(&run).await;
    rig.stop_is_recorded(&run).await;
    // A command behind it is processed, so the stop was not returned to its queue.
    let other = rig.run("other");
    rig.stop(&other).await;
    rig.event(&other, "CommandIgnored").await;
    let rejected = |event: &protocol::event::Event| {
        super::reason_of(&event.reason) == "CommandRejected" && event.run_id.as_ref() == Some(&run)
    };
    let ignored = |event: &protocol::event::Event| event.run_id.as_ref() == Some(&other);
    assert!(rig.events_until(rejected, ignored).await.is_empty(), "the stop was not rejected");
    // Once the record is readable, the stop is obeyed.
    let mut record = value(&rig, key.clone()).await.unwrap();
    record["status"] = "running".into();
    let txn = Txn::new().put(key, record.to_string().into_bytes());
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    rig.stop(&run).await;
    assert_eq!(rig.settled(&run).await.status, Status::Stopped);
    rig.end().await;
}
