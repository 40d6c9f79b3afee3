//! Plays a history: its workers, its commands, its faults and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use protocol::command::{START, STOP};
use protocol::event::Event;
use protocol::id::RunId;
use protocol::names;
use protocol::pipeline::{ExecutorKind, PullPolicy};
use protocol::run::{RunRecord, Status};
use runner::ports::{Message, NoSecrets, Ports, Source};
use runner::worker::{DiskOptions, Options, OutOfOrder, RenderInline, Shutdown, Worker};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::plan::{FaultEvent, Plan, RunPlan};
use crate::world::{Process, World, lock};
use crate::{broker, check, edge, engine, executor, store, stream};

/// How long all runs may take, in simulated time.
const PATIENCE: Duration = Duration::from_secs(1_800);
pub const LEASE: Duration = Duration::from_secs(10);
/// Longer than any pause in a history. Unlike a real clock, this one continues during a pause.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(120);
pub const MAX_LOSSES: u32 = 3;

struct Running {
    process: Arc<Process>,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), OutOfOrder>>,
}

/// All workers so far. The last one at a place is the current one.
struct Cluster {
    world: Arc<World>,
    workers: Mutex<Vec<(usize, Running)>>,
    started: AtomicUsize,
}

impl Cluster {
    /// Returns the options of a worker.
    fn options(&self, process: &Process) -> Options {
        Options {
            node: process.node.clone(),
            slots: self.world.plan.slots,
            parallel_steps: 3,
            lease_ttl: LEASE,
            stall_timeout: STALL_TIMEOUT,
            kill_grace: Duration::from_secs(2),
            drain: Duration::from_secs(5),
            network: None,
            pull: PullPolicy::Missing,
            node_refresh: Duration::from_secs(10),
            retention: Duration::from_secs(24 * 3600),
            retention_count: None,
            own_queue: false,
            rescue: true,
            keeps_images: true,
            max_losses: MAX_LOSSES,
            sweep: Duration::from_secs(60),
            disk: DiskOptions::default(),
            executors: vec![ExecutorKind::Podman, ExecutorKind::Ssh],
            logs: None,
            job_env: protocol::pipeline::Vars::new(),
            log_limit: Some(1 << 30),
            literal_secrets: false,
            changed_reruns: false,
            version: "simulated".into(),
        }
    }

    /// Starts a worker at a place.
    async fn start(&self, place: usize) {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let process = Process::new(&self.world, number, place % self.world.plan.engines);
        self.world
            .say(|| format!("w{number} starts on engine {}: {}", process.engine, process.node));
        let ports = Ports {
            queue: Arc::new(broker::Handle { process: Arc::clone(&process) }),
            store: Arc::new(store::Handle { process: Arc::clone(&process) }),
            events: stream::Handle::new(&process),
            executor: Arc::new(executor::Handle { process: Arc::clone(&process) }),
            transfer: Arc::new(edge::Handle { process: Arc::clone(&process) }),
            host: Arc::clone(&process) as _,
            renderer: Arc::new(RenderInline),
            secrets: Arc::new(NoSecrets),
            outputs: None,
        };
        let options = self.options(&process);
        let worker = Worker::new(ports, options).await.expect("the engine answers");
        let shutdown = Shutdown::default();
        let working = worker.run(shutdown.clone());
        let of = Arc::clone(&process);
        let task = tokio::spawn(async move {
            let worked = working.await;
            // The tasks of a dead process stand still for ever, which says nothing about a worker.
            if let Err(fault) = &worked
                && !of.is_dead()
            {
                of.world.say(|| format!("w{number}: {fault}"));
                lock(&of.world.out_of_order).push(fault.clone());
                // A supervisor starts another one.
                of.crash();
            }
            // A process that ends closes its connections.
            of.world.broker.drop_connections(number);
            worked
        });
        lock(&self.workers).push((place, Running { process, shutdown, task }));
    }

    /// Calls `act` with the worker at a place.
    fn at<T>(&self, place: usize, act: impl FnOnce(&Running) -> T) -> Option<T> {
        let workers = lock(&self.workers);
        workers.iter().rev().find(|(at, _)| *at == place).map(|(_, running)| act(running))
    }

