//! The world of one history: its clock, its random generator, and its processes.
//!
//! Everything runs on one thread and on tokio's paused clock. Every choice is drawn from one seeded
//! generator, so a seed determines a history.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use protocol::id::{NodeId, RunId};
use protocol::run::{NodeCpu, NodeMemory};
use protocol::time::Millis;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use runner::ports::Host;
use runner::worker::OutOfOrder;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::engine::Engine;
use crate::plan::{EffectSide, Fault, Plan, Rule};
use crate::sites;
use crate::store::State;
use crate::stream::Stream;

/// Locks a mutex that is never held across an await. The simulation has one thread.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// A value to wait for. Unlike with tokio's `watch`, waiters are woken in order.
pub struct Signal<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy> Signal<T> {
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    pub fn get(&self) -> T {
        *lock(&self.value)
    }

    pub fn set(&self, value: T) {
        *lock(&self.value) = value;
        self.changed.notify_waiters();
    }

    pub async fn wait_for(&self, holds: impl Fn(T) -> bool) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let value = self.get();
            if holds(value) {
                return value;
            }
            changed.await;
        }
    }
}

/// The target is unreachable, or its answer was lost.
#[derive(Debug, Clone, Copy)]
pub struct Broken;

pub struct World {
    pub start: Instant,
    pub plan: Plan,
    pub store: State,
    pub broker: Broker,
    pub stream: Stream,
    pub engines: Vec<Engine>,
    /// The pushed digests and their runs.
    pub registry: Mutex<BTreeMap<String, RunId>>,
    chance: Mutex<StdRng>,
    faults: Mutex<Faults>,
    trace: Mutex<Vec<String>>,
    /// No more faults happen.
    pub calm: AtomicBool,
    /// A process was paused or a call was slow, so its later actions can come too late.
    pub was_late: AtomicBool,
    /// The engines of dead processes that are to be replaced.
    pub died: Mutex<Vec<usize>>,
    pub someone_died: Notify,
    /// A fault in the worker's own code happened: a hang or a panic.
    pub was_broken: AtomicBool,
    /// The errors of workers that ended because of such a fault.
    pub out_of_order: Mutex<Vec<OutOfOrder>>,
}

struct Faults {
    left: u32,
    rules: Vec<Rule>,
}

impl World {
    pub fn new(plan: Plan) -> Arc<Self> {
        let faults = Faults { left: plan.faults, rules: plan.rules.clone() };
        Arc::new(Self {
            start: Instant::now(),
            store: State::default(),
            broker: Broker::default(),
            stream: Stream::default(),
            engines: (0..plan.engines).map(Engine::new).collect(),
            registry: Mutex::default(),
            chance: Mutex::new(StdRng::seed_from_u64(plan.seed)),
            faults: Mutex::new(faults),
            trace: Mutex::default(),
            calm: AtomicBool::new(false),
            was_late: AtomicBool::new(false),
            died: Mutex::default(),
            someone_died: Notify::new(),
            was_broken: AtomicBool::new(false),
            out_of_order: Mutex::default(),
            plan,
        })
    }

    pub fn draw<T>(&self, from: impl FnOnce(&mut StdRng) -> T) -> T {
        from(&mut lock(&self.chance))
    }

    /// A random time below `most`, in whole milliseconds like tokio's clock.
    pub fn span(&self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.draw(|chance| chance.random_range(0..most.max(1))))
    }

    pub fn node(&self) -> NodeId {
        let bits = self.draw(|chance| chance.random());
        NodeId::from_uuid(uuid::Builder::from_random_bytes(bits).into_uuid())
    }

    /// Adds a line to the trace if the history is traced.
    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.plan.traced {
            let line = format!("{:>8} ms  {}", self.start.elapsed().as_millis(), what());
            lock(&self.trace).push(line);
        }
    }

    pub fn trace(&self) -> Vec<String> {
        lock(&self.trace).clone()
    }

    /// Whether random faults have ended.
    pub fn is_quiet(&self) -> bool {
        self.calm.load(Ordering::Relaxed) || self.start.elapsed() >= self.plan.quiet_after
    }

    /// The fault to inject at this site, if any.
    fn fault(&self, site: &str, side: EffectSide) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let hit = faults.rules.iter_mut().position(|rule| rule.is_at(site, side));
        if let Some(at) = hit {
            return Some(faults.rules.remove(at).fault);
        }
        if faults.left == 0 || self.is_quiet() {
            return None;
        }
        if !self.draw(|chance| chance.random_bool(self.plan.chance)) {
            return None;
        }
        faults.left -= 1;
        Some(match self.draw(|chance| chance.random_range(0..11)) {
            0..3 => Fault::Crash,
            3..5 => Fault::Pause(self.span(Duration::from_secs(35))),
            5..9 => Fault::Break,
            9 => Fault::Slow(self.span(Duration::from_secs(12))),
            _ if sites::is_watched(site) => Fault::Hang,
            _ => Fault::Break,
        })
    }

    /// Whether every rule of the plan was used.
    pub fn every_rule_was_used(&self) -> bool {
        lock(&self.faults).rules.is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Runs,
    Paused,
    Dead,
}

