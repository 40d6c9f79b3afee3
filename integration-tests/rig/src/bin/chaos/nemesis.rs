//! Injects faults drawn from the seed: one sequence for the workers, and a concurrent one for the
//! services.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, LEASE_TTL, MEMBERS, WORKERS, Worker};
use crate::facts::{Injected, now, seconds};
use crate::history::Records;
use crate::say;

/// Faults of a worker or its connections.
const WORKER_FAULTS: &[&str] = &["kill", "pause", "drain", "cut", "refuse", "silence", "slow"];
/// Faults of a service.
const SERVICE_FAULTS: &[&str] = &["broker", "member", "leader", "podman"];
/// The interval at which [`Nemesis::roll`] drains and replaces a worker.
const ROLL_INTERVAL: Duration = Duration::from_secs(20);

/// Every kind of fault that `--nemeses` accepts.
pub(crate) fn kinds() -> impl Iterator<Item = &'static str> {
    WORKER_FAULTS.iter().chain(SERVICE_FAULTS).copied()
}

/// The injected faults and the mishaps, which are errors of the workers.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) injected: Mutex<Vec<Injected>>,
    pub(crate) mishaps: Mutex<Vec<String>>,
}

impl Log {
    fn record(&self, fault: Injected) {
        self.injected.lock().push(fault);
    }

    pub(crate) fn mishap(&self, description: String) {
        say(&format!("!! {description}"));
        self.mishaps.lock().push(description);
    }

    pub(crate) fn take(&self) -> (Vec<Injected>, Vec<String>) {
        let injected = std::mem::take(&mut *self.injected.lock());
        let mishaps = &self.mishaps;
        let mishaps = std::mem::take(&mut *mishaps.lock());
        (injected, mishaps)
    }
}

/// The context of a nemesis.
#[derive(Clone)]
pub(crate) struct Nemesis {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) records: Records,
    pub(crate) log: Arc<Log>,
    pub(crate) stop: CancellationToken,
}

impl Nemesis {
    /// Injects faults of these kinds until `stop` is cancelled, then repairs everything.
    pub(crate) async fn run(self, kinds: Vec<&'static str>, seed: u64) -> anyhow::Result<()> {
        let pick = |faults: &[&'static str]| {
            faults.iter().filter(|kind| kinds.contains(kind)).copied().collect::<Vec<_>>()
        };
        let (workers, services) = (pick(WORKER_FAULTS), pick(SERVICE_FAULTS));
        let (one, two, three) = tokio::join!(
            self.inject_worker_faults(workers, StdRng::seed_from_u64(seed ^ 1)),
            self.inject_service_faults(services, StdRng::seed_from_u64(seed ^ 2)),
            self.restart_ended_workers(),
        );
        one.and(two).and(three)
    }

