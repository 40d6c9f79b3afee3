//! `guard` and other commands that a worker starts as helper processes.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use protocol::id::NodeId;

use super::args::{Guard, GuardFormat};
use super::exit::{Exit, Failure};
use super::output::complain;
use crate::app;
use crate::app::lifeline::{LIFELINE, hold};
use crate::telemetry;

/// Whether the arguments start a guard, which needs only one thread.
#[must_use]
pub fn is_guard(typed: &[OsString]) -> bool {
    typed.get(1).is_some_and(|word| word == "guard")
}

/// Whether the arguments start a step's supervisor, which needs no async runtime.
#[must_use]
pub fn is_supervisor(typed: &[OsString]) -> bool {
    typed.get(1).is_some_and(|word| word == app::SUPERVISE)
}

/// Whether the arguments start a template renderer, which needs no async runtime.
#[must_use]
pub fn is_renderer(typed: &[OsString]) -> bool {
    typed.get(1).is_some_and(|word| word == app::RENDER)
}

/// Renders templates received from a worker.
#[must_use]
pub fn render() -> Exit {
    match app::render() {
        Ok(()) => Exit::Ok,
        Err(cause) => {
            complain(&format!("cannot render a template: {cause}"));
            Exit::Failed
        }
    }
}

/// Supervises the step named by a worker.
#[must_use]
pub fn supervise() -> Exit {
    match app::supervise() {
        Ok(()) => Exit::Ok,
        Err(cause) => {
            complain(&format!("cannot supervise a step: {cause}"));
            Exit::Failed
        }
    }
}

/// Whether the arguments start a lifeline, the process that holds a worker's service.
#[must_use]
pub fn is_lifeline(typed: &[OsString]) -> bool {
    typed.get(1).is_some_and(|word| word == LIFELINE)
}

/// Runs a service until its last holder is gone: `lifeline DIR PROGRAM ARGUMENT...`.
#[must_use]
pub fn lifeline(typed: &[OsString]) -> ExitCode {
    let [_, _, dir, program, arguments @ ..] = typed else {
        complain("a lifeline is started by bob-runner itself");
        return Exit::Usage.into();
    };
    match hold(Path::new(dir), Command::new(program).args(arguments)) {
        Ok(status) => status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1).into(),
        Err(cause) => {
            complain(&format!("cannot start {}: {cause}", program.display()));
            Exit::Failed.into()
        }
    }
}

/// Runs a guard. It loads no settings, because the worker passes all it needs.
pub(super) async fn guard(typed: &Guard) -> Result<Exit, Failure> {
    let form = match typed.form {
        GuardFormat::Text => telemetry::Form::Text,
        GuardFormat::Json => telemetry::Form::Json,
    };
    let options = telemetry::Options { level: &typed.level, form: Some(form), colour: false };
    telemetry::init(options).ok();
    app::guard::guard_worker(NodeId::from_stored(&typed.worker)).await?;
    Ok(Exit::Ok)
}
