//! (c) Throughput of runs with free steps: two workers with the scripted executor, compared with
//! two that make only the transactions and confirms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use protocol::command::START;
use protocol::id::RunId;
use protocol::names;
use runner::cluster::Etcd;
use runner::ports::{Change, Changes};
use serde_json::json;
use test_support::scripted::Scripted;
use test_support::services::Services;

use crate::bare::{self, BareWorker};
use crate::cluster::{Cluster, in_time, removals};
use crate::report::{Floor, Goal, Report, median, millis, percentile, to_f64};

const PART: &str = "c";
/// The number of concurrent runs of each worker.
const SLOTS: u16 = 8;
/// The maximum number of unconfirmed starts.
const AHEAD: usize = 64;

/// The size of the measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) runs: usize,
    pub(crate) rounds: usize,
    pub(crate) latencies: usize,
}

#[derive(Debug, Clone, Copy)]
enum Claimant {
    Worker,
    Bare,
}

impl Claimant {
    /// The exchange and the routing key.
    fn route(self) -> (&'static str, &'static str) {
        match self {
            Self::Worker => (names::EXCHANGE, names::JOBS_QUEUE),
            Self::Bare => ("", bare::QUEUE),
        }
    }
}

pub(crate) async fn measure(
    services: &Services,
    size: Size,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (mut ours, mut floors, mut round_trips) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        floors.push(bare_rate(services, size.runs).await?);
        let (rate, calls) = worker_rate(services, size.runs).await?;
        ours.push(rate);
        round_trips.push(calls);
    }
    report.beside(
        PART,
        format!("no-op runs, {SLOTS} slots on each of two workers"),
        "runs/s",
        median(&ours),
        Floor {
            what: "bare transactions and confirms".into(),
            value: median(&floors),
            goal: Some(Goal::AtLeast(0.5)),
        },
    );
    report.plain(
        PART,
        "calls of etcd for a no-op run (the floor makes 7)",
        "",
        median(&round_trips),
    );
    report.detail("claims", json!({ "worker": ours, "bare": floors, "etcd-calls": round_trips }));
    Box::pin(latencies(services, size.latencies, report)).await
}

async fn bare_rate(services: &Services, runs: usize) -> anyhow::Result<f64> {
    let cluster = Cluster::new(services).await;
    bare::declare(&bare::confirming(&cluster).await?).await?;
    let workers = [
        BareWorker::start(&cluster, SLOTS, false).await?,
        BareWorker::start(&cluster, SLOTS, false).await?,
    ];
    let rate = rate(&cluster, runs, Claimant::Bare).await;
    for worker in workers {
        worker.end().await?;
    }
    rate
}

async fn worker_rate(services: &Services, runs: usize) -> anyhow::Result<(f64, f64)> {
    let cluster = Cluster::new(services).await;
    let executor = Arc::new(Scripted::default());
    let workers = [
        cluster.worker(usize::from(SLOTS), Arc::<Scripted>::clone(&executor) as _).await?,
        cluster.worker(usize::from(SLOTS), executor).await?,
    ];
    let before = etcd_calls(services).await?;
    let rate = rate(&cluster, runs, Claimant::Worker).await?;
    let calls = etcd_calls(services).await? - before;
    for worker in workers {
        worker.end().await?;
    }
    passed_once_each(&cluster, runs).await?;
    Ok((rate, calls / to_f64(runs)))
}

/// Runs per second, from the first published start to the last released run.
async fn rate(cluster: &Cluster, runs: usize, who: Claimant) -> anyhow::Result<f64> {
    let store = cluster.store().await?;
    let channel = bare::confirming(cluster).await?;
    let mut changes = cluster.watch(&store, names::OPEN).await?;
    let executions = Instant::now();
    let publishing = async {
        let (exchange, key) = who.route();
        let mut owed = std::collections::VecDeque::new();
        for number in 0..runs {
            let body = start(cluster, number)?;
            owed.push_back(bare::publish(&channel, exchange, key, START, &body).await?);
            if owed.len() > AHEAD {
                bare::confirmed(owed.pop_front().into_iter().collect()).await?;
            }
        }
        bare::confirmed(owed.into()).await
    };
    tokio::try_join!(publishing, removals(&mut changes, runs))?;
    Ok(to_f64(runs) / executions.elapsed().as_secs_f64())
}

fn run(cluster: &Cluster, number: usize) -> anyhow::Result<RunId> {
    cluster.run(&number.to_string())
}