    /// Drains and replaces one worker after the other until `stop` is cancelled.
    pub(crate) async fn roll(self) -> anyhow::Result<()> {
        let rolling = async {
            let mut next = Instant::now();
            for index in (0..WORKERS).cycle() {
                next += ROLL_INTERVAL;
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => break,
                    () = tokio::time::sleep_until(next) => {}
                }
                let mut worker = self.cluster.worker(index).await;
                self.inject_worker_fault("drain", &mut worker, Duration::ZERO).await?;
            }
            anyhow::Ok(())
        };
        let (one, two) = tokio::join!(rolling, self.restart_ended_workers());
        one.and(two)
    }

    /// Sleeps for a random time. Returns false if `stop` is cancelled first.
    async fn sleep_randomly(&self, random: &mut StdRng, min_millis: u64, max_millis: u64) -> bool {
        let duration = Duration::from_millis(random.random_range(min_millis..max_millis));
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = sleep(duration) => true,
        }
    }

    async fn inject_worker_faults(
        &self,
        kinds: Vec<&'static str>,
        mut random: StdRng,
    ) -> anyhow::Result<()> {
        let mut faults = JoinSet::new();
        while !kinds.is_empty() && self.sleep_randomly(&mut random, 1000, 5000).await {
            let kind = kinds.choose(&mut random).copied().unwrap_or("kill");
            let index = random.random_range(0..WORKERS);
            let length = LEASE_TTL.mul_f64(random.random_range(0.3..3.0));
            let nemesis = self.clone();
            faults.spawn(async move {
                // Skip a worker that already has a fault.
                if let Some(mut worker) = nemesis.cluster.free_worker(index) {
                    nemesis.inject_worker_fault(kind, &mut worker, length).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(fault) = faults.join_next().await {
            fault??;
        }
        Ok(())
    }

    async fn inject_worker_fault(
        &self,
        kind: &'static str,
        worker: &mut Worker,
        length: Duration,
    ) -> anyhow::Result<()> {
        let (start, pid) = (now(), worker.pid());
        match kind {
            "kill" => {
                worker.kill().await?;
                self.cluster.launch(worker)?;
            }
            "drain" => {
                if let Some(problem) = worker.drain().await? {
                    self.log.mishap(problem);
                }
                self.cluster.launch(worker)?;
            }
            "pause" => {
                worker.signal(Signal::STOP)?;
                sleep(length).await;
                worker.signal(Signal::CONT)?;
            }
            _ => {
                self.disturb_connections(kind, worker, length).await;
            }
        }
        self.record_fault(kind, Some(worker.number), pid, start);
        Ok(())
    }

    /// Disturbs a worker's connections to AMQP, to etcd or to both. `length` also selects which.
    async fn disturb_connections(&self, kind: &str, worker: &Worker, length: Duration) {
        let all = [&worker.amqp].into_iter().chain(&worker.etcd);
        let part = length.as_millis() % 3;
        let proxies: Vec<_> = match part {
            0 => all.take(1).collect(),
            1 => all.skip(1).collect(),
            _ => all.collect(),
        };
        for proxy in &proxies {
            match kind {
                "cut" => proxy.cut(),
                "refuse" => proxy.refuse(),
                "silence" => proxy.silence(),
                _ => proxy.delay(length / 20),
            }
        }
        if kind != "cut" {
            sleep(length).await;
        }
        worker.heal();
        // After a long silence, possibly only one side considers the connection dead. Close it for
        // both.
        if kind == "silence" && length > LEASE_TTL {
            proxies.iter().for_each(|proxy| proxy.cut());
        }
    }

    async fn inject_service_faults(
        &self,
        kinds: Vec<&'static str>,
        mut random: StdRng,
    ) -> anyhow::Result<()> {
        while !kinds.is_empty() && self.sleep_randomly(&mut random, 4000, 10_000).await {
            let kind = kinds.choose(&mut random).copied().unwrap_or("member");
            // On stop, the podman service waits for attached clients and rejects all others. So
            // always kill it.
            let is_kill = kind == "podman" || random.random_bool(0.5);
            let verb = if is_kill { "kill" } else { "stop" };
            let member = random.random_range(1..=MEMBERS);
            // A worker waits 5 s for its engine before it fails a step.
            let max_millis = if kind == "podman" { 2000 } else { 5000 };
            let outage = Duration::from_millis(random.random_range(0..max_millis));
            let start = now();
            let engines = self.cluster.engines();
            let (down, up) = match kind {
                "broker" => ("rabbitmq".to_owned(), "rabbitmq"),
                "podman" => {
                    let engine = engines[member % engines.len()];
                    (engine.to_owned(), engine)
                }
                "leader" => {
                    let leader = self.records.leader().await.unwrap_or(member);
                    (format!("etcd-{leader}"), "etcd")
                }
                _ => (format!("etcd-{member}"), "etcd"),
            };
            self.cluster.control(verb, &down).await;
            sleep(outage).await;
            self.cluster.control("start", up).await;
            self.record_fault(kind, None, None, start);
        }
        Ok(())
    }

    /// Restarts workers that end by themselves, and records that as a mishap.
    async fn restart_ended_workers(&self) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                () = sleep(Duration::from_millis(300)) => {}
            }
            for index in 0..WORKERS {
                let Some(mut worker) = self.cluster.free_worker(index) else { continue };
                let Some(exit) = worker.has_ended()? else { continue };
                self.log.mishap(exit);
                self.cluster.launch(&mut worker)?;
            }
        }
    }

    fn record_fault(
        &self,
        kind: &'static str,
        worker: Option<usize>,
        pid: Option<u32>,
        start: protocol::time::Millis,
    ) {
        let end = now();
        let target = worker.map(|number| format!(" worker {number}")).unwrap_or_default();
        say(&format!("{kind}{target}: {:.1} s", seconds(start, end)));
        self.log.record(Injected { kind, pid, from: start, to: end });
    }
}
