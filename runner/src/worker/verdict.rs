//! Decides about a start from the look: run it, refuse it, stop it, or leave it to another worker.

use protocol::command::{MAX_START_BYTES, Start, Target};
use protocol::dialect;
use protocol::pipeline::{Output, Pipeline, Step, can_name_secret};
use protocol::run::{Cause, StepRecord, StoredPipeline};

use super::Shared;
use super::look::{Look, logger_url};
use super::parent::{ParentError, after_parent, is_trusted_parent};
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

/// Decides what happens to a start, and returns the definition to record. Returns an error if this
/// worker cannot run it now.
pub(super) fn judge(
    shared: &Shared,
    start: &Start,
    refusal: Option<&Refusal>,
    look: &Look,
) -> Result<(Option<Pipeline>, Verdict), NotNow> {
    let refuse = |pipeline, cause, why| Ok((pipeline, Verdict::Refuse(cause, why)));
    let stored = look.pipeline.as_ref().map(|entry| stored_pipeline(&entry.value));
    if let Some(stop) = look.stop_why() {
        let pipeline = match (&start.target, stored) {
            (Target::Inline(pipeline), _) => Some((**pipeline).clone()),
            (Target::Stored(_), stored) => {
                stored.and_then(Result::ok).map(|(pipeline, _)| pipeline)
            }
        };
        let pipeline = pipeline.map(|pipeline| match literal_secrets(shared, &pipeline) {
            Some(_) => pipeline.without_literal_secrets(),
            None => pipeline,
        });
        return Ok((pipeline, Verdict::Stop(stop)));
    }
    let paused = matches!(&stored, Some(Ok((_, true))));
    let size = look.pipeline.as_ref().map_or(0, |entry| entry.value.len());
    let pipeline = match (&start.target, stored) {
        (Target::Inline(pipeline), _) => (**pipeline).clone(),
        (Target::Stored(id), None) => {
            return refuse(None, Cause::UnknownPipeline, format!("no pipeline {id} is stored"));
        }
        (Target::Stored(id), Some(Err(why))) => {
            let why = format!("the stored pipeline {id} is invalid: {why}");
            return refuse(None, Cause::Rejected, why);
        }
        (Target::Stored(_), Some(Ok((pipeline, _)))) => pipeline,
    };
    if matches!(start.target, Target::Stored(_)) && size + size_of_vars(start) > MAX_START_BYTES {
        let why = format!("its definition and variables are more than {MAX_START_BYTES} bytes");
        return refuse(None, Cause::Rejected, why);
    }
    if let Some(why) = literal_secrets(shared, &pipeline) {
        // The record must not contain the secret.
        return refuse(Some(pipeline.without_literal_secrets()), Cause::Rejected, why);
    }
    if paused {
        let why = format!("pipeline {}/{} is paused", pipeline.group, pipeline.name);
        return refuse(Some(pipeline), Cause::Paused, why);
    }
    if let Some(logger) = &start.logger
        && logger_url(look.logger.as_ref()).is_none()
    {
        let why = match &look.logger {
            None => format!("logger {logger} is not registered"),
            Some(entry) => format!("{} in the store cannot be read; register it again", entry.key),
        };
        return refuse(Some(pipeline), Cause::UnknownLogger, why);
    }
    let among_runs = pipeline.unsupported_among_runs().into_iter();
    // A worker without rescue has a single run, with no others to wait for.
    let among_runs = among_runs.filter(|_| shared.options.rescue);
    if let Some(unsupported) = pipeline.unsupported().into_iter().chain(among_runs).next() {
        return refuse(Some(pipeline), Cause::Rejected, unsupported.what);
    }
    if let Some(why) = not_here(shared, start, &pipeline) {
        return refuse(Some(pipeline), Cause::Rejected, why);
    }
    if let Some((cause, why)) = refusal {
        return refuse(Some(pipeline), *cause, why.clone());
    }
    match quota::check_memory(&pipeline, shared.ports.host.memory()) {
        MemoryFit::Now => match after_parent(shared, start, &look.parent, &pipeline) {
            Ok(steps) if steps.is_empty() => Ok((Some(pipeline), Verdict::Run)),
            Ok(steps) => Ok((Some(pipeline), Verdict::Resume(steps))),
            Err(ParentError::Here { engine, why }) => Err(NotNow { why, engine: Some(engine) }),
            Err(ParentError::Ever(why)) => refuse(Some(pipeline), Cause::Rejected, why),
        },
        MemoryFit::Later { asked, free } => {
            let why = format!("{asked} bytes of memory are requested, and {free} are free");
            Err(NotNow { why, engine: None })
        }
        MemoryFit::Never { asked, total } => {
            let why = format!("{asked} bytes of memory are requested, and this worker has {total}");
            refuse(Some(pipeline), Cause::Rejected, why)
        }
    }
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
        "{secret-name: NAME} cannot stand there, so send the secret in a header"
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
    if start.partition.is_some() {
        return Some("`partition` is not supported by this version".to_owned());
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
