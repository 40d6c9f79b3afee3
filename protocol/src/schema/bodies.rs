//! The bodies of commands as they stand on the wire. `crate::command` decodes them by hand, because
//! of what it has to say about malformed ones; only the schemas of these are used, and a test holds
//! the two together.
#![allow(dead_code, reason = "only the schemas are used")]

use schemars::JsonSchema;

use crate::id::{RegisteredName, RunId};
use crate::pipeline::{Params, Pipeline, Scalar};
use crate::run::Parent;
use crate::time::Millis;

/// A start: `group` and `name` of a stored pipeline, or a definition inline, or both where they
/// agree.
#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
#[schemars(extend("anyOf" = [{ "required": ["group", "name"] }, { "required": ["pipeline"] }]))]
#[schemars(extend("dependentRequired" = { "group": ["name"], "name": ["group"] }))]
pub(super) struct Start {
    /// The run; the same id is accepted once. Without it the id of the message is taken.
    run_id: Option<RunId>,
    /// The group of the pipeline.
    group: Option<String>,
    /// The name of the pipeline.
    name: Option<String>,
    /// A definition inline. Unknown keys of it are refused, those of the message are ignored.
    pipeline: Option<Pipeline>,
    /// Laid over the variables of the pipeline.
    vars: Option<indexmap::IndexMap<String, Scalar>>,
    /// Values for the templates of scripts, laid over the variables: any JSON.
    params: Option<Params>,
    /// The registered logger that gets the text of the run.
    logger: Option<RegisteredName>,
    /// The partition of the wait list.
    partition: Option<String>,
    /// The ended run whose steps it begins with; they are not run again.
    parent: Option<Parent>,
    /// Ignored.
    backoff: Option<serde_json::Value>,
}

/// A stop.
#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
pub(super) struct Stop {
    /// The run.
    run_id: RunId,
    /// Why, for people.
    reason: Option<String>,
}

/// A pause, or its opposite.
#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
pub(super) struct Toggle {
    /// The group of the pipeline.
    group: String,
    /// The name of the pipeline.
    name: String,
    /// When it was said; the newest holds.
    at: Option<Millis>,
}
