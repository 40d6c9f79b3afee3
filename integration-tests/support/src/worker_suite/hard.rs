//! Failures: lack of memory, a lost lease, a store that does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use protocol::command::START;
use protocol::event::{Event, Reason};
use protocol::id::NodeId;
use protocol::names;
use protocol::run::{Cause, NodeCpu, NodeMemory, Status};
use protocol::time::Millis;
use serde_json::json;
use tokio::sync::Notify;

use super::{Rig, new_node, options, reason_of};
use runner::ports::{
    Changes, Entry, Expect, Granted, Host, LeaseId, Listing, Op, Route, Store, StoreError, Txn,
    TxnReply,
};
use runner::worker::Options;

/// A machine with an adjustable amount of free memory.
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

/// A start without enough memory is published again with growing delays and all its content. It
/// runs once there is memory.
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
    let delays = parking_lot::Mutex::new(Vec::new());
    rig.events_until(
        |_| false,
        |event| match &event.reason {
            Reason::PipelineRunRejected { delay_ms } if event.run_id.as_ref() == Some(&run) => {
                delays.lock().push(*delay_ms);
                delays.lock().len() == 2
            }
            _ => false,
        },
    )
    .await;
    assert_eq!(*delays.lock(), [1_000, 2_000]);
    // A start that fits runs meanwhile.
    rig.start(&rig.run("small"), &rig.pipeline("small", &["exit 0"])).await;
    rig.settled(&rig.run("small")).await;
    squeezed.free.store(1 << 29, Ordering::Relaxed);
    let record = rig.settled(&run).await;
    assert_eq!(record.status, Status::Passed);
    assert_eq!(record.logger.map(String::from), Some(logger));
    rig.end().await;
}

/// A store that misbehaves on request.
pub(super) struct Unruly {
    store: Arc<dyn Store>,
    /// The next renewal finds the lease gone.
    pub(super) forgets: AtomicBool,
    /// Whether the store does not answer.
    away: AtomicBool,
    /// The granted leases of workers.
    short: Mutex<Vec<LeaseId>>,
    /// The trouble of the next matching transaction.
    trouble: Mutex<Option<(Trouble, Which)>>,
    /// The granted leases of several days.
    long: Mutex<Vec<LeaseId>>,
    /// Notified when a transaction is held.
    holding: Notify,
    /// Releases the held transaction.
    go: Notify,
}

/// Selects a transaction.
type Which = fn(&Txn) -> bool;

pub(super) enum Trouble {
    /// Panics, like a bug in the worker.
    Panic,
    /// Commits the transaction but loses the reply.
    LoseAnswer,
    /// Holds the transaction until it is released.
    Hold,
}

/// Returns true for a fenced write.
fn is_fenced(txn: &Txn) -> bool {
    txn.compares.iter().any(|demand| matches!(demand.expect, Expect::CreatedAt(_)))
}

/// Returns true for a claim.
fn is_claim(txn: &Txn) -> bool {
    let of_owner = |op: &Op| matches!(op, Op::Put { key, .. } if key.starts_with(names::OWNERS));
    txn.ops.iter().any(of_owner)
}

/// Returns true for the last write of a run.
fn lets_go(txn: &Txn) -> bool {
    let of_open = |op: &Op| matches!(op, Op::Delete { key } if key.starts_with(names::OPEN));
    txn.ops.iter().any(of_open)
}

impl Unruly {
    pub(super) fn over(rig: &Rig) -> Arc<Self> {
        let store = Arc::clone(&rig.ports.store);
        Arc::new(Self {
            store,
            forgets: AtomicBool::new(false),
            away: AtomicBool::new(false),
            short: Mutex::default(),
            trouble: Mutex::default(),
            long: Mutex::default(),
            holding: Notify::new(),
            go: Notify::new(),
        })
    }

    fn next(&self, trouble: Trouble, when: Which) {
        *self.trouble.lock() = Some((trouble, when));
    }

    /// Cuts a worker off from the store, whose leases end as if the worker were dead.
    pub(super) async fn cut(&self) {
        self.away.store(true, Ordering::Relaxed);
        let leases = std::mem::take(&mut *self.short.lock());
        for lease in leases {
            self.store.revoke(lease).await.unwrap();
        }
    }

    /// Makes the store answer again.
    pub(super) fn mend(&self) {
        self.away.store(false, Ordering::Relaxed);
    }

