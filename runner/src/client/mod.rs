//! The cluster operations behind the commands: publish commands, read and write state, read the
//! stream.
//!
//! | module | duty |
//! |---|---|
//! | `reader` | the events of one run, by the rules of docs/wire.md section 4; pure |
//! | `retention` | whether the stream still has the log of a run |
//! | `tail` | reading the stream up to the wanted end |
//! | `unavailable` | a service that cannot be used |
//! | `commands` | starts, stops, pauses |
//! | `state` | runs and nodes |
//! | `definitions` | pipelines, providers, stores, loggers |

mod commands;
mod definitions;
mod reader;
mod retention;
mod state;
mod tail;
mod unavailable;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::event::Event;
use protocol::id::{PipelineId, RunId, StepName};
use protocol::run::Status;
use protocol::time::Millis;
use thiserror::Error;

use crate::ports::{Events, EventsError, Queue, QueueError, Store, StoreError};

pub use commands::{StartOf, StartRequest};
pub use definitions::{Applied, Registry, check_service_url};
pub use reader::{Ending, LogItem, Missing, Reader, Text};
pub use retention::PastRetention;
pub use state::{KnownRun, PlaceInList, RunFilter};
pub use tail::{BeforeStart, EventTail, LogTail, Outcome, Progress};
pub use unavailable::{ServiceFault, Unavailable};

/// Removes the credentials from a URL, to show it.
pub use crate::config::without_credentials;

/// The services of a cluster. Each is connected on first use, so that a command needs only the
/// services that it uses.
#[async_trait]
pub trait Services: Send + Sync {
    /// The store for state.
    async fn store(&self) -> Result<Arc<dyn Store>, Unavailable>;
    /// The queue for commands.
    async fn queue(&self) -> Result<Arc<dyn Queue>, Unavailable>;
    /// The stream of events.
    async fn events(&self) -> Result<Arc<dyn Events>, Unavailable>;
}

/// The operations of the commands on a cluster.
#[derive(Clone)]
pub struct Client {
    services: Arc<dyn Services>,
    clock: fn() -> Millis,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// Why a command failed.
#[derive(Debug, Error)]
pub enum Error {
    /// Embedded mode has no server.
    #[error(
        "embedded mode has no server to ask in this version; `bob-runner run FILE` runs a file here, BOB_MODE=cluster asks a cluster"
    )]
    Embedded,
    /// A service does not answer or rejects the connection.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An error of the queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// An error of the stream.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// The run has no record.
    #[error("run {0} is not known: it was never accepted, or its record is past its retention")]
    UnknownRun(RunId),
    /// The run has ended and cannot be stopped.
    #[error("run {run} has ended already: {status}")]
    Ended {
        /// The run.
        run: RunId,
        /// How it ended.
        status: Status,
    },
    /// The pipeline is not stored.
    #[error("no pipeline {0} is stored; `bob-runner pipeline list` shows those that are")]
    UnknownPipeline(PipelineId),
    /// The pipeline was loaded from a file.
    #[error(
        "pipeline {id} is defined in {file}, and only a change of that file changes it: edit the \
         file where the workers load it"
    )]
    FromFile {
        /// The pipeline.
        id: PipelineId,
        /// The file, as the worker names it.
        file: String,
    },
    /// The pipeline has open runs.
    #[error("pipeline {id} is in use by {}; stop what runs first, then delete it", listed(runs))]
    InUse {
        /// The pipeline.
        id: PipelineId,
        /// Its open runs.
        runs: Vec<RunId>,
    },
    /// The value of a key cannot be decoded.
    #[error("{key} in the store cannot be read: {cause}")]
    Unreadable {
        /// The key.
        key: String,
        /// The reason.
        cause: String,
    },
    /// The run's definition has no such step.
    #[error("run {run} has no step {step}; {}", known_steps(.known))]
    NoSuchStep {
        /// The run.
        run: RunId,
        /// The step.
        step: StepName,
        /// The steps of the definition.
        known: Vec<StepName>,
    },
    /// The run cannot be rerun.
    #[error("run {run} cannot be rerun: {why}")]
    NoRerun {
        /// The run.
        run: RunId,
        /// The reason.
        why: String,
    },
    /// The start is larger than any worker accepts. Holds the error message.
    #[error("{0}")]
    TooLarge(String),
    /// Others keep changing the key.
    #[error("{key} keeps changing concurrently; try again")]
    Contended {
        /// The key.
        key: String,
    },
    /// The change was made, but its event was not confirmed in this time.
    #[error("the change is made, but the stream did not take its event within {} s", .0.as_secs())]
    NotTold(Duration),
}

