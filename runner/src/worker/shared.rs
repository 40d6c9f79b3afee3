//! The state that all tasks of a worker share.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use protocol::event::{Event, Reason};
use protocol::id::RunId;
use protocol::pipeline::{ExecutorKind, Pipeline};
use protocol::run::Cause;
use protocol::time::Millis;
use thiserror::Error;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::callbacks::inbox::Inbox;
use super::long_lease::{LongLease, RecordLeases};
use super::lost::{Lost, LostRuns, Reclaims};
use super::options::Options;
use super::room::Room;
use super::roster::Roster;
use super::watchdog::Heartbeat;
use super::watchdog::Watchdog;
use super::writes::Writes;
use crate::ports::{EngineInfo, ExecError, Ports, StoreError};

/// How long an ending worker waits for the stream.
pub(super) const LAST_EVENTS: Duration = Duration::from_secs(10);
/// The longest that a command waits for the publisher to accept an event about it.
const EVENT_WITHIN: Duration = Duration::from_secs(5);
/// The maximum number of starts that a worker postpones at the same time.
const MAX_POSTPONED: usize = 64;
/// How long a start that was sent to this worker waits for the slot of the open subscription.
const SLOT_WITHIN: Duration = Duration::from_secs(1);
/// The minimum time for which a run ID is not accepted again.
pub(super) const SEEN_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a stop for an unknown run is kept.
pub(super) const REMEMBER_STOP: Duration = Duration::from_secs(24 * 3600);

/// Why a worker cannot be created.
#[derive(Debug, Error)]
pub enum NewError {
    /// The engine is not available.
    #[error(transparent)]
    Engine(#[from] ExecError),
    /// The store is not available.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// State shared by all tasks of a worker.
pub(crate) struct Shared {
    pub(super) ports: Ports,
    pub(super) options: Options,
    pub(super) engine: EngineInfo,
    /// The executors whose steps cannot be limited here, with the reasons.
    pub(super) limits_refused: Vec<(ExecutorKind, String)>,
    /// The identity of the store.
    pub(super) cluster: Arc<str>,
    pub(super) roster: Roster,
    pub(super) slots: Arc<Semaphore>,
    /// The drives and their operations. Completed when the last run has ended.
    pub(super) tasks: TaskTracker,
    /// Permits for postponed starts, such as those that wait for memory.
    pub(super) postponed: Arc<Semaphore>,
    pub(super) watchdog: Arc<Watchdog>,
    pub(super) draining: CancellationToken,
    /// Cancelled when the worker is about to end. Unconfirmed events then stay on disk.
    pub(super) leaving: CancellationToken,
    pub(super) drain_told: AtomicBool,
    pub(super) started_at: Millis,
    /// Runs that this worker no longer drives although they have not ended, with the reasons. They
    /// have no owner until a worker claims them again.
    pub(super) lost: LostRuns,
    /// How often each of them was claimed again.
    pub(super) reclaims: Reclaims,
    /// Runs lost with this worker's own lease that may continue. Claiming one again is not a loss.
    pub(super) own_lost: Mutex<HashSet<RunId>>,
    /// Notified when an orphan or a directly sent start waits for a slot, which takes precedence.
    pub(super) slot_wanted: Notify,
    /// Whether the open subscription to the shared queue holds a slot.
    pub(super) slot_is_open: AtomicBool,
    pub(super) room: Room,
    pub(super) writes: Writes,
    /// The lease for stops of unknown runs.
    pub(super) stops: LongLease,
    /// The lease for the marks that keep run IDs from being accepted twice.
    pub(super) seen: LongLease,
    /// The leases for the records of ended runs.
    pub(super) records: RecordLeases,
    /// Callbacks that were written to the outbox.
    pub(super) callbacks: Arc<Inbox>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("node", &self.options.node).finish_non_exhaustive()
    }
}

impl Shared {
    /// Checks the engine and the store, and creates the state.
    ///
    /// # Errors
    /// [`NewError`] if one of them is not available.
    pub(super) async fn new(ports: Ports, options: Options) -> Result<Self, NewError> {
        let engine = ports.executor.info().await?;
        if let Some(warning) = &engine.warning {
            warn!("{warning}");
        }
        let mut limits_refused = Vec::new();
        for kind in options.executors.iter().copied() {
            let why = ports.executor.limits_refused(kind).await?;
            limits_refused.extend(why.map(|why| (kind, why)));
        }
        let cluster = Arc::from(ports.store.identity().await?);
        let records = RecordLeases::new(options.retention);
        // Without other workers, nothing is gained by leaving work to them.
        let room = Room::new(options.rescue);
        Ok(Self {
            slots: Arc::new(Semaphore::new(options.slots)),
            started_at: ports.host.now(),
            engine,
            limits_refused,
            cluster,
            ports,
            watchdog: Arc::new(Watchdog::new(options.stall_timeout)),
            options,
            roster: Roster::default(),
            tasks: TaskTracker::new(),
            postponed: Arc::new(Semaphore::new(MAX_POSTPONED)),
            draining: CancellationToken::new(),
            leaving: CancellationToken::new(),
            drain_told: AtomicBool::new(false),
            lost: LostRuns::default(),
            reclaims: Reclaims::default(),
            own_lost: Mutex::default(),
            slot_wanted: Notify::new(),
            slot_is_open: AtomicBool::new(false),
            room,
            writes: Writes::default(),
            stops: LongLease::new(REMEMBER_STOP),
            seen: LongLease::new(SEEN_FOR),
            records,
            callbacks: Arc::default(),
        })
    }

