//! The logs of runs, line by line, for the HTTP API. Only reads: it publishes and records nothing.
//!
//! A log is read from the first of these sources that has it: the cache on the disk of this node,
//! the event stream, the archive in the output store. The cache is filled in two ways. A follower of
//! the event stream writes the logs of runs that start while the node runs. A request for another
//! log fills it in the background, and is answered from what is there.
//!
//! | module | duty |
//! |---|---|
//! | `line` | joins texts into numbered lines; pure |
//! | `block` | the format of a log file; pure |
//! | `file` | one log file |
//! | `cache` | the log files of this node, bounded in bytes |
//! | `stream` | the lines of a run from the event stream |
//! | `archive` | complete logs in the output store |
//! | `archiver` | archives the logs of runs that have ended on this node |
//! | `source` | chooses between stream and archive |
//! | `follower` | writes the logs of new runs to the cache |
//! | `fill` | writes a requested log to the cache |
//! | `cursor` | reads a log in order, from whichever source has it |
//! | `read` | windows, the last lines, and search |

mod archive;
mod archiver;
mod block;
mod cache;
mod cursor;
mod file;
mod fill;
mod follower;
mod line;
mod read;
mod shared;
mod source;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use protocol::id::RunId;
use tokio_util::sync::CancellationToken;

pub use archive::Archive;
pub use block::End;
pub use cursor::{Batch, Cursor};
pub use line::{Line, LineJoiner};
pub use read::{Filter, Limits, Window, tail, window};
pub use shared::Options;

use crate::client::{Client, Error};
use shared::Shared;

/// The logs of runs. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Logs(Arc<Shared>);

impl Logs {
    /// Opens the cache. If that is not possible, logs are read without a cache, and a warning says
    /// why. Everything ends with `stop`.
    pub async fn open(
        options: Options,
        client: Client,
        archive: Option<Archive>,
        stop: CancellationToken,
    ) -> Self {
        let cache = shared::open_cache(options).await;
        Self(Arc::new(Shared::new(cache, client, archive, stop)))
    }

    /// Writes the logs of runs that start from now on to the cache, and archives those that end on
    /// this node, until the node stops. Ends at once if there is neither cache nor archive.
    pub async fn follow(&self) {
        follower::follow(&self.0).await;
    }

    /// Reads the log of a run from a line on. The first line is 1.
    ///
    /// # Errors
    /// [`Error::UnknownRun`] if the run has neither a log in the cache nor a record. Errors of the
    /// services.
    pub async fn read(&self, run: &RunId, from: u64) -> Result<Cursor, Error> {
        Cursor::open(&self.0, run, from).await
    }

    /// Waits until the tasks that fill the cache have ended, which they do after the node's stop.
    pub async fn ended(&self) {
        self.0.ended().await;
    }
}
