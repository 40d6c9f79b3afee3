//! (d) Memory of a separate `bob-runner serve`, idle and during many writing runs, and its time to
//! become ready.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::TryStreamExt as _;
use protocol::command::STOP;
use protocol::event::{Event, Reason};
use protocol::id::RunId;
use protocol::names;
use protocol::run::{RunRecord, StepStatus};
use runner::cluster::{AmqpQueue, Etcd};
use runner::ports::{Events as _, Message, Position, Queue as _, Route, Store as _};
use serde_json::json;
use test_support::services::Services;

use crate::cluster::{Cluster, in_time, new_node, removals};
use crate::report::{Floor, Goal, Report, median, millis};
use crate::server::{Server, Settings};

const PART: &str = "d";
/// How long memory takes to settle after the start.
const SETTLE: Duration = Duration::from_secs(5);
/// How long the runs are measured once all of them write.
const WATCH: Duration = Duration::from_secs(10);
const SAMPLE: Duration = Duration::from_millis(200);
/// Writes 20 lines a second forever.
const CHATTER: &str = "while :; do n=0; while [ $n -lt 20 ]; do \
    echo \"line $n of a step that writes until it is stopped\"; n=$((n + 1)); done; \
    sleep 1; done";

pub(crate) async fn measure(
    services: &Services,
    runs: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let cluster = Cluster::new(services).await;
    let store = cluster.store().await?;
    let settings = Settings { slots: runs, ..Settings::default() };
    let (server, ready) = Server::start(&cluster, &store, settings).await?;
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
    let executions = Instant::now();
    while executions.elapsed() < WATCH {
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

/// The published output of one run.
#[derive(Debug, Default)]
struct Seen {
    seq: u64,
    bytes: u64,
    ended: bool,
}

impl Seen {
    fn take(&mut self, event: &Event) -> anyhow::Result<()> {
        ensure!(event.seq == Some(self.seq), "event {:?} arrived, not {}", event.seq, self.seq);
        self.seq += 1;
        if let Reason::Log { offset, partial, .. } = &event.reason {
            ensure!(*offset == self.bytes, "a text starts at {offset}, not {}", self.bytes);
            self.bytes += event.message.len() as u64 + u64::from(!partial);
        }
        if let Reason::StepCompleted { stdout_bytes, .. } = &event.reason {
            ensure!(*stdout_bytes == self.bytes, "{} of {stdout_bytes} bytes came", self.bytes);
        }
        self.ended = event.reason.is_ending();
        Ok(())
    }
}

/// Checks that every run's events are complete and in order. Returns the number of bytes.
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
