//! Makes it happen: takes commands, owns runs through a lease, drives them, and lets go.

mod answer;
mod bases;
mod begin;
mod callbacks;
mod claim;
mod collect;
mod control;
mod drive;
mod emitter;
mod finish;
mod gone;
mod intake;
mod janitor;
mod launch;
mod lease;
mod ledger;
mod long_lease;
mod loops;
mod node;
mod orphan;
mod output;
mod parent;
mod push;
mod reclaim;
mod render;
mod rescue;
mod room;
mod roster;
mod secrets;
mod step;
#[cfg(feature = "testing")]
pub mod suite;
mod told;
mod watchdog;
mod writes;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
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

use self::long_lease::LongLease;
use self::loops::Loops;
pub use self::render::RenderInline;
pub use self::room::DiskOptions;
pub use self::watchdog::OutOfOrder;
use self::watchdog::{Watchdog, waits};
use crate::ports::{EngineInfo, ExecError, Guard, Ports, StoreError, Unguarded};

/// What a worker is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who it is.
    pub node: NodeId,
    /// How many runs it drives at once.
    pub slots: usize,
    /// How many steps of one run go on at once at most.
    pub parallel_steps: usize,
    /// The time to live of its lease.
    pub lease_ttl: Duration,
    /// For how long its own code may stand still before it is taken for out of order: longer than
    /// whatever a port takes before it says that there is no answer.
    pub stands_still: Duration,
    /// The time between SIGTERM and SIGKILL of a step.
    pub kill_grace: Duration,
    /// How long what runs may go on after the worker was asked to end.
    pub drain: Duration,
    /// The network of steps that name none.
    pub network: Option<String>,
    /// When images are pulled, where the pipeline does not say.
    pub pull: PullPolicy,
    /// How often it refreshes its entry.
    pub heartbeat: Duration,
    /// How long the records of ended runs are kept.
    pub retention: Duration,
    /// How often it removes what is left of runs that nobody needs any more.
    pub sweep: Duration,
    /// How full the engine's disk may be, and what may lie on it unused.
    pub disk: DiskOptions,
    /// Whether it has a queue of its own, for dispatchers that pick the worker themselves.
    pub own_queue: bool,
    /// Whether it goes on with runs that others have left, and leaves its own to others: where it is
    /// not, what it cannot finish is ended.
    pub rescue: bool,
    /// Whether images stay for the `retention` of their pipeline: something removes them later.
    pub keeps_images: bool,
    /// How many owners a run may lose without a newly committed step.
    pub max_losses: u32,
    /// The executors that it has.
    pub executors: Vec<ExecutorKind>,
    /// Maximum output of one step, and of all steps of a run together, in bytes. `None`: no limit.
    pub log_limit: Option<u64>,
    /// Whether it runs definitions that contain secrets in clear text.
    pub literal_secrets: bool,
    /// Where the logs of steps lie, as callbacks tell.
    pub logs: Option<String>,
    /// What every job of executor docker is told of its runner.
    pub job_env: Vars,
    /// Its version.
    pub version: String,
}

/// How a worker is asked to end: stopping is not aborting.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Take nothing new; what runs may finish.
    pub intake: CancellationToken,
    /// Stop what runs.
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

