//! The value of a pipeline's wait list, `bob.wait/<group>:<name>`: the runs that hold a place, and
//! the runs that wait for one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::RunId;
use crate::time::Millis;

/// The largest number of waiting runs of one pipeline, whatever its `limit` is. The list stays
/// below etcd's limit for a request.
pub const MAX_WAITING: usize = 5_000;

/// The runs of a pipeline that have been accepted and have not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct WaitList {
    /// Number of places: the `concurrency` of the definition that was accepted last. No limit if
    /// missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// The runs that hold a place, in the order in which they got it.
    #[serde(default)]
    pub running: Vec<RunId>,
    /// The runs that wait, in the order in which they get a place.
    #[serde(default)]
    pub waiting: Vec<WaitingRun>,
}

/// A run that waits for a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct WaitingRun {
    /// The run.
    pub run_id: RunId,
    /// The run does not start before this time, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Millis>,
    /// The partition within which `partitioned-replace` counts and replaces runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub partition: String,
}

impl WaitList {
    /// Returns true if no run of the pipeline has a place or waits. Such a list need not be stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Returns the number of runs before this one, if it waits.
    #[must_use]
    pub fn position(&self, run: &RunId) -> Option<usize> {
        self.waiting.iter().position(|waiting| waiting.run_id == *run)
    }
}
