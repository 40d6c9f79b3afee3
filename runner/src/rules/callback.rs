//! Callbacks: notifications that a step has started and how it ended.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::id::{StepName, StepPosition};
use protocol::pipeline::{Callback, OutputKind, Pipeline, Step, Token};
use protocol::run::{RunRecord, StepRecord, StepStatus};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;

use super::job;

/// The progress of a step as receivers of callbacks see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The step is running.
    Running,
    /// The step has ended and will not be retried.
    Ended,
}

/// A notification to be posted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Notification {
    /// Group and name of the pipeline, which decide whether a secret is in scope. Empty in entries
    /// that earlier versions wrote.
    #[serde(default)]
    pub pipeline: (String, String),
    /// Whether that pipeline is a stored one that runs as it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trusted: bool,
    /// The receiver's URL.
    pub url: String,
    /// The secret to send, as a bearer token or signing key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Token>,
    /// The JSON body.
    pub body: Value,
    /// The number of attempts so far.
    #[serde(default)]
    pub tries: u32,
    /// The creation time, in ms since the epoch.
    pub since: i64,
    /// The time of the next attempt, in ms since the epoch.
    pub due: i64,
}

impl Notification {
    /// The URL of the receiver without user, password and query, which can hold secrets.
    #[must_use]
    pub fn receiver(&self) -> Option<String> {
        let url = Url::parse(&self.url).ok()?;
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        Some(format!("{}://{}{port}{}", url.scheme(), url.host_str()?, url.path()))
    }
}

/// The stages of a run's steps for which outbox entries exist.
#[derive(Debug, Default)]
pub struct NotifiedStages {
    steps: BTreeMap<StepName, Stage>,
    /// Whether any step has a callback.
    wanted: bool,
}

impl NotifiedStages {
    /// Derives the stages from the record, whose last write also added the outbox entries.
    #[must_use]
    pub fn of(record: &RunRecord) -> Self {
        let mut told = Self::default();
        let steps = record.pipeline.iter().flat_map(Pipeline::all_steps);
        told.wanted = steps.into_iter().any(|step| step.callback.is_some());
        told.note(record);
        told
    }

    /// Marks all stages of a record as added to the outbox.
    pub fn note(&mut self, record: &RunRecord) {
        if !self.wanted {
            return;
        }
        for step in &record.steps {
            let Some(stage) = stage_of(step) else { continue };
            let told = self.steps.entry(step.name.clone()).or_insert(stage);
            *told = stage.max(*told);
        }
    }

    /// Returns the notifications that a record adds, with position and stage of the step.
    #[must_use]
    pub fn notifications(
        &self,
        record: &RunRecord,
        logs: Option<&str>,
        now: i64,
    ) -> Vec<(StepPosition, Stage, Notification)> {
        let mut found = Vec::new();
        if !self.wanted {
            return found;
        }
        for of_it in &record.steps {
            let Some(stage) = stage_of(of_it) else { continue };
            let told = self.steps.get(&of_it.name);
            // A step that ended before its start was notified gets both notifications.
            let stages = [Stage::Running, Stage::Ended].into_iter();
            for stage in stages.filter(|it| *it <= stage && told.is_none_or(|told| told < it)) {
                if let Some((position, news)) = news(record, of_it, stage, logs, now) {
                    found.push((position, stage, news));
                }
            }
        }
        found
    }
}

fn stage_of(step: &StepRecord) -> Option<Stage> {
    Some(match step.status {
        StepStatus::Pending => return None,
        StepStatus::Started => Stage::Running,
        // The step will be retried.
        StepStatus::Failed | StepStatus::Stopped if step.cause.is_none() => Stage::Running,
        StepStatus::Passed | StepStatus::Failed | StepStatus::Stopped => Stage::Ended,
    })
}

fn news(
    record: &RunRecord,
    of_it: &StepRecord,
    stage: Stage,
    logs: Option<&str>,
    now: i64,
) -> Option<(StepPosition, Notification)> {
    let pipeline = record.pipeline.as_ref()?;
    let mut steps = pipeline.steps_by_position();
    let (position, step) = steps.find(|(_, step)| step.name == of_it.name)?;
    let Callback { url, secret } = match job::filled(record, position)? {
        Ok(step) => step.callback.clone()?,
        // A reference cannot be resolved. Use the address as written, which shows the error.
        Err(_) => step.callback.clone()?,
    };
    let body = body(&job::id(&record.run_id, step), step, of_it, stage, logs);
    let pipeline = (record.group.clone(), record.name.clone());
    let trusted = record.trusted;
    Some((
        position,
        Notification { pipeline, trusted, url, secret, body, tries: 0, since: now, due: now },
    ))
}

