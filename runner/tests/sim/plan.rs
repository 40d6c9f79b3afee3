//! The plan of a history, drawn from its seed or written by hand.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

/// Before or after an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EffectSide {
    Before,
    After,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies.
    Crash,
    /// The process is paused for a while.
    Pause(Duration),
    /// Before the effect: it does not happen. After the effect: its answer is lost.
    Break,
    /// The effect is slow.
    Slow(Duration),
    /// The call never returns, like a deadlock in the worker's own code.
    Hang,
    /// The worker's own code panics.
    Panic,
}

/// A fault at one site.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The site. See `site_of` of each port.
    pub site: &'static str,
    pub side: EffectSide,
    /// The occurrence of the site, counted from 1.
    pub nth: u32,
    pub fault: Fault,
}

impl Rule {
    pub fn new(site: &'static str, side: EffectSide, fault: Fault) -> Self {
        Self { site, side, nth: 1, fault }
    }

    pub fn nth(mut self, nth: u32) -> Self {
        self.nth = nth;
        self
    }

    /// Whether the fault is due now. Counts occurrences.
    pub fn is_at(&mut self, site: &str, side: EffectSide) -> bool {
        if self.site != site || self.side != side {
            return false;
        }
        self.nth -= 1;
        self.nth == 0
    }
}

/// A run of a history.
#[derive(Debug, Clone)]
pub struct RunPlan {
    pub name: String,
    /// `work MS CODE`: runs for MS and exits with CODE; `stubborn MS`: ignores SIGTERM;
    /// `call MS CODE`: acts on another system and must not run twice.
    pub steps: Vec<String>,
    pub on_lost: Option<&'static str>,
    pub retry: u32,
    /// Whether the first step fetches a resource and leaves an artifact.
    pub moves: bool,
    /// The dependencies of each step, if they are not a chain.
    pub needs: Option<Vec<Vec<usize>>>,
    /// Whether steps that do not depend on a failed step continue.
    pub goes_on: bool,
    /// When it is published, and how often.
    pub at: Duration,
    pub times: u32,
    /// When it is stopped.
    pub stop_at: Option<Duration>,
    /// The policy of the pipeline that all such runs of a history share.
    pub admission: Option<Value>,
}

/// The pipeline of the runs with a policy.
pub const LIMITED: &str = "limited";

impl RunPlan {
    pub fn new(name: &str, steps: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            steps: steps.iter().map(|&step| step.to_owned()).collect(),
            on_lost: None,
            retry: 1,
            moves: false,
            needs: None,
            goes_on: false,
            at: Duration::ZERO,
            times: 1,
            stop_at: None,
            admission: None,
        }
    }

    pub fn stopped_at(mut self, seconds: u64) -> Self {
        self.stop_at = Some(Duration::from_secs(seconds));
        self
    }

    pub fn at(mut self, seconds: u64) -> Self {
        self.at = Duration::from_secs(seconds);
        self
    }

    pub fn moving(mut self) -> Self {
        self.moves = true;
        self
    }

    /// Sets the dependencies of each step, by position.
    pub fn forked(mut self, needs: &[&[usize]]) -> Self {
        self.needs = Some(needs.iter().map(|needs| needs.to_vec()).collect());
        self
    }

    /// The steps that a step depends on.
    pub fn needed_by(&self, position: usize) -> Vec<usize> {
        match &self.needs {
            Some(needs) => needs.get(position).cloned().unwrap_or_default(),
            None => position.checked_sub(1).into_iter().collect(),
        }
    }

    pub fn pipeline(&self) -> Value {
        let mut steps: Vec<Value> = self
            .steps
            .iter()
            .map(|cmd| {
                let mut step = json!({ "cmd": cmd, "retry": { "attempts": self.retry } });
                if is_call(cmd) {
                    step["executor"] = "ssh".into();
                    step["with"] = json!({ "host": "elsewhere", "user": "sim" });
                }
                step
            })
            .collect();
        for (at, needs) in self.needs.iter().flatten().enumerate() {
            let names: Vec<String> = needs.iter().map(ToString::to_string).collect();
            steps[at]["from"] = match &names[..] {
                [] | [_] => Value::Null,
                [.., last] => last.as_str().into(),
            };
            steps[at]["needs"] = names.into();
        }
        if self.moves
            && let Some(first) = steps.first_mut()
        {
            first["needs_resource"] = "files".into();
            first["produces_artifact"] = json!({ "name": "out", "path": "out", "store": "here" });
        }
        let mut pipeline =
            json!({ "group": "sim", "name": self.name, "image": "base", "steps": steps });
        if self.moves {
            let of = json!({ "group": "sim", "name": "earlier", "run_id": "r-0", "artifact_name": "out" });
            let files =
                json!({ "name": "files", "type": "internal", "provider": "here", "params": of });
            pipeline["resources"] = json!([files]);
        }
        if self.goes_on {
            pipeline["failure"] = "continue".into();
        }
        if let Some(on_lost) = self.on_lost {
            pipeline["on-lost"] = on_lost.into();
        }
        if let Some(policy) = &self.admission {
            pipeline["name"] = LIMITED.into();
            pipeline["admission"] = policy.clone();
        }
        pipeline
    }
}

