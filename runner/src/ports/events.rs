//! Events: where they go, and how they are read back.

use async_trait::async_trait;
use futures::stream::BoxStream;
use protocol::event::Event;
use protocol::id::{Epoch, RunId};
use protocol::time::Millis;
use thiserror::Error;

/// How far a publisher has come: every event has one, and they grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ticket(pub u64);

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The oldest event that is kept.
    First,
    /// What is published from now on.
    Next,
    /// What was published at that time or later, and maybe a little before.
    Since(Millis),
    /// This one and what follows.
    Offset(u64),
}

/// A message as it stands on the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Its place.
    pub offset: u64,
    /// Its bytes.
    pub body: Vec<u8>,
}

impl Published {
    /// The event, where the bytes are one.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Messages in the order of the stream; goes on over reconnects.
pub type EventStream = BoxStream<'static, Result<Published, EventsError>>;

/// What the stream could not do.
#[derive(Debug, Error)]
pub enum EventsError {
    /// The broker does not answer.
    #[error("cannot reach the stream at {at}: {cause}")]
    Unreachable {
        /// Its address, without credentials.
        at: String,
        /// What the connection said.
        cause: String,
    },
    /// User, password, virtual host or certificate are not good for this.
    #[error("cannot use the stream at {at}: {cause}")]
    Denied {
        /// Its address.
        at: String,
        /// What it said, and what to do about it.
        cause: String,
    },
    /// The stream is of another kind.
    #[error("cannot use the stream at {at}: {cause}")]
    WrongKind {
        /// Its address.
        at: String,
        /// Which one, and what to delete.
        cause: String,
    },
    /// What waits for the broker cannot be put on disk.
    #[error("cannot spill events to {path}: {cause}; make room there, or set BOB_SPILL_DIR")]
    Spill {
        /// The file.
        path: String,
        /// What the system said.
        cause: String,
    },
    /// The publisher has ended.
    #[error("the event publisher has ended")]
    Closed,
}

impl EventsError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Spill { .. } => true,
            Self::Denied { .. } | Self::WrongKind { .. } | Self::Closed => false,
        }
    }
}

/// Where events go. What was taken over is published in that order, at least once, over reconnects
/// and restarts of the broker: it waits in a bounded buffer, then in a bounded file.
#[async_trait]
pub trait Events: Send + Sync {
    /// Takes an event over. Waits while buffer and file are full: that is what slows a step whose
    /// output the broker does not take.
    ///
    /// # Cancel safety
    /// An event whose future was dropped was either taken over whole or not at all.
    async fn emit(&self, event: Event) -> Result<Ticket, EventsError>;

    /// Returns once every event up to this one is confirmed by the broker, or was discarded.
    async fn confirmed(&self, ticket: Ticket) -> Result<(), EventsError>;

    /// Why no event can be published at the moment, if that is known. Events that are emitted wait.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Drops what waits of a run up to an epoch, in the buffer and on disk: its owner has lost it.
    /// What is on its way may still arrive. An ending event is not dropped: it is published once it is
    /// recorded, and stays true whoever owns the run.
    fn discard(&self, run: &RunId, up_to: Epoch);

    /// Reads the stream.
    async fn follow(&self, from: Position) -> Result<EventStream, EventsError>;

    /// The offset of the last message, where there is one.
    async fn end(&self) -> Result<Option<u64>, EventsError>;
}
