//! The command line: turns arguments into calls of `app`, and results into text.
//!
//! | module | duty |
//! |---|---|
//! | `args` | command-line arguments |
//! | `exit` | exit codes |
//! | `output` | data, messages, colours, tables |
//! | `files` | `validate`, `plan`, and files of other commands |
//! | `folder` | directories of prunner files |
//! | `run`, `session`, `serve` | a worker in this process |
//! | `guard` | helper processes of a worker |
//! | `add` | shell commands as jobs |
//! | `submit` | `submit`, `stop`, `pause`, `unpause` |
//! | `job` | status and log files for users of job files |
//! | `logs`, `display` | `logs`, `events` |
//! | `state` | `ps`, `show`, `nodes` |
//! | `define` | `pipeline`, `provider`, `store`, `logger` |
//! | `later` | commands of later versions |
//! | `doctor`, `about` | `doctor`; `version`, `schema`, `settings`, `completions` |
//! | `view`, `screen`, `sanitize` | display of events |
//! | `writer` | output that never blocks its command |

mod about;
mod add;
mod args;
mod define;
mod display;
mod doctor;
mod exit;
mod files;
mod folder;
mod guard;
mod job;
mod kept;
mod later;
mod logs;
mod output;
mod run;
mod sanitize;
mod screen;
mod serve;
mod session;
mod signals;
mod state;
mod submit;
mod typed;
mod view;
mod writer;

use std::ffi::OsString;

use clap::{CommandFactory as _, FromArgMatches as _};

pub use exit::Exit;
pub use guard::{is_guard, is_lifeline, is_renderer, is_supervisor, lifeline, render, supervise};

use args::{Command, Global, Typed};
use exit::Failure;
use job::Results;
use output::{Style, TextStyle};

use crate::app;
use crate::app::client::{Client, Listed};
use crate::config::{self, Config, Environment, Flags, LogFormat, LogLevel, Sources};
use crate::telemetry;

/// Reports an error that prevents the program from starting.
pub fn complain(text: &str) {
    output::message(&format!("error: {text}"));
}

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
        Command::Version => about::version(context),
        Command::Completions(typed) => about::completions(typed.shell),
    }
}

/// Context of every command.
#[derive(Debug)]
struct Context {
    style: Style,
    environment: Environment,
    flags: Flags,
}

/// Default log level, by the kind of command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DefaultVerbosity {
    /// Info: a service reports what it does.
    Much,
    /// Warnings: a command reports problems besides its result.
    Little,
    /// Errors: everything else is part of the displayed run.
    Hardly,
}

impl Context {
    fn loaded(&self) -> Result<config::Loaded, Failure> {
        let sources = Sources::with_default_sources(self.flags.clone(), self.environment.clone());
        config::load(&sources).map_err(|faults| Failure::new(Exit::Settings, faults.to_string()))
    }

    /// The same context without `--config`, for a file that holds the settings of job files.
    fn without_file(&self) -> Self {
        let flags = Flags { config: None, set: self.flags.set.clone() };
        Self { style: self.style, environment: self.environment.clone(), flags }
    }

    /// The program's own settings. A file with the settings of job files contains none.
    fn own_config(&self, talk: DefaultVerbosity) -> Result<Config, Failure> {
        if self.flags.config.as_deref().is_some_and(job::is_named) {
            return self.without_file().config(talk);
        }
        self.config(talk)
    }

    /// Loads the settings and initializes the log from them.
    fn config(&self, talk: DefaultVerbosity) -> Result<Config, Failure> {
        let loaded = self.loaded()?;
        for warning in &loaded.warnings {
            self.warn(warning);
        }
        let log = loaded.config.log;
        let is_said = |effective: &config::Effective| {
            effective.setting.name == "log.level" && effective.at.is_some()
        };
        let level = match talk {
            _ if loaded.effective.iter().any(is_said) => log.level,
            DefaultVerbosity::Much => log.level,
            DefaultVerbosity::Little => LogLevel::Warn,
            DefaultVerbosity::Hardly => LogLevel::Error,
        };
        // Standard output is reserved for the command's result.
        let of_command = |form| match form {
            telemetry::Form::Ci if talk != DefaultVerbosity::Much => telemetry::Form::Text,
            form @ (telemetry::Form::Text | telemetry::Form::Json | telemetry::Form::Ci) => form,
        };
        // JSON logs are for services. A command's log is read by people.
        let usual = (talk != DefaultVerbosity::Much).then_some(telemetry::Form::Text);
        let form = log_form(&loaded.config).map(of_command).or(usual);
        let options =
            telemetry::Options { level: level.as_str(), form, colour: self.style.colour_err };
        // In tests, the log is already initialized.
        telemetry::begin(options).ok();
        Ok(loaded.config)
    }

    /// A client for the cluster.
    fn client(&self) -> Result<Client, Failure> {
        let config = self.config(DefaultVerbosity::Little)?;
        Ok(app::client::connect(config)?)
    }

    /// The readable entries of a list, with a warning for each other entry.
    fn readable<T>(&self, listed: Listed<T>) -> Vec<T> {
        for unreadable in &listed.unreadable {
            self.warn(&format!("{unreadable}; it may be of a later version"));
        }
        listed.readable
    }

    fn warn(&self, text: &str) {
        output::message(&self.warning(text));
    }

    fn warning(&self, text: &str) -> String {
        let label = TextStyle::Yellow.paint("warning:", self.style.colour_err);
        format!("{label} {text}")
    }
}

/// The log format, if set.
fn log_form(config: &Config) -> Option<telemetry::Form> {
    config.log.format.map(|format| match format {
        LogFormat::Text => telemetry::Form::Text,
        LogFormat::Json => telemetry::Form::Json,
        LogFormat::Ci => telemetry::Form::Ci,
    })
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let service = error.chain().find_map(|cause| cause.downcast_ref::<app::Unavailable>());
        if service.is_some_and(|service| !service.needs_a_change()) {
            return Self::unavailable(&format!("{error:#}"));
        }
        let is_setting = service.is_some()
            || error.chain().any(|cause| {
                cause.is::<app::UnusableDir>()
                    || cause.is::<app::UnwritableDataDir>()
                    || cause.is::<app::ci::UnusableQueue>()
            });
        let is_input = error.chain().any(|cause| cause.is::<app::Rejected>());
        let exit = match (is_setting, is_input) {
            (true, _) => Exit::Settings,
            (false, true) => Exit::Invalid,
            (false, false) => Exit::Failed,
        };
        Self::new(exit, format!("{error:#}"))
    }
}
