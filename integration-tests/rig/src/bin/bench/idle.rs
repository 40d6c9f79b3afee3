//! (f) The load of many idle workers on etcd: leases, lookups and node entries. The workers are in
//! this process with real connections to etcd. Queue and stream are in memory, because idle workers
//! send nothing to a broker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use protocol::id::NodeId;
use runner::cluster::Etcd;
use runner::embedded::{self, Embedded};
use runner::host;
use runner::ports::{Executor, NoSecrets, Ports};
use runner::worker::{Options, RenderInline, Shutdown, Worker};
use serde_json::json;
use test_support::scripted::Scripted;
use test_support::services::Services;
use tokio_util::task::TaskTracker;

use crate::cluster::{Cluster, in_time, new_node, options};
use crate::report::{Floor, Goal, Report, to_f64};

const PART: &str = "f";
/// The default time to live of a lease.
const LEASE: Duration = Duration::from_secs(10);
/// How long the start takes: afterwards every worker has renewed its lease, looked up open runs and
/// written its entry.
const SETTLE: Duration = Duration::from_secs(20);
/// How long to measure. Workers look up runs every 30 s.
const WATCH: Duration = Duration::from_secs(60);
/// How many workers are started concurrently.
const AT_ONCE: usize = 16;

/// Requests counted by etcd so far.
#[derive(Debug, Clone, Copy)]
struct Counted {
    renewals: f64,
    transactions: f64,
    reads: f64,
    writes: f64,
    cpu_seconds: f64,
}

pub(crate) async fn measure(
    services: &Services,
    workers: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let cluster = Cluster::new(services).await;
    let host: Arc<dyn runner::ports::Host> = Arc::new(host::Linux::default());
    let embedded = Embedded::open(embedded::Options {
        dir: None,
        event_retention: Duration::from_secs(3600),
        host,
    })
    .await?;
    let (shutdown, tasks) = (Shutdown::default(), TaskTracker::new());
    let starting = stream::iter(0..workers).map(|_| async {
        let node = new_node();
        let ports = ports(&cluster, &embedded, &node).await?;
        let options = Options { lease_ttl: LEASE, ..options(node, 4) };
        let worker = Worker::new(ports, options).await?;
        tasks.spawn(worker.run(shutdown.clone()));
        anyhow::Ok(())
    });
    let started = starting.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>();
    in_time("all workers are started", started).await?;
    tokio::time::sleep(SETTLE).await;
    let (before, started) = (counted(services).await?, Instant::now());
    tokio::time::sleep(WATCH).await;
    let (after, seconds) = (counted(services).await?, started.elapsed().as_secs_f64());
    let rate = |of: fn(&Counted) -> f64| (of(&after) - of(&before)) / seconds;
    let renewals = rate(|counted| counted.renewals);
    report.beside(
        PART,
        format!("lease renewals of {workers} idle workers"),
        "/s",
        renewals,
        Floor {
            what: "one each in a third of 10 s".into(),
            value: to_f64(workers) * 3.0 / LEASE.as_secs_f64(),
            goal: Some(Goal::AtMost(1.15)),
        },
    );
    report.plain(PART, "transactions of theirs", "/s", rate(|counted| counted.transactions));
    report.plain(PART, "reads of theirs", "/s", rate(|counted| counted.reads));
    report.plain(PART, "writes of theirs", "/s", rate(|counted| counted.writes));
    report.plain(PART, "processors that etcd needs for them", "", rate(|c| c.cpu_seconds));
    report.detail("idle", json!({ "workers": workers, "seconds": seconds }));
    shutdown.intake.cancel();
    tasks.close();
    in_time("the idle workers end", async {
        tasks.wait().await;
        Ok(())
    })
    .await
}

async fn ports(cluster: &Cluster, embedded: &Embedded, node: &NodeId) -> anyhow::Result<Ports> {
    let executor: Arc<dyn Executor> = Arc::new(Scripted::default());
    let spill_dir = cluster.vhost.spill.path().to_owned();
    let transfer = runner::transfer::Options {
        policy: runner::egress::Policy::unrestricted(),
        spill_dir,
        spill_bytes: 1 << 20,
    };
    Ok(Ports {
        queue: embedded.queue(node),
        store: Arc::new(Etcd::connect(&cluster.services.etcd()).await?),
        events: embedded.events(),
        executor,
        transfer: Arc::new(runner::transfer::Http::new(transfer)?),
        host: Arc::new(host::Linux::default()),
        renderer: Arc::new(RenderInline),
        secrets: Arc::new(NoSecrets),
        outputs: None,
    })
}

async fn counted(services: &Services) -> anyhow::Result<Counted> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut text = String::new();
    for url in services.etcd().urls {
        text += &client.get(format!("{url}/metrics")).send().await?.text().await?;
    }
    let sum = |metric: &str, label: &str| -> anyhow::Result<f64> {
        let lines = text.lines().filter(|line| line.starts_with(metric) && line.contains(label));
        let values = lines.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>());
        values.sum::<Result<f64, _>>().with_context(|| format!("{metric} of etcd"))
    };
    let calls = |method: &str| sum("grpc_server_handled_total", &format!("\"{method}\""));
    Ok(Counted {
        renewals: sum("grpc_server_msg_received_total", "\"LeaseKeepAlive\"")?,
        transactions: calls("Txn")?,
        reads: calls("Range")?,
        writes: calls("Put")?,
        cpu_seconds: sum("process_cpu_seconds_total", "")?,
    })
}
