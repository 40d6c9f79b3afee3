//! Events: every status change and every line of output, as published on the stream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{Epoch, NodeId, RegisteredName, RunId, StepName};
use crate::status::Cause;
use crate::time::Millis;

/// One message on the stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Event {
    /// When the event occurred, in milliseconds since the Unix epoch.
    pub at: Millis,
    /// The severity.
    #[serde(rename = "type")]
    pub severity: Severity,
    /// The kind of object that the event is about.
    pub kind: Kind,
    /// A sentence for people, with the run id. In a `Log` event, the text.
    pub message: String,
    /// What happened, with its details.
    #[serde(flatten)]
    pub reason: Reason,
    /// The run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// The pipeline's group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The pipeline's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The node that published the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The owner's epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// Number of the event within the run and epoch, from 0 without a gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepName>,
    /// The step's attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
}

/// The severity of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "docs/wire.md section 4 describes them")]
pub enum Severity {
    Normal,
    Warning,
    Error,
}

/// The kind of object that an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "docs/wire.md section 4 describes them")]
pub enum Kind {
    Pipeline,
    ResourceProvider,
    ArtifactStore,
    Logger,
    Runner,
}

/// The source of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogStream {
    /// The step's standard output.
    Stdout,
    /// The step's standard error.
    Stderr,
    /// The runner's own lines.
    Bob,
}

/// The encoding of the `message` of a `Log` event that is not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// Standard base64 with padding.
    Base64,
}

