//! Part (g): the cost of a step on the host. Compares `bob-runner run` on a graph of trivial steps
//! with `xargs` on the same commands. This part needs no services.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::report::{Floor, Report, median, millis, to_f64};

const PART: &str = "g";
/// The maximum number of concurrent steps, and of concurrent commands of `xargs`.
const CONCURRENCY: usize = 16;

/// The number of steps in the largest graph, and how often each graph is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) steps: usize,
    pub(crate) rounds: usize,
}

pub(crate) async fn measure(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut smaller = None;
    for steps in [1, size.steps / 10, size.steps] {
        write_pipeline(dir.path(), steps)?;
        let (mut runs, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..size.rounds {
            floor.push(millis(time_shell(steps).await?));
            runs.push(millis(time_run(dir.path(), steps).await?));
        }
        report.detail(&format!("graph-{steps}-ms"), json!({ "run": runs, "shell": floor }));
        let (run, floor) = (median(&runs), median(&floor));
        if steps == 1 {
            report.plain(PART, "a run of one step, with the program's start", "ms", run);
            continue;
        }
        let step_count = to_f64(steps);
        let floor_name = format!("xargs -P {CONCURRENCY} of the same");
        let floor_of = |value| Floor { what: floor_name.clone(), value, goal: None };
        let name = |what: &str| format!("{steps} steps of the host, {CONCURRENCY} at once: {what}");
        report.beside(PART, name("a step"), "ms", run / step_count, floor_of(floor / step_count));
        report.plain(PART, name("added to each"), "ms", (run - floor) / step_count);
        if let Some(value) = smaller.replace(run / step_count) {
            let what = format!("of {} steps", size.steps / 10);
            let floor = Floor { what, value, goal: None };
            report.beside(PART, format!("{steps} steps: a step"), "ms", run / step_count, floor);
        }
    }
    Ok(())
}

/// Writes a pipeline of independent steps.
fn write_pipeline(dir: &Path, steps: usize) -> anyhow::Result<()> {
    let step = |index| json!({ "name": format!("s{index}"), "executor": "local", "cmd": ["sh", "-c", "true"], "needs": [] });
    let steps: Vec<Value> = (0..steps).map(step).collect();
    let pipeline = json!({ "group": "bench", "name": "graph", "steps": steps });
    Ok(std::fs::write(dir.join("graph.json"), pipeline.to_string())?)
}

/// Runs the pipeline and returns how long the program took. Every step must exit with 0.
async fn time_run(dir: &Path, steps: usize) -> anyhow::Result<Duration> {
    let program = std::env::current_exe()?.with_file_name("bob-runner");
    let events = dir.join("events");
    let start = Instant::now();
    let status = Command::new(&program)
        .args(["run", "graph.json", "-o", "json"])
        .current_dir(dir)
        .env("BOB_DATA_DIR", dir.join("state"))
        .env("BOB_MAX_PARALLEL_STEPS", CONCURRENCY.to_string())
        .stdout(File::create(&events)?)
        .status()
        .await
        .with_context(|| format!("cannot start {}", program.display()))?;
    let duration = start.elapsed();
    ensure!(status.success(), "the run of {steps} steps ended with {status}");
    let events = std::fs::read_to_string(events)?;
    let mut passed_steps = 0;
    for line in events.lines() {
        let event: Value = serde_json::from_str(line)?;
        passed_steps += usize::from(event["reason"] == "StepCompleted" && event["exit-code"] == 0);
    }
    ensure!(passed_steps == steps, "{passed_steps} of {steps} steps exited with 0");
    Ok(duration)
}

/// Runs the same commands with `xargs` and returns how long the shell took.
async fn time_shell(steps: usize) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let line = format!("seq {steps} | xargs -P {CONCURRENCY} -I{{}} sh -c true");
    let status = Command::new("sh").args(["-c", &line]).status().await?;
    ensure!(status.success(), "the shell ended with {status}");
    Ok(start.elapsed())
}
