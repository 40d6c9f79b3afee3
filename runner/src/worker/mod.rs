//! Consumes commands, owns runs through a lease, drives them, and releases them.

mod answer;
mod bases;
mod callbacks;
mod claim;
mod control;
mod drive;
mod intake;
mod janitor;
mod launch;
mod lease;
mod long_lease;
mod look;
mod loops;
mod node;
mod orphan;
mod parent;
mod reclaim;
mod records;
mod release;
mod rescue;
mod retry;
mod room;
mod roster;
#[cfg(feature = "testing")]
pub mod suite;
mod verdict;
mod volumes;
mod wanted;
mod watchdog;
mod writes;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use protocol::event::{Event, Reason};
use protocol::id::{NodeId, RunId};
use protocol::pipeline::{ExecutorKind, Pipeline, PullPolicy, Vars};
use protocol::run::Cause;
use protocol::time::Millis;
use thiserror::Error;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

pub use self::drive::RenderInline;
use self::long_lease::LongLease;
use self::loops::Loops;
pub use self::room::DiskOptions;
pub use self::watchdog::OutOfOrder;
use self::watchdog::{Watchdog, waits};
use crate::ports::{EngineInfo, ExecError, Guard, Ports, StoreError, Unguarded};

/// The settings of a worker.
#[derive(Debug, Clone)]
pub struct Options {
    /// The worker's ID.
    pub node: NodeId,
    /// The maximum number of runs in progress.
    pub slots: usize,
    /// The maximum number of steps of a run in progress.
    pub parallel_steps: usize,
    /// The time to live of the lease.
    pub lease_ttl: Duration,
    /// How long a task may stall before the watchdog trips. Exceeds the timeouts of all ports.
    pub stands_still: Duration,
    /// The default time between SIGTERM and SIGKILL of a step.
    pub kill_grace: Duration,
    /// How long runs may continue after the worker was asked to end.
    pub drain: Duration,
    /// The default network of steps.
    pub network: Option<String>,
    /// The default pull policy.
    pub pull: PullPolicy,
    /// The interval between updates of the node's entry.
    pub heartbeat: Duration,
    /// How long the records of ended runs are kept.
    pub retention: Duration,
    /// The interval between removals of resources that are no longer needed.
    pub sweep: Duration,
    /// Limits of the engine's disk.
    pub disk: DiskOptions,
    /// Whether the worker has its own queue, for dispatchers that choose a worker.
    pub own_queue: bool,
    /// Whether the worker resumes runs of others and hands over its own. If not, it ends runs it
    /// cannot finish.
    pub rescue: bool,
    /// Whether images are kept for the `retention` of their pipeline and removed later.
    pub keeps_images: bool,
    /// The number of owners that a run may lose between two commits.
    pub max_losses: u32,
    /// The available executors.
    pub executors: Vec<ExecutorKind>,
    /// The maximum output of a step, and of all steps of a run, in bytes. `None` means no limit.
    pub log_limit: Option<u64>,
    /// Whether to run definitions that contain secrets in clear text.
    pub literal_secrets: bool,
    /// Whether a rerun can take over steps with a definition or variables other than its parent's.
    pub changed_reruns: bool,
    /// The address of the steps' logs in callbacks.
    pub logs: Option<String>,
    /// Variables for every job of the `docker` executor.
    pub job_env: Vars,
    /// The worker's version.
    pub version: String,
}

/// How a worker is asked to end, in two stages.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Accept no new work; runs in progress may finish.
    pub intake: CancellationToken,
    /// Stop the runs in progress.
    pub abort: CancellationToken,
}

/// A worker, ready to run.
pub struct Worker {
    shared: Arc<Shared>,
    guard: Arc<dyn Guard>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("shared", &self.shared).finish_non_exhaustive()
    }
}

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
    ports: Ports,
    options: Options,
    engine: EngineInfo,
    /// The executors whose steps cannot be limited here, with the reasons.
    limits_refused: Vec<(ExecutorKind, String)>,
    /// The identity of the store.
    cluster: Arc<str>,
    roster: roster::Roster,
    slots: Arc<Semaphore>,
    /// The drives and their operations. Completed when the last run has ended.
    tasks: TaskTracker,
    /// Permits for starts that wait for memory.
    aside: Arc<Semaphore>,
    watchdog: Arc<Watchdog>,
    draining: CancellationToken,
    /// Cancelled when the worker is about to end. Unconfirmed events then stay on disk.
    leaving: CancellationToken,
    drain_told: AtomicBool,
    started_at: Millis,
    /// Runs that this worker no longer drives although they have not ended, with the reasons. They
    /// have no owner until a worker claims them again.
    lost: parking_lot::Mutex<Vec<Lost>>,
    more_lost: Notify,
    /// How often each of them was claimed again.
    reclaims: reclaim::Reclaims,
    /// Runs lost with this worker's own lease that may continue. Claiming one again is not a loss.
    own_lost: parking_lot::Mutex<HashSet<RunId>>,
    /// Notified when an orphan or a directly sent start waits for a slot, which takes precedence.
    slot_wanted: Notify,
    /// Whether the open subscription to the shared queue holds a slot.
    slot_is_open: AtomicBool,
    room: room::Room,
    writes: writes::Writes,
    /// The lease for stops of unknown runs.
    stops: LongLease,
    /// The lease for the marks that keep run IDs from being accepted twice.
    seen: LongLease,
    /// The lease for the records of ended runs.
    records: LongLease,
    /// Callbacks that were written to the outbox.
    callbacks: Arc<callbacks::Inbox>,
}

