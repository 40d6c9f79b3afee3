//! What a list of runs shows about one run.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use protocol::id::RunId;
use protocol::run::{Cause, Parent, Status, StepStatus};
use protocol::time::{Millis, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The characters of a run's message that a summary keeps.
const MESSAGE_CHARS: usize = 300;

/// A run in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct RunSummary {
    /// The run.
    pub run_id: RunId,
    /// The pipeline's group.
    pub group: String,
    /// The pipeline's name.
    pub name: String,
    /// The status.
    pub status: Status,
    /// Why the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The cause as a sentence for people, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The current or last owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The run whose steps this run took over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<RunId>,
    /// 1, plus 1 for each new owner.
    pub attempt: u32,
    /// When the run was accepted.
    pub scheduled_at: Timestamp,
    /// When an owner started to prepare the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initiated_at: Option<Timestamp>,
    /// When the first step started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// The steps that were started, by status.
    pub steps: StepCounts,
    /// The first step that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_step: Option<String>,
}

/// The steps of a run that were started, counted by status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct StepCounts {
    /// Steps in progress.
    pub running: u32,
    /// Steps that passed.
    pub passed: u32,
    /// Steps that failed.
    pub failed: u32,
    /// Steps that were stopped.
    pub stopped: u32,
}

/// A summary as the projection keeps it: texts that many runs have in common are shared.
#[derive(Debug)]
pub(super) struct CompactRun {
    pub(super) run: RunId,
    pub(super) group: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) status: Status,
    cause: Option<Cause>,
    pub(super) message: Option<Box<str>>,
    node: Option<Arc<str>>,
    parent: Option<RunId>,
    attempt: u32,
    pub(super) scheduled: Millis,
    initiated: Option<Millis>,
    started: Option<Millis>,
    completed: Option<Millis>,
    steps: StepCounts,
    failed_step: Option<Arc<str>>,
    /// The revision of the record.
    pub(super) revision: i64,
}

/// The fields of a record that a summary needs. The others can be of a later version.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RecordFields<'a> {
    #[serde(borrow)]
    group: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    run_id: RunId,
    status: Status,
    /// A later version can have causes that this one does not know.
    #[serde(default)]
    cause: Option<Known<Cause>>,
    #[serde(borrow, default)]
    message: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    node: Option<Cow<'a, str>>,
    #[serde(default)]
    parent: Option<Parent>,
    attempt: u32,
    scheduled_at: Timestamp,
    #[serde(default)]
    initiated_at: Option<Timestamp>,
    #[serde(default)]
    started_at: Option<Timestamp>,
    #[serde(default)]
    completed_at: Option<Timestamp>,
    #[serde(borrow, default)]
    steps: Vec<StepFields<'a>>,
}

#[derive(Deserialize)]
struct StepFields<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    status: Option<Known<StepStatus>>,
}

/// A value that this version knows, or any other.
#[derive(Deserialize)]
#[serde(untagged)]
enum Known<T> {
    Value(T),
    Other(serde::de::IgnoredAny),
}

impl<T> Known<T> {
    fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Other(_) => None,
        }
    }
}

/// Texts that runs have in common.
#[derive(Default)]
pub(super) struct SharedTexts(HashSet<Arc<str>>);

impl SharedTexts {
    fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let text: Arc<str> = Arc::from(text);
        self.0.insert(Arc::clone(&text));
        text
    }

    /// Drops the texts that no run has any longer, once there are many more texts than runs.
    pub(super) fn shrink(&mut self, runs: usize) {
        if self.0.len() > 2 * runs + 64 {
            self.0.retain(|text| Arc::strong_count(text) > 1);
        }
    }
}

impl CompactRun {
    /// Reads the fields of a record.
    pub(super) fn read(
        record: &[u8],
        revision: i64,
        texts: &mut SharedTexts,
    ) -> serde_json::Result<Self> {
        let fields: RecordFields<'_> = serde_json::from_slice(record)?;
        let mut steps = StepCounts::default();
        let mut failed_step = None;
        for step in fields.steps {
            let count = match step.status.and_then(Known::value) {
                Some(StepStatus::Started) => &mut steps.running,
                Some(StepStatus::Passed) => &mut steps.passed,
                Some(StepStatus::Failed) => &mut steps.failed,
                Some(StepStatus::Stopped) => &mut steps.stopped,
                Some(StepStatus::Pending) | None => continue,
            };
            *count += 1;
            if steps.failed == 1 && failed_step.is_none() {
                failed_step = Some(texts.get(&step.name));
            }
        }
        let shortened = |text: Cow<'_, str>| {
            let end = text.char_indices().nth(MESSAGE_CHARS).map(|(end, _)| end);
            match end {
                Some(end) => format!("{}…", &text[..end]).into_boxed_str(),
                None => text.into_owned().into_boxed_str(),
            }
        };
        let millis = |at: Timestamp| at.0;
        Ok(Self {
            run: fields.run_id,
            group: texts.get(&fields.group),
            name: texts.get(&fields.name),
            status: fields.status,
            cause: fields.cause.and_then(Known::value),
            message: fields.message.map(shortened),
            node: fields.node.map(|node| texts.get(&node)),
            parent: fields.parent.map(|parent| parent.run_id),
            attempt: fields.attempt,
            scheduled: fields.scheduled_at.0,
            initiated: fields.initiated_at.map(millis),
            started: fields.started_at.map(millis),
            completed: fields.completed_at.map(millis),
            steps,
            failed_step,
            revision,
        })
    }

    /// The summary as it is shown.
    pub(super) fn shown(&self) -> RunSummary {
        RunSummary {
            run_id: self.run.clone(),
            group: self.group.to_string(),
            name: self.name.to_string(),
            status: self.status,
            cause: self.cause,
            message: self.message.as_deref().map(str::to_owned),
            node: self.node.as_deref().map(str::to_owned),
            parent: self.parent.clone(),
            attempt: self.attempt,
            scheduled_at: self.scheduled.into(),
            initiated_at: self.initiated.map(Timestamp::from),
            started_at: self.started.map(Timestamp::from),
            completed_at: self.completed.map(Timestamp::from),
            steps: self.steps,
            failed_step: self.failed_step.as_deref().map(str::to_owned),
        }
    }
}
