//! What a run is told, and what it orders.

use std::time::Duration;

use protocol::event::{Reason, Severity};
use protocol::id::{Epoch, NodeId, StepName};
use protocol::pipeline::{ProcessLimits, Step};
use protocol::run::{Cause, RunRecord};

/// A fact.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The image is there.
    Prepared,
    /// The resource of the step at this position is mounted.
    Fetched(usize),
    /// The command of the step at this position ended.
    Exited(usize, Exited),
    /// The artifact of the step at this position is in its store.
    Uploaded(usize),
    /// What a step left is kept as this image.
    Committed {
        /// The step's position.
        position: usize,
        /// The image's id.
        image: String,
        /// The engine that holds it.
        engine: String,
    },
    /// What was last ordered (prepare, adopt, fetch, start, upload, commit) could not be done.
    Broke {
        /// The step's position; none where it was for the run as a whole.
        at: Option<usize>,
        /// Why.
        cause: Cause,
        /// The same for people.
        message: String,
        /// What a shell would have answered, where the command could not be started.
        exit_code: Option<i32>,
        /// Bytes of standard output and standard error, where a command was begun.
        said: Option<(u64, u64)>,
    },
    /// What earlier owners have kept is there to go on from, but for that of these steps.
    Adopted {
        /// Their positions.
        missing: Vec<usize>,
    },
    /// What this attempt at a step left can be had from the registry.
    Pushed {
        /// The step.
        step: StepName,
        /// The attempt.
        attempt: u32,
        /// Its digest there.
        digest: String,
    },
    /// Somebody wants it to end.
    StopAsked(StopWhy),
    /// Its worker ends: another one is to continue it.
    HandOverAsked {
        /// How long a step that must not run twice may take to finish, unless it says so itself.
        grace: Duration,
    },
    /// A timer that was set has run out.
    Expired(Timer),
}

/// How a command ended, and how much it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exited {
    /// Its exit code.
    pub code: i32,
    /// The engine says that memory ran out.
    pub oom: bool,
    /// Bytes of its standard output.
    pub stdout_bytes: u64,
    /// Bytes of its standard error.
    pub stderr_bytes: u64,
}

/// The owner before this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// Its node.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// It let go of the run by itself.
    pub handed_over: bool,
    /// The highest `seq` that it had given an event, according to its last write.
    pub last_seq: Option<u64>,
}

/// Why a run is to be stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopWhy {
    /// A stop command.
    User {
        /// What the user said.
        reason: Option<String>,
    },
    /// The worker ends.
    Shutdown,
}

impl StopWhy {
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::User { .. } => Cause::User,
            Self::Shutdown => Cause::Shutdown,
        }
    }
}

/// A deadline of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timer {
    /// Of the whole run.
    Run,
    /// Of the step at this position.
    Step(usize),
    /// Until the step at this position is tried again.
    Retry(usize),
    /// The time that a hand-over gives the step at this position, which must not run twice.
    HandOver(usize),
}

/// An order.
///
/// Orders are performed one after the other, in their order; `Prepare`, `Adopt`, `Fetch`,
/// `Start`, `Upload` and `Commit` only begin something, whose end is a fact. What names a position is
/// for the step there; steps go on beside each other.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write the record. What follows waits until it is written.
    Save(Box<RunRecord>),
    /// Publish an event.
    Emit(Draft),
    /// Get the image.
    Prepare,
    /// Take up these, which earlier owners have kept, and end what still runs of the run.
    Adopt(Vec<Kept>),
    /// Fetch and mount the resource of the step at this position.
    Fetch(usize),
    /// Make the step's container, but do not start it before `OpenGate`.
    Start(usize),
    /// Its attempt is recorded: let it start.
    OpenGate(usize),
    /// Send the step's artifact to its store.
    Upload(usize),
    /// Keep what the step left.
    Commit(usize),
    /// Copy what the step left to the registry, where there is one, beside all that follows.
    Push(usize),
    /// Let go of what the step left.
    Discard(usize),
    /// End all that is going on: SIGTERM, the grace, SIGKILL.
    Interrupt,
    /// The same, except for steps that must not run twice: those may finish.
    InterruptRepeatable,
    /// End what is going on for the step at this position.
    InterruptStep(usize),
    /// The same at once, without a grace.
    KillStep(usize),
    /// Set a timer.
    SetTimer(Timer, Duration),
    /// Take a timer back.
    CancelTimer(Timer),
    /// Write the ending, publish it, clean up, let go of the claim.
    Finish,
    /// Let go of the claim, so that another worker goes on.
    Release,
}

/// What a step has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its position.
    pub position: usize,
    /// The image's id, on the engine that made it.
    pub image: String,
    /// Its digest in the registry.
    pub digest: Option<String>,
}

/// An event, but for what the publisher knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// What happened.
    pub reason: Reason,
    /// The sentence.
    pub message: String,
    /// The step.
    pub step: Option<(StepName, u32)>,
    /// How it is to be taken, where that does not follow from the reason.
    pub severity: Option<Severity>,
}

/// A step, and how often it was begun.
pub(super) type Tried = (StepName, u32);

/// What an exit means, as cause and words.
pub(super) fn exit_words(exited: Exited, step: Option<&Step>) -> (Cause, String) {
    let limits = step.and_then(|step| ProcessLimits::of(&step.with).ok());
    let limit = limits.and_then(|limits| limits.ended_by(exited.code));
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

/// An event of the run as a whole.
pub(super) fn emit(reason: Reason, message: String) -> Effect {
    Effect::Emit(Draft { reason, message, step: None, severity: None })
}

/// Makes it one of a step.
pub(super) fn about(effect: &mut Effect, step: &StepName, attempt: u32) {
    if let Effect::Emit(draft) = effect {
        draft.step = Some((step.clone(), attempt));
    }
}
