//! Messages between a worker and a step's supervisor, one line of JSON each.

use std::ffi::OsString;
use std::path::PathBuf;

use protocol::pipeline::{EndSignal, ProcessLimits};
use serde::{Deserialize, Serialize};

/// The variable with the path of the step's job directory.
pub(super) const JOB_VARIABLE: &str = "JOB_WORKDIR";

/// A command to run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// The program and its arguments.
    pub(super) words: Vec<OsString>,
    /// The complete environment.
    pub(super) env: Vec<(OsString, OsString)>,
    /// The working directory.
    pub(super) dir: PathBuf,
    /// The limits of each process.
    pub(super) limits: ProcessLimits,
    /// The control group of the step, if it has one.
    pub(super) group: Option<PathBuf>,
}

impl Job {
    /// Whether the command has any limit.
    pub(super) fn is_limited(&self) -> bool {
        self.group.is_some() || self.limits != ProcessLimits::default()
    }
}

/// A request of the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Run this command. Sent once.
    Run(Job),
    /// Apply the limits and become the command. Sent by a supervisor.
    Become(Job),
    /// Send this signal to the command's process group.
    End(EndSignal),
    /// Send SIGKILL to all descendants.
    Kill,
}

/// The outcome of a command. Sent once.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum CommandOutcome {
    /// It ended, and none of its processes is left.
    Ended {
        /// The exit code.
        code: i32,
        /// Whether the kernel killed a process because the group ran out of memory.
        oom: bool,
    },
    /// It could not be started.
    NotStarted {
        /// The exit code that a shell would report.
        code: i32,
        /// The reason.
        cause: String,
    },
    /// It was not started because its limits could not be set. Holds the reason.
    NotLimited(String),
}