    async fn replace_the_dead(self: Arc<Self>) {
        loop {
            self.world.someone_died.notified().await;
            let died = std::mem::take(&mut *lock(&self.world.died));
            for engine in died {
                tokio::time::sleep(self.world.span(Duration::from_secs(8))).await;
                self.start(engine).await;
            }
        }
    }

    async fn strike(&self, blow: FaultEvent) {
        let world = &self.world;
        world.say(|| format!("{blow:?}"));
        match blow {
            FaultEvent::Drain { worker, abort } => {
                self.at(worker, |running| {
                    running.shutdown.intake.cancel();
                    if abort {
                        running.shutdown.abort.cancel();
                    }
                });
                self.start(worker).await;
            }
            FaultEvent::Leave { worker } => {
                self.at(worker, |running| {
                    running.shutdown.intake.cancel();
                    running.shutdown.abort.cancel();
                });
            }
            FaultEvent::Join { place } => self.start(place).await,
            FaultEvent::StoreAway(span) => world.store.go_away(span),
            FaultEvent::WritesRefused(span) => world.store.refuse_writes(span),
            FaultEvent::Compact => world.store.compact(),
            FaultEvent::LeaseGone { worker } => {
                let key = self.at(worker, |running| names::node_key(&running.process.node));
                if let Some(key) = key {
                    world.store.end_lease_of(&key);
                }
            }
            FaultEvent::StreamAway(span) => world.stream.go_away(span),
            FaultEvent::BrokerCut => world.broker.cut(),
            FaultEvent::EngineRestart { engine } => {
                if let Some(engine) = world.engines.get(engine) {
                    engine.restart(world.start.elapsed());
                }
            }
            FaultEvent::EngineAway { engine, span } => {
                if let Some(engine) = world.engines.get(engine) {
                    engine.go_away(world.start.elapsed() + span);
                }
            }
            FaultEvent::Pause { worker, span } => {
                self.at(worker, |running| running.process.pause(span));
            }
            FaultEvent::Crash { worker } => {
                self.at(worker, |running| {
                    if !running.process.is_dead() {
                        running.process.crash();
                    }
                });
            }
        }
    }

