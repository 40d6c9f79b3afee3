//! `guard`: the process that a worker starts beside itself.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::{Args, ValueEnum};
use protocol::id::NodeId;

use super::exit::{Exit, Failure};
use crate::app;
use crate::app::lifeline::{LIFELINE, hold};
use crate::telemetry;

/// What a worker types.
#[derive(Debug, Args)]
pub(super) struct Guard {
    /// The worker
    worker: String,
    /// The least that is told
    #[arg(long)]
    level: String,
    /// How
    #[arg(long, value_enum)]
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
}

/// Whether these are the words that start a guard: it is small, and has no use for many threads.
#[must_use]
pub fn is_guard(typed: &[OsString]) -> bool {
    typed.get(1).is_some_and(|word| word == "guard")
}

/// Whether these are the words that start a step's supervisor, which has no runtime at all.
#[must_use]
pub fn is_supervisor(typed: &[OsString]) -> bool {
    typed.get(1).is_some_and(|word| word == app::SUPERVISE)
}

/// Whether these are the words that start a renderer of templates, which has no runtime either.
#[must_use]
pub fn is_renderer(typed: &[OsString]) -> bool {
    typed.get(1).is_some_and(|word| word == app::RENDER)
}

/// Renders the templates that a worker sends.
#[must_use]
pub fn render() -> Exit {
    match app::render() {
        Ok(()) => Exit::Ok,
        Err(cause) => {
            super::complain(&format!("cannot render a template: {cause}"));
            Exit::Failed
        }
    }
}

/// Supervises the step that a worker names.
#[must_use]
pub fn supervise() -> Exit {
    match app::supervise() {
        Ok(()) => Exit::Ok,
        Err(cause) => {
            super::complain(&format!("cannot supervise a step: {cause}"));
            Exit::Failed
        }
    }
}

/// Whether these are the words that start the process which holds a service of a worker.
#[must_use]
pub fn is_lifeline(typed: &[OsString]) -> bool {
    typed.get(1).is_some_and(|word| word == LIFELINE)
}

/// Runs a service until it has no holder left: `lifeline DIR PROGRAM ARGUMENT...`.
#[must_use]
pub fn lifeline(typed: &[OsString]) -> ExitCode {
    let [_, _, dir, program, arguments @ ..] = typed else {
        super::complain("a lifeline is started by bob-runner itself");
        return Exit::Usage.into();
    };
    match hold(Path::new(dir), Command::new(program).args(arguments)) {
        Ok(status) => status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1).into(),
        Err(cause) => {
            super::complain(&format!("cannot start {}: {cause}", program.display()));
            Exit::Failed.into()
        }
    }
}

/// Knows no settings: what it has to know the worker says.
pub(super) async fn guard(typed: &Guard) -> Result<Exit, Failure> {
    let form = match typed.form {
        Form::Text => telemetry::Form::Text,
        Form::Json => telemetry::Form::Json,
    };
    let options = telemetry::Options { level: &typed.level, form: Some(form), colour: false };
    telemetry::begin(options).ok();
    app::guard::stand(NodeId::found(&typed.worker)).await?;
    Ok(Exit::Ok)
}
