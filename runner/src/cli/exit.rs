//! Exit codes of the program (docs/wire.md section 7).

use protocol::run::Status;

use crate::app;

/// An exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success; the run passed.
    Ok = 0,
    /// The run failed, or the request cannot be fulfilled in the current state.
    Failed = 1,
    /// Invalid usage.
    Usage = 2,
    /// The run was stopped.
    Stopped = 3,
    /// A file is invalid.
    Invalid = 65,
    /// A service is unreachable.
    Unavailable = 69,
    /// The settings are invalid.
    Settings = 78,
    /// Ended by SIGINT.
    Interrupted = 130,
    /// Ended by SIGTERM.
    Terminated = 143,
}

impl Exit {
    /// The exit code for the status of an ended run.
    #[must_use]
    pub fn of_run(status: Status) -> Self {
        match status {
            Status::Passed => Self::Ok,
            Status::Stopped => Self::Stopped,
            Status::Failed
            | Status::Pending
            | Status::Initializing
            | Status::Initialized
            | Status::Running => Self::Failed,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An exit code, and the message for standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    /// `None` if the error was already reported, or if nobody reads the output.
    pub(super) message: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: Some(message.into()) }
    }

    /// A required service is unusable.
    pub(super) fn unavailable(what: &str) -> Self {
        Self::new(Exit::Unavailable, format!("{what}; `bob-runner doctor` says what to do"))
    }

    /// The error was already reported.
    pub(super) fn already_reported(exit: Exit) -> Self {
        Self { exit, message: None }
    }
}

impl From<crate::client::Unavailable> for Failure {
    fn from(error: crate::client::Unavailable) -> Self {
        if error.needs_a_change() {
            return Self::new(Exit::Settings, error.to_string());
        }
        Self::unavailable(&error.to_string())
    }
}

impl From<crate::client::Error> for Failure {
    fn from(error: crate::client::Error) -> Self {
        use crate::client::{Error, ErrorKind};
        if let Error::Unavailable(away) = error {
            return away.into();
        }
        let exit = match error.kind() {
            ErrorKind::Service => Exit::Unavailable,
            ErrorKind::Input => Exit::Invalid,
            ErrorKind::State => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let service =
            error.chain().find_map(|cause| cause.downcast_ref::<crate::client::Unavailable>());
        if service.is_some_and(|service| !service.needs_a_change()) {
            return Self::unavailable(&format!("{error:#}"));
        }
        let is_setting = service.is_some()
            || error.chain().any(|cause| {
                cause.is::<app::UnusableDir>()
                    || cause.is::<app::UnwritableDataDir>()
                    || cause.is::<app::UnusableHttp>()
                    || cause.is::<app::ci::UnusableQueue>()
            });
        let is_input = error
            .chain()
            .any(|cause| cause.is::<app::Rejected>() || cause.is::<app::UnusableDefinitions>());
        let exit = match (is_setting, is_input) {
            (true, _) => Exit::Settings,
            (false, true) => Exit::Invalid,
            (false, false) => Exit::Failed,
        };
        Self::new(exit, format!("{error:#}"))
    }
}
