//! The facts collected in a history, against which the invariants are checked. Plain data, so that
//! tests can write histories by hand.

use protocol::event::Event;
use protocol::id::RunId;
use protocol::run::RunRecord;
use protocol::time::Millis;
use runner::host::Linux;
use runner::ports::Host as _;

/// The current time of this host.
pub(crate) fn now() -> Millis {
    Linux::default().now()
}

/// Seconds between two times, for reports.
#[expect(clippy::cast_precision_loss, reason = "a rig does not run for years")]
pub(crate) fn seconds(from: Millis, to: Millis) -> f64 {
    (to.0 - from.0) as f64 / 1000.0
}

/// How a run ends if it is not stopped and loses few workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every step passes.
    Passed,
    /// A step exits with a code other than 0.
    Failed,
}

/// A requested run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) run: RunId,
    pub(crate) outcome: Outcome,
    /// The number of steps.
    pub(crate) steps: usize,
    /// Whether a stop was requested.
    pub(crate) is_stopped: bool,
}

/// A change in etcd.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) key: String,
    /// `None` if it was deleted.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) revision: i64,
    /// When the rig saw it, which is not before it happened.
    pub(crate) seen: Millis,
}

/// A run's record as read at some time.
#[derive(Debug, Clone)]
pub(crate) struct ReadRecord {
    pub(crate) revision: i64,
    pub(crate) record: RunRecord,
}

/// An execution of a step, as reported by the step itself.
#[derive(Debug, Clone)]
pub(crate) struct Execution {
    pub(crate) run: RunId,
    pub(crate) step: usize,
    /// Identifies its engine.
    pub(crate) engine: String,
    pub(crate) at: Millis,
    /// Its start, in a total order of all starts and ends.
    pub(crate) began: u64,
    /// The end of its last process, in the same order.
    pub(crate) ended: Option<u64>,
    /// The record, read after its start. `None` if the store did not answer.
    pub(crate) found: Option<ReadRecord>,
}

/// An injected fault.
#[derive(Debug, Clone)]
pub(crate) struct Injected {
    pub(crate) kind: &'static str,
    /// The process of the affected worker, if any.
    pub(crate) pid: Option<u32>,
    pub(crate) from: Millis,
    pub(crate) to: Millis,
}

/// All facts of a history.
#[derive(Debug, Default)]
pub(crate) struct HistoryFacts {
    pub(crate) plans: Vec<Plan>,
    pub(crate) changes: Vec<Change>,
    pub(crate) told: Vec<Event>,
    pub(crate) executions: Vec<Execution>,
    pub(crate) injected: Vec<Injected>,
    /// Leftovers, as sentences.
    pub(crate) left: Vec<String>,
    /// Actions that no worker may take, as sentences.
    pub(crate) mishaps: Vec<String>,
    pub(crate) max_losses: u32,
    /// Workers were only drained, so no run may be affected.
    pub(crate) is_gentle: bool,
    /// The number of places of the pipeline that all runs belong to. `None` if they are independent.
    pub(crate) places: Option<usize>,
}
