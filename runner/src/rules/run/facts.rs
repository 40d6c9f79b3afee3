//! Facts that a run receives, and the orders it gives.

use std::time::Duration;

use protocol::event::{Reason, Severity};
use protocol::id::{Epoch, NodeId, RunId, StepName, StepPosition};
use protocol::pipeline::{ProcessLimits, Step};
use protocol::run::{Cause, RunRecord, StopEntry};

/// A fact.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The image is available.
    Prepared,
    /// The resource of the step at this position is mounted.
    Fetched(StepPosition),
    /// The command of the step at this position exited.
    Exited(StepPosition, Exited),
    /// The artifact of the step at this position was uploaded.
    Uploaded(StepPosition),
    /// A step was committed as an image.
    Committed {
        /// The step's position.
        position: StepPosition,
        /// The ID of the image.
        image: String,
        /// The engine that holds it.
        engine: String,
    },
    /// An order (prepare, adopt, fetch, start, upload, commit) failed. The position is `None` if the
    /// order was for the whole run.
    Broke(Option<StepPosition>, Broke),
    /// The checkpoints of earlier owners are available, except those of these steps.
    Adopted {
        /// The positions of these steps.
        missing: Vec<StepPosition>,
    },
    /// The checkpoint of a step's attempt was pushed to the registry.
    Pushed {
        /// The step.
        step: StepName,
        /// The attempt.
        attempt: u32,
        /// The digest in the registry.
        digest: String,
    },
    /// A stop was requested.
    StopAsked(StopWhy),
    /// The worker ends and another one is to continue the run.
    HandOverAsked {
        /// The time that a step which must not run twice has to finish. Its own kill-grace may
        /// extend it.
        grace: Duration,
    },
    /// A timer expired.
    Expired(Timer),
}

/// How a command exited, and the size of its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exited {
    /// Its exit code.
    pub code: i32,
    /// Whether the engine reports that memory ran out.
    pub oom: bool,
    /// Bytes of its standard output.
    pub stdout_bytes: u64,
    /// Bytes of its standard error.
    pub stderr_bytes: u64,
}

/// How an order failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broke {
    /// The cause of the failure.
    pub cause: Cause,
    /// The message about it.
    pub message: String,
    /// The exit code a shell would return, if the command could not be started.
    pub exit_code: Option<i32>,
    /// The number of bytes of standard output and standard error, if a command was started.
    pub output_bytes: Option<(u64, u64)>,
}

impl Broke {
    /// Creates the failure of an order that started no command.
    #[must_use]
    pub fn new(cause: Cause, message: String) -> Self {
        Self { cause, message, exit_code: None, output_bytes: None }
    }
}

/// The previous owner of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousOwner {
    /// Its node.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whether it released the run by itself.
    pub handed_over: bool,
    /// The highest event `seq` in its last write of the record.
    pub last_seq: Option<u64>,
}

/// Why a run is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopWhy {
    /// A stop command.
    User {
        /// The reason given by the user.
        reason: Option<String>,
    },
    /// A newer run has taken its place in the wait list.
    Replaced {
        /// That run.
        by: RunId,
    },
    /// The worker shuts down.
    Shutdown,
}

impl StopWhy {
    /// Returns why the stop that this entry records was requested.
    #[must_use]
    pub fn of_entry(entry: StopEntry) -> Self {
        match entry.replaced_by {
            Some(by) => Self::Replaced { by },
            None => Self::User { reason: entry.reason },
        }
    }

    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::User { .. } => Cause::User,
            Self::Replaced { .. } => Cause::Replaced,
            Self::Shutdown => Cause::Shutdown,
        }
    }
}

/// A timer of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timer {
    /// The timeout of the run.
    Run,
    /// The timeout of the step at this position.
    Step(StepPosition),
    /// The delay before the step at this position is retried.
    Retry(StepPosition),
    /// The time that a hand-over gives the step at this position, which must not run twice.
    HandOver(StepPosition),
}

