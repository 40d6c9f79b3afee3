//! (d) What a `bob-runner serve` of its own takes of memory: idle, and while so many runs write; and
//! how long it takes to be ready.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::TryStreamExt as _;
use integration_tests::services::Services;
use protocol::command::STOP;
use protocol::event::{Event, Reason};
use protocol::id::RunId;
use protocol::names;
use protocol::run::{RunRecord, StepStatus};
use runner::cluster::{AmqpQueue, Etcd};
use runner::ports::{Events as _, Message, Position, Queue as _, Route, Store as _};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::cluster::{Cluster, in_time, new_node, removals};
use crate::report::{Floor, Goal, Report, median, millis, to_f64};

const PART: &str = "d";
/// What settles after the start has settled by then.
const SETTLE: Duration = Duration::from_secs(5);
/// For how long the runs are watched once all of them write.
const WATCH: Duration = Duration::from_secs(10);
const SAMPLE: Duration = Duration::from_millis(200);
/// Writes 20 lines a second for ever.
const CHATTER: &str = "while :; do n=0; while [ $n -lt 20 ]; do \
    echo \"line $n of a step that goes on writing until it is stopped\"; n=$((n + 1)); done; \
    sleep 1; done";

pub(crate) async fn measure(
    services: &Services,
    runs: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let cluster = Cluster::new(services).await;
    let store = cluster.store().await?;
    let (server, ready) = Server::start(&cluster, &store, runs).await?;
    tokio::time::sleep(SETTLE).await;
    let idle = server.resident()?;
    let bound = |megabytes: f64| Floor {
        what: "bound".into(),
        value: megabytes,
        goal: Some(Goal::AtMost(1.0)),
    };
    report.plain(PART, "from the start of the process to its readiness", "ms", millis(ready));
    report.beside(PART, "resident, idle", "MB", idle, bound(20.0));
    let ids: Vec<RunId> =
        (0..runs).map(|number| cluster.run(&number.to_string())).collect::<anyhow::Result<_>>()?;
    let mut open = cluster.watch(&store, names::OPEN).await?;
    let queue = AmqpQueue::connect(&cluster.amqp(new_node())).await?;
    let image = services.get("BOB_TEST_IMAGE");
    for run in &ids {
        let start = cluster.start(run, image, &[vec!["sh", "-c", CHATTER]]);
        queue.publish(Route::Jobs, start).await?;
    }
    in_time("all runs write", all_started(&cluster, &store, runs)).await?;
    let mut samples = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < WATCH {
        tokio::time::sleep(SAMPLE).await;
        samples.push(server.resident()?);
    }
    let peak = samples.iter().copied().fold(0.0, f64::max);
    report.beside(PART, format!("resident, {runs} runs writing, peak"), "MB", peak, bound(100.0));
    report.plain(PART, format!("resident, {runs} runs writing, median"), "MB", median(&samples));
    for run in &ids {
        queue.publish(Route::Control, stop(run)).await?;
    }
    removals(&mut open, runs).await?;
    let after = server.resident()?;
    report.plain(PART, "resident, after them", "MB", after);
    let logged = whole(&cluster, &ids).await?;
    report.detail(
        "memory-mb",
        json!({ "idle": idle, "writing": samples, "after": after, "bytes-logged": logged }),
    );
    server.end().await
}

fn stop(run: &RunId) -> Message {
    Message {
        kind: Some(STOP.to_owned()),
        id: None,
        headers: std::collections::BTreeMap::new(),
        body: json!({ "run-id": run, "reason": "the bench has seen it" }).to_string().into_bytes(),
    }
}

