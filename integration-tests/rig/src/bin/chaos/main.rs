//! Runs workers on RabbitMQ, etcd and podman while faults are injected everywhere, and checks the
//! invariants afterwards.
//!
//! `just chaos` starts services for it. `docs/chaos.md` describes the faults, the checks, and how
//! to read the report.

mod broker;
mod check;
mod cluster;
mod facts;
mod history;
mod journal;
mod left;
mod load;
mod nemesis;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::{Address, Publisher};
use crate::cluster::{Cluster, MAX_LOSSES, SLOTS, WORKERS};
use crate::facts::{HistoryFacts, now};
use crate::history::{Recorder, Records};
use crate::journal::Journal;
use crate::load::{RunDraw, Size};
use crate::nemesis::{Log, Nemesis};

const HELP: &str = "\
chaos [--seed N] [--runs N] [--minutes N] [--nemeses KINDS] [--rolling] [--admission]
      [--engines N] [--worker PROGRAM]

  --seed N        what the runs and the faults are drawn from (1)
  --runs N        how many runs (500; as many as go with --rolling)
  --minutes N     when no new run is started any more (30; 10 with --rolling)
  --nemeses KINDS all, none, or of kill, pause, drain, cut, refuse, silence, slow (a worker or its
                  connections), broker, member, leader, podman (a service), with commas (all)
  --rolling       no faults: every 20 s one of the three workers is asked to leave and replaced
  --admission     all runs belong to one pipeline with `concurrency: 1`
  --engines N     1, or 2: the second worker has an engine of its own, and steps are kept in a
                  registry (1)
  --worker FILE   the program (bob-runner beside this one)

It starts services of its own, and ends with 1 where an invariant does not hold.
";
/// How long the last runs can take after the last fault.
const SETTLING: Duration = Duration::from_secs(180);

/// The settings of a history.
struct Plan {
    seed: u64,
    runs: usize,
    minutes: u64,
    kinds: Vec<&'static str>,
    rolling: bool,
    /// The number of places that the runs share.
    places: Option<usize>,
    engines: usize,
    program: PathBuf,
}

impl Plan {
    fn of_arguments(mut words: impl Iterator<Item = String>) -> anyhow::Result<Option<Self>> {
        let (mut seed, mut runs, mut minutes, mut rolling) = (1, None, None, false);
        let (mut kinds, mut program, mut engines) = ("all".to_owned(), None, 1);
        let mut places = None;
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--seed" => seed = value()?.parse()?,
                "--runs" => runs = Some(value()?.parse()?),
                "--minutes" => minutes = Some(value()?.parse()?),
                "--nemeses" => kinds = value()?,
                "--worker" => program = Some(PathBuf::from(value()?)),
                "--rolling" => rolling = true,
                "--admission" => places = Some(1),
                "--engines" => engines = value()?.parse()?,
                "--help" | "-h" => return Ok(None),
                _ => bail!("unknown argument {word}\n{HELP}"),
            }
        }
        ensure!((1..=2).contains(&engines), "--engines {engines}: must be 1 or 2");
        let program = match program {
            Some(program) => program,
            None => std::env::current_exe()?.with_file_name("bob-runner"),
        };
        Ok(Some(Self {
            seed,
            runs: runs.unwrap_or(if rolling { usize::MAX } else { 500 }),
            minutes: minutes.unwrap_or(if rolling { 10 } else { 30 }),
            kinds: kinds_of(&kinds)?,
            rolling,
            places,
            engines,
            program,
        }))
    }
}

fn kinds_of(words: &str) -> anyhow::Result<Vec<&'static str>> {
    match words {
        "all" => return Ok(nemesis::kinds().collect()),
        "none" => return Ok(Vec::new()),
        _ => {}
    }
    let known = |word| nemesis::kinds().find(|kind| *kind == word);
    words
        .split(',')
        .map(|word| known(word).with_context(|| format!("--nemeses: unknown nemesis {word}")))
        .collect()
}