/// An order to the worker.
///
/// Orders are performed in sequence. `Prepare`, `Adopt`, `Fetch`, `Start`, `Upload` and `Commit`
/// only start an operation; its completion is a fact. A position names the step that an order is
/// for. Steps run in parallel.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write the record. The orders behind it wait for the write.
    Save(Box<RunRecord>),
    /// Publish an event.
    Emit(EventDraft),
    /// Pull the image.
    Prepare,
    /// Adopt these checkpoints of earlier owners, and end what still runs of the run.
    Adopt(Vec<KeptStep>),
    /// Fetch and mount the resource of the step at this position.
    Fetch(StepPosition),
    /// Create the step's container, but do not start it before `OpenGate`.
    Start(StepPosition),
    /// Let the step start, because its attempt is recorded.
    OpenGate(StepPosition),
    /// Upload the step's artifact.
    Upload(StepPosition),
    /// Commit what the step left.
    Commit(StepPosition),
    /// Push the step's checkpoint to the registry, if there is one, in the background.
    Push(StepPosition),
    /// Discard what the step left.
    Discard(StepPosition),
    /// End all steps in progress: SIGTERM, grace, SIGKILL.
    Interrupt,
    /// The same, except that steps which must not run twice may finish.
    InterruptRepeatable,
    /// End the step at this position.
    InterruptStep(StepPosition),
    /// Kill the step at this position, without a grace.
    KillStep(StepPosition),
    /// Start a timer.
    SetTimer(Timer, Duration),
    /// Cancel a timer.
    CancelTimer(Timer),
    /// Write the ending, publish it, clean up, and release the claim.
    Finish,
    /// Release the claim, so that another worker continues the run.
    Release,
}

/// The checkpoint of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptStep {
    /// The step's position.
    pub position: StepPosition,
    /// The image ID on the engine that committed it.
    pub image: String,
    /// The digest in the registry.
    pub digest: Option<String>,
}

/// An event without the fields that the publisher fills in.
#[derive(Debug, Clone, PartialEq)]
pub struct EventDraft {
    /// What happened.
    pub reason: Reason,
    /// The message.
    pub message: String,
    /// The step and its attempt.
    pub step: Option<(StepName, u32)>,
    /// Overrides the severity that follows from the reason.
    pub severity: Option<Severity>,
}

/// The orders of starting steps, in the order of the fields. The record is written after `starts`.
#[derive(Default)]
pub(super) struct Orders {
    pub(super) starts: Vec<Effect>,
    /// Events to publish after the write.
    pub(super) told: Vec<Effect>,
    pub(super) then: Vec<Effect>,
}

impl Orders {
    pub(super) fn with(self, save: Effect) -> Vec<Effect> {
        let Self { mut starts, told, then } = self;
        starts.push(save);
        starts.extend(told);
        starts.extend(then);
        starts
    }
}

pub(super) fn effects(list: impl Into<Vec<Effect>>) -> Vec<Effect> {
    list.into()
}

/// Returns the cause and the message for an exit.
pub(super) fn exit_words(exited: Exited, step: Option<&Step>) -> (Cause, String) {
    let limits = step.and_then(|step| ProcessLimits::from_with(&step.with).ok());
    let limit = limits.and_then(|limits| limits.exceeded_limit(exited.code));
    match exited {
        Exited { oom: true, .. } => {
            (Cause::Oom, format!("exit code {}: memory ran out", exited.code))
        }
        Exited { code: 137, .. } => (
            Cause::ExitCode,
            "exit code 137: something killed it; it may be that memory ran out".to_owned(),
        ),
        Exited { code, .. } => {
            let over = limit.map_or_else(String::new, |(key, signal)| {
                format!(": {signal}, which ends what goes beyond its limit `{key}`")
            });
            (Cause::ExitCode, format!("exit code {code}{over}"))
        }
    }
}

/// Creates an event about the whole run.
pub(super) fn emit(reason: Reason, message: String) -> Effect {
    Effect::Emit(EventDraft { reason, message, step: None, severity: None })
}

/// Turns an event into one about a step.
pub(super) fn about(effect: &mut Effect, step: &StepName, attempt: u32) {
    if let Effect::Emit(draft) = effect {
        draft.step = Some((step.clone(), attempt));
    }
}
