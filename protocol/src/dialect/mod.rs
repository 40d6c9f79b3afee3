//! Parsers from files and messages to the model. They report every fault at once.
//!
//! The model does not record the dialect in which a pipeline was written.

mod bob;
mod container;
mod document;
mod handover;
mod job;
mod limits;
mod lines;
mod parsed;
mod prunner;
mod reader;
mod remarks;
pub(crate) mod tree;

use serde_json::Value as Json;

pub use self::document::document;
pub use self::handover::LITERAL_SECRET;
pub(crate) use self::handover::json;
pub use self::lines::{BadJob, CI_GROUP, Job, MAX_ATTEMPTS};
use self::parsed::in_order;
pub use self::parsed::{Dialect, Parsed};
pub use self::prunner::{Loaded, load as load_prunner};
use self::remarks::{remarks, remarks_of_a_line, remarks_within};
use self::tree::{Node, Position, Value};
use crate::diagnostic::{Class, Diagnostic};
use crate::pipeline::Pipeline;

/// Parses a file of any dialect. `file` is its name, if known, for diagnostics and format
/// detection.
///
/// A pipeline that this version does not support is returned together with diagnostics that say so.
#[must_use]
pub fn parse(file: Option<&str>, bytes: &[u8]) -> Parsed {
    parse_as(None, file, bytes)
}

/// Like [`parse`], with the dialect given instead of detected.
#[must_use]
pub fn parse_as(dialect: Option<Dialect>, file: Option<&str>, bytes: &[u8]) -> Parsed {
    let mut parsed = read(dialect, file, bytes).checked();
    for fault in &mut parsed.diagnostics {
        fault.file = file.map(str::to_owned);
    }
    parsed
}

fn read(dialect: Option<Dialect>, file: Option<&str>, bytes: &[u8]) -> Parsed {
    let refused = |diagnostics| Parsed { pipelines: Vec::new(), diagnostics, dialect };
    // Shell commands are not necessarily YAML, so only the file name identifies them.
    if dialect.map_or_else(|| file.is_some_and(is_job_queue), |asked| asked == Dialect::CiLines) {
        return match lines::read(bytes) {
            Ok(pipelines) => {
                let diagnostics = pipelines.iter().flat_map(remarks_of_a_line).collect();
                Parsed {
                    pipelines: pipelines.into_iter().map(|(_, one)| one).collect(),
                    diagnostics,
                    dialect: Some(Dialect::CiLines),
                }
            }
            Err(fault) => refused(vec![fault]),
        };
    }
    let tree = match tree::read(file, bytes) {
        Ok(tree) => tree,
        Err(fault) => return refused(vec![fault]),
    };
    let told = dialect.unwrap_or_else(|| detect(&tree.root));
    // The original programs of these two dialects load YAML 1.1 (prunner with yaml.v2), so existing
    // files contain merge keys and byte order marks.
    let (root, faults) = match told {
        Dialect::Prunner | Dialect::Job => (tree.root, tree.faults),
        Dialect::Bob | Dialect::Wendy | Dialect::CiLines => tree.without_yaml_1_1(),
    };
    let dialect = Some(told);
    let refused = |diagnostics| Parsed { pipelines: Vec::new(), diagnostics, dialect };
    match told {
        Dialect::Bob => match bob::read(&root) {
            Ok(pipeline) if faults.is_empty() => {
                let diagnostics = remarks(&root, &pipeline);
                Parsed { pipelines: vec![pipeline], diagnostics, dialect }
            }
            Ok(_) => refused(faults),
            Err(more) => refused(in_order(faults.into_iter().chain(more))),
        },
        Dialect::Prunner => match prunner::read(&root) {
            Ok((pipelines, warnings)) if faults.is_empty() => {
                let all = pipelines.iter();
                let later = all.flat_map(|pipeline| remarks_within(&root, pipeline));
                let diagnostics = in_order(warnings.into_iter().chain(later));
                Parsed { pipelines, diagnostics, dialect }
            }
            Ok((_, warnings)) => refused(in_order(faults.into_iter().chain(warnings))),
            Err(more) => refused(in_order(faults.into_iter().chain(more))),
        },
        Dialect::Job => job::parse(file, &root, faults),
        other @ (Dialect::Wendy | Dialect::CiLines) => refused(vec![not_yet(other, root.at)]),
    }
}

fn is_job_queue(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    matches!(name, "ci-job-queue" | "current-job")
}

/// Detects the dialect from keys that only it has. An ambiguous document counts as Bob, whose
/// faults then name what is missing.
fn detect(root: &Node) -> Dialect {
    let is_list = |node: &Node| matches!(node.value, Value::List(_));
    let has = |key: &str| root.entry(key).is_some();
    match &root.value {
        Value::List(items)
            if items.first().is_some_and(|first| {
                first.entry("executor").is_some() || first.entry("product").is_some()
            }) =>
        {
            Dialect::Job
        }
        Value::Map(_) if has("steps") => Dialect::Bob,
        Value::Map(_) if has("pipelines") => Dialect::Prunner,
        Value::Map(_) if has("executor") || has("product") => Dialect::Job,
        Value::Map(_) if root.entry("jobs").is_some_and(|entry| is_list(&entry.value)) => {
            Dialect::Job
        }
        Value::Map(_) if has("apiVersion") && has("spec") => Dialect::Wendy,
        Value::Map(_)
        | Value::List(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_) => Dialect::Bob,
    }
}

fn not_yet(dialect: Dialect, at: Position) -> Diagnostic {
    let (what, hint) = match dialect {
        Dialect::Bob => ("a Bob pipeline", None),
        Dialect::Wendy => ("a manifest of wendy", Some("keep what stands under `spec`")),
        Dialect::Prunner => ("a file of prunner pipelines", None),
        Dialect::Job => ("a job file", None),
        Dialect::CiLines => ("a queue of shell commands", None),
    };
    let message = format!("this is {what}, which this version does not run yet");
    Diagnostic { class: Class::Unsupported, ..at.fault(message, hint) }
}

/// Reads a definition from JSON.
///
/// # Errors
/// The first fault, with its path.
pub fn pipeline_from_json(definition: &Json) -> Result<Pipeline, Diagnostic> {
    pipeline_faults_json(definition).map_err(first)
}

/// Reads a definition from JSON, such as a stored one without its `paused`.
///
/// # Errors
/// Every fault, at least one.
pub fn pipeline_faults_json(definition: &Json) -> Result<Pipeline, Vec<Diagnostic>> {
    bob::read(&Node::from_json(definition).map_err(|fault| vec![fault])?)
}

/// Reads a definition that is part of a message.
pub(crate) fn pipeline_from_node(definition: &Node) -> Result<Pipeline, Diagnostic> {
    bob::read(definition).map_err(first)
}

fn first(faults: Vec<Diagnostic>) -> Diagnostic {
    faults
        .into_iter()
        .next()
        .unwrap_or_else(|| Position::default().fault("the definition is not valid", None))
}