#[expect(clippy::print_stderr, reason = "progress for a program without a log")]
pub(crate) fn say(what: &str) {
    eprintln!("{}  {what}", protocol::time::Timestamp::from(now()));
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the table is the output")]
async fn main() -> anyhow::Result<ExitCode> {
    let Some(plan) = Plan::of_arguments(std::env::args().skip(1))? else {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // Dropping the future ends everything that was started, so it must be dropped here.
    let facts = tokio::select! {
        biased;
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
        facts = history(&plan) => facts?,
    };
    let wrong = check::broken(&facts);
    print!("{}", report::table(&facts, plan.seed, &wrong));
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Plays a whole history and returns the facts.
async fn history(plan: &Plan) -> anyhow::Result<HistoryFacts> {
    let engines = plan.engines;
    say(&format!("starting RabbitMQ, three members of etcd, and podman ({engines})"));
    let drain_seconds = if plan.rolling { 8 } else { 3 };
    let cluster = Cluster::start(plan.program.clone(), drain_seconds, engines).await?;
    let mut cluster = Arc::new(cluster);
    let played = play(plan, &cluster).await;
    let is_well = played.as_ref().is_ok_and(|facts| check::broken(facts).is_empty());
    if let Some(cluster) = Arc::get_mut(&mut cluster)
        && !is_well
    {
        say(&format!("the workers' logs are kept: {}", cluster.keep_logs().display()));
    }
    played
}

async fn play(plan: &Plan, cluster: &Arc<Cluster>) -> anyhow::Result<HistoryFacts> {
    let records = Records::new(cluster.etcd_urls());
    let recorder = Recorder::start(records.clone());
    let journal = Journal::start(records.clone()).await?;
    let (user, password) = cluster.amqp_user();
    let address =
        Address { url: cluster.amqp_url(), user: user.to_owned(), password: password.to_owned() };
    for place in 0..WORKERS {
        cluster.launch(&mut *cluster.worker(place).await)?;
    }
    let ready = recorder.until(Duration::from_secs(60), |seen| seen.ready() == WORKERS).await;
    ensure!(ready, "not all workers are ready");
    let size = Size {
        seed: plan.seed,
        runs: plan.runs,
        until: Instant::now() + Duration::from_secs(60 * plan.minutes),
        open: WORKERS * SLOTS + SLOTS,
        is_gentle: plan.rolling,
        places: plan.places,
    };
    let mut draw = RunDraw::new(&size, cluster.image(), journal.url());
    let publisher = Arc::new(Publisher::new(address.clone()));
    let log = Arc::new(Log::default());
    let stop = CancellationToken::new();
    let nemesis = Nemesis {
        cluster: Arc::clone(cluster),
        records,
        log: Arc::clone(&log),
        stop: stop.clone(),
    };
    say("starting runs");
    let vexing = async {
        let vexed = if plan.rolling {
            nemesis.roll().await
        } else {
            nemesis.run(plan.kinds.clone(), plan.seed).await
        };
        // A failed nemesis makes the history useless, so stop everything.
        stop.cancel();
        vexed
    };
    let loading = async {
        let plans = load::publish(&size, &mut draw, &publisher, &recorder, &stop).await;
        stop.cancel();
        plans
    };
    let telling = tell_progress(&recorder, &stop);
    let (vexed, plans, ()) = tokio::join!(vexing, loading, telling);
    vexed?;
    let mut facts = HistoryFacts {
        plans: plans?,
        max_losses: MAX_LOSSES,
        is_gentle: plan.rolling,
        places: plan.places,
        ..HistoryFacts::default()
    };
    say(&format!("{} runs were started, and all faults are healed", facts.plans.len()));
    left::settle(cluster, &recorder, &journal, &address, &log, &mut facts).await?;
    Ok(facts)
}

async fn tell_progress(recorder: &Recorder, stop: &CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(15)) => {}
        }
        say(&format!("{} runs have ended", recorder.look(history::SeenChanges::ended)));
    }
}
