//! Keeps a run's record within its budget, so that the end of the run can always be recorded.

use protocol::budget::{self, MAX_RECORD_BYTES, STEP_BYTES};
use protocol::pipeline::Step;
use protocol::run::{Cause, RunRecord};

use super::Run;

/// The bytes that a record has at most, as far as they were counted: each change adds the most that it
/// can take. The record itself is measured only when that reaches the limit.
#[derive(Debug, Default)]
pub(super) struct Room {
    used: Option<usize>,
}

impl Room {
    /// Reserves `bytes` if the record has room for them.
    fn take(&mut self, record: &RunRecord, bytes: usize) -> bool {
        let limit = MAX_RECORD_BYTES - budget::ENDING_RESERVE_BYTES;
        let fits = |used: &usize| used.saturating_add(bytes) <= limit;
        let counted = self.used.filter(fits);
        let used = counted.or_else(|| Some(budget::json_bytes(record)).filter(fits));
        self.used = used.map(|used| used.saturating_add(bytes));
        used.is_some()
    }
}

impl Run {
    /// Notes the result of a step, for its next write.
    ///
    /// # Errors
    /// A sentence, if the record has no room for it. The step goes on without it.
    pub fn found_out(&mut self, position: usize, result: serde_json::Value) -> Result<(), String> {
        let bytes = budget::json_bytes(&result);
        if !self.room.take(&self.record, bytes) {
            return Err(format!(
                "its result of {bytes} bytes does not fit into the record of the run, which has at \
                 most {MAX_RECORD_BYTES} bytes: later steps cannot ask for it"
            ));
        }
        if let Some(record) = self.record_of(position) {
            record.result = Some(result);
        }
        Ok(())
    }

    /// Takes the room of a step's entry. `Err`: why the run fails without it.
    pub(super) fn take_room(&mut self, step: &Step) -> Result<(), (Cause, String)> {
        // The name can be escaped, and the message of its failure is limited.
        let bytes = STEP_BYTES + 2 * step.name.as_str().len();
        if self.room.take(&self.record, bytes) {
            return Ok(());
        }
        let why = format!(
            "the record of the run has at most {MAX_RECORD_BYTES} bytes, and no room for step {}: \
             split the pipeline, or make the results of its steps smaller",
            step.name
        );
        Err((Cause::Rejected, why))
    }

    /// Notes that a message was added, which cannot be refused.
    pub(super) fn use_room(&mut self, bytes: usize) {
        self.room.used = self.room.used.map(|used| used.saturating_add(bytes));
    }
}
