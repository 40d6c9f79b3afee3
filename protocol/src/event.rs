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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(name: &str) -> StepName {
        name.parse().unwrap()
    }

    /// One of each, with what it may leave out both there and not.
    fn reasons() -> Vec<Reason> {
        let node = || NodeId::found("bob/runner-1");
        let store: RegisteredName = "local".parse().unwrap();
        vec![
            Reason::PipelineRunScheduled { waiting: false },
            Reason::PipelineRunScheduled { waiting: true },
            Reason::StartPipelineRun,
            Reason::ImagePull { image: "busybox".into() },
            Reason::PipelineRunning,
            Reason::ResourceFetch { resource: "source".into() },
            Reason::StepStarted { command: "make".into(), executor: "podman".into() },
            Reason::Log { stream: LogStream::Stdout, offset: 0, partial: false, encoding: None },
            Reason::Log {
                stream: LogStream::Stderr,
                offset: u64::MAX,
                partial: true,
                encoding: Some(Encoding::Base64),
            },
            Reason::ArtifactUpload { artifact: "binary".into(), store },
            Reason::StepCompleted {
                exit_code: None,
                duration_ms: 0,
                stdout_bytes: 1,
                stderr_bytes: 2,
                image: None,
                repeated: false,
            },
            Reason::StepCompleted {
                exit_code: Some(-1),
                duration_ms: u64::MAX,
                stdout_bytes: u64::MAX,
                stderr_bytes: u64::MAX,
                image: Some("sha256:1".into()),
                repeated: true,
            },
            Reason::StepRetry { delay_ms: 10 },
            Reason::PipelineRunResumed {
                from_step: step("b"),
                previous_node: node(),
                previous_epoch: Epoch(i64::MAX),
                previous_seq: Some(u64::MAX),
                cause: "lost".into(),
                repeats: vec![step("a"), step("b")],
            },
            Reason::PipelineRunResumed {
                from_step: step("b"),
                previous_node: node(),
                previous_epoch: Epoch(1),
                previous_seq: None,
                cause: "handed-over".into(),
                repeats: Vec::new(),
            },
            Reason::PipelineRunRejected { delay_ms: 1000 },
            Reason::LoggerDropped { bytes: 7 },
            Reason::PipelineStopping,
            Reason::PipelineSuccessful,
            Reason::PipelineFailed { cause: Cause::ExitCode, exit_code: Some(137) },
            Reason::PipelineFailed { cause: Cause::Image, exit_code: None },
            Reason::PipelineStopped { cause: Cause::User },
            Reason::CommandRejected { field: Some("vars.A".into()) },
            Reason::CommandRejected { field: None },
            Reason::CommandIgnored,
            Reason::PipelineCreate,
            Reason::PipelineDelete,
            Reason::PipelinePaused,
            Reason::PipelineUnpaused,
            Reason::ResourceProviderCreate,
            Reason::ResourceProviderDelete,
            Reason::ArtifactStoreCreate,
            Reason::ArtifactStoreDelete,
            Reason::LoggerCreate,
            Reason::LoggerDelete,
            Reason::RunnerReady,
            Reason::RunnerDraining,
            Reason::RunnerStopped,
        ]
    }

    fn full(reason: Reason) -> Event {
        Event {
            run_id: Some("r-1".parse().unwrap()),
            group: Some("dev".into()),
            name: Some("hello".into()),
            node: Some(NodeId::found("bob/runner-1")),
            epoch: Some(Epoch(i64::MAX)),
            seq: Some(u64::MAX),
            step: Some(step("compile all")),
            attempt: Some(u32::MAX),
            ..Event::new(Millis(1_700_000_000_000), reason, "a sentence".into())
        }
    }

    #[test]
    fn every_event_is_read_as_it_was_written_whatever_the_order_of_its_fields() {
        for reason in reasons() {
            for event in
                [full(reason.clone()), Event::new(Millis(-1), reason.clone(), String::new())]
            {
                let json = event.to_json();
                let read: Event = serde_json::from_slice(&json).unwrap();
                assert_eq!(read, event);
                let object: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_slice(&json).unwrap();
                let backwards: serde_json::Map<_, _> = object.into_iter().rev().collect();
                let backwards = serde_json::to_string(&backwards).unwrap();
                assert_eq!(serde_json::from_str::<Event>(&backwards).unwrap(), event);
            }
        }
    }

    #[test]
    fn an_event_may_carry_fields_that_a_later_version_adds() {
        for reason in reasons() {
            let event = full(reason);
            let mut object = serde_json::to_value(&event).unwrap();
            object.as_object_mut().unwrap().insert("added-later".into(), [1, 2].as_slice().into());
            assert_eq!(serde_json::from_value::<Event>(object).unwrap(), event);
        }
    }

    #[test]
    fn an_event_is_written_with_the_words_of_the_contract() {
        let event = full(Reason::StepCompleted {
            exit_code: Some(1),
            duration_ms: 2,
            stdout_bytes: 3,
            stderr_bytes: 4,
            image: None,
            repeated: false,
        });
        let expected = serde_json::json!({
            "at": 1_700_000_000_000_i64, "type": "Warning", "kind": "Pipeline",
            "reason": "StepCompleted", "message": "a sentence", "run-id": "r-1", "group": "dev",
            "name": "hello", "node": "bob/runner-1", "epoch": i64::MAX, "seq": u64::MAX,
            "step": "compile all", "attempt": u32::MAX, "exit-code": 1, "duration-ms": 2,
            "stdout-bytes": 3, "stderr-bytes": 4,
        });
        assert_eq!(serde_json::to_value(&event).unwrap(), expected);
    }

    #[test]
    fn a_log_in_base64_gives_its_bytes_and_other_events_give_none() {
        let log = |message: &str, encoding| {
            let reason =
                Reason::Log { stream: LogStream::Stdout, offset: 0, partial: false, encoding };
            Event::new(Millis(0), reason, message.into()).log_bytes()
        };
        assert_eq!(log("a\nb", None).unwrap(), b"a\nb");
        assert_eq!(log("/wA=", Some(Encoding::Base64)).unwrap(), [0xff, 0]);
        assert_eq!(log("no base64!", Some(Encoding::Base64)), None);
        assert_eq!(Event::new(Millis(0), Reason::RunnerReady, "x".into()).log_bytes(), None);
    }

    proptest! {
        #[test]
        fn a_log_of_any_text_comes_back_as_it_was(message in any::<String>(), offset in any::<u64>()) {
            let reason = Reason::Log {
                stream: LogStream::Stdout, offset, partial: true, encoding: None
            };
            let event = Event { message, ..full(reason) };
            prop_assert_eq!(serde_json::from_slice::<Event>(&event.to_json()).unwrap(), event);
        }
    }
}