fn start(cluster: &Cluster, number: usize) -> anyhow::Result<Vec<u8>> {
    let run = run(cluster, number)?;
    Ok(cluster.start(&run, "scripted", &[vec!["exit", "0"]]).body)
}

/// Checks that every run passed on its first attempt.
async fn passed_once_each(cluster: &Cluster, runs: usize) -> anyhow::Result<()> {
    use runner::ports::Store as _;
    let store = cluster.store().await?;
    for number in 0..runs {
        let run = run(cluster, number)?;
        let entry = store.get(&names::run_key(&run)).await?;
        let entry = entry.with_context(|| format!("run {run} has no record"))?;
        let record: protocol::run::RunRecord = serde_json::from_slice(&entry.value)?;
        ensure!(record.status == protocol::run::Status::Passed, "run {run} is {}", record.status);
        ensure!(record.attempt == 1, "run {run} was claimed {} times", record.attempt);
    }
    Ok(())
}

/// The number of reads and writes that etcd has answered so far.
async fn etcd_calls(services: &Services) -> anyhow::Result<f64> {
    let mut calls = 0.0;
    for url in services.etcd().urls {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let text = client.get(format!("{url}/metrics")).send().await?.text().await?;
        calls += text
            .lines()
            .filter(|line| line.starts_with("grpc_server_handled_total{grpc_code=\"OK\""))
            .filter(|line| {
                ["Txn", "Put", "Range"].iter().any(|call| line.contains(&format!("\"{call}\"")))
            })
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum::<f64>();
    }
    Ok(calls)
}

/// The time from publish to claim as seen by a watcher of etcd. One run at a time, alternating
/// between worker and floor.
async fn latencies(services: &Services, count: usize, report: &mut Report) -> anyhow::Result<()> {
    let (ours, theirs) = (Cluster::new(services).await, Cluster::new(services).await);
    let executor = Arc::new(Scripted::default());
    let workers = [
        ours.worker(usize::from(SLOTS), Arc::<Scripted>::clone(&executor) as _).await?,
        ours.worker(usize::from(SLOTS), executor).await?,
    ];
    bare::declare(&bare::confirming(&theirs).await?).await?;
    let floor = BareWorker::start(&theirs, SLOTS, true).await?;
    let (mut worker, mut bare) = (
        Watched::new(&ours, Claimant::Worker).await?,
        Watched::new(&theirs, Claimant::Bare).await?,
    );
    let (mut of_worker, mut of_bare) = (Vec::new(), Vec::new());
    for number in 0..count {
        of_bare.push(millis(bare.claim(&theirs, number).await?));
        of_worker.push(millis(worker.claim(&ours, number).await?));
    }
    floor.end().await?;
    for worker in workers {
        worker.end().await?;
    }
    report.beside(
        PART,
        "publish to claim, median",
        "ms",
        median(&of_worker),
        Floor {
            what: "delivery, look, claim".into(),
            value: median(&of_bare),
            goal: Some(Goal::AtMost(3.0)),
        },
    );
    report.plain(PART, "publish to claim, 99th of 100", "ms", percentile(&of_worker, 99));
    report.detail("latencies-ms", json!({ "worker": of_worker, "bare": of_bare }));
    Ok(())
}

/// Publishes starts and watches their runs.
struct Watched {
    who: Claimant,
    channel: lapin::Channel,
    owners: Changes,
    _store: Etcd,
}

impl Watched {
    async fn new(cluster: &Cluster, who: Claimant) -> anyhow::Result<Self> {
        let store = cluster.store().await?;
        let owners = cluster.watch(&store, names::OWNERS).await?;
        Ok(Self { who, channel: bare::confirming(cluster).await?, owners, _store: store })
    }

    /// The time from publishing to the owner key. Returns once the run is released.
    async fn claim(&mut self, cluster: &Cluster, number: usize) -> anyhow::Result<Duration> {
        let (exchange, key) = self.who.route();
        let body = start(cluster, number)?;
        let executions = Instant::now();
        let owed = bare::publish(&self.channel, exchange, key, START, &body).await?;
        let mut claimed = None;
        let watching = async {
            loop {
                match self.owners.next().await.context("the watch has ended")?? {
                    Change::Put(_) => claimed = Some(executions.elapsed()),
                    Change::Deleted { .. } => return anyhow::Ok(()),
                }
            }
        };
        in_time("a run is claimed and released", watching).await?;
        bare::confirmed(vec![owed]).await?;
        claimed.context("a run was released without a claim")
    }
}
