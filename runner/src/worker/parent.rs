//! The steps that a new run takes over from its ended parent run.

use protocol::budget::json_bytes;
use protocol::command::Start;
use protocol::definition::Stored;
use protocol::id::RunId;
use protocol::pipeline::Pipeline;
use protocol::run::{RunRecord, StepRecord};

use super::records::RunKeys;
use super::shared::Shared;

/// The maximum size of the step records that a run takes over, as JSON. The claim writes them and the
/// definition in one request.
const MAX_STEPS_BYTES: usize = 896 * 1024;

/// Why a run cannot start from its parent's steps.
pub(super) enum ParentError {
    /// This worker cannot start it. A worker on another engine can.
    OnOtherEngine {
        /// The engine that holds the image.
        engine: String,
        /// The message for users.
        why: String,
    },
    /// No worker can start it. Contains the message for users.
    Rejected(String),
}

/// Whether a start has the definition, variables and parameters of its parent. If they could differ, a
/// start could read the images and results of another user's run.
fn matches_parent(start: &Start, pipeline: &Pipeline, parent: &RunRecord) -> bool {
    parent.pipeline.as_ref() == Some(pipeline)
        && parent.vars == start.vars
        && parent.params == start.params
}

/// Whether a start repeats a trusted parent unchanged.
pub(super) fn is_trusted_parent(
    parent: &RunId,
    start: &Start,
    keys: &RunKeys,
    pipeline: Option<&Pipeline>,
) -> bool {
    let Some(Ok(Stored { record, .. })) = keys.stored(parent) else { return false };
    record.trusted && pipeline.is_some_and(|pipeline| matches_parent(start, pipeline, &record))
}

/// Returns the steps that a start takes over from its parent.
pub(super) fn steps_from_parent(
    shared: &Shared,
    start: &Start,
    keys: &RunKeys,
    pipeline: &Pipeline,
) -> Result<Vec<StepRecord>, ParentError> {
    let Some(parent) = &start.parent else { return Ok(Vec::new()) };
    let id = &parent.run_id;
    let record = match keys.stored(id) {
        Some(Ok(Stored { record, .. })) if record.status.is_ended() => record,
        Some(Ok(Stored { record, .. })) => {
            let why = format!("run {id} has not ended: it is {}", record.status);
            return Err(ParentError::Rejected(why));
        }
        Some(Err(cause)) => return Err(ParentError::Rejected(cause.to_string())),
        None => {
            return Err(ParentError::Rejected(format!(
                "run {id} is not known: it was never accepted, or its record is past its retention"
            )));
        }
    };
    if !shared.options.changed_reruns && !matches_parent(start, pipeline, &record) {
        return Err(ParentError::Rejected(format!(
            "run {id} had a different definition, variables or parameters, so this run cannot take \
             over its steps: start it without `parent`, or with those of run {id}"
        )));
    }
    // The new definition decides which of the parent's steps fit. It can differ from the parent's
    // only with `changed_reruns`.
    let record = RunRecord { pipeline: Some(pipeline.clone()), ..record };
    let steps = record.steps_to_inherit(parent.from.as_ref());
    let steps = steps.map_err(|why| ParentError::Rejected(format!("run {id}: {why}")))?;
    let bytes = json_bytes(&steps);
    if bytes > MAX_STEPS_BYTES {
        return Err(ParentError::Rejected(format!(
            "the records of the steps of run {id} have {bytes} bytes, and at most \
             {MAX_STEPS_BYTES} bytes can be taken over; rerun it from its first step"
        )));
    }
    let in_registry = |step: &StepRecord| step.digest.is_some() && shared.engine.checkpoints;
    match steps.iter().rev().find(|step| step.image.is_some()) {
        Some(last) if last.engine.as_ref() != Some(&shared.engine.id) && !in_registry(last) => {
            let engine = last.engine.as_deref().unwrap_or("another");
            let why = match &last.engine {
                Some(engine) => format!("the image of step {} is on engine {engine}", last.name),
                None => format!("the image of step {} is on another engine", last.name),
            };
            Err(ParentError::OnOtherEngine { engine: engine.to_owned(), why })
        }
        Some(_) | None => Ok(steps),
    }
}