/// An event in the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultEvent {
    /// A worker drains, and another one replaces it.
    Drain { worker: usize, abort: bool },
    /// A worker drains and is not replaced.
    Leave { worker: usize },
    /// A worker starts at a place.
    Join { place: usize },
    /// The store is unreachable.
    StoreAway(Duration),
    /// The store rejects writes, but reads and lease renewals work.
    WritesRefused(Duration),
    /// The store compacts its history.
    Compact,
    /// The store ends a lease long before its time.
    LeaseGone { worker: usize },
    /// The stream accepts nothing.
    StreamAway(Duration),
    /// All connections to the broker are cut.
    BrokerCut,
    /// An engine restarts, which kills its containers.
    EngineRestart { engine: usize },
    /// An engine's service is unreachable for a while. Its containers keep running.
    EngineAway { engine: usize, span: Duration },
    /// A worker is paused.
    Pause { worker: usize, span: Duration },
    /// A worker dies.
    Crash { worker: usize },
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub workers: usize,
    pub engines: usize,
    pub slots: usize,
    /// Commits are pushed to a registry.
    pub registry: bool,
    pub runs: Vec<RunPlan>,
    /// The probability of a fault at each site, and the maximum number of faults.
    pub chance: f64,
    pub faults: u32,
    pub rules: Vec<Rule>,
    pub blows: Vec<(Duration, FaultEvent)>,
    /// No random faults happen after this time.
    pub quiet_after: Duration,
    /// Whether dead workers are replaced.
    pub replaced: bool,
    pub traced: bool,
}

fn millis(chance: &mut StdRng, most: u64) -> Duration {
    Duration::from_millis(chance.random_range(0..most))
}

impl Plan {
    /// A history without random faults: two workers on one engine.
    pub fn quiet(runs: Vec<RunPlan>) -> Self {
        Self {
            seed: 1,
            workers: 2,
            engines: 1,
            slots: 2,
            registry: false,
            runs,
            chance: 0.0,
            faults: 0,
            rules: Vec::new(),
            blows: Vec::new(),
            quiet_after: Duration::ZERO,
            replaced: true,
            traced: false,
        }
    }

