//! The settings of calls.

use std::path::PathBuf;
use std::time::Duration;

use crate::egress::Policy;
use crate::exec::named_files::NamedFiles;

/// The settings shared by all calls.
#[derive(Debug, Clone)]
pub struct Options {
    /// The addresses that a step may connect to.
    pub policy: Policy,
    /// The files on the worker's host that a step may name.
    pub named: NamedFiles,
    /// The directory below which calls write files. If `None`, a call that writes a file is
    /// rejected.
    pub files: Option<PathBuf>,
    /// The timeouts and pauses.
    pub times: Times,
}

/// Timeouts and pauses of calls.
#[derive(Debug, Clone)]
pub struct Times {
    /// The timeout for connecting to a service.
    pub connect: Duration,
    /// The default timeout for a complete response.
    pub answer: Duration,
    /// The pause before the first retry. It doubles with each further retry.
    pub again: Duration,
    /// The pause before the second poll of a task, and the longest pause between polls.
    pub looks: (Duration, Duration),
    /// The default timeout for a task.
    pub task: Duration,
    /// The pause between two requests for one Lexware account.
    pub lexware_gap: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(60),
            again: Duration::from_secs(1),
            looks: (Duration::from_millis(200), Duration::from_secs(2)),
            task: Duration::from_secs(3600),
            // The API allows two requests a second.
            lexware_gap: Duration::from_millis(500),
        }
    }
}