    fn answers(&self) -> Result<(), StoreError> {
        if self.away.load(Ordering::Relaxed) {
            let (at, cause) = ("here".to_owned(), "it is cut off".to_owned());
            return Err(StoreError::Unreachable { at, cause });
        }
        Ok(())
    }

    pub(super) async fn worker(self: &Arc<Self>, rig: &mut Rig, options: Options) -> NodeId {
        let mut ports = (rig.make)(&options.node).await;
        ports.store = Arc::clone(self) as _;
        rig.worker_with(options, ports).await
    }
}

#[async_trait]
impl Store for Unruly {
    async fn identity(&self) -> Result<String, StoreError> {
        self.answers()?;
        self.store.identity().await
    }
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.answers()?;
        self.store.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.answers()?;
        self.store.list(prefix).await
    }
    #[expect(clippy::panic, reason = "this is what is tried")]
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        self.answers()?;
        let trouble = self.trouble.lock().take_if(|(_, when)| when(&txn));
        match trouble {
            Some((Trouble::Panic, _)) => panic!("the test makes the drive fail"),
            Some((Trouble::LoseAnswer, _)) => {
                drop(self.store.txn(txn).await);
                let (at, cause) = ("here".to_owned(), "the answer is lost".to_owned());
                Err(StoreError::Unreachable { at, cause })
            }
            Some((Trouble::Hold, _)) => {
                self.holding.notify_one();
                self.go.notified().await;
                self.store.txn(txn).await
            }
            None => self.store.txn(txn).await,
        }
    }
    async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        self.answers()?;
        let granted = self.store.grant(ttl).await?;
        let of_worker = ttl <= Duration::from_secs(3600);
        let kept = if of_worker { &self.short } else { &self.long };
        kept.lock().push(granted.lease);
        Ok(granted)
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.answers()?;
        if self.forgets.swap(false, Ordering::Relaxed) {
            self.store.revoke(lease).await?;
        }
        self.store.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.answers()?;
        self.store.revoke(lease).await
    }
    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Changes, StoreError> {
        self.answers()?;
        self.store.watch(prefix, from_revision).await
    }
}

/// A lost lease kills the steps at once. A run with `on-lost: fail` is claimed again and ended.
pub async fn a_lost_lease_stops_the_work_at_once(mut rig: Rig) {
    let unruly = Unruly::over(&rig);
    let mut options = options(new_node(), 1);
    options.lease_ttl = Duration::from_secs(2);
    unruly.worker(&mut rig, options).await;
    let run = rig.run("loses");
    let mut pipeline = rig.pipeline("loses", &["stubborn"]);
    pipeline["on-lost"] = "fail".into();
    rig.start(&run, &pipeline).await;
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

/// If a drive panics, the worker does not keep its run.
pub async fn a_drive_that_fails_lets_its_run_go(mut rig: Rig) {
    let unruly = Unruly::over(&rig);
    unruly.worker(&mut rig, options(new_node(), 1)).await;
    let run = rig.run("unlucky");
    unruly.next(Trouble::Panic, is_fenced);
    rig.start(&run, &rig.pipeline("unlucky", &["exit 0"])).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Engine)));
    assert_eq!(record.attempt, 2);
    rig.start(&rig.run("next"), &rig.pipeline("next", &["exit 0"])).await;
    assert_eq!(rig.settled(&rig.run("next")).await.status, Status::Passed, "the slot is free");
    rig.end().await;
}

/// An owner that could not finish after recording the ending is succeeded by one that publishes
/// that ending and releases the run.
pub async fn what_is_left_of_an_ended_run_is_done_by_whoever_takes_it(mut rig: Rig) {
    let unruly = Unruly::over(&rig);
    unruly.worker(&mut rig, options(new_node(), 1)).await;
    let run = rig.run("nearly");
    unruly.next(Trouble::Panic, lets_go);
    rig.start(&run, &rig.pipeline("nearly", &["exit 0"])).await;
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.attempt), (Status::Passed, 1));
    rig.start(&rig.run("next"), &rig.pipeline("next", &["exit 0"])).await;
    rig.settled(&rig.run("next")).await;
    let next = rig.run("next");
    let of_both = |event: &Event| event.run_id.as_ref() == Some(&run) && event.reason.is_ending();
    let is_last = |event: &Event| event.run_id.as_ref() == Some(&next) && event.reason.is_ending();
    let endings = rig.events_until(of_both, is_last).await;
    assert_eq!(endings.len(), 2, "before the failure, and after it");
    assert_eq!(endings[0].to_json(), endings[1].to_json(), "it is the same event");
    rig.end().await;
}

