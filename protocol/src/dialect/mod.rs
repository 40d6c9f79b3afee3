//! Files and messages into the one model, with every fault at once.

use serde_json::Value;

use crate::diagnostic::{Class, Diagnostic};
use crate::pipeline::Pipeline;

/// What became of a file: its pipelines where it is valid, and everything there is to say about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The pipelines; empty where there is an error.
    pub pipelines: Vec<Pipeline>,
    /// Everything there is to say, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// Whether it must not be run.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.diagnostics.iter().any(|fault| fault.class.is_refusal())
    }
}

/// Reads a file of any dialect. `file` is its name, where it has one, for the faults and for what
/// its ending tells.
#[must_use]
pub fn parse(file: Option<&str>, bytes: &[u8]) -> Parsed {
    let read = serde_json::from_slice(bytes)
        .map_err(|cause| vec![at_root(cause.to_string())])
        .and_then(|value| pipeline_faults_json(&value));
    match read {
        Ok(pipeline) => Parsed { pipelines: vec![pipeline], diagnostics: Vec::new() },
        Err(faults) => Parsed {
            pipelines: Vec::new(),
            diagnostics: faults
                .into_iter()
                .map(|fault| Diagnostic { file: file.map(str::to_owned), ..fault })
                .collect(),
        },
    }
}

/// Reads a definition that came as JSON.
///
/// # Errors
/// The first fault, with its path.
pub fn pipeline_from_json(definition: &Value) -> Result<Pipeline, Diagnostic> {
    pipeline_faults_json(definition).map_err(|mut faults| faults.swap_remove(0))
}

/// Reads a definition that came as JSON, such as a stored one.
///
/// # Errors
/// Every fault, at least one.
pub fn pipeline_faults_json(definition: &Value) -> Result<Pipeline, Vec<Diagnostic>> {
    serde_json::from_value(definition.clone()).map_err(|cause| vec![at_root(cause.to_string())])
}

fn at_root(message: String) -> Diagnostic {
    Diagnostic {
        class: Class::Error,
        file: None,
        line: 0,
        column: 0,
        path: String::new(),
        message,
        hint: None,
    }
}
