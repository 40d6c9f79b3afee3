//! Measures what bob-runner costs. Each figure is compared with its floor from the same run.
//!
//! `just bench` starts services for it. `docs/benchmarks.md` explains the figures.

#![allow(clippy::disallowed_methods, reason = "a bench has no task table")]

mod bare;
mod claims;
mod cluster;
mod graph;
mod idle;
mod lines;
mod mask;
mod memory;
mod peers;
mod report;
mod rest;
mod server;
mod steps;
mod takeover;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use protocol::time::Timestamp;
use runner::host::Linux;
use runner::ports::Host as _;
use serde_json::{Value, json};
use test_support::services::{BROKER, ENGINE, Management, STORE, Services};

use crate::claims::Size as Claims;
use crate::graph::Size as Graph;
use crate::lines::Size as Lines;
use crate::mask::Size as Masked;
use crate::peers::Peers;
use crate::report::Report;
use crate::rest::EngineClient;
use crate::steps::Chain;

const HELP: &str = "\
bench [--only PARTS] [--quick]

  --only PARTS  of a (time of a step), b (log throughput), c (claims), d (memory), e (takeover and
                hand-over), f (many idle workers), g (steps of the host), h (the mask of secrets):
                a,b,c,d,e,f,g,h
  --quick       less of everything: to see that it works, not to read figures

The services are those of the environment: scripts/bench starts some; g and h need none. BOB_BENCH_ENTER names the
program that starts others beside the engine, as its user; without it podman's own command line is
left out.
";

const PARTS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// The size of every measurement.
struct Plan {
    parts: String,
    chains: Vec<Chain>,
    lines: Lines,
    claims: Claims,
    runs: usize,
    losses: usize,
    idle: usize,
    graph: Graph,
    masked: Masked,
}

