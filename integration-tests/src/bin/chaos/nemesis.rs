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
const OF_WORKERS: &[&str] = &["kill", "pause", "drain", "cut", "refuse", "silence", "slow"];
/// Faults of a service.
const OF_SERVICES: &[&str] = &["broker", "member", "leader", "podman"];
/// The pause between two replacements of drained workers.
const ROLL_EVERY: Duration = Duration::from_secs(20);

/// Every kind that `--nemeses` accepts.
pub(crate) fn kinds() -> impl Iterator<Item = &'static str> {
    OF_WORKERS.iter().chain(OF_SERVICES).copied()
}

/// The injected faults, and problems with them.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) injected: Mutex<Vec<Injected>>,
    pub(crate) mishaps: Mutex<Vec<String>>,
}

impl Log {
    fn injected(&self, fault: Injected) {
        self.injected.lock().push(fault);
    }

    pub(crate) fn mishap(&self, what: String) {
        say(&format!("!! {what}"));
        self.mishaps.lock().push(what);
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
    /// Injects faults of these kinds until it is stopped, then repairs everything.
    pub(crate) async fn run(self, kinds: Vec<&'static str>, seed: u64) -> anyhow::Result<()> {
        let pick = |of: &[&'static str]| {
            of.iter().filter(|kind| kinds.contains(kind)).copied().collect::<Vec<_>>()
        };
        let (workers, services) = (pick(OF_WORKERS), pick(OF_SERVICES));
        let (one, two, three) = tokio::join!(
            self.vex_workers(workers, StdRng::seed_from_u64(seed ^ 1)),
            self.vex_services(services, StdRng::seed_from_u64(seed ^ 2)),
            self.watch_over(),
        );
        one.and(two).and(three)
    }

    /// Drains and replaces one worker after the other until it is stopped.
    pub(crate) async fn roll(self) -> anyhow::Result<()> {
        let rolling = async {
            let mut next = Instant::now();
            for place in (0..WORKERS).cycle() {
                next += ROLL_EVERY;
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => break,
                    () = tokio::time::sleep_until(next) => {}
                }
                let mut worker = self.cluster.worker(place).await;
                self.on_worker("drain", &mut worker, Duration::ZERO).await?;
            }
            anyhow::Ok(())
        };
        let (one, two) = tokio::join!(rolling, self.watch_over());
        one.and(two)
    }

    async fn pauses(&self, random: &mut StdRng, from: u64, to: u64) -> bool {
        let gap = Duration::from_millis(random.random_range(from..to));
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = sleep(gap) => true,
        }
    }

    async fn vex_workers(
        &self,
        kinds: Vec<&'static str>,
        mut random: StdRng,
    ) -> anyhow::Result<()> {
        let mut faults = JoinSet::new();
        while !kinds.is_empty() && self.pauses(&mut random, 1000, 5000).await {
            let kind = kinds.choose(&mut random).copied().unwrap_or("kill");
            let place = random.random_range(0..WORKERS);
            let length = LEASE_TTL.mul_f64(random.random_range(0.3..3.0));
            let this = self.clone();
            faults.spawn(async move {
                // Skip a worker that already has a fault.
                if let Some(mut worker) = this.cluster.free_worker(place) {
                    this.on_worker(kind, &mut worker, length).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(fault) = faults.join_next().await {
            fault??;
        }
        Ok(())
    }

    async fn on_worker(
        &self,
        kind: &'static str,
        worker: &mut Worker,
        length: Duration,
    ) -> anyhow::Result<()> {
        let (from, pid) = (now(), worker.pid());
        match kind {
            "kill" => {
                worker.kill().await?;
                self.cluster.launch(worker)?;
            }
            "drain" => {
                if let Some(wrong) = worker.drain().await? {
                    self.log.mishap(wrong);
                }
                self.cluster.launch(worker)?;
            }
            "pause" => {
                worker.signal(Signal::STOP)?;
                sleep(length).await;
                worker.signal(Signal::CONT)?;
            }
            _ => {
                self.on_connections(kind, worker, length).await;
            }
        }
        self.tell(kind, Some(worker.number), pid, from);
        Ok(())
    }

    /// The length also selects the affected connections: a third each.
    async fn on_connections(&self, kind: &str, worker: &Worker, length: Duration) {
        let both = [&worker.amqp].into_iter().chain(&worker.etcd);
        let part = length.as_millis() % 3;
        let met: Vec<_> = match part {
            0 => both.take(1).collect(),
            1 => both.skip(1).collect(),
            _ => both.collect(),
        };
        for proxy in &met {
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
        // After a long silence, one side can consider the connection dead and the other not. Close
        // it.
        if kind == "silence" && length > LEASE_TTL {
            met.iter().for_each(|proxy| proxy.cut());
        }
    }

    async fn vex_services(
        &self,
        kinds: Vec<&'static str>,
        mut random: StdRng,
    ) -> anyhow::Result<()> {
        while !kinds.is_empty() && self.pauses(&mut random, 4000, 10_000).await {
            let kind = kinds.choose(&mut random).copied().unwrap_or("member");
            // A stopped podman service waits for attached clients and rejects all others, so kill
            // it.
            let is_kill = kind == "podman" || random.random_bool(0.5);
            let verb = if is_kill { "kill" } else { "stop" };
            let member = random.random_range(1..=MEMBERS);
            // A worker waits 5 s for its engine before it fails a step.
            let most = if kind == "podman" { 2000 } else { 5000 };
            let away = Duration::from_millis(random.random_range(0..most));
            let from = now();
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
            sleep(away).await;
            self.cluster.control("start", up).await;
            self.tell(kind, None, None, from);
        }
        Ok(())
    }

    /// Restarts workers that end by themselves, and records that as a mishap.
    async fn watch_over(&self) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                () = sleep(Duration::from_millis(300)) => {}
            }
            for place in 0..WORKERS {
                let Some(mut worker) = self.cluster.free_worker(place) else { continue };
                let Some(ended) = worker.has_ended()? else { continue };
                self.log.mishap(ended);
                self.cluster.launch(&mut worker)?;
            }
        }
    }

    fn tell(
        &self,
        kind: &'static str,
        worker: Option<usize>,
        pid: Option<u32>,
        from: protocol::time::Millis,
    ) {
        let to = now();
        let who = worker.map(|number| format!(" worker {number}")).unwrap_or_default();
        say(&format!("{kind}{who}: {:.1} s", seconds(from, to)));
        self.log.injected(Injected { kind, pid, from, to });
    }
}
