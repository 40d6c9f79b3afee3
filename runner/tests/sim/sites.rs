//! Fault sites in the store: transactions by their purpose.

use protocol::names;
use protocol::run::{RunRecord, Status, StepStatus};
use runner::ports::{Op, Txn};

/// Whether the watchdog covers the task that passes this site.
pub fn is_watched(site: &str) -> bool {
    ["claim", "claim-orphan", "save", "save-started", "save-ended", "end", "let-go", "hand-over"]
        .contains(&site)
}

/// The fault site of a transaction.
pub fn site_of(txn: &Txn) -> &'static str {
    let puts = |prefix: &str| {
        txn.ops.iter().find_map(|op| match op {
            Op::Put { key, value, .. } if key.starts_with(prefix) => Some(value),
            Op::Put { .. } | Op::Delete { .. } | Op::Attach { .. } => None,
        })
    };
    let deletes = |prefix: &str| {
        txn.ops.iter().any(|op| matches!(op, Op::Delete { key } if key.starts_with(prefix)))
    };
    if txn.ops.is_empty() {
        return "look";
    }
    if puts(names::NODES).is_some() && puts(names::RUNS).is_some() {
        return "probe";
    }
    if puts(names::OWNERS).is_some() {
        return if puts(names::OPEN).is_some() { "claim" } else { "claim-orphan" };
    }
    if deletes(names::OPEN) {
        return "let-go";
    }
    if deletes(names::OWNERS) {
        return if puts(names::RUNS).is_some() { "hand-over" } else { "release" };
    }
    if puts(names::STOPS).is_some() {
        return "stop";
    }
    if puts(names::NODES).is_some() {
        return "node";
    }
    let record =
        puts(names::RUNS).and_then(|value| serde_json::from_slice::<RunRecord>(value).ok());
    match record {
        Some(record) if record.status.is_ended() => "end",
        Some(record) if record.status == Status::Running => {
            match record.steps.last().map(|step| step.status) {
                Some(StepStatus::Started) => "save-started",
                Some(_) | None => "save-ended",
            }
        }
        Some(_) => "save",
        None => "other",
    }
}