/// What happened, with its details. The names are public: they are never reused or renamed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "reason", rename_all_fields = "kebab-case")]
#[expect(missing_docs, reason = "docs/wire.md section 4 describes them")]
pub enum Reason {
    PipelineRunScheduled {
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        waiting: bool,
    },
    StartPipelineRun,
    ImagePull {
        image: String,
    },
    PipelineRunning,
    ResourceFetch {
        resource: String,
    },
    StepStarted {
        command: String,
        executor: String,
    },
    Log {
        stream: LogStream,
        offset: u64,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        partial: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        encoding: Option<Encoding>,
    },
    ArtifactUpload {
        artifact: String,
        store: RegisteredName,
    },
    StepCompleted {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        duration_ms: u64,
        stdout_bytes: u64,
        stderr_bytes: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<String>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        repeated: bool,
    },
    StepRetry {
        delay_ms: u64,
    },
    PipelineRunResumed {
        from_step: StepName,
        previous_node: NodeId,
        previous_epoch: Epoch,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous_seq: Option<u64>,
        cause: String,
        #[serde(default)]
        repeats: Vec<StepName>,
    },
    PipelineRunRejected {
        delay_ms: u64,
    },
    LoggerDropped {
        bytes: u64,
    },
    PipelineStopping,
    PipelineSuccessful,
    PipelineFailed {
        cause: Cause,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
    PipelineStopped {
        cause: Cause,
    },
    CommandRejected {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        field: Option<String>,
    },
    CommandIgnored,
    CommandReturned {
        returns: u32,
    },
    PipelineCreate,
    PipelineDelete,
    PipelinePaused,
    PipelineUnpaused,
    ResourceProviderCreate,
    ResourceProviderDelete,
    ArtifactStoreCreate,
    ArtifactStoreDelete,
    LoggerCreate,
    LoggerDelete,
    CallbackDropped,
    RunnerReady,
    RunnerDraining,
    RunnerStopped,
}

impl Reason {
    /// The severity of this reason. The publisher raises two cases to warnings: a `StepCompleted`
    /// that did not pass, and a `PipelineRunScheduled` of a message without an id.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::StepCompleted { exit_code, .. } if *exit_code != Some(0) => Severity::Warning,
            Self::StepRetry { .. }
            | Self::PipelineRunResumed { .. }
            | Self::PipelineRunRejected { .. }
            | Self::LoggerDropped { .. }
            | Self::PipelineFailed { .. }
            | Self::CallbackDropped
            | Self::CommandReturned { .. }
            | Self::CommandRejected { .. } => Severity::Warning,
            Self::PipelineRunScheduled { .. }
            | Self::StartPipelineRun
            | Self::ImagePull { .. }
            | Self::PipelineRunning
            | Self::ResourceFetch { .. }
            | Self::StepStarted { .. }
            | Self::Log { .. }
            | Self::ArtifactUpload { .. }
            | Self::StepCompleted { .. }
            | Self::PipelineStopping
            | Self::PipelineSuccessful
            | Self::PipelineStopped { .. }
            | Self::CommandIgnored
            | Self::PipelineCreate
            | Self::PipelineDelete
            | Self::PipelinePaused
            | Self::PipelineUnpaused
            | Self::ResourceProviderCreate
            | Self::ResourceProviderDelete
            | Self::ArtifactStoreCreate
            | Self::ArtifactStoreDelete
            | Self::LoggerCreate
            | Self::LoggerDelete
            | Self::RunnerReady
            | Self::RunnerDraining
            | Self::RunnerStopped => Severity::Normal,
        }
    }

    /// The kind of object that this reason is about.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::CommandRejected { .. }
            | Self::CommandIgnored
            | Self::CommandReturned { .. }
            | Self::CallbackDropped
            | Self::RunnerReady
            | Self::RunnerDraining
            | Self::RunnerStopped => Kind::Runner,
            Self::ResourceProviderCreate | Self::ResourceProviderDelete => Kind::ResourceProvider,
            Self::ArtifactStoreCreate | Self::ArtifactStoreDelete => Kind::ArtifactStore,
            Self::LoggerCreate | Self::LoggerDelete | Self::LoggerDropped { .. } => Kind::Logger,
            Self::PipelineRunScheduled { .. }
            | Self::StartPipelineRun
            | Self::ImagePull { .. }
            | Self::PipelineRunning
            | Self::ResourceFetch { .. }
            | Self::StepStarted { .. }
            | Self::Log { .. }
            | Self::ArtifactUpload { .. }
            | Self::StepCompleted { .. }
            | Self::StepRetry { .. }
            | Self::PipelineRunResumed { .. }
            | Self::PipelineRunRejected { .. }
            | Self::PipelineStopping
            | Self::PipelineSuccessful
            | Self::PipelineFailed { .. }
            | Self::PipelineStopped { .. }
            | Self::PipelineCreate
            | Self::PipelineDelete
            | Self::PipelinePaused
            | Self::PipelineUnpaused => Kind::Pipeline,
        }
    }

    /// Whether this reason ends a run.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        matches!(
            self,
            Self::PipelineSuccessful | Self::PipelineFailed { .. } | Self::PipelineStopped { .. }
        )
    }
}

impl Event {
    /// Makes an event that belongs to no run, with the severity and kind of its reason.
    #[must_use]
    pub fn new(at: Millis, reason: Reason, message: String) -> Self {
        Self {
            at,
            severity: reason.severity(),
            kind: reason.kind(),
            message,
            reason,
            run_id: None,
            group: None,
            name: None,
            node: None,
            epoch: None,
            seq: None,
            step: None,
            attempt: None,
        }
    }

    /// Serializes the event for the stream.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Serialization fails only for maps with non-string keys, and an event has none.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Decodes the bytes of a `Log` event: lines separated by newlines, without the last newline.
    /// Returns `None` for other events and for invalid base64.
    #[must_use]
    pub fn log_bytes(&self) -> Option<Vec<u8>> {
        use base64::Engine as _;
        let Reason::Log { encoding, .. } = &self.reason else {
            return None;
        };
        match encoding {
            None => Some(self.message.clone().into_bytes()),
            // The runner never publishes invalid base64.
            Some(Encoding::Base64) => {
                base64::engine::general_purpose::STANDARD.decode(&self.message).ok()
            }
        }
    }
}
