//! What was seen of a whole history: what the checker holds against the invariants. Plain data, so
//! that a test can write a history by hand.

use protocol::event::Event;
use protocol::id::RunId;
use protocol::run::RunRecord;
use protocol::time::Millis;
use runner::host::Linux;
use runner::ports::Host as _;

/// The machine's time.
pub(crate) fn now() -> Millis {
    Linux::default().now()
}

/// Seconds between two times, for people.
#[expect(clippy::cast_precision_loss, reason = "a rig does not run for years")]
pub(crate) fn seconds(from: Millis, to: Millis) -> f64 {
    (to.0 - from.0) as f64 / 1000.0
}

/// How a run is to end where nobody stops it and no worker is lost too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every step passes.
    Passed,
    /// A step ends with another code than 0.
    Failed,
}

/// A run as it was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) run: RunId,
    pub(crate) outcome: Outcome,
    /// How many steps it has.
    pub(crate) steps: usize,
    /// Whether somebody asked for its end.
    pub(crate) is_stopped: bool,
}

/// One change of etcd.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) key: String,
    /// `None` where it was deleted.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) revision: i64,
    /// When the rig saw it: not before it happened.
    pub(crate) seen: Millis,
}

/// A run's record as somebody found it.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) revision: i64,
    pub(crate) record: RunRecord,
}

/// A step that ran, as the rig heard it from the step itself.
#[derive(Debug, Clone)]
pub(crate) struct Begun {
    pub(crate) run: RunId,
    pub(crate) step: usize,
    /// What tells its engine from another one.
    pub(crate) engine: String,
    pub(crate) at: Millis,
    /// When it began, in an order of all begins and ends.
    pub(crate) began: u64,
    /// When its last process was gone, in the same order.
    pub(crate) ended: Option<u64>,
    /// The record, read after it had begun; `None` where the store did not answer.
    pub(crate) found: Option<Found>,
}

/// A fault that was injected.
#[derive(Debug, Clone)]
pub(crate) struct Injected {
    pub(crate) kind: &'static str,
    /// The process that it hit, where it hit a worker.
    pub(crate) pid: Option<u32>,
    pub(crate) from: Millis,
    pub(crate) to: Millis,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) plans: Vec<Plan>,
    pub(crate) changes: Vec<Change>,
    pub(crate) told: Vec<Event>,
    pub(crate) begun: Vec<Begun>,
    pub(crate) injected: Vec<Injected>,
    /// What was left over, each a sentence.
    pub(crate) left: Vec<String>,
    /// What no worker may do and one did, each a sentence.
    pub(crate) mishaps: Vec<String>,
    pub(crate) max_losses: u32,
    /// Workers were only ever asked to leave: no run may suffer at all.
    pub(crate) is_gentle: bool,
}
