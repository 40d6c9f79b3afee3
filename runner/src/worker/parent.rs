//! The steps that a new run takes over from its ended parent run.

use protocol::budget::json_bytes;
use protocol::command::Start;
use protocol::definition::Stored;
use protocol::id::RunId;
use protocol::pipeline::Pipeline;
use protocol::run::{RunRecord, StepRecord};

use super::records::RunKeys;
use super::shared::Shared;

/// The maximum size of these steps. The claim writes them in one request with the definition.
const MAX_KEPT_BYTES: usize = 896 * 1024;

/// Why a run cannot start from its parent's steps.
pub(super) enum ParentError {
    /// A worker on this engine can.
    Here {
        /// The engine that holds the image.
        engine: String,
        /// The sentence.
        why: String,
    },
    /// No worker can.
    Ever(String),
}

/// Whether a start has the definition, variables and parameters of its parent. Otherwise it could read
/// the images and results of a run of somebody else with steps of its own.
fn is_same(start: &Start, pipeline: &Pipeline, parent: &RunRecord) -> bool {
    parent.pipeline.as_ref() == Some(pipeline)
        && parent.vars == start.vars
        && parent.params == start.params
}

/// Whether a start repeats a parent that was trusted.
pub(super) fn is_trusted_parent(
    of: &RunId,
    start: &Start,
    keys: &RunKeys,
    pipeline: Option<&Pipeline>,
) -> bool {
    let Some(Ok(Stored { record: parent, .. })) = keys.stored(of) else { return false };
    parent.trusted && pipeline.is_some_and(|pipeline| is_same(start, pipeline, &parent))
}

/// Returns the steps that a start takes over from its parent.
pub(super) fn after_parent(
    shared: &Shared,
    start: &Start,
    keys: &RunKeys,
    pipeline: &Pipeline,
) -> Result<Vec<StepRecord>, ParentError> {
    let Some(parent) = &start.parent else { return Ok(Vec::new()) };
    let of = &parent.run_id;
    let record = match keys.stored(of) {
        Some(Ok(Stored { record, .. })) if record.status.is_ended() => record,
        Some(Ok(Stored { record, .. })) => {
            return Err(ParentError::Ever(format!("run {of} is {}", record.status)));
        }
        Some(Err(cause)) => return Err(ParentError::Ever(cause.to_string())),
        None => return Err(ParentError::Ever(format!("run {of} is not known, or not any more"))),
    };
    if !shared.options.changed_reruns && !is_same(start, pipeline, &record) {
        return Err(ParentError::Ever(format!(
            "run {of} had another definition, other variables or other parameters, so this run cannot \
             take over its steps: start it without `parent`, or with those of run {of}"
        )));
    }
    // Apply the new definition to the parent's steps, not the parent's own.
    let record = RunRecord { pipeline: Some(pipeline.clone()), ..record };
    let steps = record.steps_to_inherit(parent.from.as_ref());
    let steps = steps.map_err(|why| ParentError::Ever(format!("run {of}: {why}")))?;
    let bytes = json_bytes(&steps);
    if bytes > MAX_KEPT_BYTES {
        return Err(ParentError::Ever(format!(
            "run {of}: its steps have {bytes} bytes of results and entries, and at most \
             {MAX_KEPT_BYTES} can be taken over; rerun it from its first step"
        )));
    }
    let in_registry = |step: &StepRecord| step.digest.is_some() && shared.engine.checkpoints;
    match steps.iter().rev().find(|step| step.image.is_some()) {
        Some(last) if last.engine.as_ref() != Some(&shared.engine.id) && !in_registry(last) => {
            let engine = last.engine.as_deref().unwrap_or("another");
            let why = format!("the image of step {} is on engine {engine}", last.name);
            Err(ParentError::Here { engine: engine.to_owned(), why })
        }
        Some(_) | None => Ok(steps),
    }
}
