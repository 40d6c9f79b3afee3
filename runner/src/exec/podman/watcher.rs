//! Notices that the process which watches a step (conmon) was killed: the engine goes on saying that
//! the step runs, for ever.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::api::Container;
use super::http::Http;
use crate::ports::ExecError;

/// For how long a watching process may be missing while the engine does not notice.
const LONGEST: Duration = Duration::from_secs(5);

/// Looks for the processes of a container that gives no output any more.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    missing_since: Option<Instant>,
}

impl Watcher {
    /// Looks once.
    ///
    /// # Errors
    /// Where the watching process has been gone for some seconds: how the step ended, or will end,
    /// nobody will know.
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
