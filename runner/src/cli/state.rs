//! `ps`, `show`, `nodes`: display the stored state.

use protocol::id::RunId;
use protocol::pipeline::mask_stored_run;
use protocol::run::{RunRecord, Status, StepStatus};
use protocol::time::{Millis, Timestamp};
use serde_json::{Map, Value, json};

use super::args::Ps;
use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{self, Table, TextStyle, one_line, span};
use crate::client::{KnownRun, PlaceInList, RunFilter};

pub(super) async fn ps(context: &Context, typed: Ps) -> Result<Exit, Failure> {
    let client = context.client()?;
    let filter = RunFilter { ended: typed.all, pipeline: typed.pipeline, status: typed.status };
    let mut runs = context.readable(client.runs(&filter).await?);
    runs.truncate(typed.limit.unwrap_or(usize::MAX));
    if context.style.json {
        let stored: Vec<Value> = runs.into_iter().map(document).collect();
        output::document(&stored)?;
        return Ok(Exit::Ok);
    }
    let now = client.ago(std::time::Duration::ZERO);
    let mut table = Table::new(&["RUN", "PIPELINE", "STATUS", "STEP", "AGE", "TIME"]);
    for run in &runs {
        let record = &run.record;
        let (status, ink) = status(run, now);
        table.row(vec![
            (record.run_id.to_string(), TextStyle::Plain),
            (one_line(&format!("{}/{}", record.group, record.name)), TextStyle::Plain),
            (status, ink),
            (steps(record), TextStyle::Plain),
            (span(now.0 - record.scheduled_at.0.0), TextStyle::Dim),
            (took(record, now), TextStyle::Plain),
        ]);
    }
    output::data(table.render(context.style.colour).as_bytes())?;
    Ok(Exit::Ok)
}

/// A run as JSON, with secrets masked.
fn document(run: KnownRun) -> Value {
    let KnownRun { mut stored, waits, .. } = run;
    mask_stored_run(&mut stored);
    if let (Some(waits), Some(stored)) = (waits, stored.as_object_mut()) {
        stored.insert("waits".to_owned(), json!(waits));
    }
    stored
}

fn status(run: &KnownRun, now: Millis) -> (String, TextStyle) {
    let record = &run.record;
    let ink = match record.status {
        Status::Pending | Status::Initializing | Status::Initialized => TextStyle::Dim,
        Status::Running => TextStyle::Cyan,
        Status::Passed => TextStyle::Green,
        Status::Failed => TextStyle::Red,
        Status::Stopped => TextStyle::Yellow,
    };
    if let Some(waits) = run.waits {
        return (waiting(waits, now), TextStyle::Yellow);
    }
    let text = match record.cause.filter(|_| record.status != Status::Passed) {
        // The next owner's claim removes `released`.
        _ if record.released.is_some() && !record.status.is_ended() => {
            format!("{} (handed over, waits for a worker)", record.status)
        }
        Some(cause) => format!("{} ({cause})", record.status),
        None => record.status.to_string(),
    };
    (text, ink)
}

/// `waiting (2 of 5, not before 10.0s)`
fn waiting(waits: PlaceInList, now: Millis) -> String {
    let PlaceInList { position, waiting, due } = waits;
    match due.filter(|due| *due > now) {
        Some(due) => {
            format!("waiting ({position} of {waiting}, not before {})", span(due.0 - now.0))
        }
        None => format!("waiting ({position} of {waiting})"),
    }
}

/// `2/5`: the number of started steps, and of all steps.
fn steps(record: &RunRecord) -> String {
    let all = record.pipeline.as_ref().map_or(0, |pipeline| pipeline.steps.len());
    format!("{}/{all}", record.steps.len())
}

fn took(record: &RunRecord, now: Millis) -> String {
    let Some(started) = record.initiated_at.or(record.started_at) else { return "-".to_owned() };
    span(record.completed_at.map_or(now, |stamp| stamp.0).0 - started.0.0)
}

