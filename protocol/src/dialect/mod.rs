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
mod prunner;
mod reader;
pub(crate) mod tree;

use std::collections::BTreeSet;

use serde_json::Value as Json;

pub use self::document::document;
pub(crate) use self::handover::json;
pub use self::lines::{BadJob, CI_GROUP, Job, MAX_ATTEMPTS};
pub use self::prunner::{Loaded, load as load_prunner};
use self::tree::{Node, Position, Value};
use crate::command;
use crate::diagnostic::{Class, Diagnostic};
use crate::pipeline::{Cmd, Params, Pipeline, Unsupported, Vars};
use crate::shell::{self, Surprise};

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A Bob pipeline.
    Bob,
    /// A Bob pipeline in the envelope used by Bob's command line.
    Wendy,
    /// prunner's `pipelines.yml`.
    Prunner,
    /// The job files of the modular job runner.
    Job,
    /// Shell commands, one per line.
    CiLines,
}

/// The result of parsing a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The pipelines. Empty if there is an error.
    pub pipelines: Vec<Pipeline>,
    /// Faults and warnings, in document order.
    pub diagnostics: Vec<Diagnostic>,
    /// The dialect, if it could be determined.
    pub dialect: Option<Dialect>,
}

impl Dialect {
    /// The dialects that a user can select, by name.
    pub const NAMED: [(&'static str, Self); 4] =
        [("bob", Self::Bob), ("prunner", Self::Prunner), ("job", Self::Job), ("ci", Self::CiLines)];
}

impl Parsed {
    /// Whether there is an error or a part that this version does not support.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.diagnostics.iter().any(|fault| fault.class.is_refusal())
    }

    /// Adds an error for each pipeline that every worker would reject, because its start command
    /// would be too large.
    #[must_use]
    pub fn checked(mut self) -> Self {
        let several = self.pipelines.len() > 1;
        let too_large = |pipeline: &Pipeline| {
            let why = command::too_large(Some(pipeline), &Vars::new(), &Params::new())?;
            let path = if several { format!("pipelines.{}", pipeline.name) } else { String::new() };
            let hint = "move large texts to files that a resource or the image provides";
            let at = Position::default();
            Some(Diagnostic { path, ..at.fault(why, Some(hint)) })
        };
        let faults: Vec<_> = self.pipelines.iter().filter_map(too_large).collect();
        if !faults.is_empty() {
            self.pipelines.clear();
            self.diagnostics.extend(faults);
        }
        self
    }
}

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

fn in_order(faults: impl Iterator<Item = Diagnostic>) -> Vec<Diagnostic> {
    let mut faults: Vec<_> = faults.collect();
    faults.sort_by_key(|fault| (fault.line, fault.column));
    faults
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

/// Reports unsupported keys of a pipeline in a file with several, at that pipeline's position.
fn remarks_within(root: &Node, pipeline: &Pipeline) -> Vec<Diagnostic> {
    let whole = root.entry("pipelines").and_then(|all| all.value.entry(&pipeline.name));
    let at = whole.map_or(root.at, |entry| entry.at);
    remarks_at(at, &format!("pipelines.{}", pipeline.name), pipeline)
}

fn remarks_of_a_line((at, pipeline): &(Position, Pipeline)) -> Vec<Diagnostic> {
    remarks_at(*at, "", pipeline)
}

fn remarks_at(at: Position, path: &str, pipeline: &Pipeline) -> Vec<Diagnostic> {
    let keys = |found: Vec<Unsupported>| {
        let keys = found.iter().filter_map(|found| found.path.rsplit('.').next());
        let keys: BTreeSet<String> = keys.map(|key| format!("`{key}`")).collect();
        (!keys.is_empty()).then(|| keys.into_iter().collect::<Vec<_>>().join(", "))
    };
    let name = tree::quoted(&pipeline.name);
    let never = keys(pipeline.unsupported()).map(|keys| {
        let what =
            format!("pipeline {name} becomes one with {keys}, which this version does not run yet");
        (Class::Unsupported, what)
    });
    let alone = keys(pipeline.unsupported_among_runs()).map(|keys| {
        let what = format!("pipeline {name} becomes one with {keys}: {ALONE}");
        (Class::Warning, what)
    });
    let of = |(class, message): (Class, String)| {
        let fault = at.fault(message, None);
        Diagnostic { class, path: path.to_owned(), ..fault }
    };
    never.into_iter().chain(alone).map(of).collect()
}

/// Explains keys about several runs, which neither `run` nor a worker supports.
pub const ALONE: &str = "`run` needs none of that, and a worker does not take it yet in this version: `submit --alone` \
     leaves it out";

/// Warnings for a valid pipeline.
fn remarks(root: &Node, pipeline: &Pipeline) -> Vec<Diagnostic> {
    let mut remarks: Vec<_> = pipeline
        .unsupported()
        .into_iter()
        .map(|found| {
            let fault = place_of(root, &found.path).fault(found.what, None);
            Diagnostic { class: Class::Unsupported, path: found.path, ..fault }
        })
        .collect();
    remarks.extend(pipeline.unsupported_among_runs().into_iter().map(|found| {
        let fault = place_of(root, &found.path).fault(format!("`{}`: {ALONE}", found.path), None);
        Diagnostic { class: Class::Warning, path: found.path, ..fault }
    }));
    if let Some(image) = pipeline.image.as_deref().filter(|image| !bob::is_qualified(image)) {
        let message = format!(
            "the image {} does not say which registry it is from, so each host may choose another",
            tree::quoted(image)
        );
        // Docker Hub keeps images without an owner under `library`.
        let owner = if image.contains('/') { "" } else { "library/" };
        let hint = format!("for example docker.io/{owner}{image}");
        let fault = place_of(root, "image").fault(message, Some(&hint));
        remarks.push(Diagnostic { class: Class::Warning, path: "image".to_owned(), ..fault });
    }
    remarks.extend(surprising_commands(root, pipeline));
    let place = |path: &str| (place_of(root, path), path.to_owned());
    remarks.extend(handover::literal_secrets(pipeline, place));
    in_order(remarks.into_iter())
}

/// Warns about commands that look like shell syntax, because no shell runs a `cmd`.
fn surprising_commands(root: &Node, pipeline: &Pipeline) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for (position, step) in pipeline.steps.iter().enumerate() {
        let Some(Cmd::Line(line)) = &step.cmd else {
            continue;
        };
        let path = format!("steps[{position}].cmd");
        for surprise in shell::surprises(line) {
            let (message, hint) = match surprise {
                Surprise::OpenQuote(quote) => {
                    (format!("the quote {quote} is never closed"), "close it, or write a list")
                }
                Surprise::Operator(word) => (
                    format!("`{word}` is an argument here, as no shell runs this command"),
                    "use `script`, or `sh -c`; quote it if it is an argument",
                ),
            };
            let fault = place_of(root, &path).fault(message, Some(hint));
            warnings.push(Diagnostic { class: Class::Warning, path: path.clone(), ..fault });
        }
    }
    warnings
}

/// The end of the warning about a secret in clear text in a file. The path of its key comes before it.
pub const LITERAL_SECRET: &str = "is a secret in clear text";

/// Finds the position of a path such as `steps[2].needs`. `-` and `_` are equivalent. If a part is
/// missing, the result is the position of the last part found.
fn place_of(root: &Node, path: &str) -> Position {
    let mut node = root;
    let mut at = root.at;
    for part in path.split(['.', '[', ']']).filter(|part| !part.is_empty()) {
        let entry = node.entry(part).or_else(|| node.entry(&part.replace('-', "_")));
        node = match (&node.value, entry) {
            (_, Some(entry)) => {
                at = entry.at;
                &entry.value
            }
            (Value::List(items), None) => {
                // Paths made by the runner never contain a malformed index.
                let Some(item) = part.parse::<usize>().ok().and_then(|index| items.get(index))
                else {
                    return at;
                };
                at = item.at;
                item
            }
            (_, None) => return at,
        };
    }
    at
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
