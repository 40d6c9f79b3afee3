//! `add`: queues a shell command as a job, in this host's queue file or in the cluster.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use protocol::dialect::Job;
use protocol::pipeline::{Params, Vars};
use serde_json::json;

use super::context::{Context, DefaultVerbosity};
use super::exit::{Exit, Failure};
use super::typed::Add;
use super::{output, submit};
use crate::app::ci;
use crate::client::{Client, StartOf, StartRequest};
use crate::config::{Config, Loaded, Mode, table};

/// The program name that implies the command `add`.
const ADD_JOB: &str = "add_job";

/// The arguments, with the command that the program's name implies.
pub(super) fn named_by_program(typed: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut typed: Vec<OsString> = typed.into_iter().collect();
    let name = typed.first().and_then(|program| Path::new(program).file_name());
    if name.is_some_and(|name| name == ADD_JOB) {
        typed.insert(1, "add".into());
    }
    typed
}

pub(super) async fn add(context: &Context, typed: Add) -> Result<Exit, Failure> {
    let config = context.config(DefaultVerbosity::Little)?;
    let queue = queue_of(&typed, &context.loaded()?);
    if typed.list {
        return list(context, &queue.unwrap_or(config.ci.queue));
    }
    let run = Client::new_run_id();
    let job = Job {
        run_id: Some(run.clone()),
        attempts: typed.attempts,
        delay: typed.delay,
        timeout: typed.timeout,
        ..Job::new(typed.command.join(" "))
    };
    let job = job.checked().map_err(|bad| Failure::new(Exit::Usage, bad.to_string()))?;
    let Some(queue) = queue else { return send(context, job, &config).await };
    ci::add(&queue, &job)?;
    if context.style.json {
        output::document(&json!({ "run-id": run }))?;
    } else {
        output::line(run.as_str())?;
    }
    Ok(Exit::Ok)
}

/// The queue file to use; `None` for the cluster. An explicitly set mode takes precedence over a
/// configured queue file.
fn queue_of(typed: &Add, loaded: &Loaded) -> Option<PathBuf> {
    if let Some(queue) = &typed.queue {
        return Some(queue.clone());
    }
    let is_mode_named = loaded.is_set(&table::MODE);
    let Config { mode, ci, .. } = &loaded.config;
    match mode {
        Mode::Embedded => Some(ci.queue.clone()),
        Mode::Cluster if ci.is_named && !is_mode_named => Some(ci.queue.clone()),
        Mode::Cluster => None,
    }
}

async fn send(context: &Context, job: Job, config: &Config) -> Result<Exit, Failure> {
    let run = job.run_id.clone().unwrap_or_else(Client::new_run_id);
    let start = StartRequest {
        what: StartOf::Inline(Box::new(ci::with_usual(job, &config.ci).pipeline())),
        run,
        vars: Vars::new(),
        params: Params::new(),
        logger: None,
        partition: None,
        parent: None,
    };
    submit::send(context, &context.client()?, start, false).await
}

fn list(context: &Context, queue: &Path) -> Result<Exit, Failure> {
    for job in ci::waiting(queue)? {
        if context.style.json {
            output::document(&json!(job))?;
        } else {
            output::line(&Job::new(job.command).line())?;
        }
    }
    Ok(Exit::Ok)
}
