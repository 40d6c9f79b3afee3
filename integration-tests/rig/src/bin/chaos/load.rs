//! The load: runs drawn from the seed and published like those of any client. Some are published
//! twice, and some are stopped.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::Publisher;
use crate::facts::{Outcome, Plan};
use crate::history::{Recorder, SeenChanges};

/// Prints an identifier of the engine: the directory of its layers, as the kernel shows it in the
/// step.
const ENGINE: &str =
    "sed -n 's|.*,upperdir=\\([^,]*\\)/overlay/.*|\\1|p' /proc/self/mountinfo | md5sum | cut -c1-8";

/// How long it can take until a start is accepted, through any fault.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(180);

/// The work of a step after it has reported its start.
#[derive(Debug, Clone, Copy)]
enum StepWork {
    /// Sleeps for a while.
    Sleep,
    /// Writes lines for a while.
    Lines,
    /// Sleeps and ignores SIGTERM.
    Stubborn,
    /// Fails at the first of three attempts.
    Flaky,
    /// Exits with 7.
    Fails,
}

/// A run to publish.
pub(crate) struct Order {
    pub(crate) plan: Plan,
    pub(crate) body: Value,
    /// When to stop it.
    pub(crate) stop_after: Option<Duration>,
    pub(crate) times: u32,
}

/// The size of the load.
#[derive(Debug, Clone)]
pub(crate) struct Size {
    pub(crate) seed: u64,
    /// The number of runs.
    pub(crate) runs: usize,
    /// When to stop publishing.
    pub(crate) until: Instant,
    /// The maximum number of open runs.
    pub(crate) open: usize,
    /// Whether every run must pass.
    pub(crate) is_gentle: bool,
    /// The number of places, if all runs belong to one pipeline with a wait list.
    pub(crate) places: Option<usize>,
}

/// Draws runs.
pub(crate) struct RunDraw {
    random: StdRng,
    is_gentle: bool,
    places: Option<usize>,
    tag: String,
    image: String,
    /// The URL for reports of steps.
    url: String,
}

impl RunDraw {
    pub(crate) fn new(size: &Size, image: &str, url: String) -> Self {
        Self {
            random: StdRng::seed_from_u64(size.seed),
            is_gentle: size.is_gentle,
            places: size.places,
            tag: uuid::Uuid::now_v7().simple().to_string(),
            image: image.to_owned(),
            url,
        }
    }

