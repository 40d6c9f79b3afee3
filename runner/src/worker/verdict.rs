//! Decides about a start from the look: run it, refuse it, stop it, or leave it to another worker.

use protocol::command::{MAX_START_BYTES, Start, Target};
use protocol::dialect;
use protocol::pipeline::{Output, Pipeline, Step, can_name_secret};
use protocol::run::{Cause, StepRecord, StoredPipeline};

use super::look::{Look, logger_url};
use super::parent::{ParentError, is_trusted_parent, steps_from_parent};
use super::shared::Shared;
use crate::rules::quota::{self, MemoryFit};
use crate::rules::run::StopWhy;
use crate::rules::template;

/// The decision about a start, made before its run is claimed.
pub(super) enum Verdict {
    /// Run it.
    Run,
    /// Run it after these steps, which a parent run committed.
    Resume(Vec<StepRecord>),
    /// Record it as failed without running any step.
    Refuse(Cause, String),
    /// A stop was recorded before the start arrived.
    Stop(StopWhy),
}

/// Why this worker cannot run a start now.
pub(super) struct NotNow {
    /// The reason, as part of a message.
    pub(super) why: String,
    /// The engine whose images it needs, if another worker has to run it.
    pub(super) engine: Option<String>,
}

/// Why a start is recorded as failed without being run.
pub(super) type Refusal = (Cause, String);

/// What to do with a start.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each start, and it is taken apart at once"
)]
pub(super) enum Judgement {
    /// Claim its run with this definition, and do this with it.
    Claim(Option<Pipeline>, Verdict),
    /// Leave it to another worker or a later attempt.
    Leave(NotNow),
}

/// Decides what happens to a start.
///
/// `refusal`: the run is recorded as failed for this reason, unless another one comes first.
pub(super) fn judge(
    shared: &Shared,
    start: &Start,
    refusal: Option<&Refusal>,
    look: &Look,
) -> Judgement {
    let refuse =
        |pipeline, (cause, why): Refusal| Judgement::Claim(pipeline, Verdict::Refuse(cause, why));
    if let Some(stop) = look.stop_why() {
        let pipeline = definition_to_record(shared, start, look);
        return Judgement::Claim(pipeline, Verdict::Stop(stop));
    }
    let (pipeline, is_paused) = match definition(start, look) {
        Ok(found) => found,
        Err(refusal) => return refuse(None, refusal),
    };
    if let Some(why) = literal_secrets(shared, &pipeline) {
        // The record must not contain the secret.
        return refuse(Some(pipeline.without_literal_secrets()), (Cause::Rejected, why));
    }
    let own_refusal = refusal_of(shared, start, look, (&pipeline, is_paused));
    if let Some(refusal) = own_refusal.or_else(|| refusal.cloned()) {
        return refuse(Some(pipeline), refusal);
    }
    match quota::check_memory(&pipeline, shared.ports.host.memory()) {
        MemoryFit::Now => match steps_from_parent(shared, start, &look.parent, &pipeline) {
            Ok(steps) if steps.is_empty() => Judgement::Claim(Some(pipeline), Verdict::Run),
            Ok(steps) => Judgement::Claim(Some(pipeline), Verdict::Resume(steps)),
            Err(ParentError::OnOtherEngine { engine, why }) => {
                Judgement::Leave(NotNow { why, engine: Some(engine) })
            }
            Err(ParentError::Rejected(why)) => refuse(Some(pipeline), (Cause::Rejected, why)),
        },
        MemoryFit::Later { asked, free } => {
            let why = format!("{asked} bytes of memory are requested, and {free} are free");
            Judgement::Leave(NotNow { why, engine: None })
        }
        MemoryFit::Never { asked, total } => {
            let why = format!("{asked} bytes of memory are requested, and this worker has {total}");
            refuse(Some(pipeline), (Cause::Rejected, why))
        }
    }
}

/// Returns the definition for the record of a run that does not run, without secrets in clear text.
fn definition_to_record(shared: &Shared, start: &Start, look: &Look) -> Option<Pipeline> {
    let pipeline = match &start.target {
        Target::Inline(pipeline) => (**pipeline).clone(),
        Target::Stored(_) => stored_pipeline(&look.pipeline.as_ref()?.value).ok()?.0,
    };
    Some(match literal_secrets(shared, &pipeline) {
        Some(_) => pipeline.without_literal_secrets(),
        None => pipeline,
    })
}

/// Returns the definition that a start runs, and whether its pipeline is paused.
fn definition(start: &Start, look: &Look) -> Result<(Pipeline, bool), Refusal> {
    let stored = look.pipeline.as_ref().map(|entry| stored_pipeline(&entry.value));
    let id = match &start.target {
        Target::Inline(pipeline) => {
            return Ok(((**pipeline).clone(), matches!(stored, Some(Ok((_, true))))));
        }
        Target::Stored(id) => id,
    };
    let (pipeline, is_paused) = match stored {
        None => return Err((Cause::UnknownPipeline, format!("no pipeline {id} is stored"))),
        Some(Err(why)) => {
            return Err((Cause::Rejected, format!("the stored pipeline {id} is invalid: {why}")));
        }
        Some(Ok(found)) => found,
    };
    let size = look.pipeline.as_ref().map_or(0, |entry| entry.value.len());
    if size + size_of_vars(start) > MAX_START_BYTES {
        let why = format!("its definition and variables are more than {MAX_START_BYTES} bytes");
        return Err((Cause::Rejected, why));
    }
    Ok((pipeline, is_paused))
}