impl Plan {
    fn of_arguments(mut words: impl Iterator<Item = String>) -> anyhow::Result<Option<Self>> {
        let (mut parts, mut quick) = (PARTS.join(","), false);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--only" => parts = words.next().context("--only needs a value")?,
                "--quick" => quick = true,
                "--help" | "-h" => return Ok(None),
                _ => bail!("unknown argument {word}\n{HELP}"),
            }
        }
        if let Some(unknown) = parts.split(',').find(|part| !PARTS.contains(part)) {
            bail!("--only {unknown}: there are {}", PARTS.join(", "));
        }
        Ok(Some(if quick { Self::quick(parts) } else { Self::whole(parts) }))
    }

    fn whole(parts: String) -> Self {
        let chain = |steps, rounds| Chain { steps, rounds };
        Self {
            parts,
            chains: vec![chain(1, 15), chain(10, 5), chain(50, 2), chain(200, 1)],
            lines: Lines { lines: 500_000, bytes: 80, rounds: 3 },
            claims: Claims { runs: 2000, rounds: 3, latencies: 200 },
            runs: 100,
            losses: 7,
            idle: 1000,
            graph: Graph { steps: 1000, rounds: 3 },
            masked: Masked { mebibytes: 256, rounds: 5 },
        }
    }

    fn quick(parts: String) -> Self {
        let chain = |steps, rounds| Chain { steps, rounds };
        Self {
            parts,
            chains: vec![chain(1, 3), chain(10, 1)],
            lines: Lines { lines: 50_000, bytes: 80, rounds: 1 },
            claims: Claims { runs: 200, rounds: 1, latencies: 20 },
            runs: 10,
            losses: 1,
            idle: 20,
            graph: Graph { steps: 100, rounds: 1 },
            masked: Masked { mebibytes: 8, rounds: 1 },
        }
    }

    /// Whether it needs no services.
    fn is_alone(&self) -> bool {
        self.parts.split(',').all(|part| ["g", "h"].contains(&part))
    }

    fn has(&self, part: &str) -> bool {
        self.parts.split(',').any(|asked| asked == part)
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench's configuration is its environment")]
fn enter() -> Option<String> {
    std::env::var("BOB_BENCH_ENTER").ok().filter(|program| !program.is_empty())
}

#[expect(clippy::print_stderr, reason = "progress for a program without a log")]
fn say(what: &str) {
    eprintln!("{what}");
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the table is the output")]
async fn main() -> anyhow::Result<()> {
    let Some(plan) = Plan::of_arguments(std::env::args().skip(1))? else {
        print!("{HELP}");
        return Ok(());
    };
    let mut report = Report::default();
    let executions = Instant::now();
    let (about, measured) = if plan.is_alone() {
        (here(), alone(&plan, &mut report).await)
    } else {
        let needed: Vec<&str> = BROKER.iter().chain(STORE).chain(ENGINE).copied().collect();
        let services = Services::from_env(&needed).context("the bench needs its services")?;
        (about(&services).await?, measure(&plan, &services, &mut report).await)
    };
    let about = json!({ "seconds": executions.elapsed().as_secs(), "of": about });
    print!("{}", report.table());
    let file = write(&report.json(&about))?;
    say(&format!("written to {file}"));
    measured
}

/// The measurements without services.
async fn alone(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        say("this is a debug build: its figures are not those of a release");
    }
    if plan.has("g") {
        say("g: steps of the host");
        graph::measure(plan.graph, report).await?;
    }
    if plan.has("h") {
        say("h: the mask of secrets");
        mask::measure(plan.masked, report)?;
    }
    Ok(())
}

async fn measure(plan: &Plan, services: &Services, report: &mut Report) -> anyhow::Result<()> {
    alone(plan, report).await?;
    let peers = enter().map(Peers::new);
    if peers.is_none() {
        say("podman's command line is left out: BOB_BENCH_ENTER is not set");
    }
    // Shortest first. The one that leaves most on the engine comes last.
    if plan.has("c") {
        say("c: claims");
        claims::measure(services, plan.claims, report).await?;
    }
    if plan.has("b") {
        say("b: log throughput");
        lines::measure(services, plan.lines, report).await?;
    }
    if plan.has("a") {
        say("a: time of a step");
        steps::measure(services, &plan.chains, peers.as_ref(), report).await?;
    }
    if plan.has("d") {
        say("d: memory");
        memory::measure(services, plan.runs, report).await?;
    }
    if plan.has("e") {
        say("e: takeover and hand-over");
        takeover::measure(services, plan.losses, report).await?;
    }
    if plan.has("f") {
        say("f: idle workers");
        idle::measure(services, plan.idle, report).await?;
    }
    Ok(())
}

/// The environment of the measurement.
async fn about(services: &Services) -> anyhow::Result<Value> {
    let mut engine = EngineClient::connect(services.get("CONTAINER_ENGINE_URL")).await?;
    let podman = engine.call(hyper::Method::GET, "/version", None).await?;
    let broker = Management::of(services).get("overview").await;
    let url = services.etcd().urls.into_iter().next().context("etcd's address")?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let etcd: Value =
        serde_json::from_str(&client.get(format!("{url}/version")).send().await?.text().await?)?;
    let mut about = here();
    about["podman"] = podman["Version"].clone();
    about["rabbitmq"] = broker["rabbitmq_version"].clone();
    about["etcd"] = etcd["etcdserver"].clone();
    Ok(about)
}

fn here() -> Value {
    json!({
        "at": Timestamp::from(Linux::default().now()),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
    })
}

fn write(report: &Value) -> anyhow::Result<String> {
    let directory = Path::new("bench-results");
    std::fs::create_dir_all(directory)?;
    let at = Timestamp::from(Linux::default().now()).to_string().replace(':', "-");
    let file = directory.join(format!("{at}.json"));
    std::fs::write(&file, serde_json::to_vec_pretty(report)?)?;
    Ok(file.display().to_string())
}