/// A run to be claimed again and ended.
#[derive(Debug, Clone)]
struct Lost {
    run: RunId,
    cause: Cause,
    why: String,
    /// The time to claim it again.
    due: Instant,
    /// Distinguishes this entry from a later one of the same run.
    entry: Arc<()>,
}

impl Lost {
    fn new(run: RunId, cause: Cause, why: String) -> Self {
        Self { run, cause, why, due: Instant::now(), entry: Arc::default() }
    }

    fn with_lease(run: RunId) -> Self {
        Self::new(run, Cause::Lost, "its worker lost its lease".to_owned())
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("node", &self.options.node).finish_non_exhaustive()
    }
}

/// How long an ending worker waits for the stream.
const LAST_EVENTS: Duration = Duration::from_secs(10);
/// The same if the broker accepts no events. Unconfirmed events are kept on disk.
const LAST_EVENTS_ANYWAY: Duration = Duration::from_millis(500);
/// The longest that a command waits for the publisher to accept an event about it.
const EVENT_WITHIN: Duration = Duration::from_secs(5);
/// So many starts wait for memory at once in a worker's hands; those behind them wait in the queue.
const ASIDE: usize = 64;
/// How long a start that was sent to this worker waits for the slot of the open subscription.
const SLOT_WITHIN: Duration = Duration::from_secs(1);
/// The minimum time for which a run ID is not accepted again.
const SEEN_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

impl Shared {
    /// Creates an event of this node outside any run's sequence.
    fn event(&self, reason: Reason, message: String) -> Event {
        let mut event = Event::new(self.ports.host.now(), reason, message);
        event.node = Some(self.options.node.clone());
        event
    }

    /// Returns an executor that a pipeline needs and this worker does not have.
    fn missing_executor(&self, pipeline: &Pipeline) -> Option<ExecutorKind> {
        let steps = pipeline.all_steps();
        let mut needed = steps.filter(|step| !step.is_join()).map(|step| step.executor);
        needed.find(|executor| !self.options.executors.contains(executor))
    }

    /// Returns why an executor of this worker rejects a step of a pipeline, if one does.
    fn rejects(&self, pipeline: &Pipeline) -> Option<String> {
        let steps = pipeline.all_steps();
        steps.filter(|step| !step.is_join()).find_map(|step| {
            let network = step.network.as_ref().or(pipeline.network.as_ref());
            let network = network.or(self.options.network.as_ref());
            self.ports.executor.rejects(step, network.map(String::as_str))
        })
    }

    /// Returns why limits cannot be enforced for a pipeline's steps, or `None` if they can.
    fn no_limits(&self, pipeline: &Pipeline) -> Option<&str> {
        let steps = pipeline.all_steps();
        let mut kinds = steps.filter(|step| !step.is_join()).map(|step| step.executor);
        let refused = &self.limits_refused;
        kinds.find_map(|kind| {
            let why = refused.iter().find(|(refused, _)| *refused == kind);
            why.map(|(_, why)| why.as_str())
        })
    }

