//! Hard days: no memory, a lost lease, a store that does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use protocol::command::START;
use protocol::event::Reason;
use protocol::names;
use protocol::run::{Cause, NodeCpu, NodeMemory, Status};
use protocol::time::Millis;
use serde_json::json;

use super::{Rig, new_node, options, reason_of};
use crate::ports::{
    Changes, Compare, Entry, Expect, Granted, Host, LeaseId, Listing, Route, Store, StoreError,
    Txn, TxnReply,
};

/// A machine that has as much free memory as it is told.
struct Squeezed {
    host: Arc<dyn Host>,
    free: AtomicU64,
}

impl Host for Squeezed {
    fn now(&self) -> Millis {
        self.host.now()
    }
    fn since_boot(&self) -> Duration {
        self.host.since_boot()
    }
    fn memory(&self) -> NodeMemory {
        NodeMemory { free: self.free.load(Ordering::Relaxed), total: 1 << 30 }
    }
    fn cpu(&self) -> NodeCpu {
        self.host.cpu()
    }
    fn name(&self) -> String {
        self.host.name()
    }
}

/// A start for which there is no memory is put back with a growing delay, with all that is in it,
/// and runs when there is some.
pub async fn a_start_without_memory_waits_and_loses_nothing(mut rig: Rig) {
    let squeezed =
        Arc::new(Squeezed { host: Arc::clone(&rig.ports.host), free: AtomicU64::new(1 << 20) });
    let node = new_node();
    let mut ports = (rig.make)(&node).await;
    ports.host = Arc::clone(&squeezed) as _;
    rig.worker_with(options(node, 1), ports).await;
    let logger = format!("l-{}", rig.tag);
    let registered = json!({ "name": logger, "url": "ftp://nowhere" });
    let txn = Txn::new().put(format!("{}{logger}", names::LOGGERS), registered.to_string().into());
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    let run = rig.run("big");
    let mut pipeline = rig.pipeline("big", &["exit 0"]);
    pipeline["quotas"] = json!({ "requests": { "mem": "64Mi" } });
    let body = json!({ "run-id": run, "logger": logger, "pipeline": pipeline });
    rig.publish(Route::Jobs, START, &body).await;
    let delays = std::sync::Mutex::new(Vec::new());
    rig.events_until(
        |_| false,
        |event| match &event.reason {
            Reason::PipelineRunRejected { delay_ms } if event.run_id.as_ref() == Some(&run) => {
                delays.lock().unwrap().push(*delay_ms);
                delays.lock().unwrap().len() == 2
            }
            _ => false,
        },
    )
    .await;
    assert_eq!(*delays.lock().unwrap(), [1_000, 2_000]);
    // What fits runs meanwhile.
    rig.start(&rig.run("small"), &rig.pipeline("small", &["exit 0"])).await;
    rig.settled(&rig.run("small")).await;
    squeezed.free.store(1 << 29, Ordering::Relaxed);
    let record = rig.settled(&run).await;
    assert_eq!(record.status, Status::Passed);
    assert_eq!(record.logger.map(String::from), Some(logger));
    rig.end().await;
}

/// A store that misbehaves where it is told to.
struct Unruly {
    store: Arc<dyn Store>,
    /// The next renewal finds the lease gone.
    forgets: AtomicBool,
    /// The next write of an owner panics, as only a fault of our own code would.
    panics: AtomicBool,
}

impl Unruly {
    fn over(rig: &Rig) -> Arc<Self> {
        let store = Arc::clone(&rig.ports.store);
        Arc::new(Self { store, forgets: AtomicBool::new(false), panics: AtomicBool::new(false) })
    }
}

#[async_trait]
impl Store for Unruly {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }
    #[expect(clippy::panic, reason = "this is what is tried")]
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        let is_owners = |demand: &Compare| matches!(demand.expect, Expect::CreatedAt(_));
        if txn.compares.iter().any(is_owners) && self.panics.swap(false, Ordering::Relaxed) {
            panic!("the drive fails, as it was told to");
        }
        self.store.txn(txn).await
    }
    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        self.store.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        if self.forgets.swap(false, Ordering::Relaxed) {
            self.store.revoke(lease).await?;
        }
        self.store.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Changes, StoreError> {
        self.store.watch(prefix, from_revision).await
    }
}

/// A lost lease kills what runs at once; the run is taken again and ended, and the worker goes on.
pub async fn a_lost_lease_stops_the_work_at_once(mut rig: Rig) {
    let unruly = Unruly::over(&rig);
    let node = new_node();
    let mut ports = (rig.make)(&node).await;
    ports.store = Arc::clone(&unruly) as _;
    let mut options = options(node, 1);
    options.lease_ttl = Duration::from_secs(2);
    rig.worker_with(options, ports).await;
    let run = rig.run("loses");
    rig.start(&run, &rig.pipeline("loses", &["stubborn"])).await;
    rig.event(&run, "StepStarted").await;
    let before = rig.record(&run, |record| record.status == Status::Running).await;
    unruly.forgets.store(true, Ordering::Relaxed);
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
    assert_eq!(record.attempt, 2);
    assert!(record.epoch > before.epoch, "the second owner has a later epoch");
    let ending = rig.event(&run, "PipelineFailed").await;
    assert_eq!(ending.epoch, record.epoch);
    assert_eq!(reason_of(&ending.reason), "PipelineFailed");
    rig.start(&rig.run("next"), &rig.pipeline("next", &["exit 0"])).await;
    assert_eq!(rig.settled(&rig.run("next")).await.status, Status::Passed);
    rig.end().await;
}

/// A worker whose own code fails for one run does not keep that run for as long as it lives.
pub async fn a_drive_that_fails_lets_its_run_go(mut rig: Rig) {
    let unruly = Unruly::over(&rig);
    let node = new_node();
    let mut ports = (rig.make)(&node).await;
    ports.store = Arc::clone(&unruly) as _;
    rig.worker_with(options(node, 1), ports).await;
    let run = rig.run("unlucky");
    unruly.panics.store(true, Ordering::Relaxed);
    rig.start(&run, &rig.pipeline("unlucky", &["exit 0"])).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
    assert_eq!(record.attempt, 2);
    rig.start(&rig.run("next"), &rig.pipeline("next", &["exit 0"])).await;
    assert_eq!(rig.settled(&rig.run("next")).await.status, Status::Passed, "the slot is free");
    rig.end().await;
}