    /// Creates an event of this node outside any run's sequence.
    pub(super) fn event(&self, reason: Reason, message: String) -> Event {
        let mut event = Event::new(self.ports.host.now(), reason, message);
        event.node = Some(self.options.node.clone());
        event
    }

    /// Returns an executor that a pipeline needs and this worker does not have.
    pub(super) fn missing_executor(&self, pipeline: &Pipeline) -> Option<ExecutorKind> {
        let steps = pipeline.all_steps();
        let mut needed = steps.filter(|step| !step.is_join()).map(|step| step.executor);
        needed.find(|executor| !self.options.executors.contains(executor))
    }

    /// Returns why an executor of this worker rejects a step of a pipeline, if one does.
    pub(super) fn rejects(&self, pipeline: &Pipeline) -> Option<String> {
        let steps = pipeline.all_steps();
        steps.filter(|step| !step.is_join()).find_map(|step| {
            let network = step.network.as_ref().or(pipeline.network.as_ref());
            let network = network.or(self.options.network.as_ref());
            self.ports.executor.rejects(step, network.map(String::as_str))
        })
    }

    /// Returns why limits cannot be enforced for a pipeline's steps, or `None` if they can.
    pub(super) fn no_limits(&self, pipeline: &Pipeline) -> Option<&str> {
        let steps = pipeline.all_steps();
        let mut kinds = steps.filter(|step| !step.is_join()).map(|step| step.executor);
        let refused = &self.limits_refused;
        kinds.find_map(|kind| {
            let why = refused.iter().find(|(refused, _)| *refused == kind);
            why.map(|(_, why)| why.as_str())
        })
    }

    /// Publishes an event outside any run's sequence.
    pub(super) async fn publish(&self, heartbeat: &Heartbeat, event: Event) {
        let _waits = heartbeat.waits();
        let text = event.message.clone();
        match tokio::time::timeout(EVENT_WITHIN, self.ports.events.emit(event)).await {
            Ok(Ok(_)) => {}
            Ok(Err(cause)) => warn!(%cause, "an event was not published: {text}"),
            Err(_) => {
                warn!("an event was dropped because the stream does not accept events: {text}")
            }
        }
    }

    /// Announces that this worker drains, without waiting for an unavailable stream.
    pub(super) fn tell_draining(self: &Arc<Self>) {
        let message = format!("{} takes nothing new", self.options.node);
        let (shared, event) = (Arc::clone(self), self.event(Reason::RunnerDraining, message));
        self.tasks.spawn(async move {
            // This task has no watchdog: the timeout ends it.
            let heartbeat = Heartbeat::unwatched();
            tokio::time::timeout(LAST_EVENTS, shared.publish(&heartbeat, event)).await.ok();
        });
    }

    /// Publishes that a command was ignored.
    pub(super) async fn ignored(&self, heartbeat: &Heartbeat, run: Option<&RunId>, why: &str) {
        let mut event = self.event(Reason::CommandIgnored, why.to_owned());
        event.run_id = run.cloned();
        self.publish(heartbeat, event).await;
    }

    pub(super) fn put_lost(&self, mut lost: Lost) {
        if self.options.rescue && lost.cause == Cause::Lost {
            // The run has no owner, and rescue will find it.
            self.own_lost().insert(lost.run);
            return;
        }
        lost.due = Instant::now() + self.reclaims.next(&lost.run);
        self.lost.add(lost);
    }

    /// Requests a slot with precedence over new starts. Waits for the permit before it asks the
    /// open subscription to return its own, which would otherwise be the next to take it again.
    pub(super) fn wait_for_slot(&self) -> BoxFuture<'static, Option<OwnedSemaphorePermit>> {
        let slots = Arc::clone(&self.slots);
        let mut waiting = async move { slots.acquire_owned().await.ok() }.boxed();
        match (&mut waiting).now_or_never() {
            Some(slot) => std::future::ready(slot).boxed(),
            None => {
                self.slot_wanted.notify_one();
                waiting
            }
        }
    }

    /// Returns a slot if there is room for a run, possibly that of the open subscription.
    pub(super) async fn slot_now(&self) -> Option<OwnedSemaphorePermit> {
        if !self.room.is_there() || self.writes.refusal().is_some() {
            return None;
        }
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Some(slot);
        }
        if !self.slot_is_open.load(Ordering::Relaxed) {
            return None;
        }
        tokio::time::timeout(SLOT_WITHIN, self.wait_for_slot()).await.ok()?
    }

    pub(super) fn own_lost(&self) -> MutexGuard<'_, HashSet<RunId>> {
        self.own_lost.lock()
    }

    /// Completes at the start of the drain, once. Later calls never complete.
    pub(super) async fn draining_once(&self) {
        if self.drain_told.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        self.draining.cancelled().await;
        self.drain_told.store(true, Ordering::Relaxed);
    }
}
