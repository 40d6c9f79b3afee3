//! Messages in the worker's own log about jobs from a queue file, whose authors read them there.

use protocol::dialect::CI_GROUP;
use protocol::event::{Reason, Severity};
use protocol::run::{RunRecord, Status};
use tracing::{error, info, warn};

use crate::rules::run::EventDraft;

/// Logs the progress of a job.
pub(super) fn progress(record: &RunRecord, draft: &EventDraft) {
    if record.group != CI_GROUP {
        return;
    }
    let run = &record.run_id;
    if let (Reason::StepStarted { .. }, Some((_, attempt))) = (&draft.reason, &draft.step) {
        info!(run.id = %run, "job {run}: attempt {attempt} of {} begins", attempts(record));
    } else if let (Reason::StepRetry { delay_ms }, Some((_, next))) = (&draft.reason, &draft.step) {
        let (failed, all) = (next.saturating_sub(1), attempts(record));
        let delay = std::time::Duration::from_millis(*delay_ms);
        let step = draft.step.as_ref().map(|(name, _)| name);
        let step = record.steps.iter().find(|record| Some(&record.name) == step);
        let code = step.and_then(|step| step.exit_code);
        // docs/dialects.md documents the whole line, and programs look for it.
        let with = code.map(|code| format!(" (exit code {code})")).unwrap_or_default();
        warn!(run.id = %run, "job {run}: attempt {failed} of {all} has failed; the next is in {delay:?}{with}");
    } else if let Reason::PipelineRunResumed { repeats, .. } = &draft.reason {
        // The author must know that the command may have taken effect before.
        let again = if repeats.is_empty() { "" } else { "; its command is run once more" };
        match draft.severity {
            Some(Severity::Normal) => info!(run.id = %run, "{}{again}", draft.message),
            Some(Severity::Warning | Severity::Error) | None => {
                warn!(run.id = %run, "{}{again}", draft.message);
            }
        }
    }
}

/// Logs how a run ended. A failed job is an error, because a person must look at it.
pub(super) fn end(record: &RunRecord, message: &str) {
    let (run, status) = (&record.run_id, record.status);
    if record.group == CI_GROUP && status == Status::Failed {
        error!(run.id = %run, %status, "{message}");
    } else {
        info!(run.id = %run, %status, "{message}");
    }
}

/// Returns the maximum number of attempts of a job.
fn attempts(record: &RunRecord) -> u32 {
    let step = record.pipeline.as_ref().and_then(|pipeline| pipeline.steps.first());
    step.and_then(|step| step.retry.as_ref()).map_or(1, |retry| retry.attempts)
}