    /// Publishes an event outside any run's sequence.
    async fn publish(&self, event: Event) {
        let _waits = waits();
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
    fn tell_draining(self: &Arc<Self>) {
        let message = format!("{} takes nothing new", self.options.node);
        let (shared, event) = (Arc::clone(self), self.event(Reason::RunnerDraining, message));
        self.tasks.spawn(async move {
            tokio::time::timeout(LAST_EVENTS, shared.publish(event)).await.ok();
        });
    }

    async fn ignored(&self, run: Option<&RunId>, why: &str) {
        let mut event = self.event(Reason::CommandIgnored, why.to_owned());
        event.run_id = run.cloned();
        self.publish(event).await;
    }

    fn put_lost(&self, mut lost: Lost) {
        if self.options.rescue && lost.cause == Cause::Lost {
            // The run has no owner, and rescue will find it.
            self.own_lost().insert(lost.run);
            return;
        }
        lost.due = Instant::now() + self.reclaims.next(&lost.run);
        {
            let mut list = self.lost();
            list.retain(|other| other.run != lost.run);
            list.push(lost);
        }
        self.more_lost.notify_one();
    }

    /// Delays the next attempt at a lost run.
    fn delay(&self, run: &RunId, wait: Duration) {
        let due = Instant::now() + wait;
        self.lost().iter_mut().filter(|lost| lost.run == *run).for_each(|lost| lost.due = due);
    }

    /// Removes a completed entry. A newer entry of the same run stays, because it is a later loss.
    fn forget_lost(&self, lost: &Lost) {
        self.lost().retain(|other| !Arc::ptr_eq(&other.entry, &lost.entry));
    }

    fn lost(&self) -> parking_lot::MutexGuard<'_, Vec<Lost>> {
        self.lost.lock()
    }

    /// Requests a slot with precedence over new starts. Waits for the permit before it asks the
    /// open subscription to return its own, which would otherwise be the next to take it again.
    fn wait_for_slot(&self) -> BoxFuture<'static, Option<OwnedSemaphorePermit>> {
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
    async fn slot_now(&self) -> Option<OwnedSemaphorePermit> {
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

    fn own_lost(&self) -> parking_lot::MutexGuard<'_, HashSet<RunId>> {
        self.own_lost.lock()
    }

    /// Returns true if this worker is about to end the run.
    fn is_to_be_ended(&self, run: &RunId) -> bool {
        self.lost().iter().any(|lost| lost.run == *run)
    }

    /// Completes at the start of the drain, once. Later calls never complete.
    async fn draining_once(&self) {
        if self.drain_told.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        self.draining.cancelled().await;
        self.drain_told.store(true, Ordering::Relaxed);
    }
}

impl Worker {
    /// Checks the engine and the store, and creates a worker.
    ///
    /// # Errors
    /// [`NewError`] if one of them is not available.
    pub async fn new(ports: Ports, options: Options) -> Result<Self, NewError> {
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
        let records = LongLease::new(options.retention);
        // Without other workers, nothing is gained by leaving work to them.
        let room = room::Room::new(options.rescue);
        let shared = Shared {
            slots: Arc::new(Semaphore::new(options.slots)),
            started_at: ports.host.now(),
            engine,
            limits_refused,
            cluster,
            ports,
            watchdog: Arc::new(Watchdog::new(options.stands_still)),
            options,
            roster: roster::Roster::default(),
            tasks: TaskTracker::new(),
            aside: Arc::new(Semaphore::new(ASIDE)),
            draining: CancellationToken::new(),
            leaving: CancellationToken::new(),
            drain_told: AtomicBool::new(false),
            lost: parking_lot::Mutex::default(),
            more_lost: Notify::new(),
            reclaims: reclaim::Reclaims::default(),
            own_lost: parking_lot::Mutex::default(),
            slot_wanted: Notify::new(),
            slot_is_open: AtomicBool::new(false),
            room,
            writes: writes::Writes::default(),
            stops: LongLease::new(control::REMEMBER_STOP),
            seen: LongLease::new(SEEN_FOR),
            records,
            callbacks: Arc::default(),
        };
        Ok(Self { shared: Arc::new(shared), guard: Arc::new(Unguarded) })
    }

    /// Sets the guard, which ends the worker's steps if the worker cannot.
    #[must_use]
    pub fn guarded(self, guard: Arc<dyn Guard>) -> Self {
        Self { guard, ..self }
    }

    /// Runs until the worker is asked to end and its runs have ended.
    ///
    /// # Errors
    /// [`OutOfOrder`] if a task of the worker stalls or panics. The lease is given up then.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), OutOfOrder> {
        let Self { shared, guard } = self;
        let loops = Loops::start(&shared, &guard, &shutdown);
        tokio::select! {
            biased;
            () = shared.watchdog.tripped() => loops.break_off(&shared, &shutdown).await,
            () = loops.end_in_order(&shared, &shutdown) => {}
        }
        // The guard ends what did not end in time.
        if shared.roster.ids().is_empty() {
            guard.dismiss();
        }
        let stopped =
            shared.event(Reason::RunnerStopped, format!("{} has ended", shared.options.node));
        let events = &shared.ports.events;
        let within = if events.problem().is_some() { LAST_EVENTS_ANYWAY } else { LAST_EVENTS };
        let confirmed = async { events.confirmed(events.emit(stopped).await?).await };
        if tokio::time::timeout(within, confirmed).await.is_err() {
            warn!("the stream has not confirmed the last events");
        }
        shared.watchdog.fault().map_or(Ok(()), Err)
    }
}
