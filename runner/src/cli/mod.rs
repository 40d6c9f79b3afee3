//! The command line: turns arguments into calls of `app`, and results into text.
//!
//! | module | duty |
//! |---|---|
//! | `args`, `typed`, `values` | command-line arguments |
//! | `context` | style, settings and log of a command |
//! | `exit` | exit codes |
//! | `output` | data, messages, colours, tables |
//! | `files` | `validate`, `plan`, and files of other commands |
//! | `input`, `folder` | contents of files; directories of prunner files |
//! | `run`, `session`, `serve` | a worker in this process |
//! | `signals` | signals that ask the program to stop |
//! | `guard` | helper processes of a worker |
//! | `add` | shell commands as jobs |
//! | `submit` | `submit`, `stop`, `pause`, `unpause` |
//! | `job` | status and log files for users of job files |
//! | `logs`, `log_view`, `display` | `logs`, `events` |
//! | `kept` | `diff`, `shell` |
//! | `state` | `ps`, `show`, `nodes` |
//! | `define` | `pipeline`, `provider`, `store`, `logger` |
//! | `later` | commands of later versions |
//! | `token` | a token of the HTTP API for development |
//! | `doctor`, `about` | `doctor`; `version`, `schema`, `settings`, `completions` |
//! | `version` | version and commit |
//! | `view`, `run_view`, `screen`, `sanitize` | display of events |
//! | `writer` | output that never blocks its command |

mod about;
mod add;
mod args;
mod context;
mod define;
mod display;
mod doctor;
mod exit;
mod files;
mod folder;
mod guard;
mod input;
mod job;
mod kept;
mod later;
mod log_view;
mod logs;
mod output;
mod run;
mod run_view;
mod sanitize;
mod screen;
mod serve;
mod session;
mod signals;
mod state;
mod submit;
mod token;
mod typed;
mod values;
mod version;
mod view;
mod writer;

use std::ffi::OsString;

use clap::{CommandFactory as _, FromArgMatches as _};

pub use exit::Exit;
pub use guard::{is_guard, is_lifeline, is_renderer, is_supervisor, lifeline, render, supervise};
pub use output::complain;

use args::{Command, Global, Typed};
use context::Context;
use exit::Failure;
use job::Results;
use output::{Style, TextStyle};

use crate::config::{Environment, Flags};
use crate::telemetry;

/// The commands and options of the program, for its documentation.
#[must_use]
pub fn command_line() -> clap::Command {
    Typed::command()
}

/// Runs the command given by the arguments, and returns the exit code.
pub async fn main(typed: impl IntoIterator<Item = OsString>, environment: Environment) -> Exit {
    let typed = match understood(add::named_by_program(typed)) {
        Ok(typed) => typed,
        Err(exit) => return exit,
    };
    let style = Style::new(typed.global.output, typed.global.color, &environment);
    let context = Context { style, environment, flags: flags(&typed.global) };
    let obeyed = Box::pin(execute(&context, typed.command)).await;
    let is_read = telemetry::flush();
    match obeyed {
        Ok(exit) => exit,
        Err(Failure { exit, message }) => {
            // The process must end even if nobody reads its log.
            if let Some(message) = message.filter(|_| is_read) {
                let label = TextStyle::Red.paint("error:", style.colour_err);
                output::message(&format!("{label} {message}"));
            }
            exit
        }
    }
}

fn understood(typed: impl IntoIterator<Item = OsString>) -> Result<Typed, Exit> {
    let typed: Vec<OsString> = typed.into_iter().collect();
    // clap prints help while parsing, so decide about colours first.
    let wants = |when: &str| {
        typed.windows(2).any(|two| two[0] == "--color" && two[1] == when)
            || typed.iter().any(|one| *one == format!("--color={when}").as_str())
    };
    let colour = if wants("never") {
        clap::ColorChoice::Never
    } else if wants("always") {
        clap::ColorChoice::Always
    } else {
        clap::ColorChoice::Auto
    };
    let matches = command_line().color(colour).try_get_matches_from(&typed);
    matches.and_then(|mut matches| Typed::from_arg_matches_mut(&mut matches)).map_err(|told| {
        let printed = told.print();
        if told.exit_code() != 0 {
            return Exit::Usage;
        }
        let unwritten = printed.err().map(|cause| output::unwritten(&cause));
        unwritten.map_or(Exit::Ok, |Failure { exit, message }| {
            if let Some(message) = message {
                complain(&message);
            }
            exit
        })
    })
}

fn flags(global: &Global) -> Flags {
    Flags { config: global.config.clone(), set: global.set.clone() }
}

async fn execute(context: &Context, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Run(typed) => run::run(context, typed, Results::Shared).await,
        Command::RunMulti(typed) => run::run(context, typed, Results::Kept).await,
        Command::Serve(typed) => serve::serve(context, typed).await,
        Command::Guard(typed) => guard::guard(&typed).await,
        Command::Submit(typed) => submit::submit(context, typed).await,
        Command::Add(typed) => add::add(context, typed).await,
        Command::Rerun(typed) => Box::pin(submit::rerun(context, typed)).await,
        Command::Diff(typed) => kept::diff(context, &typed).await,
        Command::Shell(typed) => kept::shell(context, &typed).await,
        Command::Stop(typed) => submit::stop(context, &typed).await,
        Command::Pause(typed) => submit::pause(context, &typed.pipeline, true).await,
        Command::Unpause(typed) => submit::pause(context, &typed.pipeline, false).await,
        Command::Logs(typed) => logs::logs(context, &typed).await,
        Command::Events(typed) => logs::events(context, &typed).await,
        Command::Dlq(typed) => Err(later::dlq(&typed)),
        Command::Ps(typed) => state::ps(context, typed).await,
        Command::Show(typed) => state::show(context, &typed.run).await,
        Command::Nodes => state::nodes(context).await,
        Command::Pipeline(typed) => define::pipeline(context, typed).await,
        Command::Provider(typed) => define::providers(context, typed).await,
        Command::Store(typed) => define::stores(context, typed).await,
        Command::Logger(typed) => define::loggers(context, typed).await,
        Command::Validate(typed) => files::validate(context, &typed).await,
        Command::Plan(typed) => files::plan(context, &typed),
        Command::Schema(typed) => about::schema(typed.what),
        Command::Settings => about::settings(context),
        Command::Doctor => Box::pin(doctor::doctor(context)).await,
        Command::Token(typed) => token::token(context, typed),
        Command::Version => about::version(context),
        Command::Completions(typed) => about::completions(typed.shell),
    }
}
