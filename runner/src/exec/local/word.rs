//! What a worker and a step's supervisor say to each other: a line of JSON each.

use std::ffi::OsString;
use std::path::PathBuf;

use protocol::pipeline::{EndSignal, ProcessLimits};
use serde::{Deserialize, Serialize};

/// What is run, and where.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// The program and its arguments.
    pub(super) words: Vec<OsString>,
    /// All of its environment.
    pub(super) env: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub(super) dir: PathBuf,
    /// What each of its processes may use.
    pub(super) limits: ProcessLimits,
    /// The control group that it is in, where it has one of its own.
    pub(super) group: Option<PathBuf>,
}

impl Job {
    /// Whether the command is to be limited in any way.
    pub(super) fn is_limited(&self) -> bool {
        self.group.is_some() || self.limits != ProcessLimits::default()
    }
}

/// What the worker asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Asked {
    /// That this be run; once.
    Run(Job),
    /// That the process take on the limits and become the command. It is a supervisor that asks.
    Become(Job),
    /// This signal to the command and what is of its process group.
    End(EndSignal),
    /// SIGKILL to all that it has begun.
    Kill,
}

/// What came of it; once.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    /// It ended so, and nothing of it is left.
    Ended {
        /// The exit code.
        code: i32,
        /// The kernel has killed something of it for its memory.
        oom: bool,
    },
    /// It could not be started.
    NotStarted {
        /// What a shell would answer.
        code: i32,
        /// Why.
        cause: String,
    },
    /// It was not started, as it could not be limited: why.
    NotLimited(String),
}