/// A claim whose reply was lost is a claim: the run is driven, and only once.
pub async fn a_claim_whose_answer_was_lost_is_taken_up(mut rig: Rig) {
    let unruly = Unruly::over(&rig);
    let mut options = options(new_node(), 1);
    options.lease_ttl = Duration::from_secs(2);
    unruly.worker(&mut rig, options).await;
    let run = rig.run("answered");
    unruly.next(Trouble::LoseAnswer, is_claim);
    let mut pipeline = rig.pipeline("answered", &["stubborn"]);
    pipeline["on-lost"] = "fail".into();
    rig.start(&run, &pipeline).await;
    let record = rig.record(&run, |record| record.status == Status::Running).await;
    assert_eq!(record.attempt, 1);
    // The same for a run that the worker claims again after losing its lease.
    unruly.next(Trouble::LoseAnswer, is_claim);
    unruly.forgets.store(true, Ordering::Relaxed);
    let record = rig.settled(&run).await;
    assert_eq!((record.status, record.cause), (Status::Failed, Some(Cause::Lost)));
    assert_eq!(record.attempt, 2);
    rig.end().await;
}

/// A worker that is asked to end while it claims a run drives that run.
pub async fn a_run_that_is_being_claimed_when_the_drain_begins_is_run(mut rig: Rig) {
    let unruly = Unruly::over(&rig);
    let node = unruly.worker(&mut rig, options(new_node(), 1)).await;
    let run = rig.run("late");
    unruly.next(Trouble::Hold, is_claim);
    rig.start(&run, &rig.pipeline("late", &["exit 0"])).await;
    unruly.holding.notified().await;
    rig.drain_worker(&node);
    rig.record_of_node_is_draining(&node).await;
    unruly.go.notify_one();
    assert_eq!(rig.settled(&run).await.status, Status::Passed);
    rig.end_worker(&node).await;
    rig.end().await;
}

/// Long leases that a restored store lacks are replaced: no start is rejected, and runs are
/// released.
pub async fn a_long_lease_that_is_gone_is_replaced(mut rig: Rig) {
    let unruly = Unruly::over(&rig);
    unruly.worker(&mut rig, options(new_node(), 1)).await;
    for name in ["first", "second"] {
        let run = rig.run(name);
        rig.start(&run, &rig.pipeline(name, &["exit 0"])).await;
        assert_eq!(rig.settled(&run).await.status, Status::Passed);
        let long = std::mem::take(&mut *unruly.long.lock());
        assert!(long.len() >= 2, "one for the records, one for the marks of what was seen");
        for lease in long {
            rig.ports.store.revoke(lease).await.unwrap();
        }
    }
    rig.end().await;
}

/// A store that was restored from an older snapshot could issue an epoch twice.
pub async fn a_run_with_an_epoch_above_the_revision_is_not_claimed(mut rig: Rig) {
    let run = rig.run("restored");
    let record = |epoch: i64| {
        json!({
            "group": rig.tag, "name": "p", "run-id": run, "status": "running", "attempt": 1,
            "scheduled-at": "2026-01-01T00:00:00.000Z", "epoch": epoch,
        })
    };
    let (ahead, mended) = (record(i64::MAX - 1), record(1));
    let txn = Txn::new()
        .put(names::run_key(&run), ahead.to_string().into_bytes())
        .put(names::open_key(&run), b"{}".to_vec());
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    rig.worker(1).await;
    // A start of this run is ignored as known, and does not block a slot.
    rig.start(&run, &rig.pipeline("p", &["exit 0"])).await;
    let other = rig.run("another");
    rig.start(&other, &rig.pipeline("p", &["exit 0"])).await;
    assert_eq!(rig.settled(&other).await.status, Status::Passed);
    // A stop is recorded, because that does not change the run.
    rig.stop(&run).await;
    rig.stop_is_recorded(&run).await;
    let owner = rig.ports.store.get(&names::owner_key(&run)).await.unwrap();
    assert!(owner.is_none(), "a claim would give out an epoch a second time");
    let record = rig.record(&run, |_| true).await;
    assert_eq!((record.status, record.attempt), (Status::Running, 1));
    // Once repaired, the run is handled. The second stop only speeds that up.
    let txn = Txn::new().put(names::run_key(&run), mended.to_string().into_bytes());
    assert!(rig.ports.store.txn(txn).await.unwrap().committed);
    rig.stop(&run).await;
    assert_eq!(rig.ended(&run).await.status, Status::Stopped);
    rig.end().await;
}
