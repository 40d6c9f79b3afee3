//! What a worker and a step's supervisor say to each other: a line of JSON each.

use std::ffi::OsString;
use std::path::PathBuf;

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
}

/// What the worker asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Asked {
    /// That this be run; once.
    Run(Job),
    /// SIGTERM to the command and what is of its process group.
    Term,
    /// SIGKILL to all that it has begun.
    Kill,
}

/// What came of it; once.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    /// It ended so, and nothing of it is left.
    Ended(i32),
    /// It could not be started.
    NotStarted {
        /// What a shell would answer.
        code: i32,
        /// Why.
        cause: String,
    },
}