    /// The next run.
    pub(crate) fn order(&mut self, number: usize) -> anyhow::Result<Order> {
        let name = format!("{}-{number}", self.tag);
        let run: protocol::id::RunId = format!("r-{name}").parse()?;
        // Runs that share a place take turns.
        let most = if self.places.is_some() { 2 } else { 5 };
        let count = self.random.random_range(2..=most);
        let fails = !self.is_gentle && self.random.random_bool(0.12);
        let steps: Vec<Value> = (0..count)
            .map(|step| {
                let work = if fails && step == count - 1 { StepWork::Fails } else { self.work() };
                self.step(run.as_str(), step, step == count - 1, work)
            })
            .collect();
        let is_stopped = !self.is_gentle && self.random.random_bool(0.12);
        let stop_after = is_stopped.then(|| self.millis(0, 9000));
        let mut pipeline = json!({
            "group": "chaos", "name": name, "image": self.image, "network": "host",
            "pull": "never", "steps": steps,
        });
        if let Some(places) = self.places {
            pipeline["name"] = json!(self.tag);
            pipeline["admission"] = json!({ "concurrency": places });
        }
        let outcome = if fails { Outcome::Failed } else { Outcome::Passed };
        Ok(Order {
            body: json!({ "run-id": run, "pipeline": pipeline }),
            plan: Plan { run, outcome, steps: count, is_stopped },
            stop_after,
            times: if self.random.random_bool(0.06) { 2 } else { 1 },
        })
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.random.random_range(from..to))
    }

    fn work(&mut self) -> StepWork {
        let all = [
            StepWork::Sleep,
            StepWork::Sleep,
            StepWork::Sleep,
            StepWork::Lines,
            StepWork::Lines,
            StepWork::Stubborn,
            StepWork::Flaky,
        ];
        all.choose(&mut self.random).copied().unwrap_or(StepWork::Sleep)
    }

    /// A step. It reports its start and continues when that is confirmed. It leaves its number in a
    /// file, and the last step prints all of them.
    fn step(&mut self, run: &str, step: usize, is_last: bool, work: StepWork) -> Value {
        let url = self.url.clone();
        let says = if matches!(work, StepWork::Flaky) { "flaky" } else { "begin" };
        let does = match work {
            StepWork::Sleep | StepWork::Flaky | StepWork::Fails => {
                format!("sleep {}", self.sleep(2500))
            }
            StepWork::Stubborn => format!("trap '' TERM; sleep {}", self.sleep(4000)),
            StepWork::Lines => {
                let count = self.random.random_range(5..60);
                let sleep = self.sleep(120);
                format!(
                    "i=0; while [ $i -lt {count} ]; do echo \"line $i of step {step} of {run}\"; \
                     echo \"error $i\" >&2; i=$((i+1)); sleep {sleep}; done"
                )
            }
        };
        let tells = if is_last { "; echo did $(cat /did)" } else { "" };
        let ends = if matches!(work, StepWork::Fails) { "; exit 7" } else { "" };
        let line = format!(
            "t=$(cat /proc/sys/kernel/random/uuid)/$({ENGINE}); \
             wget -q -O /dev/null {url}/hold/{run}/{step}/$t >/dev/null 2>&1 & \
             wget -q -O /dev/null {url}/{says}/{run}/{step}/$t || exit 3; \
             echo {step} >> /did; {does}{tells}{ends}"
        );
        let mut made = json!({ "cmd": ["sh", "-c", line] });
        if matches!(work, StepWork::Flaky) {
            made["retry"] = json!({ "attempts": 3, "delay": "200ms" });
        }
        made
    }

    fn sleep(&mut self, most: u64) -> String {
        let most = if self.places.is_some() { most / 8 } else { most };
        format!("{:.3}", self.millis(10, most).as_secs_f64())
    }
}

/// Publishes runs, with a limit on open ones, until there are enough or the time is over. Returns
/// the published runs.
pub(crate) async fn publish(
    size: &Size,
    draw: &mut RunDraw,
    publisher: &Arc<Publisher>,
    recorder: &Recorder,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<Plan>> {
    let mut plans = Vec::new();
    let mut stops = JoinSet::new();
    while plans.len() < size.runs && Instant::now() < size.until && !stop.is_cancelled() {
        let published = plans.len();
        let left = size.until.saturating_duration_since(Instant::now());
        let has_room = recorder.until(left, |seen| published - seen.ended() < size.open);
        let has_room = tokio::select! {
            biased;
            () = stop.cancelled() => false,
            has_room = has_room => has_room,
        };
        if !has_room {
            break;
        }
        let order = draw.order(plans.len())?;
        if let Some(after) = order.stop_after {
            let (publisher, run) = (Arc::clone(publisher), order.plan.run.clone());
            stops.spawn(async move {
                tokio::time::sleep(after).await;
                let body = json!({ "run-id": run, "reason": "the rig says so" });
                publisher.publish("bob.control", protocol::command::STOP, &body).await
            });
        }
        for _ in 0..order.times {
            publisher.publish("bob.jobs", protocol::command::START, &order.body).await?;
        }
        let run = order.plan.run.clone();
        plans.push(order.plan);
        if size.places.is_some() {
            // The order of two starts that are in the queue at the same time is not defined.
            let is_accepted = |seen: &SeenChanges| seen.is_accepted(&run);
            ensure!(
                recorder.until(ACCEPTED_WITHIN, is_accepted).await,
                "run {run} was not accepted within {} s",
                ACCEPTED_WITHIN.as_secs()
            );
        }
    }
    while let Some(stopped) = stops.join_next().await {
        stopped??;
    }
    Ok(plans)
}
