//! Commands that people publish, and their decoding.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use thiserror::Error;

pub use crate::budget::{MAX_START_BYTES, start_bytes, too_large};
use crate::dialect;
use crate::dialect::tree::{self, Node, Value, quoted};
use crate::id::{PipelineId, RegisteredName, RunId, StepName};
pub use crate::pipeline::bad_variable;
use crate::pipeline::{Params, Pipeline, Vars};
use crate::run::Parent;
use crate::time::Millis;

/// The `type` property of a start command.
pub const START: &str = "pipeline/start";
/// The `type` property of a stop command.
pub const STOP: &str = "pipeline/stop";
/// The `type` property of a pause command.
pub const PAUSE: &str = "pipeline/pause";
/// The `type` property of an unpause command.
pub const UNPAUSE: &str = "pipeline/unpause";

/// A decoded command.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Run a pipeline.
    Start(Box<Start>),
    /// Stop a run.
    Stop(Stop),
    /// Accept no new runs of a pipeline.
    Pause(Toggle),
    /// Accept new runs of a pipeline again.
    Unpause(Toggle),
}

/// A start command.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// The run id, and whether the sender chose it.
    pub run_id: RunIdSource,
    /// The pipeline to run.
    pub target: Target,
    /// Variables that override the pipeline's.
    pub vars: Vars,
    /// Template values that override the variables. They are not part of any step's environment.
    pub params: Params,
    /// The registered logger that receives the run's output.
    pub logger: Option<RegisteredName>,
    /// The partition of the wait list.
    pub partition: Option<String>,
    /// The ended run that the new run starts from.
    pub parent: Option<Parent>,
}

/// The source of a run id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunIdSource {
    /// From the body or the message id. A redelivered message has the same id.
    Given(RunId),
    /// Absent. A lost acknowledgement can cause such a start to run twice.
    Missing,
}

/// The pipeline that a start runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A stored pipeline.
    Stored(PipelineId),
    /// A definition inline in the message.
    Inline(Box<Pipeline>),
}

/// A stop command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The run.
    pub run_id: RunId,
    /// The reason given by the user.
    pub reason: Option<String>,
}

/// A pause or unpause command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toggle {
    /// The pipeline.
    pub pipeline: PipelineId,
    /// When the command was issued. The newest command wins.
    pub at: Option<Millis>,
}

/// How a delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "a message that is not settled comes back only when its connection ends"]
pub enum Disposition {
    /// Acknowledge it.
    Ack,
    /// Return it to the queue. Each return counts against the delivery limit.
    Requeue,
    /// Move it to `bob.dlq` unchanged, because it can never be decoded.
    DeadLetter,
}

/// Why a message is not a valid command.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {what}", field.as_deref().map_or_else(|| "message".to_owned(), |f| format!("field `{f}`")))]
pub struct Malformed {
    /// The offending field, if there is one.
    pub field: Option<String>,
    /// The value found, and the value expected.
    pub what: String,
    /// The run id, if the message has a valid one.
    pub run_id: Option<RunId>,
}

impl Malformed {
    /// Appends a hint to the message.
    fn with_hint(mut self, hint: &str) -> Self {
        self.what = format!("{}: {hint}", self.what);
        self
    }

    /// Makes an error from the value found and the value expected.
    #[must_use]
    pub fn new(field: Option<&str>, found: &str, expected: &str, run_id: Option<RunId>) -> Self {
        let what = format!("found {found}, expected {expected}");
        Self { field: field.map(str::to_owned), what, run_id }
    }
}

/// The first bytes of a gzip stream. JSON never starts with them.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Decodes a message.
///
/// `kind` and `message_id` are its properties `type` and `message_id`. Unknown keys of the message
/// are ignored. Unknown keys of an inline definition are rejected. A body of more than 1 MiB is
/// rejected before it is parsed: a start holds at most [`MAX_START_BYTES`], and as much again is
/// left for blanks and escapes, which do not count there.
///
/// # Errors
/// [`Malformed`] names the field, what was found and what is expected. Such a message is
/// dead-lettered unchanged.
pub fn decode(
    kind: Option<&str>,
    message_id: Option<&str>,
    body: &[u8],
) -> Result<Command, Malformed> {
    let kind = kind.unwrap_or_default();
    let known = [START, STOP, PAUSE, UNPAUSE];
    if !known.contains(&kind) {
        let found = if kind.is_empty() { "nothing".to_owned() } else { quoted(kind) };
        let expected = format!("one of {}", known.join(", "));
        return Err(Malformed::new(Some("type"), &found, &expected, None));
    }
    let no_object = |found: &str| Malformed::new(None, found, "a JSON object", None);
    if body.starts_with(&GZIP) {
        let found = format!("{} bytes of gzip", body.len());
        return Err(no_object(&found).with_hint("a `content-encoding` is not supported"));
    }
    // A `serde_json::Value` would lose the text of numbers and accept duplicate keys.
    let body = tree::read_json(body)
        .map_err(|fault| no_object(&format!("{} bytes with a fault at {fault}", body.len())))?;
    if !matches!(body.value, Value::Map(_)) {
        return Err(no_object(&body.shown()));
    }
    let fields = Fields { body: &body, run_id: readable_run_id(&body) };
    match kind {
        START => Ok(Command::Start(Box::new(start(&fields, message_id)?))),
        STOP => Ok(Command::Stop(Stop {
            run_id: fields.required_run_id()?,
            reason: fields.text("reason")?.map(str::to_owned),
        })),
        PAUSE => Ok(Command::Pause(toggle(&fields)?)),
        _ => Ok(Command::Unpause(toggle(&fields)?)),
    }
}

