//! Notices that a step's conmon was killed. The engine would report the step as running forever.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::api::Container;
use super::http::Http;
use crate::ports::ExecError;

/// How long conmon can be missing before the step fails.
const LONGEST: Duration = Duration::from_secs(5);

/// Checks the processes of a container that produces no more output.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    missing_since: Option<Instant>,
}

impl Watcher {
    /// Checks once.
    ///
    /// # Errors
    /// If conmon has been missing for some seconds, because the end of the step can then never be
    /// known.
    pub(super) fn look(&mut self, http: &Http, container: &Container) -> Result<(), ExecError> {
        let (_, Some(conmon)) = container.processes() else { return Ok(()) };
        if !http.shares_processes() || Path::new("/proc").join(conmon.to_string()).exists() {
            self.missing_since = None;
            return Ok(());
        }
        if self.missing_since.get_or_insert_with(Instant::now).elapsed() < LONGEST {
            return Ok(());
        }
        Err(ExecError::Engine {
            doing: "watching a step".into(),
            cause: "the engine's own process that watches it (conmon) is gone, so how it ends cannot be known".into(),
        })
    }
}