pub(super) async fn show(context: &Context, run: &RunId) -> Result<Exit, Failure> {
    let client = context.client()?;
    let mut known = client.run(run).await?;
    if context.style.json {
        output::document(&document(known))?;
        return Ok(Exit::Ok);
    }
    mask_stored_run(&mut known.stored);
    let record = &known.record;
    let now = client.ago(std::time::Duration::ZERO);
    let (status, ink) = status(&known, now);
    let mut table = Table::default();
    let mut fact = |name: &str, value: String, ink: TextStyle| {
        table.row(vec![(name.to_owned(), TextStyle::Bold), (one_line(&value), ink)]);
    };
    fact("run", record.run_id.to_string(), TextStyle::Plain);
    fact("pipeline", format!("{}/{}", record.group, record.name), TextStyle::Plain);
    fact("status", status, ink);
    if let Some(message) = &record.message {
        fact("message", message.clone(), TextStyle::Plain);
    }
    if let Some(image) = record.pipeline.as_ref().and_then(|pipeline| pipeline.image.clone()) {
        fact("image", image, TextStyle::Plain);
    }
    if let Some(node) = &record.node {
        fact("node", node.to_string(), TextStyle::Plain);
    }
    if let Some(parent) = &record.parent {
        fact("goes on from", parent.run_id.to_string(), TextStyle::Plain);
    }
    if let Some(logger) = &record.logger {
        fact("logger", logger.to_string(), TextStyle::Plain);
    }
    // A run that waits for a place has had no owner.
    if record.attempt > 0 {
        fact("attempt", record.attempt.to_string(), TextStyle::Plain);
    }
    fact("scheduled", record.scheduled_at.to_string(), TextStyle::Plain);
    for (name, at) in [
        ("initiated", record.initiated_at),
        ("initialized", record.initialized_at),
        ("started", record.started_at),
        ("completed", record.completed_at),
    ] {
        if let Some(at) = at {
            fact(name, at.to_string(), TextStyle::Plain);
        }
    }
    fact("time", took(record, now), TextStyle::Plain);
    for (word, value) in values(&known.stored) {
        fact(word, value, TextStyle::Plain);
    }
    let steps = steps_of(record, now);
    let text =
        format!("{}\n{}", table.render(context.style.colour), steps.render(context.style.colour));
    output::data(text.as_bytes())?;
    Ok(Exit::Ok)
}

/// The variables and parameters of a stored run whose secrets are masked.
fn values(stored: &Value) -> Vec<(&'static str, String)> {
    let mut values = Vec::new();
    for (key, word) in [("vars", "var"), ("params", "param")] {
        for (name, value) in stored.get(key).and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            values.push((word, format!("{name}={value}")));
        }
    }
    values
}

/// The started steps, followed by those of the definition that were not started.
fn steps_of(record: &RunRecord, now: Millis) -> Table {
    let mut table = Table::new(&["STEP", "STATUS", "EXIT", "TIME", "COMMAND"]);
    let defined = record.pipeline.as_ref().map(|pipeline| pipeline.steps.as_slice());
    let command = |name: &protocol::id::StepName| {
        let step = defined.unwrap_or_default().iter().find(|step| step.name == *name);
        step.map(|step| one_line(&step.display())).unwrap_or_default()
    };
    for step in &record.steps {
        let (word, ink) = match step.status {
            StepStatus::Pending => ("pending", TextStyle::Dim),
            StepStatus::Started => ("started", TextStyle::Cyan),
            StepStatus::Passed => ("passed", TextStyle::Green),
            StepStatus::Failed => ("failed", TextStyle::Red),
            StepStatus::Stopped => ("stopped", TextStyle::Yellow),
        };
        let time = step.started_at.map(|Timestamp(Millis(from))| {
            span(step.completed_at.map_or(now, |stamp| stamp.0).0 - from)
        });
        table.row(vec![
            (step.name.to_string(), TextStyle::Plain),
            (word.to_owned(), ink),
            (
                step.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string()),
                TextStyle::Plain,
            ),
            (time.unwrap_or_else(|| "-".to_owned()), TextStyle::Plain),
            (command(&step.name), TextStyle::Dim),
        ]);
    }
    let begun = |name: &protocol::id::StepName| record.steps.iter().any(|step| step.name == *name);
    for step in defined.unwrap_or_default().iter().filter(|step| !begun(&step.name)) {
        let dash = || ("-".to_owned(), TextStyle::Dim);
        table.row(vec![
            (step.name.to_string(), TextStyle::Dim),
            dash(),
            dash(),
            dash(),
            (command(&step.name), TextStyle::Dim),
        ]);
    }
    table
}

