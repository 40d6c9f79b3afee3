//! How far a run or a step is, and why it ended.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The status of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Accepted, not yet started.
    Pending,
    /// The owner prepares the run.
    Initializing,
    /// The image is available.
    Initialized,
    /// Steps are running.
    Running,
    /// Every step passed.
    Passed,
    /// A step failed, or the runner could not run it.
    Failed,
    /// Stopped by a user.
    Stopped,
}

impl Status {
    /// Returns `true` for the three final statuses, which are written once.
    #[must_use]
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Passed | Self::Failed | Self::Stopped)
    }

    /// Returns the later of the two statuses. A status never moves back.
    #[must_use]
    pub fn at_least(self, reached: Self) -> Self {
        let place = |status| match status {
            Self::Pending => 0,
            Self::Initializing => 1,
            Self::Initialized => 2,
            Self::Running => 3,
            Self::Passed | Self::Failed | Self::Stopped => 4,
        };
        if place(reached) > place(self) { reached } else { self }
    }

    /// The status as written on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Initializing => "initializing",
            Self::Initialized => "initialized",
            Self::Running => "running",
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a run or step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "docs/wire.md section 3 describes them")]
pub enum Cause {
    ExitCode,
    Timeout,
    User,
    Replaced,
    Shutdown,
    Image,
    Resource,
    Artifact,
    Template,
    Lost,
    UnknownPipeline,
    Paused,
    UnknownLogger,
    Engine,
    Oom,
    NoSpace,
    SecretLeak,
    ImageLost,
    Rejected,
    RetriesExhausted,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// The status of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepStatus {
    /// Not started.
    #[default]
    Pending,
    /// Recorded as started but not as ended. For the next owner, the step is in doubt.
    Started,
    /// Ended with exit code 0, and committed.
    Passed,
    /// Ended with a failure.
    Failed,
    /// Stopped by the runner.
    Stopped,
}
