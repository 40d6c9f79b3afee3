//! Shares one reading of the event stream among all clients that follow it.
//!
//! The reading begins with the first client and ends after the last one. Recent events wait in a
//! bounded buffer. A client that wants older ones, or that is slower than the buffer, reads the
//! stream by itself until it has caught up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::event::Event;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::client::{Client, Error, EventTail};
use crate::ports::{Pauses, Position, Published};

/// The maximum size of the buffered events, in bytes, and their maximum number.
const BUFFER: Limits = Limits { bytes: 8 * 1024 * 1024, events: 8192 };

/// The pause before the stream is read again after a failure, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(10);

/// An event of the stream.
#[derive(Debug)]
pub(super) struct StreamEvent {
    /// Its offset in the stream.
    pub(super) offset: u64,
    /// The event.
    pub(super) event: Event,
    /// Its JSON, on one line.
    pub(super) json: String,
}

impl StreamEvent {
    /// The event of a message. `None` if the message is not an event.
    fn of(message: &Published) -> Option<Self> {
        let event = message.event()?;
        let json = String::from_utf8(event.to_json()).ok()?;
        Some(Self { offset: message.offset, event, json })
    }
}

/// Shares one reading of the event stream. Cloning it is cheap.
#[derive(Clone)]
pub struct Hub(Arc<HubState>);

struct HubState {
    client: Client,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// The current reading, if there is one.
    current: AsyncMutex<Option<Arc<Reading>>>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

/// A reading of the stream that several clients share.
struct Reading {
    recent: Mutex<Recent>,
    /// Notifies of each event. Its receivers are the clients.
    news: watch::Sender<()>,
}

/// What a buffer holds at most.
#[derive(Debug, Clone, Copy)]
struct Limits {
    bytes: usize,
    events: usize,
}

/// The most recent events. Each has a number, from 0 on.
#[derive(Debug)]
struct Recent {
    limits: Limits,
    events: VecDeque<Arc<StreamEvent>>,
    bytes: usize,
    /// The number of the first event in the buffer.
    first: u64,
    /// The offset of event 0.
    origin: Option<u64>,
}

/// The result of looking for an event in the buffer.
#[derive(Debug)]
enum Found {
    Event(Arc<StreamEvent>),
    /// It has not come yet.
    NotYet,
    /// It has left the buffer.
    Gone,
}

impl Recent {
    fn new(limits: Limits) -> Self {
        Self { limits, events: VecDeque::new(), bytes: 0, first: 0, origin: None }
    }

    fn push(&mut self, event: StreamEvent) {
        self.origin.get_or_insert(event.offset);
        self.bytes += event.json.len();
        self.events.push_back(Arc::new(event));
        while self.events.len() > self.limits.events
            || (self.bytes > self.limits.bytes && self.events.len() > 1)
        {
            let Some(oldest) = self.events.pop_front() else { return };
            self.bytes -= oldest.json.len();
            self.first += 1;
        }
    }

    /// The number of the next event.
    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    fn find(&self, number: u64) -> Found {
        let Some(index) = number.checked_sub(self.first) else { return Found::Gone };
        let event = usize::try_from(index).ok().and_then(|index| self.events.get(index));
        event.map_or(Found::NotYet, |event| Found::Event(Arc::clone(event)))
    }

    /// The number of the first event after this offset, if the buffer holds everything after it.
    fn number_after(&self, offset: u64) -> Option<u64> {
        let oldest = self.events.front()?;
        if oldest.offset > offset.saturating_add(1) {
            return None;
        }
        let index = self.events.partition_point(|event| event.offset <= offset);
        Some(self.first + index as u64)
    }
}

impl Hub {
    /// Creates a hub. Everything ends with `stop`.
    #[must_use]
    pub fn new(client: Client, stop: CancellationToken) -> Self {
        let (tasks, current) = (TaskTracker::new(), AsyncMutex::new(None));
        Self(Arc::new(HubState { client, stop, tasks, current }))
    }

    /// Follows the stream from a position.
    ///
    /// # Errors
    /// Errors of the stream.
    pub(super) async fn follow(&self, from: Position) -> Result<EventReader, Error> {
        let (reading, news) = self.reading().await?;
        let source = match from {
            Position::Next => Source::Shared(reading.recent.lock().end()),
            Position::First | Position::Since(_) | Position::Offset(_) => {
                Source::Own(Box::new(self.0.client.events(from, true).await?))
            }
        };
        Ok(EventReader { client: self.0.client.clone(), reading, news, source, last: None })
    }

    /// The current reading, or a new one, and the registration of a client.
    async fn reading(&self) -> Result<(Arc<Reading>, watch::Receiver<()>), Error> {
        let mut current = self.0.current.lock().await;
        if let Some(reading) = &*current {
            return Ok((Arc::clone(reading), reading.news.subscribe()));
        }
        let tail = self.0.client.events(Position::Next, true).await?;
        let (news, registration) = watch::channel(());
        let reading = Arc::new(Reading { recent: Mutex::new(Recent::new(BUFFER)), news });
        *current = Some(Arc::clone(&reading));
        self.0.tasks.spawn(self.clone().read(Arc::clone(&reading), tail));
        Ok((reading, registration))
    }

