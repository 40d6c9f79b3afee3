//! Keeps a run's record within its byte budget, so that the end of the run can always be recorded.

use protocol::budget::{self, MAX_RECORD_BYTES, STEP_BYTES};
use protocol::id::StepPosition;
use protocol::pipeline::Step;
use protocol::run::{Cause, RunRecord};

use super::state::{Room, Run};

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
    /// Adds the result of a step to the record, for its next write.
    ///
    /// # Errors
    /// A message, if the record has no room for it. The step continues without a result.
    pub fn record_result(
        &mut self,
        position: StepPosition,
        result: serde_json::Value,
    ) -> Result<(), String> {
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

    /// Reserves the room of a step's entry.
    ///
    /// # Errors
    /// The reason why the run fails without it.
    pub(super) fn reserve(&mut self, step: &Step) -> Result<(), (Cause, String)> {
        // Escapes can double the length of the name. The message of a failure is limited.
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

    /// Counts a message that was added, which cannot be refused.
    pub(super) fn count_message(&mut self, bytes: usize) {
        self.room.used = self.room.used.map(|used| used.saturating_add(bytes));
    }
}
