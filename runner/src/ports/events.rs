//! Publishing and reading events.

use async_trait::async_trait;
use futures::stream::BoxStream;
use protocol::event::Event;
use protocol::id::{Epoch, RunId};
use protocol::time::Millis;
use thiserror::Error;

/// A publisher's position in its sequence of events. Tickets increase with every event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ticket(pub u64);

/// Position at which a reader starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The oldest event in the stream.
    First,
    /// The first event published after the reader is opened.
    Next,
    /// The first event published at or after this time. Some earlier ones may precede it.
    Since(Millis),
    /// The event at this offset.
    Offset(u64),
}

/// A message on the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The offset in the stream.
    pub offset: u64,
    /// The body.
    pub body: Vec<u8>,
}

impl Published {
    /// Returns the event, or `None` if the body is not a valid event.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Messages in stream order. Reading continues after a reconnect.
pub type EventStream = BoxStream<'static, Result<Published, EventsError>>;

/// Errors of the event stream.
#[derive(Debug, Error)]
pub enum EventsError {
    /// The broker does not answer.
    #[error("cannot reach the stream at {at}: {cause}")]
    Unreachable {
        /// Its address, without credentials.
        at: String,
        /// The connection error.
        cause: String,
    },
    /// The user, password, virtual host or certificate does not grant access.
    #[error("cannot use the stream at {at}: {cause}")]
    Denied {
        /// The address, without credentials.
        at: String,
        /// The broker's reply, and how to fix it.
        cause: String,
    },
    /// The stream exists with a different type.
    #[error("cannot use the stream at {at}: {cause}")]
    WrongKind {
        /// The address, without credentials.
        at: String,
        /// The resource concerned, and what to delete.
        cause: String,
    },
    /// Buffered events cannot be written to disk.
    #[error("cannot spill events to {path}: {cause}; make room there, or set BOB_SPILL_DIR")]
    Spill {
        /// The file.
        path: String,
        /// The I/O error.
        cause: String,
    },
    /// The publisher has terminated.
    #[error("the event publisher has ended")]
    Closed,
}

impl EventsError {
    /// Returns true if the same call may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Spill { .. } => true,
            Self::Denied { .. } | Self::WrongKind { .. } | Self::Closed => false,
        }
    }
}

/// Publishes events in the order of `emit`, at least once, across reconnects and broker restarts.
/// Unpublished events wait in a bounded buffer, then in a bounded file.
#[async_trait]
pub trait Events: Send + Sync {
    /// Accepts an event for publication. Waits while buffer and file are full. This slows down a
    /// step whose output the broker does not accept.
    ///
    /// # Cancel safety
    /// If the future is dropped, the event was either accepted completely or not at all.
    async fn emit(&self, event: Event) -> Result<Ticket, EventsError>;

    /// Waits until every event up to this ticket is confirmed by the broker or was discarded.
    async fn confirmed(&self, ticket: Ticket) -> Result<(), EventsError>;

    /// Returns true if the event with this ticket was discarded because its copy on disk cannot be
    /// read. It can be emitted again.
    fn is_unreadable(&self, _ticket: Ticket) -> bool {
        false
    }

    /// Returns why no event can be published at present, if known. Emitted events wait.
    fn problem(&self) -> Option<String> {
        None
    }

    /// Drops the unpublished events of a run up to an epoch, in memory and on disk, because their
    /// owner has lost the run. Events already sent may still arrive.
    ///
    /// Ending events are kept: they are published only after they were recorded, and remain true
    /// whoever owns the run.
    fn discard(&self, run: &RunId, up_to: Epoch);

    /// Reads the stream from a position.
    async fn follow(&self, from: Position) -> Result<EventStream, EventsError>;

    /// Returns the offset of the last message, or `None` if the stream is empty.
    async fn end(&self) -> Result<Option<u64>, EventsError>;
}