fn start(fields: &Fields<'_>, message_id: Option<&str>) -> Result<Start, Malformed> {
    let run_id = match (fields.run_id_field()?, message_id) {
        (Some(run), _) => RunIdSource::Given(run),
        (None, Some(id)) if !id.is_empty() => RunIdSource::Given(RunId::from_message_id(id)),
        (None, _) => RunIdSource::Missing,
    };
    let logger = fields
        .text("logger")?
        .map(|text| {
            text.parse::<RegisteredName>().map_err(|bad| fields.fault("logger", bad.to_string()))
        })
        .transpose()?;
    Ok(Start {
        run_id,
        target: target(fields)?,
        vars: vars(fields)?,
        params: params(fields)?,
        logger,
        partition: fields.text("partition")?.map(str::to_owned),
        parent: parent(fields)?,
    })
}

fn parent(fields: &Fields<'_>) -> Result<Option<Parent>, Malformed> {
    let Some(node) = fields.get("parent") else { return Ok(None) };
    let of_parent = |field: &str| {
        let found = node.entry(field).map(|entry| &entry.value);
        found.filter(|found| found.value != Value::Null)
    };
    let Some(Node { value: Value::String(run), .. }) = of_parent("run-id") else {
        return Err(fields.bad("parent", node, "an object with the `run-id` of an ended run"));
    };
    let run_id = run
        .parse()
        .map_err(|_bad| fields.wrong_type("parent.run-id", &quoted(run), RUN_ID_RULE))?;
    let from = match of_parent("from") {
        None => None,
        Some(Node { value: Value::String(step), .. }) => {
            let step: Result<StepName, _> = step.parse();
            Some(step.map_err(|bad| fields.fault("parent.from", bad.to_string()))?)
        }
        Some(other) => return Err(fields.bad("parent.from", other, "the name of a step")),
    };
    Ok(Some(Parent { run_id, from }))
}

fn target(fields: &Fields<'_>) -> Result<Target, Malformed> {
    let named = match (fields.text("group")?, fields.text("name")?) {
        (Some(group), Some(name)) => Some((group, name)),
        (None, None) => None,
        (Some(_), None) => return Err(fields.missing("name", "the name of a stored pipeline")),
        (None, Some(_)) => return Err(fields.missing("group", "the group of a stored pipeline")),
    };
    let Some(definition) = fields.get("pipeline") else {
        let Some((group, name)) = named else {
            return Err(fields.missing("pipeline", "`group` and `name`, or a definition inline"));
        };
        return fields.pipeline(group, name).map(Target::Stored);
    };
    let pipeline = dialect::pipeline_from_node(definition).map_err(|fault| {
        let path = if fault.path.is_empty() {
            "pipeline".to_owned()
        } else {
            format!("pipeline.{}", fault.path)
        };
        let hint = fault.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
        fields.fault(&path, format!("{}{hint}", fault.message))
    })?;
    if let Some((group, name)) = named {
        for (field, given, own) in
            [("group", group, &pipeline.group), ("name", name, &pipeline.name)]
        {
            if given != own {
                let expected = format!("{own:?}, as in the definition inline");
                return Err(fields.wrong_type(field, &quoted(given), &expected));
            }
        }
    }
    Ok(Target::Inline(Box::new(pipeline)))
}

fn vars(fields: &Fields<'_>) -> Result<Vars, Malformed> {
    let Some(map) = fields.get("vars") else {
        return Ok(Vars::new());
    };
    if !matches!(map.value, Value::Map(_)) {
        return Err(fields.bad("vars", map, "an object"));
    }
    let mut vars = Vars::with_capacity(map.entries().len());
    for entry in map.entries() {
        let field = format!("vars.{}", entry.key);
        let Some(text) = entry.value.scalar() else {
            return Err(fields.bad(&field, &entry.value, "a string, a number, or a boolean"));
        };
        if let Some(expected) = bad_variable(&entry.key, text) {
            return Err(fields.bad(&field, &entry.value, expected));
        }
        vars.insert(entry.key.clone(), text.to_owned());
    }
    Ok(vars)
}