/// A worker's process. All its external effects go through [`Process::pass`].
pub struct Process {
    pub world: Arc<World>,
    pub number: usize,
    pub node: NodeId,
    pub engine: usize,
    life: Signal<Life>,
    /// Its boot clock while it is paused. It does not see the time pass.
    frozen: Mutex<Option<Duration>>,
}

impl Process {
    pub fn new(world: &Arc<World>, number: usize, engine: usize) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            number,
            node: world.node(),
            engine,
            life: Signal::new(Life::Runs),
            frozen: Mutex::default(),
        })
    }

    pub fn is_dead(&self) -> bool {
        self.life.get() == Life::Dead
    }

    /// Waits until the process is running. Never returns if it is dead.
    pub async fn lives(&self) {
        self.life.wait_for(|life| life == Life::Runs).await;
    }

    /// Waits until it is dead.
    pub async fn dies(&self) {
        self.life.wait_for(|life| life == Life::Dead).await;
    }

    /// Passes a site of an external effect. Time passes, and planned faults are injected.
    pub async fn pass(self: &Arc<Self>, site: &str, side: EffectSide) -> Result<(), Broken> {
        self.lives().await;
        if self.world.draw(|chance| chance.random_bool(0.5)) {
            tokio::time::sleep(self.world.span(Duration::from_millis(8))).await;
            self.lives().await;
        }
        let Some(fault) = self.world.fault(site, side) else { return Ok(()) };
        self.world.say(|| format!("w{}: {fault:?} {side:?} {site}", self.number));
        match fault {
            Fault::Crash => {
                self.crash();
                self.lives().await;
            }
            Fault::Pause(span) => {
                self.pause(span);
                self.lives().await;
            }
            Fault::Slow(span) => {
                self.world.was_late.store(true, Ordering::Relaxed);
                tokio::time::sleep(span).await;
                self.lives().await;
            }
            Fault::Hang => {
                self.world.was_broken.store(true, Ordering::Relaxed);
                std::future::pending::<()>().await;
            }
            Fault::Panic => {
                self.world.was_broken.store(true, Ordering::Relaxed);
                panic!("the plan says so");
            }
            Fault::Break => return Err(Broken),
        }
        Ok(())
    }

    /// Like SIGKILL: it does nothing more. Its unsettled messages are requeued.
    pub fn crash(&self) {
        self.life.set(Life::Dead);
        self.world.broker.drop_connections(self.number);
        lock(&self.world.died).push(self.engine);
        self.world.someone_died.notify_one();
    }

    /// Like SIGSTOP, followed by SIGCONT after a while.
    pub fn pause(self: &Arc<Self>, span: Duration) {
        if self.life.get() != Life::Runs {
            return;
        }
        self.world.was_late.store(true, Ordering::Relaxed);
        *lock(&self.frozen) = Some(self.world.start.elapsed());
        self.life.set(Life::Paused);
        let process = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(span).await;
            *lock(&process.frozen) = None;
            if process.life.get() == Life::Paused {
                process.life.set(Life::Runs);
            }
        });
    }
}

/// The start of the wall clock, in milliseconds.
const EPOCH: i64 = 1_800_000_000_000;

impl Host for Process {
    fn now(&self) -> Millis {
        let since = self.since_boot().as_millis();
        Millis(EPOCH + i64::try_from(since).unwrap_or(i64::MAX))
    }

    fn since_boot(&self) -> Duration {
        lock(&self.frozen).unwrap_or_else(|| self.world.start.elapsed())
    }

    fn memory(&self) -> NodeMemory {
        NodeMemory { free: 1 << 30, total: 1 << 30 }
    }

    fn cpu(&self) -> NodeCpu {
        NodeCpu { count: 2, load: 0.0 }
    }

    fn jitter(&self, most: Duration) -> Duration {
        self.world.span(most)
    }

    fn name(&self) -> String {
        format!("host-{}", self.number)
    }
}
