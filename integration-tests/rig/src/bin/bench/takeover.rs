//! (e) The cost of a lost worker: the time from its end to the next owner's first event, and the
//! number of repeated steps. Measures a hand-over as well.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use protocol::event::{Event, Reason};
use protocol::id::RunId;
use protocol::names;
use protocol::run::{NodeEntry, OwnerEntry};
use runner::cluster::{AmqpQueue, Etcd};
use runner::ports::{Events as _, Position, Published, Queue as _, Route, Store as _};
use rustix::process::Signal;
use serde_json::json;
use test_support::services::Services;

use crate::cluster::{Cluster, in_time, new_node};
use crate::report::{Floor, Goal, Report, median, millis, percentile, to_f64};
use crate::server::{Server, Settings};

const PART: &str = "e";
/// The lease time of a worker, after which it counts as lost.
const LEASE_SECONDS: u64 = 3;
/// How much longer the next owner may take.
const BEYOND_SECONDS: u64 = 2;
/// The duration in seconds of the step during which the worker is lost.
const HELD: &str = "1";
const STEPS: [&[&str]; 4] = [&["true"], &["true"], &["sleep", HELD], &["true"]];
/// The position of that step.
const HELD_STEP: &str = "2";

/// How a worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkerEnd {
    /// SIGKILL.
    Killed,
    /// SIGTERM, without time for running steps to end.
    Asked,
}

/// The cost of one change of owner.
struct Cost {
    /// The time from the signal to the next owner's first event.
    gap: Duration,
    /// The number of steps that ran again.
    repeated: usize,
}

pub(crate) async fn measure(
    services: &Services,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let settings = Settings { slots: 4, lease_seconds: LEASE_SECONDS, drain_seconds: 0 };
    let cluster = Cluster::new(services).await;
    let store = cluster.store().await?;
    let mut rig = Rig {
        queue: AmqpQueue::connect(&cluster.amqp(new_node())).await?,
        servers: Vec::new(),
        settings,
        store,
        cluster: &cluster,
    };
    for _ in 0..2 {
        rig.start().await?;
    }
    let (killed, asked) =
        (rig.rounds(WorkerEnd::Killed, rounds).await?, rig.rounds(WorkerEnd::Asked, rounds).await?);
    let gaps = |costs: &[Cost]| costs.iter().map(|cost| millis(cost.gap)).collect::<Vec<_>>();
    let (of_killed, of_asked) = (gaps(&killed), gaps(&asked));
    let bound = millis(Duration::from_secs(LEASE_SECONDS + BEYOND_SECONDS));
    report.beside(
        PART,
        "from kill -9 of an owner to the next one's first event, median",
        "ms",
        median(&of_killed),
        Floor {
            what: format!("the lease of {LEASE_SECONDS} s, and {BEYOND_SECONDS} s"),
            value: bound,
            goal: Some(Goal::AtMost(1.0)),
        },
    );
    report.plain(PART, "the same, the longest", "ms", percentile(&of_killed, 100));
    report.beside(
        PART,
        "from SIGTERM to the next owner's first event, median",
        "ms",
        median(&of_asked),
        Floor {
            what: "after kill -9".into(),
            value: median(&of_killed),
            goal: Some(Goal::AtMost(1.0)),
        },
    );
    report.plain(PART, "the same, the longest", "ms", percentile(&of_asked, 100));
    let all: usize = killed.iter().map(|cost| cost.repeated).sum();
    report.beside(
        PART,
        format!("steps that ran again, of {} in {rounds} crashes, a crash", STEPS.len()),
        "",
        to_f64(all) / to_f64(rounds),
        Floor { what: "the one that ran".into(), value: 1.0, goal: Some(Goal::AtMost(1.0)) },
    );
    report.detail("takeover-ms", json!({ "killed": of_killed, "asked": of_asked }));
    rig.end().await
}

