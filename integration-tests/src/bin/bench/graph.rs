//! (g) The cost of a step on the host. `bob-runner run` runs a graph of trivial steps, compared
//! with a shell loop over the same commands. Needs no services.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::report::{Floor, Report, median, millis, to_f64};

const PART: &str = "g";
/// The number of concurrent steps in both.
const AT_ONCE: usize = 16;

/// The size of the measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) steps: usize,
    pub(crate) rounds: usize,
}

pub(crate) async fn measure(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut of_ten = None;
    for steps in [1, size.steps / 10, size.steps] {
        write(dir.path(), steps)?;
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..size.rounds {
            floor.push(millis(shell(steps).await?));
            ours.push(millis(run(dir.path(), steps).await?));
        }
        report.detail(&format!("graph-{steps}-ms"), json!({ "run": ours, "shell": floor }));
        let (ours, floor) = (median(&ours), median(&floor));
        if steps == 1 {
            report.plain(PART, "a run of one step, with the program's start", "ms", ours);
            continue;
        }
        let each = to_f64(steps);
        let loops = format!("xargs -P {AT_ONCE} of the same");
        let beside = |value| Floor { what: loops.clone(), value, goal: None };
        let name = |what: &str| format!("{steps} steps of the host, {AT_ONCE} at once: {what}");
        report.beside(PART, name("a step"), "ms", ours / each, beside(floor / each));
        report.plain(PART, name("added to each"), "ms", (ours - floor) / each);
        if let Some(fewer) = of_ten.replace(ours / each) {
            let what = format!("of {} steps", size.steps / 10);
            let fewer = Floor { what, value: fewer, goal: None };
            report.beside(PART, format!("{steps} steps: a step"), "ms", ours / each, fewer);
        }
    }
    Ok(())
}

/// Writes a pipeline of independent steps.
fn write(dir: &Path, steps: usize) -> anyhow::Result<()> {
    let step = |at| json!({ "name": format!("s{at}"), "executor": "local", "cmd": ["sh", "-c", "true"], "needs": [] });
    let steps: Vec<Value> = (0..steps).map(step).collect();
    let pipeline = json!({ "group": "bench", "name": "graph", "steps": steps });
    Ok(std::fs::write(dir.join("graph.json"), pipeline.to_string())?)
}

/// The program's duration. Every step must exit with 0.
async fn run(dir: &Path, steps: usize) -> anyhow::Result<Duration> {
    let program = std::env::current_exe()?.with_file_name("bob-runner");
    let events = dir.join("events");
    let begun = Instant::now();
    let status = Command::new(&program)
        .args(["run", "graph.json", "-o", "json"])
        .current_dir(dir)
        .env("BOB_DATA_DIR", dir.join("state"))
        .env("BOB_MAX_PARALLEL_STEPS", AT_ONCE.to_string())
        .stdout(File::create(&events)?)
        .status()
        .await
        .with_context(|| format!("cannot start {}", program.display()))?;
    let took = begun.elapsed();
    ensure!(status.success(), "the run of {steps} steps ended with {status}");
    let events = std::fs::read_to_string(events)?;
    let mut ended = 0;
    for line in events.lines() {
        let event: Value = serde_json::from_str(line)?;
        ended += usize::from(event["reason"] == "StepCompleted" && event["exit-code"] == 0);
    }
    ensure!(ended == steps, "{ended} of {steps} steps have ended with 0");
    Ok(took)
}

/// A shell's duration for the same commands.
async fn shell(steps: usize) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let line = format!("seq {steps} | xargs -P {AT_ONCE} -I{{}} sh -c true");
    let status = Command::new("sh").args(["-c", &line]).status().await?;
    ensure!(status.success(), "the shell ended with {status}");
    Ok(begun.elapsed())
}