/// Why there can be no worker.
#[derive(Debug, Error)]
pub enum NewError {
    /// The engine does not answer.
    #[error(transparent)]
    Engine(#[from] ExecError),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What all tasks of a worker share.
pub(crate) struct Shared {
    ports: Ports,
    options: Options,
    engine: EngineInfo,
    /// The executors whose steps cannot be limited here, and why.
    limits_refused: Vec<(ExecutorKind, String)>,
    /// What tells our store from every other.
    cluster: Arc<str>,
    roster: roster::Roster,
    slots: Arc<Semaphore>,
    /// Runs, and what they do. Ends when the last one has.
    tasks: TaskTracker,
    /// Places for starts that wait for memory.
    aside: Arc<Semaphore>,
    watchdog: Arc<Watchdog>,
    draining: CancellationToken,
    /// The worker is about to end: what the broker has not confirmed by now stays on disk.
    leaving: CancellationToken,
    drain_told: AtomicBool,
    started_at: Millis,
    /// The runs that this worker no longer drives, though they have not ended, with the reason: they
    /// have no owner until one of us takes them again.
    lost: std::sync::Mutex<Vec<Lost>>,
    more_lost: Notify,
    /// How often they were re-claimed.
    reclaims: reclaim::Reclaims,
    /// The runs that went with a lease of ours, and may go on: taking one of them again is no loss.
    own_lost: std::sync::Mutex<HashSet<RunId>>,
    /// Somebody waits for a slot who goes before new starts.
    slot_wanted: Notify,
    /// A slot is held by the open subscription to the shared queue.
    slot_is_open: AtomicBool,
    room: room::Room,
    writes: writes::Writes,
    /// The lease of stops of runs that are not known yet.
    stops: LongLease,
    /// Of the marks that keep a run id from being taken twice.
    seen: LongLease,
    /// Of the records of ended runs.
    records: LongLease,
    /// Callbacks that were written.
    callbacks: Arc<callbacks::Inbox>,
}

/// A run that is to be taken again, and ended.
#[derive(Debug, Clone)]
struct Lost {
    run: RunId,
    cause: Cause,
    why: String,
    /// When it is re-claimed.
    due: Instant,
    /// Tells this entry from a later one of the same run.
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

/// How long the end of a worker waits for the stream.
const LAST_EVENTS: Duration = Duration::from_secs(10);
/// The same if the broker does not take events: what waits is kept on disk.
const LAST_EVENTS_ANYWAY: Duration = Duration::from_millis(500);
/// The longest that a command waits for the publisher to accept an event about it.
const EVENT_WITHIN: Duration = Duration::from_secs(5);
/// So many starts wait for memory at once in a worker's hands; those behind them wait in the queue.
const ASIDE: usize = 64;
/// How long a start that was sent to this worker waits for the slot that is open for all.
const SLOT_WITHIN: Duration = Duration::from_secs(1);
/// A run id is not taken again for at least this long.
const SEEN_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

impl Shared {
    /// An event of this node that belongs to no run's sequence.
    fn event(&self, reason: Reason, message: String) -> Event {
        let mut event = Event::new(self.ports.host.now(), reason, message);
        event.node = Some(self.options.node.clone());
        event
    }

    /// An executor that a pipeline needs, and this worker has not.
    fn lacks(&self, pipeline: &Pipeline) -> Option<ExecutorKind> {
        let steps = pipeline.all_steps();
        let mut needed = steps.filter(|step| !step.is_join()).map(|step| step.executor);
        needed.find(|executor| !self.options.executors.contains(executor))
    }

    /// Why an executor of this worker rejects a step of a pipeline, if one does.
    fn rejects(&self, pipeline: &Pipeline) -> Option<String> {
        let steps = pipeline.all_steps();
        steps.filter(|step| !step.is_join()).find_map(|step| {
            let network = step.network.as_ref().or(pipeline.network.as_ref());
            let network = network.or(self.options.network.as_ref());
            self.ports.executor.rejects(step, network.map(String::as_str))
        })
    }

    /// Why limits cannot be enforced for a pipeline's steps, where they cannot.
    fn no_limits(&self, pipeline: &Pipeline) -> Option<&str> {
        let steps = pipeline.all_steps();
        let mut kinds = steps.filter(|step| !step.is_join()).map(|step| step.executor);
        let refused = &self.limits_refused;
        kinds.find_map(|kind| {
            let why = refused.iter().find(|(refused, _)| *refused == kind);
            why.map(|(_, why)| why.as_str())
        })
    }

    /// Publishes an event that belongs to no run's sequence. It is dropped, with a warning that holds
    /// its text, if the publisher has no room for it within [`EVENT_WITHIN`]: no command waits longer
    /// for a stream that is unavailable.
    async fn tell(&self, event: Event) {
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

    /// Says that this worker drains, and does not wait for a stream that is away.
    fn tell_draining(self: &Arc<Self>) {
        let message = format!("{} takes nothing new", self.options.node);
        let (shared, event) = (Arc::clone(self), self.event(Reason::RunnerDraining, message));
        self.tasks.spawn(async move {
            tokio::time::timeout(LAST_EVENTS, shared.tell(event)).await.ok();
        });
    }

    async fn ignored(&self, run: Option<&RunId>, why: &str) {
        let mut event = self.event(Reason::CommandIgnored, why.to_owned());
        event.run_id = run.cloned();
        self.tell(event).await;
    }

    fn put_lost(&self, mut lost: Lost) {
        if self.options.rescue && lost.cause == Cause::Lost {
            // It has no owner, and is found so.
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

    /// Leaves a lost run alone for a while.
    fn delay(&self, run: &RunId, wait: Duration) {
        let due = Instant::now() + wait;
        self.lost().iter_mut().filter(|lost| lost.run == *run).for_each(|lost| lost.due = due);
    }

    /// Removes an entry that is done with. A newer one of the same run stays: that loss came later.
    fn done_with(&self, lost: &Lost) {
        self.lost().retain(|other| !Arc::ptr_eq(&other.entry, &lost.entry));
    }

    fn lost(&self) -> std::sync::MutexGuard<'_, Vec<Lost>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot, for one who goes before new starts. It stands in line before the open subscription is
    /// asked for its own: or that one would be the next to take it again.
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

    /// A free slot, where there is room; where the last one is open for the shared queue, that one.
    async fn slot_now(&self) -> Option<OwnedSemaphorePermit> {
        if !self.room.is_there() || self.writes.refused().is_some() {
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

    fn own_lost(&self) -> std::sync::MutexGuard<'_, HashSet<RunId>> {
        self.own_lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a run is one that this worker is about to end.
    fn is_to_be_ended(&self, run: &RunId) -> bool {
        self.lost().iter().any(|lost| lost.run == *run)
    }

    /// Resolves at the beginning of the drain, once; then never.
    async fn draining_once(&self) {
        if self.drain_told.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        self.draining.cancelled().await;
        self.drain_told.store(true, Ordering::Relaxed);
    }
}

impl Worker {
    /// Looks at the engine and the store, and makes a worker of the ports.
    ///
    /// # Errors
    /// [`NewError`] where one of them does not answer.
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
        // Where nobody else would take the work there is nothing to be won by leaving it.
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
            lost: std::sync::Mutex::default(),
            more_lost: Notify::new(),
            reclaims: reclaim::Reclaims::default(),
            own_lost: std::sync::Mutex::default(),
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

    /// With somebody who ends what it runs where it cannot.
    #[must_use]
    pub fn guarded(self, guard: Arc<dyn Guard>) -> Self {
        Self { guard, ..self }
    }

    /// Works until it is asked to end, and what it drives has ended.
    ///
    /// # Errors
    /// [`OutOfOrder`] where its own code stands still or has failed: its lease is given up then.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), OutOfOrder> {
        let Self { shared, guard } = self;
        let loops = Loops::start(&shared, &guard, &shutdown);
        tokio::select! {
            biased;
            () = shared.watchdog.bites() => loops.break_off(&shared, &shutdown).await,
            () = loops.end_in_order(&shared, &shutdown) => {}
        }
        // What did not end in time is left to the guard.
        if shared.roster.ids().is_empty() {
            guard.dismiss();
        }
        let stopped =
            shared.event(Reason::RunnerStopped, format!("{} has ended", shared.options.node));
        let events = &shared.ports.events;
        let within = if events.trouble().is_some() { LAST_EVENTS_ANYWAY } else { LAST_EVENTS };
        let confirmed = async { events.confirmed(events.emit(stopped).await?).await };
        if tokio::time::timeout(within, confirmed).await.is_err() {
            warn!("the stream has not confirmed the last events");
        }
        shared.watchdog.fault().map_or(Ok(()), Err)
    }
}