/// Two servers and a publisher.
struct Rig<'a> {
    queue: AmqpQueue,
    servers: Vec<Server>,
    settings: Settings,
    store: Etcd,
    cluster: &'a Cluster,
}

impl Rig<'_> {
    async fn start(&mut self) -> anyhow::Result<()> {
        let (server, _) = Server::start(self.cluster, &self.store, self.settings).await?;
        self.servers.push(server);
        Ok(())
    }

    async fn rounds(&mut self, way: WorkerEnd, rounds: usize) -> anyhow::Result<Vec<Cost>> {
        let mut costs = Vec::new();
        for round in 0..rounds {
            costs.push(self.round(way, round).await?);
            self.start().await?;
        }
        Ok(costs)
    }

    /// One run that changes its owner once.
    async fn round(&mut self, way: WorkerEnd, round: usize) -> anyhow::Result<Cost> {
        let run = self.cluster.run(&format!("{way:?}-{round}").to_lowercase())?;
        let steps: Vec<Vec<&str>> = STEPS.iter().map(|words| words.to_vec()).collect();
        let image = self.cluster.services.get("BOB_TEST_IMAGE");
        let mut told = RunEvents::new(self.cluster, run.clone()).await?;
        self.queue.publish(Route::Jobs, self.cluster.start(&run, image, &steps)).await?;
        let held = |event: &Event| {
            matches!(event.reason, Reason::StepStarted { .. })
                && event.step.as_ref().is_some_and(|step| step.as_str() == HELD_STEP)
        };
        let executions = told.until("a step runs", held).await?;
        let epoch = executions.epoch;
        let owner = self.owner(&run).await?;
        let at = self.servers.iter().position(|server| server.pid == owner);
        let server = self.servers.swap_remove(at.context("another server owns it")?);
        let signalled = Instant::now();
        server.signal(if way == WorkerEnd::Killed { Signal::KILL } else { Signal::TERM })?;
        let mut repeated = 0;
        told.until("another worker resumes", |event| event.epoch > epoch).await?;
        let gap = signalled.elapsed();
        let ended = told
            .until("the run ends", |event| {
                repeated += usize::from(
                    matches!(event.reason, Reason::StepStarted { .. }) && event.attempt > Some(1),
                );
                event.reason.is_ending()
            })
            .await?;
        ensure!(matches!(ended.reason, Reason::PipelineSuccessful), "it ended {ended:?}");
        if way == WorkerEnd::Asked {
            server.ended().await?;
        }
        Ok(Cost { gap, repeated })
    }

    /// The process id of a run's owner.
    async fn owner(&self, run: &RunId) -> anyhow::Result<u32> {
        let entry =
            self.store.get(&names::owner_key(run)).await?.context("the run has no owner")?;
        let owner: OwnerEntry = serde_json::from_slice(&entry.value)?;
        let entry = self.store.get(&names::node_key(&owner.node)).await?.context("no node")?;
        Ok(serde_json::from_slice::<NodeEntry>(&entry.value)?.pid)
    }

    async fn end(self) -> anyhow::Result<()> {
        for server in self.servers {
            server.end().await?;
        }
        Ok(())
    }
}

/// The events of one run.
struct RunEvents {
    run: RunId,
    stream: BoxStream<'static, Result<Published, runner::ports::EventsError>>,
}

impl RunEvents {
    async fn new(cluster: &Cluster, run: RunId) -> anyhow::Result<Self> {
        Ok(Self { run, stream: cluster.events().await?.follow(Position::Next).await? })
    }

    async fn until(
        &mut self,
        what: &str,
        mut is_it: impl FnMut(&Event) -> bool,
    ) -> anyhow::Result<Event> {
        let reading = async {
            loop {
                let event = self.stream.try_next().await?.context("the stream has ended")?.event();
                let Some(event) = event else { continue };
                if event.run_id.as_ref() == Some(&self.run) && is_it(&event) {
                    return Ok(event);
                }
            }
        };
        in_time(what, reading).await
    }
}
