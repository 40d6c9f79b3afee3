//! Remarks on a valid pipeline: unsupported keys, secrets in clear text and surprising commands.

use std::collections::BTreeSet;

use super::bob::rules::is_qualified;
use super::handover::literal_secrets;
use super::parsed::in_order;
use super::tree::{self, Node, Position, Value};
use crate::diagnostic::{Class, Diagnostic};
use crate::pipeline::{Cmd, Pipeline, Unsupported};
use crate::shell::{self, Surprise};

/// Reports unsupported keys of a pipeline in a file with several, at that pipeline's position.
pub(super) fn remarks_within(root: &Node, pipeline: &Pipeline) -> Vec<Diagnostic> {
    let whole = root.entry("pipelines").and_then(|all| all.value.entry(&pipeline.name));
    let at = whole.map_or(root.at, |entry| entry.at);
    remarks_at(at, &format!("pipelines.{}", pipeline.name), pipeline)
}

pub(super) fn remarks_of_a_line((at, pipeline): &(Position, Pipeline)) -> Vec<Diagnostic> {
    remarks_at(*at, "", pipeline)
}

pub(super) fn remarks_at(at: Position, path: &str, pipeline: &Pipeline) -> Vec<Diagnostic> {
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
    let of = |(class, message): (Class, String)| {
        let fault = at.fault(message, None);
        Diagnostic { class, path: path.to_owned(), ..fault }
    };
    never.into_iter().map(of).collect()
}

/// Warnings for a valid pipeline.
pub(super) fn remarks(root: &Node, pipeline: &Pipeline) -> Vec<Diagnostic> {
    let mut remarks: Vec<_> = pipeline
        .unsupported()
        .into_iter()
        .map(|found| {
            let fault = place_of(root, &found.path).fault(found.what, None);
            Diagnostic { class: Class::Unsupported, path: found.path, ..fault }
        })
        .collect();
    if let Some(image) = pipeline.image.as_deref().filter(|image| !is_qualified(image)) {
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
    remarks.extend(literal_secrets(pipeline, place));
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

/// Finds the position of a path such as `steps[2].needs`. `-` and `_` are equivalent. If a part is
/// missing, the result is the position of the last part found.
pub(super) fn place_of(root: &Node, path: &str) -> Position {
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
