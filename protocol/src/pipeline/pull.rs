//! When to pull an image.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When to pull an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// For every run.
    Always,
    /// If the engine does not have it.
    #[default]
    Missing,
    /// Never. The run fails if the engine does not have it.
    Never,
}
