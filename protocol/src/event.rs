//! Events: every status change and every line of output, as they stand on the stream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{Epoch, NodeId, RegisteredName, RunId, StepName};
use crate::run::Cause;
use crate::time::Millis;

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Event {
    /// When, in milliseconds since the epoch.
    pub at: Millis,
    /// How it is to be taken.
    #[serde(rename = "type")]
    pub severity: Severity,
    /// What it is about.
    pub kind: Kind,
    /// A sentence for people, with the run id; in a `Log` event the text.
    pub message: String,
    /// What happened.
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
    /// The node that published it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The owner's epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// Counts the run's events within the epoch, from 0, without a gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepName>,
    /// The step's attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
}

/// How an event is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the words of the wire contract say it")]
pub enum Severity {
    Normal,
    Warning,
    Error,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the words of the wire contract say it")]
pub enum Kind {
    Pipeline,
    ResourceProvider,
    ArtifactStore,
    Logger,
    Runner,
}

/// Where a text came from.
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

/// How the `message` of a `Log` event is written where it is not text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// Standard base64 with padding.
    Base64,
}

/// What happened, with what belongs to it. The names are public: they are not reused or renamed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "reason", rename_all_fields = "kebab-case")]
#[expect(missing_docs, reason = "wire.md section 4 says each of them")]
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
    /// How an event of this reason is to be taken. A `StepCompleted` that did not pass, and a
    /// `PipelineRunScheduled` of a message without any id, are made warnings by whoever emits them.
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

    /// What an event of this reason is about.
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

    /// Whether this ends a run.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        matches!(
            self,
            Self::PipelineSuccessful | Self::PipelineFailed { .. } | Self::PipelineStopped { .. }
        )
    }
}

impl Event {
    /// An event that belongs to no run, with the severity and kind of its reason.
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

    /// The bytes that go to the stream.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Only maps with keys that are no strings fail to serialise, and there are none here.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The raw bytes of a `Log` event, whole lines with their newlines between them but without the
    /// last one; `None` for other events and for base64 that is none.
    #[must_use]
    pub fn log_bytes(&self) -> Option<Vec<u8>> {
        use base64::Engine as _;
        let Reason::Log { encoding, .. } = &self.reason else {
            return None;
        };
        match encoding {
            None => Some(self.message.clone().into_bytes()),
            // Text that is no base64 is not of our making.
            Some(Encoding::Base64) => {
                base64::engine::general_purpose::STANDARD.decode(&self.message).ok()
            }
        }
    }
}