/// Returns why a definition cannot run: its pipeline is paused, its logger is unknown, or this version
/// or this worker lacks something that it needs.
fn refusal_of(
    shared: &Shared,
    start: &Start,
    look: &Look,
    (pipeline, is_paused): (&Pipeline, bool),
) -> Option<Refusal> {
    if is_paused {
        let why = format!("pipeline {}/{} is paused", pipeline.group, pipeline.name);
        return Some((Cause::Paused, why));
    }
    if let Some(logger) = &start.logger
        && logger_url(look.logger.as_ref()).is_none()
    {
        let why = match &look.logger {
            None => format!("logger {logger} is not registered"),
            Some(entry) => format!("{} in the store cannot be read; register it again", entry.key),
        };
        return Some((Cause::UnknownLogger, why));
    }
    let unsupported = pipeline.unsupported().into_iter().next();
    let why = unsupported.map(|unsupported| unsupported.what);
    why.or_else(|| not_here(shared, start, pipeline)).map(|why| (Cause::Rejected, why))
}

/// Whether a run executes a stored definition as it is. Only operators can store one, whereas a message
/// can claim any group and name, and set any variable. A rerun is as trustworthy as its parent, whose
/// definition and variables it must have.
pub(super) fn is_trusted(start: &Start, pipeline: Option<&Pipeline>, look: &Look) -> bool {
    let declares =
        |pipeline: &Pipeline| start.vars.keys().all(|name| pipeline.vars.contains_key(name));
    match (&start.target, &start.parent) {
        (Target::Stored(_), _) => pipeline.is_some_and(declares),
        (Target::Inline(_), None) => false,
        (Target::Inline(_), Some(parent)) => {
            is_trusted_parent(&parent.run_id, start, &look.parent, pipeline)
        }
    }
}

/// Returns why a definition with secrets in clear text is rejected.
fn literal_secrets(shared: &Shared, pipeline: &Pipeline) -> Option<String> {
    if shared.options.literal_secrets {
        return None;
    }
    let paths = pipeline.literal_secrets();
    let (first, more) = paths.split_first()?;
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    let instead = if can_name_secret(first) {
        "write {secret-name: NAME} in its place and keep the secret where the workers look for it \
         (BOB_SECRETS_DIR)"
    } else {
        "{secret-name: NAME} is not possible there, so send the secret in a header"
    };
    Some(format!(
        "{first}{more} of pipeline {}/{} is a secret in clear text: {instead}, or set \
         BOB_LITERAL_SECRETS=allow on the workers",
        pipeline.group, pipeline.name
    ))
}

/// Returns a requirement of the run that this worker or its host does not meet.
fn not_here(shared: &Shared, start: &Start, pipeline: &Pipeline) -> Option<String> {
    if let Some(executor) = shared.missing_executor(pipeline) {
        let name = executor.as_str();
        return Some(format!(
            "this worker has no executor {name}: BOB_EXECUTORS names those that it has"
        ));
    }
    if let Some(why) = shared.rejects(pipeline) {
        return Some(why);
    }
    let has_files = |step: &&Step| step.outputs.iter().any(Output::is_of_files);
    if shared.ports.outputs.is_none()
        && let Some(step) = pipeline.steps.iter().find(has_files)
    {
        return Some(format!(
            "step {} has outputs, and this worker keeps none: BOB_OUTPUTS says where",
            step.name
        ));
    }
    if let Some(why) = template::reserved(pipeline, &start.vars, &start.params) {
        return Some(why);
    }
    let limits = pipeline.quotas.as_ref().and_then(|quotas| quotas.limits.as_ref())?;
    let why = shared.no_limits(pipeline)?;
    let is_limited = limits.cpu.is_some() || limits.mem.is_some();
    is_limited.then(|| format!("`quotas.limits` cannot be enforced on this host: {why}"))
}

/// Returns the size of a start's variables and parameters as JSON, in bytes.
fn size_of_vars(start: &Start) -> usize {
    serde_json::to_vec(&(&start.vars, &start.params)).map_or(0, |json| json.len())
}

/// Parses a stored pipeline. Returns the definition, and whether it is paused.
fn stored_pipeline(value: &[u8]) -> Result<(Pipeline, bool), String> {
    let stored: StoredPipeline =
        serde_json::from_slice(value).map_err(|cause| format!("it is unreadable: {cause}"))?;
    dialect::pipeline_from_json(&serde_json::Value::Object(stored.pipeline))
        .map(|pipeline| (pipeline, stored.paused))
        .map_err(|fault| fault.to_string())
}
