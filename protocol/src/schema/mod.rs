//! The published schemas, generated from the types: JSON Schema 2020-12, and `AsyncAPI` 3.0.
//!
//! The types describe what the runner writes. Input can differ in known ways (keys in both
//! spellings, unnamed steps), which this module adds.

mod asyncapi;
mod bodies;
mod written;

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use thiserror::Error;

pub use self::written::VERSION;
use self::written::{as_written, command_bodies, definitions_as_written};
use crate::event::Event;
use crate::pipeline::Pipeline;
use crate::run::RunRecord;

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
