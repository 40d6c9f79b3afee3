//! Large runs: results that fill the record, many steps, and a store with a lower limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use protocol::budget::MAX_RECORD_BYTES;
use protocol::command::START;
use protocol::event::{Event, LogStream, Reason};
use protocol::id::NodeId;
use protocol::names;
use protocol::run::{Cause, Status};
use serde_json::json;

use super::takeover::Sign;
use super::{Rig, new_node, options};
use runner::ports::{
    Changes, Entry, Granted, LeaseId, Listing, Op, Route, Store, StoreError, Txn, TxnReply,
};

/// A store that counts what is written, and rejects values above a limit.
struct Metered {
    store: Arc<dyn Store>,
    /// The total size of the written records; `writes` is their number.
    records: AtomicUsize,
    writes: AtomicUsize,
    /// The number of written definitions.
    definitions: AtomicUsize,
    limit: AtomicUsize,
}

impl Metered {
    async fn worker(rig: &mut Rig) -> (Arc<Self>, NodeId) {
        let options = options(new_node(), 1);
        let mut ports = (rig.make)(&options.node).await;
        let metered = Arc::new(Self {
            store: Arc::clone(&ports.store),
            records: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
            definitions: AtomicUsize::new(0),
            limit: AtomicUsize::new(usize::MAX),
        });
        ports.store = Arc::clone(&metered) as _;
        let node = rig.worker_with(options, ports).await;
        (metered, node)
    }

    fn of(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Store for Metered {
    async fn identity(&self) -> Result<String, StoreError> {
        self.store.identity().await
    }
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        for op in &txn.ops {
            let Op::Put { key, value, .. } = op else { continue };
            if value.len() > Self::of(&self.limit) {
                return Err(StoreError::Refused("it is larger than this store takes".to_owned()));
            }
            if key.starts_with(names::RUNS) {
                self.records.fetch_add(value.len(), Ordering::Relaxed);
                self.writes.fetch_add(1, Ordering::Relaxed);
            }
            if key.starts_with(names::DEFINITIONS) {
                self.definitions.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.store.txn(txn).await
    }
    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        self.store.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
    async fn watch(&self, prefix: &str, from: i64) -> Result<Changes, StoreError> {
        self.store.watch(prefix, from).await
    }
}

/// Twenty results of 60 KiB fit. Further ones are omitted with a notice, and the run passes.
pub async fn results_that_fill_the_record_do_not_keep_a_run_from_its_end(mut rig: Rig) {
    rig.worker(1).await;
    let run = rig.run("results");
    let steps = ["result 61440"; 24];
    rig.start(&run, &rig.pipeline("results", &steps)).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.steps.len()), (Status::Passed, 24), "{:?}", record.message);
    let kept = record.steps.iter().take_while(|step| step.result.is_some()).count();
    let all = record.steps.iter().filter(|step| step.result.is_some()).count();
    assert_eq!((kept, all), (20, 20), "the first ones are kept");
    let stored = rig.ports.store.get(&names::run_key(&run)).await.unwrap().unwrap();
    assert!(stored.value.len() <= MAX_RECORD_BYTES, "{} bytes", stored.value.len());
    let note = |event: &Event| {
        matches!(event.reason, Reason::Log { stream: LogStream::Bob, .. })
            && event.message.contains("does not fit into the record")
    };
    let notes = rig.events_of(&run).await.iter().filter(|event| note(event)).count();
    assert_eq!(notes, 4, "each result that is left out is mentioned in its step's log");
    rig.end().await;
}

/// The definition is written once, whatever the steps write.
pub async fn a_large_definition_is_written_once_however_many_steps_there_are(mut rig: Rig) {
    let (metered, _) = Metered::worker(&mut rig).await;
    let run = rig.run("many");
    let pipeline = rig.pipeline("many", &["exit 0"; STEPS]);
    // With the names of its steps, this is close to the limit of a start.
    let vars = json!({ "PADDING": "x".repeat(400 * 1024) });
    let body = json!({ "run-id": run, "pipeline": pipeline, "vars": vars });
    rig.publish(Route::Jobs, START, &body).await;
    // Wait for the event first, because polling a large record thousands of times is slow.
    rig.event(&run, "PipelineSuccessful").await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.steps.len()), (Status::Passed, STEPS));
    assert_eq!(record.vars.len(), 1, "it is read with its record");
    let last = rig.ports.store.get(&names::run_key(&run)).await.unwrap().unwrap().value.len();
    let (writes, bytes) = (Metered::of(&metered.writes), Metered::of(&metered.records));
    assert_eq!(Metered::of(&metered.definitions), 1);
    assert!(writes < STEPS + 20, "{writes} writes: a step's end and the next one's start are one");
    // The record grows by one step at a time: the average write has half the size of the last.
    assert!(bytes < writes * last * 11 / 20, "{bytes} bytes in {writes} writes up to {last}");
    assert!(last < STEPS * 400, "{last} bytes of {STEPS} steps");
    rig.end().await;
}

/// Enough to distinguish a record that grows with its steps from one with the definition in it.
const STEPS: usize = 400;

/// An ending is cut until the store accepts it, even with a lower limit than etcd's default.
pub async fn an_ending_that_the_store_refuses_is_cut_until_it_fits(mut rig: Rig) {
    let (metered, _) = Metered::worker(&mut rig).await;
    let (run, sign) = (rig.run("refused"), Sign::new());
    let steps = ["result 30000".to_owned(), "result 30000".to_owned(), sign.step()];
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    rig.start(&run, &rig.pipeline("refused", &steps)).await;
    rig.record(&run, |record| record.steps.len() == 3).await;
    metered.limit.store(40_000, Ordering::Relaxed);
    sign.give();
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Engine)));
    assert_eq!(record.steps.len(), 3, "results are cut before entries");
    assert!(record.steps.iter().any(|step| step.result.is_none()));
    let message = record.message.unwrap();
    assert!(message.contains("could not be recorded"), "{message}");
    rig.end().await;
}
