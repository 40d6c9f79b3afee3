//! What the commands do with a cluster: publish a command, read and write state, follow the stream.
//!
//! | module | duty |
//! |---|---|
//! | `reader` | one run's events by the rules of wire.md section 4; pure |
//! | `tail` | the stream, up to where a command wants it |
//! | `cluster` | the services that the settings name |
//! | `commands` | starts, stops, pauses |
//! | `state` | runs and nodes |
//! | `definitions` | pipelines, providers, stores, loggers |

mod cluster;
mod commands;
mod definitions;
mod reader;
mod state;
mod tail;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::event::Event;
use protocol::id::{PipelineId, RunId, StepName};
use protocol::run::Status;
use protocol::time::Millis;
use thiserror::Error;

use super::Unavailable;
use crate::ports::{Events, EventsError, Queue, QueueError, Store, StoreError};

pub use cluster::connect;
pub use commands::{StartOf, StartRequest};
pub use definitions::{Applied, Registry};
pub use reader::{Ending, Item, Missing, Reader, Text};
pub use state::{KnownRun, RunFilter};
pub use tail::{EventTail, LogTail, Outcome, PastRetention};

/// The services of a cluster. Each is connected to when it is asked for first, so that a command
/// needs only what it uses.
#[async_trait]
pub trait Services: Send + Sync {
    /// Where state is.
    async fn store(&self) -> Result<Arc<dyn Store>, Unavailable>;
    /// Where commands go.
    async fn queue(&self) -> Result<Arc<dyn Queue>, Unavailable>;
    /// Where events are.
    async fn events(&self) -> Result<Arc<dyn Events>, Unavailable>;
}

/// What the commands have to do with a cluster.
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

/// What a command could not do.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no server to ask.
    #[error(
        "embedded mode has no server to ask in this version; `bob-runner run FILE` runs a file here, BOB_MODE=cluster asks a cluster"
    )]
    Embedded,
    /// A service does not let us in, or does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The stream.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// No record of a run.
    #[error("run {0} is not known: it was never accepted, or its record is past its retention")]
    UnknownRun(RunId),
    /// A run that has ended, and so cannot be stopped.
    #[error("run {run} has ended already: {status}")]
    Ended {
        /// The run.
        run: RunId,
        /// How it ended.
        status: Status,
    },
    /// A pipeline that is not stored.
    #[error("no pipeline {0} is stored; `bob-runner pipeline list` shows those that are")]
    UnknownPipeline(PipelineId),
    /// A pipeline that still runs.
    #[error("pipeline {id} is in use by {}; stop what runs first, then delete it", listed(runs))]
    InUse {
        /// The pipeline.
        id: PipelineId,
        /// Its open runs.
        runs: Vec<RunId>,
    },
    /// Somebody else's value under a key of ours.
    #[error("{key} in the store cannot be read: {cause}")]
    Unreadable {
        /// The key.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A step that a run's definition does not have.
    #[error("run {run} has no step {step}; {}", known_steps(.known))]
    NoSuchStep {
        /// The run.
        run: RunId,
        /// The step.
        step: StepName,
        /// Those that it has.
        known: Vec<StepName>,
    },
    /// A run that cannot be rerun.
    #[error("run {run} cannot be rerun: {why}")]
    NoRerun {
        /// The run.
        run: RunId,
        /// Why.
        why: String,
    },
    /// A start that no worker accepts, because of its size: the sentence.
    #[error("{0}")]
    TooLarge(String),
    /// A key that changes all the time.
    #[error("{key} keeps changing concurrently; try again")]
    Contended {
        /// The key.
        key: String,
    },
    /// A change was made, and nobody was told.
    #[error("the change is made, but the stream did not take its event within {} s", .0.as_secs())]
    NotTold(Duration),
}

/// What kind of trouble an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A service cannot be reached, or does not do its part.
    Service,
    /// What was given cannot be used.
    Input,
    /// It cannot be done as things stand.
    State,
}

impl Error {
    /// What kind of trouble it is.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Embedded
            | Self::Unavailable(_)
            | Self::Store(_)
            | Self::Queue(_)
            | Self::Events(_)
            | Self::NotTold(_) => Trouble::Service,
            Self::TooLarge(_) => Trouble::Input,
            Self::UnknownRun(_)
            | Self::Ended { .. }
            | Self::UnknownPipeline(_)
            | Self::Unreadable { .. }
            | Self::NoSuchStep { .. }
            | Self::InUse { .. }
            | Self::NoRerun { .. }
            | Self::Contended { .. } => Trouble::State,
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

/// The first few of these, and how many more there are.
fn some<'a>(all: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = all.len();
    let shown: Vec<&str> = all.take(10).collect();
    let more = count.saturating_sub(shown.len());
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Entries of the store. One that this version cannot read does not hide the others.
#[derive(Debug)]
pub struct Listed<T> {
    /// Those that can be read.
    pub readable: Vec<T>,
    /// An [`Error::Unreadable`] for each of the others.
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

/// How long the event of a change may take.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

impl Client {
    /// A client of these services.
    #[must_use]
    pub fn new(services: Arc<dyn Services>) -> Self {
        Self { services, clock: now }
    }

    fn now(&self) -> Millis {
        (self.clock)()
    }

    /// Publishes an event that belongs to no run, and waits until the stream has it.
    async fn tell(&self, events: &dyn Events, event: Event) -> Result<(), Error> {
        let told = async { events.confirmed(events.emit(event).await?).await };
        match tokio::time::timeout(TOLD_WITHIN, told).await {
            Ok(told) => Ok(told?),
            Err(_elapsed) => Err(Error::NotTold(TOLD_WITHIN)),
        }
    }
}

/// The wall clock of whoever types a command.
fn now() -> Millis {
    Millis(jiff::Timestamp::now().as_millisecond())
}

/// Reads what the store holds under a key.
fn decoded<T: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(value)
        .map_err(|cause| Error::Unreadable { key: key.to_owned(), cause: cause.to_string() })
}

/// What the store is to hold under a key.
fn encoded<T: serde::Serialize>(key: &str, value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value)
        .map_err(|cause| Error::Unreadable { key: key.to_owned(), cause: cause.to_string() })
}
