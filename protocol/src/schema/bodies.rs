//! The bodies of commands on the wire. Only the schemas of these types are used: `crate::command`
//! decodes by hand to report precise errors. A test keeps the two consistent.
#![allow(dead_code, reason = "only the schemas are used")]

use schemars::JsonSchema;

use crate::id::{RegisteredName, RunId};
use crate::pipeline::{Params, Pipeline, Scalar};
use crate::run::Parent;
use crate::time::Millis;

/// A start: `group` and `name` of a stored pipeline, or an inline definition, or both if they
/// agree.
#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
#[schemars(extend("anyOf" = [{ "required": ["group", "name"] }, { "required": ["pipeline"] }]))]
#[schemars(extend("dependentRequired" = { "group": ["name"], "name": ["group"] }))]
pub(super) struct Start {
    /// The run id, accepted only once. If missing, it is derived from the message id.
    run_id: Option<RunId>,
    /// The pipeline's group.
    group: Option<String>,
    /// The pipeline's name.
    name: Option<String>,
    /// An inline definition. Its unknown keys are rejected. Unknown keys of the message are
    /// ignored.
    pipeline: Option<Pipeline>,
    /// Variables that override the pipeline's.
    vars: Option<indexmap::IndexMap<String, Scalar>>,
    /// JSON values for script templates. They override the variables.
    params: Option<Params>,
    /// The registered logger that receives the run's output.
    logger: Option<RegisteredName>,
    /// The partition of the wait list.
    partition: Option<String>,
    /// The ended run that the new run starts from. Its committed steps are not run again.
    parent: Option<Parent>,
    /// Ignored.
    backoff: Option<serde_json::Value>,
}

/// A stop.
#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
pub(super) struct Stop {
    /// The run id.
    run_id: RunId,
    /// The reason, for people.
    reason: Option<String>,
}

/// A pause or unpause.
#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
pub(super) struct Toggle {
    /// The pipeline's group.
    group: String,
    /// The pipeline's name.
    name: String,
    /// When the command was issued. The newest command wins.
    at: Option<Millis>,
}