    /// Reads until the last client has left.
    async fn read(self, reading: Arc<Reading>, mut tail: EventTail) {
        let HubState { client, stop, .. } = &*self.0;
        let mut pauses = Pauses::jittered(RETRY_FIRST, RETRY_MOST);
        let mut last = None;
        loop {
            let message = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = reading.news.closed() => {
                    if self.retire(&reading).await {
                        return;
                    }
                    continue;
                }
                message = tail.next() => message,
            };
            match message {
                Ok(Some(message)) => {
                    pauses.reset();
                    last = Some(message.offset);
                    if let Some(event) = StreamEvent::of(&message) {
                        reading.recent.lock().push(event);
                        reading.news.send_replace(());
                    }
                    continue;
                }
                Ok(None) => {}
                Err(cause) => warn!(%cause, "the HTTP API reads the stream again"),
            }
            let next = |last: u64| Position::Offset(last.saturating_add(1));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = pauses.wait() => {}
            }
            if let Ok(opened) = client.events(last.map_or(Position::Next, next), true).await {
                tail = opened;
            }
        }
    }

    /// Ends a reading, unless a client has come meanwhile.
    async fn retire(&self, reading: &Reading) -> bool {
        let mut current = self.0.current.lock().await;
        let is_over = reading.news.receiver_count() == 0;
        if is_over {
            *current = None;
        }
        is_over
    }
}

/// A client that follows the stream.
pub(super) struct EventReader {
    client: Client,
    reading: Arc<Reading>,
    news: watch::Receiver<()>,
    source: Source,
    /// The offset of the last event.
    last: Option<u64>,
}

/// Where a client reads.
enum Source {
    /// Its own reading of the stream.
    Own(Box<EventTail>),
    /// The buffer, from the event with this number on.
    Shared(u64),
}

impl EventReader {
    /// The next event. `None` if the stream has ended.
    ///
    /// # Errors
    /// Errors of the stream.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Arc<StreamEvent>>, Error> {
        loop {
            match &mut self.source {
                Source::Own(tail) => {
                    let Some(message) = tail.next().await? else { return Ok(None) };
                    self.last = Some(message.offset);
                    if let Some(number) = self.reading.recent.lock().number_after(message.offset) {
                        self.source = Source::Shared(number);
                    }
                    if let Some(event) = StreamEvent::of(&message) {
                        return Ok(Some(Arc::new(event)));
                    }
                }
                Source::Shared(number) => {
                    // Marks the news as seen before the look, so that none is missed.
                    self.news.borrow_and_update();
                    let found = self.reading.recent.lock().find(*number);
                    match found {
                        Found::Event(event) => {
                            *number += 1;
                            self.last = Some(event.offset);
                            return Ok(Some(event));
                        }
                        Found::NotYet => {
                            if self.news.changed().await.is_err() {
                                return Ok(None);
                            }
                        }
                        Found::Gone => self.fall_back().await?,
                    }
                }
            }
        }
    }

    /// Reads the events that have left the buffer from the stream.
    async fn fall_back(&mut self) -> Result<(), Error> {
        let after_last = self.last.map(|last| last.saturating_add(1));
        // Without an event, the client has been there since the first one.
        let from = after_last.or(self.reading.recent.lock().origin);
        let from = from.map_or(Position::First, Position::Offset);
        self.source = Source::Own(Box::new(self.client.events(from, true).await?));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use protocol::event::Reason;
    use protocol::time::Millis;

    use super::*;

    fn event(offset: u64) -> StreamEvent {
        let event = Event::new(Millis(1), Reason::RunnerReady, "ready".to_owned());
        let json = "x".repeat(10);
        StreamEvent { offset, event, json }
    }

    fn recent(limits: Limits, offsets: &[u64]) -> Recent {
        let mut recent = Recent::new(limits);
        offsets.iter().for_each(|offset| recent.push(event(*offset)));
        recent
    }

    #[test]
    fn the_oldest_events_leave_a_full_buffer() {
        let by_number = recent(Limits { bytes: 1000, events: 2 }, &[5, 6, 7]);
        let by_size = recent(Limits { bytes: 25, events: 100 }, &[5, 6, 7]);
        for recent in [by_number, by_size] {
            assert!(matches!(recent.find(0), Found::Gone));
            assert!(matches!(recent.find(1), Found::Event(event) if event.offset == 6));
            assert!(matches!(recent.find(3), Found::NotYet));
            assert_eq!((recent.end(), recent.origin), (3, Some(5)));
        }
        let large = recent(Limits { bytes: 5, events: 100 }, &[1]);
        assert!(matches!(large.find(0), Found::Event(_)), "one event always fits");
    }

    #[test]
    fn a_client_changes_to_the_buffer_only_if_it_misses_no_event() {
        let recent = recent(Limits { bytes: 1000, events: 3 }, &[1, 5, 6, 9]);
        assert_eq!(recent.number_after(3), None, "event 4 could have left the buffer");
        assert_eq!(recent.number_after(4), Some(1));
        assert_eq!(recent.number_after(5), Some(2));
        assert_eq!(recent.number_after(7), Some(3));
        assert_eq!(recent.number_after(9), Some(4));
        assert_eq!(Recent::new(BUFFER).number_after(9), None);
    }
}