    pub fn with(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    pub fn blow(mut self, at: Duration, blow: FaultEvent) -> Self {
        self.blows.push((at, blow));
        self
    }

    /// The history of a seed.
    pub fn of_seed(seed: u64) -> Self {
        // A different random sequence from that of the history itself.
        let mut chance = StdRng::seed_from_u64(seed ^ 0x5eed_5eed_5eed_5eed);
        let chance = &mut chance;
        let workers = chance.random_range(1..4);
        let engines = if workers > 1 && chance.random_bool(0.3) { 2 } else { 1 };
        let mut runs: Vec<RunPlan> =
            (0..chance.random_range(1..4)).map(|at| run(chance, at)).collect();
        let blows = (0..chance.random_range(0..4))
            .map(|_| (millis(chance, 40_000), blow(chance, workers, engines)))
            .collect();
        let (slots, registry) = (chance.random_range(1..3), chance.random_bool(0.3));
        if let Some(policy) = policy(chance) {
            for run in &mut runs {
                run.admission = Some(policy.clone());
            }
        }
        Self {
            seed,
            workers,
            engines,
            slots,
            registry,
            runs,
            chance: *[0.0, 0.003, 0.01, 0.03].get(chance.random_range(0..4)).unwrap_or(&0.0),
            faults: chance.random_range(1..5),
            rules: Vec::new(),
            blows,
            quiet_after: Duration::from_secs(60),
            replaced: true,
            traced: false,
        }
    }
}

fn run(chance: &mut StdRng, at: usize) -> RunPlan {
    let steps: Vec<String> = (0..chance.random_range(1..5)).map(|_| step(chance)).collect();
    // Each step depends on the one before it, an earlier one, or none.
    let needs = chance.random_bool(0.3).then(|| {
        let before = |at: usize, chance: &mut StdRng| match at {
            0 => Vec::new(),
            _ if chance.random_bool(0.2) => Vec::new(),
            _ => vec![chance.random_range(0..at)],
        };
        (0..steps.len()).map(|at| before(at, chance)).collect()
    });
    let moves = chance.random_bool(0.2) && !steps.first().is_some_and(|step| is_call(step));
    RunPlan {
        name: format!("r{at}"),
        steps,
        on_lost: match chance.random_range(0..8) {
            0 => Some("restart"),
            1 => Some("fail"),
            _ => None,
        },
        retry: if chance.random_bool(0.2) { 3 } else { 1 },
        moves,
        goes_on: needs.is_some() && chance.random_bool(0.5),
        needs,
        at: millis(chance, 20_000),
        times: if chance.random_bool(0.2) { 2 } else { 1 },
        stop_at: chance.random_bool(0.25).then(|| millis(chance, 45_000)),
        admission: None,
    }
}

/// The policy of a history whose runs belong to one pipeline, if they do.
fn policy(chance: &mut StdRng) -> Option<Value> {
    let concurrency = chance.random_range(1..3);
    let delay = [0, 0, 500, 5_000][chance.random_range(0..4)];
    let limit = chance.random_range(0..3);
    let mut policy = json!({ "concurrency": concurrency });
    if delay > 0 {
        policy["start-delay"] = format!("{delay}ms").into();
    }
    match chance.random_range(0..7) {
        0 => {}
        1 => policy["limit"] = limit.max(u32::from(delay > 0)).into(),
        2 => {
            policy["limit"] = limit.max(1).into();
            policy["strategy"] = "replace".into();
        }
        _ => return None,
    }
    Some(policy)
}

fn step(chance: &mut StdRng) -> String {
    let code = if chance.random_bool(0.1) { 3 } else { 0 };
    let span = match chance.random_range(0..4) {
        0 => 0,
        1 => chance.random_range(1..50),
        2 => chance.random_range(50..3_000),
        _ => chance.random_range(3_000..20_000),
    };
    match chance.random_range(0..20) {
        0 | 1 => format!("stubborn {span}"),
        2..5 => format!("call {span} {code}"),
        _ => format!("work {span} {code}"),
    }
}

/// Whether a step acts on another system and must not run twice.
pub fn is_call(step: &str) -> bool {
    step.starts_with("call ")
}

fn blow(chance: &mut StdRng, workers: usize, engines: usize) -> FaultEvent {
    let worker = chance.random_range(0..workers);
    match chance.random_range(0..12) {
        0 | 1 => FaultEvent::Drain { worker, abort: chance.random_bool(0.5) },
        2 => FaultEvent::StoreAway(millis(chance, 25_000)),
        3 => FaultEvent::Compact,
        4 => FaultEvent::LeaseGone { worker },
        5 => FaultEvent::StreamAway(millis(chance, 45_000)),
        6 => FaultEvent::BrokerCut,
        7 => FaultEvent::EngineRestart { engine: chance.random_range(0..engines) },
        8 => FaultEvent::EngineAway {
            engine: chance.random_range(0..engines),
            span: millis(chance, 30_000),
        },
        9 => FaultEvent::Pause { worker, span: millis(chance, 40_000) },
        10 => FaultEvent::WritesRefused(millis(chance, 60_000)),
        _ => FaultEvent::Crash { worker },
    }
}

/// The parsed words of a step.
pub struct Work {
    pub span: Duration,
    pub code: i32,
    pub stubborn: bool,
}

pub fn work(words: &[String]) -> Work {
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    Work {
        span: Duration::from_millis(number(1)),
        code: i32::try_from(number(2)).unwrap_or(1),
        stubborn: words.first().is_some_and(|word| word == "stubborn"),
    }
}
