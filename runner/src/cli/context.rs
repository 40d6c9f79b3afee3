//! The context of every command: its output style and settings, and the start of its log.

use super::exit::{Exit, Failure};
use super::job::settings::is_named;
use super::output::{self, Style, TextStyle};
use crate::app;
use crate::client::{Client, Listed};
use crate::config::{self, Config, Environment, Flags, LogFormat, LogLevel, Sources, table};
use crate::telemetry;

/// Context of every command.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) style: Style,
    pub(super) environment: Environment,
    pub(super) flags: Flags,
}

/// Default log level, by the kind of command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DefaultVerbosity {
    /// Info: a service reports what it does.
    Much,
    /// Warnings: a command reports problems besides its result.
    Little,
    /// Errors: everything else is part of the displayed run.
    Hardly,
}

impl Context {
    pub(super) fn loaded(&self) -> Result<config::Loaded, Failure> {
        let sources = Sources::with_default_sources(self.flags.clone(), self.environment.clone());
        config::load(&sources).map_err(|faults| Failure::new(Exit::Settings, faults.to_string()))
    }

    /// The same context without `--config`, for a file that holds the settings of job files.
    pub(super) fn without_file(&self) -> Self {
        let flags = Flags { config: None, set: self.flags.set.clone() };
        Self { style: self.style, environment: self.environment.clone(), flags }
    }

    /// The program's own settings. A file with the settings of job files contains none.
    pub(super) fn own_config(&self, talk: DefaultVerbosity) -> Result<Config, Failure> {
        if self.flags.config.as_deref().is_some_and(is_named) {
            return self.without_file().config(talk);
        }
        self.config(talk)
    }

    /// Loads the settings and initializes the log from them.
    pub(super) fn config(&self, talk: DefaultVerbosity) -> Result<Config, Failure> {
        let loaded = self.loaded()?;
        for warning in &loaded.warnings {
            self.warn(warning);
        }
        let log = loaded.config.log;
        let level = match talk {
            _ if loaded.is_set(&table::LOG_LEVEL) => log.level,
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
        telemetry::init(options).ok();
        Ok(loaded.config)
    }

    /// A client for the cluster.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let config = self.config(DefaultVerbosity::Little)?;
        Ok(app::connect_client(config)?)
    }

    /// The readable entries of a list, with a warning for each other entry.
    pub(super) fn readable<T>(&self, listed: Listed<T>) -> Vec<T> {
        for unreadable in &listed.unreadable {
            self.warn(&format!("{unreadable}; it may be of a later version"));
        }
        listed.readable
    }

    pub(super) fn warn(&self, text: &str) {
        output::message(&self.warning(text));
    }

    pub(super) fn warning(&self, text: &str) -> String {
        let label = TextStyle::Yellow.paint("warning:", self.style.colour_err);
        format!("{label} {text}")
    }
}

/// The log format, if set.
pub(super) fn log_form(config: &Config) -> Option<telemetry::Form> {
    config.log.format.map(|format| match format {
        LogFormat::Text => telemetry::Form::Text,
        LogFormat::Json => telemetry::Form::Json,
        LogFormat::Ci => telemetry::Form::Ci,
    })
}
