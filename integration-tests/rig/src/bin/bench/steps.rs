//! (a) The cost of a trivial step. A whole run is compared with the bare REST calls of its steps,
//! with the executor alone, and with podman's own command line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use protocol::event::{Event, Reason};
use protocol::id::{Epoch, RunId};
use protocol::names;
use protocol::pipeline::{ExecutorKind, PullPolicy};
use runner::exec::podman::{Options, Podman};
use runner::ports::{
    Events as _, Gate, Images as _, LogSink, Position, Queue as _, Route, RunScope, Steps as _,
    StopSignal,
};
use serde_json::json;
use test_support::conformance::StepBuilder;
use test_support::services::Services;

use crate::cluster::{Cluster, in_time, new_node, removals};
use crate::peers::Peers;
use crate::report::{Floor, Goal, Report, median, millis};
use crate::rest::EngineClient;

const PART: &str = "a";
const TRIVIAL: &[&str] = &["true"];
/// A longer chain of layers cannot be mounted. The floor then starts over, as the executor
/// squashes.
const SQUASH_EVERY: usize = 60;

/// Chains of `steps` steps, measured `rounds` times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain {
    pub(crate) steps: usize,
    pub(crate) rounds: usize,
}

/// The times for one length, per step, in milliseconds.
#[derive(Debug, Default)]
struct Times {
    worker: Vec<f64>,
    /// The worker's time from its first `StepStarted` to its last `StepCompleted`.
    between: Vec<f64>,
    executor: Vec<f64>,
    floor: Vec<f64>,
    run_and_commit: Vec<f64>,
    build: Vec<f64>,
}

struct Bench {
    cluster: Cluster,
    podman: Arc<Podman>,
    url: String,
    image: String,
    queue: runner::cluster::AmqpQueue,
    events: runner::cluster::AmqpEvents,
    store: runner::cluster::Etcd,
}

pub(crate) async fn measure(
    services: &Services,
    chains: &[Chain],
    peers: Option<&Peers>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let cluster = Cluster::new(services).await;
    let url = services.get("CONTAINER_ENGINE_URL").to_owned();
    let podman = Arc::new(Podman::connect(Options::new(&url))?);
    let bench = Bench {
        queue: runner::cluster::AmqpQueue::connect(&cluster.amqp(new_node())).await?,
        events: cluster.events().await?,
        store: cluster.store().await?,
        podman: Arc::clone(&podman),
        image: services.get("BOB_TEST_IMAGE").to_owned(),
        url,
        cluster,
    };
    let worker = bench.cluster.worker(1, podman).await?;
    // Warms the caches of engine and kernel.
    bench.executor(2, "warm").await?;
    bench.floor(2).await?;
    let mut of_ten = None;
    for chain in chains {
        let times = bench.chain(*chain, peers).await?;
        tell(chain.steps, &times, report);
        let worker = median(&times.worker);
        if chain.steps == 10 {
            of_ten = Some(worker);
        }
        if let (200, Some(of_ten)) = (chain.steps, of_ten) {
            report.beside(
                PART,
                "200 steps: a step of a run",
                "ms",
                worker,
                Floor { what: "of 10 steps".into(), value: of_ten, goal: Some(Goal::AtMost(1.5)) },
            );
        }
    }
    worker.end().await
}

fn tell(steps: usize, times: &Times, report: &mut Report) {
    let floor = median(&times.floor);
    let bare = |goal| Floor { what: "bare REST calls".into(), value: floor, goal };
    let (worker, executor) = (median(&times.worker), median(&times.executor));
    let name = |what: &str| format!("{steps} steps: {what}");
    let goal = Some(Goal::AtMost(1.15)).filter(|_| steps <= 50);
    report.beside(PART, name("a step of a run"), "ms", worker, bare(goal));
    report.beside(
        PART,
        name("a step, between the first's start and the last's end"),
        "ms",
        median(&times.between),
        bare(None),
    );
    report.beside(PART, name("a step of the executor alone"), "ms", executor, bare(None));
    for (what, peer) in [
        ("podman run + podman commit", &times.run_and_commit),
        ("podman build --layers", &times.build),
    ] {
        if !peer.is_empty() {
            let goal = Some(Goal::AtMost(1.0)).filter(|_| steps >= 10);
            let floor = Floor { what: what.into(), value: median(peer), goal };
            report.beside(PART, name("a step of a run"), "ms", worker, floor);
        }
    }
    report.detail(
        &format!("steps-{steps}-ms"),
        json!({
            "worker": times.worker, "between": times.between, "executor": times.executor,
            "floor": times.floor, "run-and-commit": times.run_and_commit, "build": times.build,
        }),
    );
}

