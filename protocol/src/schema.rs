//! The published schemas, generated from the types.

use serde_json::Value;

/// The JSON Schema of a pipeline.
#[must_use]
pub fn pipeline() -> Value {
    schemars::schema_for!(crate::pipeline::Pipeline).to_value()
}