fn params(fields: &Fields<'_>) -> Result<Params, Malformed> {
    let Some(map) = fields.get("params") else { return Ok(Params::new()) };
    match dialect::json(map) {
        Json::Object(params) if !params.contains_key("") => Ok(params),
        Json::Object(_) => Err(fields.bad("params", map, "a name for each value")),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
            Err(fields.bad("params", map, "an object"))
        }
    }
}

fn toggle(fields: &Fields<'_>) -> Result<Toggle, Malformed> {
    let required = |field: &'static str| {
        fields.text(field)?.ok_or_else(|| fields.missing(field, "the pipeline's"))
    };
    let (group, name) = (required("group")?, required("name")?);
    let pipeline = fields.pipeline(group, name)?;
    let at = match fields.get("at") {
        None => None,
        Some(node) => match &node.value {
            // Not a whole number, or one beyond 64 bits.
            Value::Number(text) => {
                Some(Millis(text.parse().map_err(|_not_whole| at_fault(node, fields))?))
            }
            Value::Null | Value::Bool(_) | Value::String(_) | Value::List(_) | Value::Map(_) => {
                return Err(at_fault(node, fields));
            }
        },
    };
    Ok(Toggle { pipeline, at })
}

fn at_fault(found: &Node, fields: &Fields<'_>) -> Malformed {
    fields.bad("at", found, "an integer, milliseconds since the epoch")
}

/// The fields of a body, and the run id to report with errors.
struct Fields<'a> {
    body: &'a Node,
    run_id: Option<RunId>,
}

impl<'a> Fields<'a> {
    /// The value of a field. `null` counts as absent.
    fn get(&self, field: &str) -> Option<&'a Node> {
        let node = &self.body.entry(field)?.value;
        Some(node).filter(|node| node.value != Value::Null)
    }

    fn text(&self, field: &str) -> Result<Option<&'a str>, Malformed> {
        match self.get(field) {
            None => Ok(None),
            Some(Node { value: Value::String(text), .. }) => Ok(Some(text)),
            Some(other) => Err(self.bad(field, other, "a string")),
        }
    }

    fn run_id_field(&self) -> Result<Option<RunId>, Malformed> {
        let (kebab, snake) = (self.text("run-id")?, self.text("run_id")?);
        let (spelled, text) = match (kebab, snake) {
            (None, None) => return Ok(None),
            (Some(text), None) => ("run-id", text),
            (None, Some(text)) => ("run_id", text),
            (Some(text), Some(other)) if text == other => ("run-id", text),
            (Some(text), Some(other)) => {
                let both = format!("{}, and {} in `run_id`", quoted(text), quoted(other));
                return Err(self.wrong_type("run-id", &both, "one run id"));
            }
        };
        // Every malformed run id gets the same description.
        text.parse().map(Some).map_err(|_bad| self.wrong_type(spelled, &quoted(text), RUN_ID_RULE))
    }

    fn pipeline(&self, group: &str, name: &str) -> Result<PipelineId, Malformed> {
        PipelineId::new(group, name).map_err(|bad| {
            // If the group is valid by itself, the name is at fault.
            let field = if PipelineId::new(group, "x").is_ok() { "name" } else { "group" };
            self.fault(field, bad.to_string())
        })
    }

    fn required_run_id(&self) -> Result<RunId, Malformed> {
        self.run_id_field()?.ok_or_else(|| self.missing("run-id", RUN_ID_RULE))
    }

    fn bad(&self, field: &str, found: &Node, expected: &str) -> Malformed {
        self.wrong_type(field, &found.shown(), expected)
    }

    fn missing(&self, field: &str, expected: &str) -> Malformed {
        self.wrong_type(field, "nothing", expected)
    }

    fn wrong_type(&self, field: &str, found: &str, expected: &str) -> Malformed {
        Malformed::new(Some(field), found, expected, self.run_id.clone())
    }

    fn fault(&self, field: &str, what: String) -> Malformed {
        Malformed { field: Some(field.to_owned()), what, run_id: self.run_id.clone() }
    }
}

const RUN_ID_RULE: &str = "`r-` and 1 to 126 of A-Z a-z 0-9 . _ -";

fn readable_run_id(body: &Node) -> Option<RunId> {
    let entry = body.entry("run-id").or_else(|| body.entry("run_id"))?;
    entry.value.scalar()?.parse().ok()
}

#[cfg(test)]
mod tests;