impl Bench {
    /// Measures one length, alternating between all, so that other load affects all of them.
    async fn chain(&self, chain: Chain, peers: Option<&Peers>) -> anyhow::Result<Times> {
        let mut times = Times::default();
        let a_step =
            |time: Duration| millis(time) / f64::from(u32::try_from(chain.steps).unwrap_or(1));
        for round in 0..chain.rounds {
            times.floor.push(a_step(self.floor(chain.steps).await?));
            let name = format!("{}-{round}", chain.steps);
            let (whole, between) = self.worker(chain.steps, &name).await?;
            times.worker.push(a_step(whole));
            times.between.push(a_step(between));
            times.executor.push(a_step(self.executor(chain.steps, &name).await?));
            // The command line takes long and is far slower, so two rounds are enough.
            if let Some(peers) = peers.filter(|_| round < 2 && chain.steps <= 50) {
                let image = &self.image;
                times.run_and_commit.push(a_step(peers.run_and_commit(image, chain.steps).await?));
                times.build.push(a_step(peers.build(image, chain.steps).await?));
            }
        }
        Ok(times)
    }

    /// The calls that the steps need, in sequence.
    async fn floor(&self, steps: usize) -> anyhow::Result<Duration> {
        let mut rest = EngineClient::connect(&self.url).await?;
        let (mut image, mut made) = (self.image.clone(), Vec::new());
        let executions = Instant::now();
        for step in 0..steps {
            let squash = step % SQUASH_EVERY == SQUASH_EVERY - 1;
            let (left, container) = rest.step(&image, TRIVIAL, squash).await?;
            made.push((container, left.clone()));
            image = left;
        }
        let took = executions.elapsed();
        for (container, _) in &made {
            rest.remove_container(container).await?;
        }
        // Removing the last image also removes those below it.
        for (_, image) in made.iter().rev() {
            drop(rest.remove_image(image).await);
        }
        Ok(took)
    }

    /// The time from publishing a start to its ending event as a reader of the stream sees it. Also
    /// returns the time between its first `StepStarted` and its last `StepCompleted`.
    async fn worker(&self, steps: usize, name: &str) -> anyhow::Result<(Duration, Duration)> {
        let run = self.cluster.run(name)?;
        let message = self.cluster.start(&run, &self.image, &vec![TRIVIAL.to_vec(); steps]);
        let mut open = self.cluster.watch(&self.store, names::OPEN).await?;
        let mut stream = self.events.follow(Position::Next).await?;
        let executions = Instant::now();
        self.queue.publish(Route::Jobs, message).await?;
        let (mut first, mut last, mut completed) = (None, None, 0);
        let following = async {
            loop {
                let event = stream.next().await.context("the stream has ended")??.event();
                let Some(event) = event.filter(|event| event.run_id.as_ref() == Some(&run)) else {
                    continue;
                };
                if matches!(event.reason, Reason::StepStarted { .. }) {
                    first.get_or_insert(event.at);
                }
                if matches!(event.reason, Reason::StepCompleted { .. }) {
                    (last, completed) = (Some(event.at), completed + 1);
                }
                if event.reason.is_ending() {
                    return anyhow::Ok((event, executions.elapsed()));
                }
            }
        };
        let (ending, took): (Event, Duration) = in_time("a run ends", following).await?;
        ensure!(
            ending.reason == Reason::PipelineSuccessful && completed == steps,
            "run {run} of {steps} trivial steps: {completed} completed; {}",
            ending.message
        );
        // Wait for the run's removal before the next measurement.
        removals(&mut open, 1).await?;
        let between = last.context("a step's end")?.0 - first.context("a step's start")?.0;
        Ok((took, Duration::from_millis(u64::try_from(between)?)))
    }

    /// Runs the steps with the executor but without a worker.
    async fn executor(&self, steps: usize, name: &str) -> anyhow::Result<Duration> {
        let podman = &*self.podman;
        let scope = RunScope {
            cluster: "a bench".into(),
            run: format!("r-{}-alone-{name}", self.cluster.tag).parse::<RunId>()?,
            epoch: Epoch(1),
            image: self.image.clone(),
            pull: PullPolicy::Never,
            has_own_images: false,
        };
        let stop = StopSignal::default();
        let executions = Instant::now();
        let mut workspace = podman.prepare(&scope, &stop).await?;
        for position in 0..steps {
            let step = StepBuilder::new(position, ExecutorKind::Podman);
            let step = step.words(TRIVIAL).network("none").build();
            let (gate, out): (_, Arc<dyn LogSink>) = (Gate::open(), Arc::new(Nowhere));
            let ran = podman.run_step(&scope, &workspace, &step, gate, out, &stop).await?;
            ensure!(ran.exit.code == 0, "a trivial step ended with {}", ran.exit.code);
            workspace = podman.checkpoint(&scope, ran.workspace, &step).await?;
        }
        let took = executions.elapsed();
        podman.destroy(&scope.run).await?;
        Ok(took)
    }
}

/// Discards output.
#[derive(Debug)]
struct Nowhere;

#[async_trait::async_trait]
impl LogSink for Nowhere {
    async fn write(&self, _stream: protocol::event::LogStream, _bytes: bytes::Bytes) {}
}
