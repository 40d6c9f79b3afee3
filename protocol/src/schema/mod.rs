//! The published schemas, generated from the types: JSON Schema 2020-12, and `AsyncAPI` 3.0.
//!
//! The types describe what the runner writes. Input can differ in known ways (keys in both
//! spellings, unnamed steps), which this module adds.

mod asyncapi;
mod bodies;

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::command;
use crate::event::Event;
use crate::pipeline::Pipeline;
use crate::run::RunRecord;

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

/// The published schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaName {
    /// A pipeline as people write it.
    Pipeline,
    /// The bodies of commands, by message `type` in `$defs`.
    Command,
    /// A message on the event stream.
    Event,
    /// A run record.
    Run,
    /// Everything that crosses the broker.
    Asyncapi,
}

/// The name of a schema is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("there is no schema {given:?}, only pipeline, command, event, run and asyncapi")]
pub struct UnknownSchema {
    /// The name as given.
    pub given: String,
}

impl SchemaName {
    /// All published schemas.
    pub const ALL: [Self; 5] =
        [Self::Pipeline, Self::Command, Self::Event, Self::Run, Self::Asyncapi];

    /// The name of the schema.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pipeline => "pipeline",
            Self::Command => "command",
            Self::Event => "event",
            Self::Run => "run",
            Self::Asyncapi => "asyncapi",
        }
    }
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SchemaName {
    type Err = UnknownSchema;

    fn from_str(text: &str) -> Result<Self, UnknownSchema> {
        let known = Self::ALL.into_iter().find(|what| what.as_str() == text);
        known.ok_or_else(|| UnknownSchema { given: text.to_owned() })
    }
}

/// A published schema.
#[must_use]
pub fn schema(what: SchemaName) -> Value {
    match what {
        SchemaName::Pipeline => {
            let mut schema = root::<Pipeline>(what, "A pipeline");
            as_written("Pipeline", &mut schema);
            definitions_as_written(&mut schema, "$defs");
            schema
        }
        SchemaName::Command => commands(),
        SchemaName::Event => root::<Event>(what, "An event of the stream"),
        SchemaName::Run => root::<RunRecord>(what, "A run record"),
        SchemaName::Asyncapi => asyncapi::document(),
    }
}

fn id(what: SchemaName) -> String {
    format!("urn:bob-runner:schema:{VERSION}:{what}")
}

fn root<T: JsonSchema>(what: SchemaName, title: &str) -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let generated = generator.into_root_schema_for::<T>().to_value();
    // The identifying keys come first, for readers.
    let mut schema = json!({
        "$schema": generated.get("$schema"),
        "$id": id(what),
        "title": title,
    });
    if let (Some(schema), Value::Object(generated)) = (schema.as_object_mut(), generated) {
        let named: Vec<_> = generated.into_iter().filter(|(key, _)| key != "title").collect();
        schema.extend(named);
    }
    schema
}

/// The schemas of the command bodies by the `type` property of their messages.
fn command_bodies(generator: &mut SchemaGenerator) -> [(&'static str, Value); 4] {
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

fn commands() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let bodies = command_bodies(&mut generator);
    let mut definitions: Map<String, Value> = Map::new();
    let mut any = Vec::new();
    for (kind, body) in bodies {
        // A `/` would have to be escaped in each reference.
        let name = kind.replace('/', "-");
        any.push(json!({ "$ref": format!("#/$defs/{name}") }));
        definitions.insert(name, body);
    }
    definitions.extend(generator.take_definitions(true));
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": id(SchemaName::Command),
        "title": "The body of a command",
        "description": "The property `type` of the message says which of `$defs` it is: pipeline/start is pipeline-start, and so on.",
        "anyOf": any,
        "$defs": definitions,
    });
    definitions_as_written(&mut schema, "$defs");
    schema
}

/// Makes the definitions of written types as strict, and as lenient, as the parser.
fn definitions_as_written(schema: &mut Value, place: &str) {
    let Some(definitions) = schema.get_mut(place).and_then(Value::as_object_mut) else {
        return;
    };
    for name in WRITTEN {
        if let Some(definition) = definitions.get_mut(name) {
            as_written(name, definition);
        }
    }
}

fn as_written(name: &str, schema: &mut Value) {
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
