//! `submit`, `rerun`, `stop`, `pause`, `unpause`: send commands to the workers.

use std::collections::HashMap;

use protocol::id::PipelineId;
use protocol::run::Parent;
use serde_json::json;

use super::context::{Context, DefaultVerbosity};
use super::exit::{Exit, Failure};
use super::run::{self, Order};
use super::typed::{Rerun, Stop, Submit};
use super::{files, folder, job, logs, output};
use crate::app::{self, KeptRun};
use crate::client::{Client, StartOf, StartRequest};
use crate::config::Config;

pub(super) async fn submit(context: &Context, typed: Submit) -> Result<Exit, Failure> {
    let mut what = what_of(context, &typed)?;
    let named = context.flags.config.as_deref().filter(|file| job::is_named(file));
    let mut without_file = None;
    if let StartOf::Inline(pipeline) = &mut what {
        if let Some(settings) = job::settings_of(context, pipeline, named, (None, None))? {
            settings.apply_defaults(pipeline);
        }
        // Such a file holds the settings of job files, not the program's own.
        without_file = named.map(|_| context.without_file());
    }
    let context = without_file.as_ref().unwrap_or(context);
    let start = StartRequest {
        what,
        run: typed.run_id.unwrap_or_else(Client::new_run_id),
        vars: typed.vars.into_iter().collect(),
        params: typed.params.into_iter().collect(),
        logger: typed.logger,
        partition: typed.partition,
        parent: None,
    };
    let client = context.client()?;
    send(context, &client, start, typed.follow).await
}

pub(super) async fn rerun(context: &Context, typed: Rerun) -> Result<Exit, Failure> {
    let config = context.config(DefaultVerbosity::Hardly)?;
    if let Some(kept) = app::kept_run(&config, &typed.run).await? {
        return Box::pin(rerun_here(context, config, &kept, typed)).await;
    }
    let client = context.client()?;
    let run = typed.run_id.unwrap_or_else(Client::new_run_id);
    let start = client.rerun(&typed.run, typed.from, run).await?;
    send(context, &client, start, typed.follow).await
}

/// Reruns a run that `run` kept on this machine.
async fn rerun_here(
    context: &Context,
    config: Config,
    kept: &KeptRun,
    typed: Rerun,
) -> Result<Exit, Failure> {
    let is_named = typed.run_id.is_some();
    let run = typed.run_id.unwrap_or_else(Client::new_run_id);
    let start = kept.client().rerun_here(&typed.run, typed.from.clone(), run.clone()).await?;
    let StartOf::Inline(pipeline) = start.what else {
        return Err(Failure::new(Exit::Failed, format!("run {} has no definition", typed.run)));
    };
    let settings = job::settings_of(context, &pipeline, None, (None, None))?;
    let after = kept.parent(Parent { run_id: typed.run, from: typed.from }).await?;
    let order = Order {
        config,
        pipeline: *pipeline,
        vars: start.vars,
        params: start.params,
        run,
        is_named,
        after: Some(after),
    };
    run::start(context.style, &order, HashMap::new(), settings.as_ref()).await
}

/// Sends a start and prints the run id.
pub(super) async fn send(
    context: &Context,
    client: &Client,
    start: StartRequest,
    follow: bool,
) -> Result<Exit, Failure> {
    let sent = if follow { Some(client.before_start().await?) } else { None };
    client.start(&start).await?;
    let run = start.run;
    // With `--follow`, standard output carries the log, so the id goes to standard error.
    match (follow, context.style.json) {
        (true, _) => output::message(&format!("run {run}")),
        (false, true) => output::document(&json!({ "run-id": run }))?,
        (false, false) => output::line(run.as_str())?,
    }
    if let Some(sent) = sent {
        return logs::follow_submitted(context, client, &run, sent).await;
    }
    Ok(Exit::Ok)
}

/// A file if it exists, is named like one, or has a dialect. Otherwise a stored pipeline. A
/// directory counts only if its name cannot be that of a pipeline.
fn what_of(context: &Context, typed: &Submit) -> Result<StartOf, Failure> {
    let what = typed.what.as_str();
    let is_folder = what.ends_with('/') || what.starts_with(['.', '/']) || !what.contains('/');
    let is_folder = is_folder && folder::is_directory(what);
    let looks_like_file = [".yaml", ".yml", ".json"].iter().any(|ending| what.ends_with(ending));
    let is_file = what == "-" || looks_like_file || std::path::Path::new(what).is_file();
    if is_file || is_folder || typed.dialect.is_some() {
        let pattern = typed.pattern.pattern.as_deref();
        let source = files::Source { file: what, dialect: typed.dialect, pattern };
        let found = files::to_send(context, source, typed.pipeline.as_deref(), typed.alone)?;
        return Ok(StartOf::Inline(Box::new(found)));
    }
    if typed.pipeline.is_some() || typed.pattern.pattern.is_some() || typed.alone {
        let text = format!("--pipeline, --pattern and --alone are for files, and {what:?} is none");
        return Err(Failure::new(Exit::Usage, text));
    }
    PipelineId::from_path(what).map(StartOf::Stored).map_err(|bad| {
        let text = format!("{what:?} is neither a file nor GROUP/NAME of a pipeline ({bad})");
        Failure::new(Exit::Usage, text)
    })
}

pub(super) async fn stop(context: &Context, typed: &Stop) -> Result<Exit, Failure> {
    let run = &typed.run;
    if !context.client()?.stop(run, typed.reason.as_deref()).await? {
        let text =
            format!("run {run} is not known; if it is submitted within 24 h it is stopped at once");
        return Err(Failure::new(Exit::Failed, text));
    }
    if context.style.json {
        output::document(&json!({ "run-id": run }))?;
    } else {
        output::message(&format!("run {run} is asked to stop"));
    }
    Ok(Exit::Ok)
}

pub(super) async fn pause(
    context: &Context,
    pipeline: &PipelineId,
    paused: bool,
) -> Result<Exit, Failure> {
    context.client()?.pause(pipeline, paused).await?;
    if context.style.json {
        let (group, name) = (pipeline.group(), pipeline.name());
        output::document(&json!({ "group": group, "name": name, "paused": paused }))?;
    } else {
        let word = if paused { "pause" } else { "accept runs again" };
        output::message(&format!("pipeline {pipeline} is asked to {word}"));
    }
    Ok(Exit::Ok)
}
