//! Job files: one job, a list of jobs, or a list under `jobs`. The result is a chain of steps.
//!
//! `null` counts as absent. Keys of two words can be written with `-` or `_`.

mod api;
mod product;
mod proxmox;
mod reference;
mod step;

use std::collections::HashMap;

use super::bob::steps::MAX_STEPS;
use super::handover::literal_secrets;
use super::parsed::{Dialect, Parsed, in_order};
use super::reader::{Field, Fields, Keys, Reader};
use super::remarks::{place_of, remarks_at};
use super::tree::{Node, Position, Value, quoted};
use crate::diagnostic::Diagnostic;
use crate::id::{PipelineId, StepName};
use crate::pipeline::{FailureMode, Pipeline, Step};

const FILE: Keys = Keys {
    known: &["jobs"],
    instead: &[
        ("executor", "it belongs to a job in `jobs`"),
        ("product", "it belongs to a job in `jobs`"),
        ("variables", "it belongs to a job in `jobs`"),
        ("callback", "it belongs to a job in `jobs`, or to the settings"),
        ("before_script", "it belongs to the `product` of a job, or to the settings"),
        ("steps", "did you mean `jobs`?"),
    ],
};

/// The group of pipelines from files with a list.
const GROUP: &str = "job";
/// The name of a pipeline from an unnamed file.
const NAMELESS: &str = "job";

/// The structure of a job file.
#[derive(Debug, Clone, Copy)]
enum FileForm {
    One,
    List,
    Below,
}

impl FileForm {
    fn of(root: &Node) -> Self {
        match &root.value {
            Value::List(_) => Self::List,
            Value::Map(_) if root.entry("jobs").is_some() => Self::Below,
            Value::Map(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                Self::One
            }
        }
    }

    /// The path of a job in the document.
    fn place(self, position: &str) -> String {
        match self {
            Self::One => String::new(),
            Self::List => format!("[{position}]"),
            Self::Below => format!("jobs[{position}]"),
        }
    }
}

/// Reads a file. `faults` are those already found in its text.
pub(super) fn parse(file: Option<&str>, root: &Node, faults: Vec<Diagnostic>) -> Parsed {
    let mut reader = Reader::default();
    let form = FileForm::of(root);
    let dialect = Some(Dialect::Job);
    let pipeline = match pipeline(&mut reader, form, root, file) {
        Some(pipeline) if reader.is_clean() && faults.is_empty() => pipeline,
        _ => {
            let diagnostics = in_order(faults.into_iter().chain(reader.into_faults()));
            return Parsed { pipelines: Vec::new(), diagnostics, dialect };
        }
    };
    let place = |path: &str| {
        let path = in_document(form, path);
        (place_of(root, &path), path)
    };
    let mut remarks = reader.into_remarks();
    remarks.extend(remarks_at(root.at, "", &pipeline));
    remarks.extend(literal_secrets(&pipeline, place));
    Parsed { diagnostics: in_order(remarks.into_iter()), pipelines: vec![pipeline], dialect }
}

/// Keys of the model that have another name in a job.
const PARTS: [(&str, &str); 1] = [("with", "product")];

/// Maps a path in the model to the document: `steps[1].with.image` is `jobs[1].product.image`.
fn in_document(form: FileForm, path: &str) -> String {
    let Some((position, rest)) = path.strip_prefix("steps[").and_then(|path| path.split_once(']'))
    else {
        return String::new();
    };
    let mut way = form.place(position);
    let rest = rest.trim_start_matches('.');
    let (part, below) = rest.split_once('.').unwrap_or((rest, ""));
    let part = PARTS.iter().find(|(model, _)| *model == part).map_or(part, |(_, own)| own);
    for part in [part, below].into_iter().filter(|part| !part.is_empty()) {
        if !way.is_empty() {
            way.push('.');
        }
        way.push_str(part);
    }
    way
}

fn pipeline(
    reader: &mut Reader,
    form: FileForm,
    root: &Node,
    file: Option<&str>,
) -> Option<Pipeline> {
    let document = Field::root(root);
    let items = match form {
        FileForm::One => vec![document.clone()],
        FileForm::List => reader.list(&document)?,
        FileForm::Below => {
            let fields = reader.map(&document, &FILE)?;
            let jobs = reader.required(&fields, "jobs", "a list of jobs")?;
            reader.list(&jobs)?
        }
    };
    if items.is_empty() {
        reader.fault(&document, "there is no job in it".to_owned(), None);
        return None;
    }
    if items.len() > MAX_STEPS {
        let message = format!("there are {} jobs, expected at most {MAX_STEPS}", items.len());
        reader.fault(&document, message, Some("split the file"));
        return None;
    }
    let maps: Vec<Option<Fields<'_>>> =
        items.iter().map(|item| reader.map(item, &step::JOB)).collect();
    let names = names(reader, &items, &maps);
    reference::check(reader, &maps);
    let mut steps = Vec::with_capacity(items.len());
    for (position, (fields, name)) in maps.iter().zip(names).enumerate() {
        if let Some(fields) = fields {
            steps.extend(step::read(reader, fields, name, position));
        }
    }
    let own = maps.first().and_then(|fields| fields.as_ref()?.get("id")?.node.scalar());
    let stem = file.map_or(NAMELESS, stem);
    let (group, name) = match (form, steps.first()) {
        (FileForm::One, Some(step)) => (step::word(step.executor), own.unwrap_or(stem)),
        (FileForm::One, None) | (FileForm::List | FileForm::Below, _) => (GROUP, stem),
    };
    let id = reader.checked(&document, PipelineId::new(group, name))?;
    Some(chain(&id, steps))
}

/// Each job runs after the previous one has ended, whatever its outcome.
fn chain(id: &PipelineId, steps: Vec<Step>) -> Pipeline {
    let failure = if steps.len() > 1 { FailureMode::Continue } else { FailureMode::default() };
    Pipeline { failure, steps, ..Pipeline::new(id.group(), id.name()) }
}

/// The file name without directory and extension.
fn stem(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    if stem.is_empty() { NAMELESS } else { stem }
}

/// The names of all jobs: the `id`, or else the position. `None` for a malformed one.
fn names(
    reader: &mut Reader,
    items: &[Field<'_>],
    maps: &[Option<Fields<'_>>],
) -> Vec<Option<StepName>> {
    let mut taken: HashMap<StepName, Position> = HashMap::new();
    let mut names = Vec::with_capacity(items.len());
    for (position, (item, fields)) in items.iter().zip(maps).enumerate() {
        let own = fields.as_ref().and_then(|fields| fields.get("id"));
        let name = match &own {
            Some(field) => reader.parsed(field),
            None => Some(StepName::position(position)),
        };
        let place = own.as_ref().unwrap_or(item);
        if let Some(name) = &name
            && let Some(first) = taken.insert(name.clone(), place.node.at)
        {
            let name = quoted(name.as_str());
            let message = match own {
                Some(_) => format!("there is a job {name} already"),
                None => format!(
                    "a job without an id is called by its position, and there is a job {name} already"
                ),
            };
            reader.fault(place, message, Some(&first.in_line("give each an id of its own")));
        }
        names.push(name);
    }
    names
}