pub(super) async fn nodes(context: &Context) -> Result<Exit, Failure> {
    let client = context.client()?;
    let nodes = context.readable(client.nodes().await?);
    let refused = match client.writes_refused().await? {
        None => nodes.iter().find_map(|(_, node)| node.writes_refused.clone()),
        refused => refused,
    };
    if let Some(why) = &refused {
        output::message(&format!("no node takes new work: {why}"));
    }
    if context.style.json {
        let all: Vec<Value> = nodes
            .iter()
            .map(|(name, node)| {
                let mut all = Map::from_iter([("node".to_owned(), json!(name))]);
                if let Value::Object(entry) = json!(node) {
                    all.extend(entry);
                }
                Value::Object(all)
            })
            .collect();
        output::document(&all)?;
        return Ok(Exit::Ok);
    }
    let now = client.ago(std::time::Duration::ZERO);
    let mut table =
        Table::new(&["NODE", "HOST", "STATE", "RUNS", "CPU", "LOAD", "MEMORY", "UP", "VERSION"]);
    for (name, node) in &nodes {
        let (state, ink) = match node.state {
            protocol::run::NodeState::Ready if node.disk.is_some_and(|disk| disk.full) => {
                ("full", TextStyle::Yellow)
            }
            protocol::run::NodeState::Ready if node.engine_away => ("no engine", TextStyle::Red),
            protocol::run::NodeState::Ready if refused.is_some() => ("no writes", TextStyle::Red),
            protocol::run::NodeState::Ready if node.paused.is_some() => ("paused", TextStyle::Red),
            protocol::run::NodeState::Ready => ("ready", TextStyle::Green),
            protocol::run::NodeState::Draining => ("draining", TextStyle::Yellow),
        };
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        table.row(vec![
            (one_line(name.as_str()), TextStyle::Plain),
            (one_line(&node.host), TextStyle::Plain),
            (state.to_owned(), ink),
            (format!("{}/{}", node.runs.len(), node.slots), TextStyle::Plain),
            (node.cpu.count.to_string(), TextStyle::Plain),
            (format!("{:.0}%", node.cpu.load * 100.0), TextStyle::Plain),
            (
                format!("{:.1}/{:.1}Gi", gib(node.memory.free), gib(node.memory.total)),
                TextStyle::Plain,
            ),
            (span(now.0 - node.started_at.0.0), TextStyle::Dim),
            (one_line(&node.version), TextStyle::Dim),
        ]);
    }
    output::data(table.render(context.style.colour).as_bytes())?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handed_over_run_waits_for_a_worker() {
        let record = |status: &str, released: bool| -> KnownRun {
            let mut record = json!({
                "group": "g", "name": "n", "run-id": "r-1", "status": status, "attempt": 1,
                "scheduled-at": "2026-01-01T00:00:00.000Z", "steps": [],
            });
            if released {
                record["released"] = json!({ "by": "bob/runner-1", "reason": "its worker ends" });
            }
            let record = serde_json::from_value(record).unwrap();
            KnownRun { record, stored: Value::Null, waits: None }
        };
        let shown = |run: &KnownRun| status(run, Millis(0)).0;
        assert_eq!(shown(&record("running", false)), "running");
        let expected = "running (handed over, waits for a worker)";
        assert_eq!(shown(&record("running", true)), expected);
        assert_eq!(shown(&record("passed", true)), "passed");
    }

    #[test]
    fn a_waiting_run_shows_its_place_and_the_time_before_which_it_does_not_start() {
        let waits = PlaceInList { position: 2, waiting: 5, due: Some(Millis(90_000)) };
        assert_eq!(waiting(waits, Millis(80_000)), "waiting (2 of 5, not before 10.0s)");
        assert_eq!(waiting(waits, Millis(90_000)), "waiting (2 of 5)");
    }
}