    /// Lets another worker sweep what a late worker left after all others had ended.
    async fn sweep_up(&self) -> Result<(), String> {
        self.world.calm.store(true, Ordering::Relaxed);
        for engine in self.world.engines.iter().filter(|engine| engine.left() != (0, 0)) {
            self.world.say(|| format!("something is left on engine {}", engine.number));
            self.start(engine.number).await;
            let swept = async {
                while engine.left() != (0, 0) {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            // Leftovers are found by the final check.
            tokio::time::timeout(PATIENCE, swept).await.ok();
        }
        self.end().await
    }

    /// Ends all workers and waits for the living ones.
    async fn end(&self) -> Result<(), String> {
        let workers = std::mem::take(&mut *lock(&self.workers));
        for (_, running) in &workers {
            running.shutdown.intake.cancel();
            running.shutdown.abort.cancel();
        }
        for (_, running) in workers {
            let number = running.process.number;
            let ended = tokio::select! {
                biased;
                () = running.process.dies() => continue,
                ended = tokio::time::timeout(PATIENCE, running.task) => ended,
            };
            match ended {
                // A worker that was out of order was recorded as such.
                Ok(Ok(_)) => {}
                Ok(Err(cause)) => return Err(format!("w{number} failed: {cause}")),
                Err(_late) => return Err(format!("w{number} does not end")),
            }
        }
        Ok(())
    }
}

pub fn run_id(plan: &RunPlan) -> RunId {
    id_of(&plan.name)
}

fn id_of(name: &str) -> RunId {
    format!("r-{name}").parse().expect("a name of the plan makes an id")
}

fn message(kind: &str, body: &Value) -> Message {
    let body = body.to_string().into_bytes();
    Message { kind: Some(kind.to_owned()), body, ..Message::default() }
}

/// Publishes the commands of one run's plan.
async fn publish(world: Arc<World>, run: RunPlan) {
    let id = run_id(&run);
    let start = json!({ "run-id": id, "pipeline": run.pipeline() });
    let stop = json!({ "run-id": id, "reason": "the plan says so" });
    let mut left: Vec<(Duration, Source, Message)> = (0..run.times)
        .map(|time| (run.at + Duration::from_secs(3) * time, Source::Jobs, message(START, &start)))
        .collect();
    left.extend(run.stop_at.map(|at| (at, Source::Control, message(STOP, &stop))));
    left.sort_by_key(|(at, _, _)| *at);
    for (at, source, message) in left {
        tokio::time::sleep_until(world.start + at).await;
        world.say(|| format!("{id}: {:?}", message.kind));
        world.broker.publish(source, message);
    }
}

fn is_over(world: &World) -> bool {
    let ended = |run: &RunPlan| {
        let record = world.store.value(&names::run_key(&run_id(run)));
        record
            .and_then(|value| serde_json::from_slice::<RunRecord>(&value).ok())
            .is_some_and(|record| record.status.is_ended() && record.status != Status::Pending)
    };
    world.plan.runs.iter().all(ended)
        && world.store.keys(names::OPEN_AND_OWNERS).is_empty()
        && world.broker.unsettled() == 0
        // If dead workers are replaced, every engine is swept.
        && (!world.plan.replaced || world.engines.iter().all(|engine| engine.left() == (0, 0)))
}

/// A played history.
pub struct PlayedHistory {
    pub world: Arc<World>,
    /// Violations, as sentences.
    pub broken: Vec<String>,
}

impl PlayedHistory {
    /// The final record of a run.
    pub fn record(&self, name: &str) -> RunRecord {
        let value = self.world.store.value(&names::run_key(&id_of(name))).expect("it is recorded");
        serde_json::from_slice(&value).expect("a record can be read")
    }

    /// The maximum number of losses in a run's record.
    pub fn losses(&self, name: &str) -> u32 {
        let key = names::run_key(&id_of(name));
        let journal = self.world.store.journal().into_iter().filter(|made| made.key == key);
        let versions = journal.filter_map(|made| made.value);
        let records = versions.filter_map(|value| serde_json::from_slice::<RunRecord>(&value).ok());
        records.map(|record| record.losses).max().unwrap_or(0)
    }

    /// How often a step of a run was started.
    pub fn began(&self, name: &str, position: usize) -> usize {
        let journal = self.world.engines.iter().flat_map(engine::Engine::journal);
        let of_step = journal.filter(|it| it.run == id_of(name) && it.position == position);
        of_step.count()
    }

    /// The events of a run with this reason.
    pub fn told(&self, name: &str, reason: &str) -> Vec<Event> {
        let told = self.world.stream.told().into_iter();
        told.filter(|event| event.run_id == Some(id_of(name)))
            .filter(|event| {
                serde_json::to_value(event).is_ok_and(|event| event["reason"] == reason)
            })
            .collect()
    }
}

/// Plays a history to its end and checks the invariants.
pub fn play(plan: Plan) -> PlayedHistory {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a single-threaded runtime can always be created");
    runtime.block_on(async move {
        let world = World::new(plan);
        let cluster = Arc::new(Cluster {
            world: Arc::clone(&world),
            workers: Mutex::default(),
            started: AtomicUsize::new(0),
        });
        world.store.register("here");
        let leases = Arc::clone(&world);
        tokio::spawn(async move { leases.store.end_leases().await });
        if world.plan.replaced {
            tokio::spawn(Arc::clone(&cluster).replace_the_dead());
        }
        for place in 0..world.plan.workers {
            cluster.start(place).await;
        }
        let commands: Vec<JoinHandle<()>> = world
            .plan
            .runs
            .iter()
            .map(|run| tokio::spawn(publish(Arc::clone(&world), run.clone())))
            .collect();
        let mut blows = world.plan.blows.clone();
        blows.sort_by_key(|(at, _)| *at);
        for (at, blow) in blows {
            tokio::time::sleep_until(world.start + at).await;
            cluster.strike(blow).await;
        }
        for command in commands {
            command.await.expect("publishing does not fail");
        }
        let over = async {
            while !is_over(&world) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let mut broken = Vec::new();
        if tokio::time::timeout(world.plan.quiet_after + PATIENCE, over).await.is_err() {
            broken.push(check::what_is_left(&world));
        }
        broken.extend(cluster.end().await.err());
        if world.plan.replaced {
            broken.extend(cluster.sweep_up().await.err());
        }
        broken.extend(check::broken(&world));
        PlayedHistory { world, broken }
    })
}
