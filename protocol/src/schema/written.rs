//! The differences between what the types describe and what people can write: keys in both
//! spellings, unnamed steps, and no unknown keys.

use schemars::generate::SchemaGenerator;
use serde_json::{Value, json};

use super::bodies;
use crate::command;

/// Part of every `$id`. Incremented when a published name gets another meaning.
pub const VERSION: u32 = 1;

/// Types written by people as part of a definition. They accept no unknown keys.
const WRITTEN: [&str; 11] = [
    "Pipeline",
    "Step",
    "Resource",
    "Artifact",
    "Quotas",
    "Requests",
    "Limits",
    "Retry",
    "Output",
    "Callback",
    "Admission",
];

/// The schemas of the command bodies by the `type` property of their messages.
pub(super) fn command_bodies(generator: &mut SchemaGenerator) -> [(&'static str, Value); 4] {
    let start = generator.root_schema_for::<bodies::Start>();
    let stop = generator.root_schema_for::<bodies::Stop>();
    let toggle = generator.root_schema_for::<bodies::Toggle>();
    let body = |schema: schemars::Schema, title: &str| {
        let mut body = schema.to_value();
        if let Some(body) = body.as_object_mut() {
            for key in ["$schema", "$defs", "components"] {
                body.remove(key);
            }
            body.insert("title".to_owned(), title.into());
        }
        both_spellings(&mut body);
        body
    };
    [
        (command::START, body(start, "Starts a run")),
        (command::STOP, body(stop, "Ends a run")),
        (command::PAUSE, body(toggle.clone(), "No new run of the pipeline is accepted")),
        (command::UNPAUSE, body(toggle, "Runs of the pipeline are accepted again")),
    ]
}

/// Makes the definitions of written types as strict, and as lenient, as the parser.
pub(super) fn definitions_as_written(schema: &mut Value, place: &str) {
    let Some(definitions) = schema.get_mut(place).and_then(Value::as_object_mut) else {
        return;
    };
    for name in WRITTEN {
        if let Some(definition) = definitions.get_mut(name) {
            as_written(name, definition);
        }
    }
}

pub(super) fn as_written(name: &str, schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    object.insert("additionalProperties".to_owned(), false.into());
    // An unnamed step gets its position as name.
    if let (true, Some(required)) =
        (name == "Step", object.get_mut("required").and_then(Value::as_array_mut))
    {
        required.retain(|key| key != "name");
    }
    both_spellings(schema);
}

/// Accepts keys of two words with both `-` and `_`.
fn both_spellings(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    let mut either = Vec::new();
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        let twins: Vec<(String, String, Value)> = properties
            .iter()
            .filter(|(key, _)| key.contains(['-', '_']))
            .map(|(key, schema)| {
                let swap = |c: char| match c {
                    '-' => '_',
                    '_' => '-',
                    other => other,
                };
                (key.clone(), key.chars().map(swap).collect(), schema.clone())
            })
            .collect();
        for (key, twin, schema) in twins {
            properties.insert(twin.clone(), schema);
            either.push((key, twin));
        }
    }
    let mut alternatives = Vec::new();
    if let Some(required) = object.get_mut("required").and_then(Value::as_array_mut) {
        for (key, twin) in either {
            if required.iter().any(|known| *known == key) {
                required.retain(|known| *known != key);
                alternatives
                    .push(json!({ "anyOf": [{ "required": [key] }, { "required": [twin] }] }));
            }
        }
    }
    if !alternatives.is_empty() {
        object.insert("allOf".to_owned(), alternatives.into());
    }
}
