//! `with` of a step on the worker's host, mainly its limits.

use serde_json::{Map, Value as Json};

use super::reader::{Field, Keys, Reader};
use super::tree::Value;
use crate::pipeline::{ExecutorKind, ProcessLimits};
use crate::quantity::{Memory, Span};

const WITH: Keys = Keys { known: ExecutorKind::Local.capabilities().with_keys, instead: &[] };

const LIMITS: Keys = Keys {
    known: &ProcessLimits::KEYS,
    instead: &[
        ("nofile", "did you mean `open-files`?"),
        ("files", "did you mean `open-files`?"),
        ("nproc", "did you mean `processes`?"),
        ("pids", "did you mean `processes`?"),
        ("fsize", "did you mean `file-size`?"),
        ("core", "did you mean `core-size`?"),
        ("mem", "did you mean `memory`?"),
        ("cpu", "a share of the cores stands in `quotas.limits` of the pipeline"),
        ("timeout", "it belongs to the step"),
    ],
};

/// Reads `with` of a step with executor local or custom.
pub(super) fn with(reader: &mut Reader, field: &Field<'_>) -> Option<Map<String, Json>> {
    let fields = reader.map(field, &WITH)?;
    let label = reader.optional(&fields, "label", Reader::text).map(Json::from);
    let limits = reader.optional(&fields, ProcessLimits::KEY, limits);
    let both = [("label", label), (ProcessLimits::KEY, limits)];
    Some(both.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
}

/// Reads the limits and writes them back in canonical form.
pub(super) fn limits(reader: &mut Reader, field: &Field<'_>) -> Option<Json> {
    let fields = reader.map(field, &LIMITS)?;
    let count = |r: &mut Reader, f: &Field<'_>| r.count(f, 1, u32::MAX);
    let limits = ProcessLimits {
        open_files: reader.optional(&fields, "open-files", count),
        processes: reader.optional(&fields, "processes", count),
        file_size: reader.optional(&fields, "file-size", size),
        memory: reader.optional(&fields, "memory", some_size),
        cpu_time: reader.optional(&fields, "cpu-time", seconds),
        core_size: reader.optional(&fields, "core-size", size),
        stack: reader.optional(&fields, "stack", some_size),
    };
    serde_json::to_value(limits).ok()
}

/// Zero needs no unit.
fn size(reader: &mut Reader, field: &Field<'_>) -> Option<Memory> {
    match &field.node.value {
        Value::Number(text) if text == "0" => "0K".parse().ok(),
        Value::Number(_)
        | Value::String(_)
        | Value::Null
        | Value::Bool(_)
        | Value::List(_)
        | Value::Map(_) => reader.memory(field),
    }
}

fn some_size(reader: &mut Reader, field: &Field<'_>) -> Option<Memory> {
    size(reader, field).filter(|size| reader.is_some_limit(field, size.bytes() > 0))
}

fn seconds(reader: &mut Reader, field: &Field<'_>) -> Option<Span> {
    let span = reader.span(field)?;
    if !span.as_millis().is_multiple_of(1000) {
        let message = format!("{} is {span}, expected whole seconds", field.name());
        reader.fault(field, message, Some("the host counts no parts of a second"));
        return None;
    }
    Some(span)
}