async fn all_started(cluster: &Cluster, store: &Etcd, runs: usize) -> anyhow::Result<()> {
    let prefix = format!("{}r-{}", names::RUNS, cluster.tag);
    loop {
        let mut started = 0;
        for entry in store.list(&prefix).await?.entries {
            let record: RunRecord = serde_json::from_slice(&entry.value)?;
            ensure!(!record.status.is_ended(), "run {} has ended: {record:?}", record.run_id);
            started +=
                usize::from(record.steps.iter().any(|step| step.status == StepStatus::Started));
        }
        if started == runs {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What the stream has of one run so far.
#[derive(Debug, Default)]
struct Seen {
    seq: u64,
    bytes: u64,
    ended: bool,
}

impl Seen {
    fn take(&mut self, event: &Event) -> anyhow::Result<()> {
        ensure!(event.seq == Some(self.seq), "event {:?} came, not {}", event.seq, self.seq);
        self.seq += 1;
        if let Reason::Log { offset, partial, .. } = &event.reason {
            ensure!(*offset == self.bytes, "a text begins at {offset}, not {}", self.bytes);
            self.bytes += event.message.len() as u64 + u64::from(!partial);
        }
        if let Reason::StepCompleted { stdout_bytes, .. } = &event.reason {
            ensure!(*stdout_bytes == self.bytes, "{} of {stdout_bytes} bytes came", self.bytes);
        }
        self.ended = event.reason.is_ending();
        Ok(())
    }
}

/// Every run's events came, in order and without a gap, with every byte of its step; how many bytes.
async fn whole(cluster: &Cluster, ids: &[RunId]) -> anyhow::Result<u64> {
    let mut all: std::collections::HashMap<&RunId, Seen> =
        ids.iter().map(|run| (run, Seen::default())).collect();
    let mut left = ids.len();
    let mut stream = cluster.events().await?.follow(Position::First).await?;
    let reading = async {
        while left > 0 {
            let event = stream.try_next().await?.context("the stream has ended")?.event();
            let Some(event) = event.filter(|event| event.seq.is_some()) else { continue };
            let Some(seen) = event.run_id.as_ref().and_then(|run| all.get_mut(run)) else {
                continue;
            };
            seen.take(&event).with_context(|| format!("run {:?}", event.run_id))?;
            left -= usize::from(seen.ended);
        }
        Ok(())
    };
    in_time("the events of all runs are read", reading).await?;
    ensure!(all.values().all(|seen| seen.bytes > 0), "a run wrote nothing");
    Ok(all.values().map(|seen| seen.bytes).sum())
}

/// A `bob-runner serve`.
struct Server {
    child: Child,
    pid: u32,
}

impl Server {
    /// Starts it and waits until its entry says that it takes work: how long that took.
    async fn start(
        cluster: &Cluster,
        store: &Etcd,
        slots: usize,
    ) -> anyhow::Result<(Self, Duration)> {
        let program = std::env::current_exe()?.with_file_name("bob-runner");
        ensure!(program.exists(), "there is no {}: build it first", program.display());
        let amqp = cluster.amqp(new_node());
        let services = &cluster.services;
        let begun = Instant::now();
        let child = Command::new(&program)
            .arg("serve")
            .env_clear()
            .env("HOME", cluster.vhost.spill.path())
            .env("BOB_QUEUE_URL", &amqp.url)
            .env("BOB_QUEUE_USER", &amqp.user)
            .env("BOB_QUEUE_PASSWORD", &amqp.password)
            .env("BOB_STORAGE_URLS", services.get("BOB_STORAGE_URLS"))
            .env("CONTAINER_ENGINE_URL", services.get("CONTAINER_ENGINE_URL"))
            .env("BOB_SPILL_DIR", cluster.vhost.spill.path())
            .env("BOB_MAX_PARALLEL_RUNS", slots.to_string())
            .env("BOB_DISK_HIGH", "100")
            .env("BOB_DISK_LOW", "99")
            .env("BOB_LOG_LEVEL", "warn")
            .env("BOB_KILL_GRACE_SECONDS", "5")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let pid = child.id().context("the server has ended at once")?;
        let seen = async {
            loop {
                for entry in store.list(names::NODES).await?.entries {
                    let node: Value = serde_json::from_slice(&entry.value)?;
                    if node["pid"] == pid && node["state"] == "ready" {
                        return Ok(());
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        in_time("the server is ready", seen).await?;
        Ok((Self { child, pid }, begun.elapsed()))
    }

    /// Its resident memory in megabytes.
    fn resident(&self) -> anyhow::Result<f64> {
        let status =
            std::fs::read_to_string(Path::new("/proc").join(self.pid.to_string()).join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes: usize = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .context("the server has ended")?
            .parse()?;
        Ok(to_f64(kibibytes) * 1024.0 / 1e6)
    }

    async fn end(mut self) -> anyhow::Result<()> {
        let pid = self.pid.to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status().await?;
        ensure!(asked.success(), "the server could not be asked to end");
        let ended = in_time("the server ends", async { Ok(self.child.wait().await?) }).await?;
        ensure!(ended.success(), "the server ended with {ended}");
        Ok(())
    }
}