/// Builds the body with the field names that receivers of job files expect.
fn body(id: &str, step: &Step, of_it: &StepRecord, stage: Stage, logs: Option<&str>) -> Value {
    let (status, exit_code) = match (stage, of_it.status) {
        (Stage::Running, _) => ("running", -1),
        (Stage::Ended, StepStatus::Passed) => ("success", 0),
        (
            Stage::Ended,
            StepStatus::Pending | StepStatus::Started | StepStatus::Failed | StepStatus::Stopped,
        ) => ("failed", of_it.exit_code.filter(|code| *code != 0).unwrap_or(1)),
    };
    let artifacts: Vec<Value> = step
        .outputs
        .iter()
        .map(|output| {
            let kind = match output.kind {
                Some(OutputKind::Dir) => "dir",
                Some(OutputKind::File) | None => "file",
            };
            json!({ "Path": output.path, "Type": kind })
        })
        .collect();
    json!({
        "job_id": id,
        "status": status,
        "exit_code": exit_code,
        "log_file": logs.map(|dir| format!("{dir}/{id}.log")).unwrap_or_default(),
        "artifacts": artifacts,
    })
}

/// How long a notification is retried if its receiver does not answer.
pub const GIVEN_UP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Returns the delay before the next attempt.
#[must_use]
pub fn pause(tries: u32) -> Duration {
    let seconds = 1_u64.checked_shl(tries.saturating_sub(1)).unwrap_or(u64::MAX);
    Duration::from_secs(seconds.min(300))
}

/// Returns true if a response settles the notification. A permanent error settles it too.
#[must_use]
pub fn is_taken(status: u16) -> bool {
    !(status >= 500 || status == 408 || status == 429)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(steps: &Value) -> RunRecord {
        let record = json!({
            "group": "g", "name": "n", "run-id": "r-1", "status": "running", "attempt": 1,
            "scheduled-at": "2026-01-01T00:00:00.000Z",
            "pipeline": { "group": "g", "name": "n", "steps": [
                { "name": "a", "label": "nightly", "outputs": [{ "path": "out", "type": "dir" }],
                  "callback": { "url": "http://h/x", "secret": "s" } },
                { "name": "b" },
            ] },
            "steps": steps,
        });
        serde_json::from_value(record).unwrap()
    }

    fn stages(told: &NotifiedStages, record: &RunRecord) -> Vec<(StepPosition, Stage, String)> {
        let news = told.notifications(record, Some("/logs"), 5).into_iter();
        news.map(|(at, stage, news)| (at, stage, news.body["status"].as_str().unwrap().to_owned()))
            .collect()
    }

    #[test]
    fn a_step_is_announced_twice_and_a_retry_is_not() {
        let mut told = NotifiedStages::of(&record(&json!([])));
        let begun = record(&json!([
            { "name": "a", "status": "started", "attempt": 1 },
            { "name": "b", "status": "started", "attempt": 1 },
        ]));
        assert_eq!(
            stages(&told, &begun),
            [(StepPosition::new(0), Stage::Running, "running".to_owned())]
        );
        told.note(&begun);
        let again =
            record(&json!([{ "name": "a", "status": "failed", "attempt": 1, "exit-code": 3 }]));
        assert!(stages(&told, &again).is_empty());
        let ended = json!([
            { "name": "a", "status": "failed", "attempt": 2, "exit-code": 3, "cause": "exit-code" },
        ]);
        let ended = record(&ended);
        let news = told.notifications(&ended, Some("/logs"), 5);
        assert_eq!(news.len(), 1);
        let expected = json!({
            "job_id": "nightly", "status": "failed", "exit_code": 3, "log_file": "/logs/nightly.log",
            "artifacts": [{ "Path": "out", "Type": "dir" }],
        });
        assert_eq!((news[0].1, &news[0].2.body), (Stage::Ended, &expected));
        told.note(&ended);
        assert!(stages(&told, &ended).is_empty());
    }

    #[test]
    fn entries_of_an_earlier_owner_are_not_repeated() {
        let begun = record(&json!([{ "name": "a", "status": "started", "attempt": 1 }]));
        let told = NotifiedStages::of(&begun);
        assert!(stages(&told, &begun).is_empty());
        let passed = record(&json!([{ "name": "a", "status": "passed", "attempt": 2 }]));
        assert_eq!(
            stages(&told, &passed),
            [(StepPosition::new(0), Stage::Ended, "success".to_owned())]
        );
    }

    #[test]
    fn a_step_that_starts_and_ends_in_one_write_is_announced_twice() {
        let told = NotifiedStages::of(&record(&json!([])));
        let passed = record(&json!([{ "name": "a", "status": "passed", "attempt": 1 }]));
        let both = [
            (StepPosition::new(0), Stage::Running, "running".to_owned()),
            (StepPosition::new(0), Stage::Ended, "success".to_owned()),
        ];
        assert_eq!(stages(&told, &passed), both);
    }

    #[test]
    fn a_silent_receiver_is_retried_with_growing_delays() {
        let pauses: Vec<u64> = (1..12).map(|tries| pause(tries).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(pause(400).as_secs(), 300);
        assert!(is_taken(200) && is_taken(404) && !is_taken(503) && !is_taken(429));
    }
}