/// The category of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A service is unreachable or failed.
    Service,
    /// The input is invalid.
    Input,
    /// The current state does not allow it.
    State,
}

impl Error {
    /// The category of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Embedded
            | Self::Unavailable(_)
            | Self::Store(_)
            | Self::Queue(_)
            | Self::Events(_)
            | Self::NotTold(_) => ErrorKind::Service,
            Self::TooLarge(_) => ErrorKind::Input,
            Self::UnknownRun(_)
            | Self::Ended { .. }
            | Self::UnknownPipeline(_)
            | Self::Unreadable { .. }
            | Self::NoSuchStep { .. }
            | Self::FromFile { .. }
            | Self::InUse { .. }
            | Self::NoRerun { .. }
            | Self::Contended { .. } => ErrorKind::State,
        }
    }
}

fn listed(runs: &[RunId]) -> String {
    some(runs.iter().map(RunId::as_str))
}

fn known_steps(steps: &[StepName]) -> String {
    match steps {
        [] => "it has none".to_owned(),
        steps => format!("it has {}", some(steps.iter().map(StepName::as_str))),
    }
}

/// The first few items, and the number of further ones.
fn some<'a>(all: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = all.len();
    let shown: Vec<&str> = all.take(10).collect();
    let more = count.saturating_sub(shown.len());
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Entries of the store. Unreadable entries do not hide the others.
#[derive(Debug)]
pub struct Listed<T> {
    /// The readable entries.
    pub readable: Vec<T>,
    /// An [`Error::Unreadable`] for each unreadable entry.
    pub unreadable: Vec<Error>,
}

impl<T> FromIterator<Result<T, Error>> for Listed<T> {
    fn from_iter<I: IntoIterator<Item = Result<T, Error>>>(entries: I) -> Self {
        let mut listed = Self { readable: Vec::new(), unreadable: Vec::new() };
        for entry in entries {
            match entry {
                Ok(entry) => listed.readable.push(entry),
                Err(error) => listed.unreadable.push(error),
            }
        }
        listed
    }
}

/// The timeout for the event of a change.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

impl Client {
    /// Creates a client of these services.
    #[must_use]
    pub fn new(services: Arc<dyn Services>) -> Self {
        Self { services, clock: now }
    }

    fn now(&self) -> Millis {
        (self.clock)()
    }

    /// The offset of the last message of the stream. `None` if the stream is empty.
    ///
    /// # Errors
    /// Errors of the stream.
    pub async fn stream_end(&self) -> Result<Option<u64>, Error> {
        Ok(self.services.events().await?.end().await?)
    }

    /// Publishes an event without a run and waits for its confirm.
    async fn publish(&self, events: &dyn Events, event: Event) -> Result<(), Error> {
        let told = async { events.confirmed(events.emit(event).await?).await };
        match tokio::time::timeout(TOLD_WITHIN, told).await {
            Ok(told) => Ok(told?),
            Err(_elapsed) => Err(Error::NotTold(TOLD_WITHIN)),
        }
    }
}

/// The wall clock of the user's host.
fn now() -> Millis {
    Millis(jiff::Timestamp::now().as_millisecond())
}

/// Decodes the value of a key.
fn decoded<T: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(value)
        .map_err(|cause| Error::Unreadable { key: key.to_owned(), cause: cause.to_string() })
}

/// Encodes the value of a key.
fn encoded<T: serde::Serialize>(key: &str, value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value)
        .map_err(|cause| Error::Unreadable { key: key.to_owned(), cause: cause.to_string() })
}
