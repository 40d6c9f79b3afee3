//! Follows the stream up to where a command wants it.

use std::time::Duration;

use futures::StreamExt as _;
use protocol::id::RunId;
use protocol::time::Millis;
use tokio::time::timeout;

use super::reader::{Ending, Item, Missing, Reader};
use super::state::{KnownRun, find_run};
use super::{Client, Error};
use crate::ports::{EventStream, EventsError, Position, Published};

/// A run's events begin no earlier than this before its record says: clocks differ.
const CLOCKS_DIFFER_MS: i64 = 60_000;
/// A stream that says nothing for so long, although it has not come to where it should, has nothing
/// more to say from there on.
const SILENCE: Duration = Duration::from_secs(10);
/// The same if the last event on the stream is older than what is to be read.
const NOTHING_EXPECTED: Duration = Duration::from_secs(1);

/// How the reading of a run's log ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// With the run's ending event; and what is missing all the same.
    Ended(Ending, Vec<Missing>),
    /// With what there was when the reading began: the run goes on, or is not known.
    CaughtUp,
    /// The run has ended, and not everything that was published of it is there: this is missing.
    GaveUp(Vec<Missing>),
}

/// The beginning of a run's log is past the stream's retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastRetention {
    /// The time of the oldest event that the stream still has; `None` if it has none.
    pub oldest: Option<Millis>,
}

/// The log of one run.
pub struct LogTail {
    client: Client,
    run: RunId,
    follow: bool,
    reader: Reader,
    source: Source,
    /// The record as it was when the reading began, or later.
    record: Option<KnownRun>,
    from: Position,
    /// Where reading ends, once that is known.
    until: Until,
    /// It reads on after the ending event, for what is missing.
    reads_on: bool,
    outcome: Option<Outcome>,
}

impl std::fmt::Debug for LogTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogTail").field("run", &self.run).finish_non_exhaustive()
    }
}

/// Where reading ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// With the ending event, which is still to come.
    Ending,
    /// With that message, or at once where the stream was empty.
    Offset(Option<u64>),
}

/// The stream, and where it has come to.
struct Source {
    stream: EventStream,
    last: Option<u64>,
}

/// What came of a wait for the stream.
enum Heard {
    Message(Published),
    Nothing,
}

impl Source {
    async fn next(&mut self) -> Result<Heard, Error> {
        self.next_within(SILENCE).await
    }

    async fn next_within(&mut self, silence: Duration) -> Result<Heard, Error> {
        match timeout(silence, self.stream.next()).await {
            Ok(Some(message)) => {
                let message = message?;
                self.last = Some(message.offset);
                Ok(Heard::Message(message))
            }
            Ok(None) => Err(EventsError::Closed.into()),
            Err(_elapsed) => Ok(Heard::Nothing),
        }
    }

    fn has_reached(&self, until: Until) -> bool {
        match until {
            Until::Ending => false,
            Until::Offset(None) => true,
            Until::Offset(Some(end)) => self.last.is_some_and(|last| last >= end),
        }
    }
}

impl KnownRun {
    /// Whether nothing more will be published of it.
    fn is_told(&self) -> bool {
        self.record.status.is_ended() && self.record.ending_event.is_none()
    }
}

impl Client {
    /// Reads a run's log: to its end where `follow`, else to where the stream ends now.
    ///
    /// `since` is when the run was sent, where the caller knows: its record may not be there yet.
    ///
    /// # Errors
    /// What the services say.
    pub async fn log(
        &self,
        run: &RunId,
        follow: bool,
        since: Option<Millis>,
    ) -> Result<LogTail, Error> {
        let store = self.services.store().await?;
        // In this order: where the record says that all is published, the stream's end comes after.
        let record = find_run(store.as_ref(), run).await?;
        let events = self.services.events().await?;
        let end = events.end().await?;
        let since = record.as_ref().map(|known| known.record.scheduled_at.0).or(since);
        let from = match since {
            Some(Millis(at)) => Position::Since(Millis(at - CLOCKS_DIFFER_MS)),
            None => Position::First,
        };
        let is_told = record.as_ref().is_some_and(KnownRun::is_told);
        let until = if follow && !is_told { Until::Ending } else { Until::Offset(end) };
        let source = Source { stream: events.follow(from).await?, last: None };
        let (client, run) = (self.clone(), run.clone());
        let reader = Reader::new(run.clone());
        let (reads_on, outcome) = (false, None);
        Ok(LogTail { client, run, follow, reader, source, record, from, until, reads_on, outcome })
    }

    /// Reads the stream from a position: on and on where `follow`, else to where it ends now.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn events(&self, from: Position, follow: bool) -> Result<EventTail, Error> {
        let events = self.services.events().await?;
        let until = if follow { Until::Ending } else { Until::Offset(events.end().await?) };
        let mut silence = SILENCE;
        if let (Position::Since(since), Until::Offset(Some(end))) = (from, until) {
            // Nothing is expected after the last message, so nothing is waited for.
            let last = Source { stream: events.follow(Position::Offset(end)).await?, last: None };
            if let Heard::Message(last) = { last }.next().await?
                && last.event().is_some_and(|event| event.at < since)
            {
                silence = NOTHING_EXPECTED;
            }
        }
        let source = Source { stream: events.follow(from).await?, last: None };
        Ok(EventTail { source, until, silence })
    }

    /// When something happened that long ago, for [`Position::Since`].
    #[must_use]
    pub fn ago(&self, span: Duration) -> Millis {
        let span = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Millis(self.now().0.saturating_sub(span))
    }
}

impl LogTail {
    /// Whether the run has a record.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.record.is_some() || self.reader.has_begun()
    }

    /// The record as it was when the reading began, or later.
    #[must_use]
    pub fn record(&self) -> Option<&KnownRun> {
        self.record.as_ref()
    }

    /// The next item; `None` once the reading has ended, and then [`LogTail::outcome`] says how.
    ///
    /// # Errors
    /// What the services say.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Item>, Error> {
        loop {
            if let Some(ending) = self.reader.ending() {
                let missing = self.reader.missing();
                if missing.is_empty() || (self.reads_on && self.source.has_reached(self.until)) {
                    self.outcome = Some(Outcome::Ended(ending, missing));
                    return Ok(None);
                }
                if !self.reads_on {
                    // The next worker on a host publishes what an earlier one left on its disk, which
                    // can be after the end.
                    self.reads_on = true;
                    self.until = Until::Offset(self.client.services.events().await?.end().await?);
                    continue;
                }
            }
            if self.source.has_reached(self.until) {
                self.outcome = Some(self.gave_up_or_caught_up());
                return Ok(None);
            }
            match self.source.next().await? {
                Heard::Message(message) => {
                    let item = message.event().and_then(|event| self.reader.on(event));
                    if item.is_some() {
                        return Ok(item);
                    }
                }
                Heard::Nothing => self.look_again().await?,
            }
        }
    }

    /// How the reading ended.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Whether the stream dropped the beginning of the run's log, as far as its oldest event shows.
    ///
    /// # Errors
    /// What the services say.
    pub async fn past_retention(&self) -> Result<Option<PastRetention>, Error> {
        let Some(known) = &self.record else { return Ok(None) };
        let events = self.client.services.events().await?;
        if events.end().await?.is_none() {
            return Ok(Some(PastRetention { oldest: None }));
        }
        let mut source = Source { stream: events.follow(Position::First).await?, last: None };
        let Heard::Message(oldest) = source.next().await? else { return Ok(None) };
        let oldest = oldest.event().map(|event| event.at);
        let is_past = oldest.is_some_and(|oldest| oldest > known.record.scheduled_at.0);
        Ok(is_past.then_some(PastRetention { oldest }))
    }

    /// The stream says nothing. Either the run goes on in silence, or something is not as expected.
    async fn look_again(&mut self) -> Result<(), Error> {
        if self.until == Until::Ending {
            let store = self.client.services.store().await?;
            self.record = find_run(store.as_ref(), &self.run).await?.or_else(|| self.record.take());
            if self.record.as_ref().is_some_and(KnownRun::is_told) {
                let events = self.client.services.events().await?;
                self.until = Until::Offset(events.end().await?);
            }
            return Ok(());
        }
        // The end that was seen lies before the place where reading began: the clock of the broker
        // is far from that of the worker. So everything is read.
        if self.source.last.is_none() && self.from != Position::First {
            self.from = Position::First;
            let events = self.client.services.events().await?;
            self.source.stream = events.follow(self.from).await?;
            return Ok(());
        }
        self.until = Until::Offset(None);
        Ok(())
    }

    fn gave_up_or_caught_up(&self) -> Outcome {
        let is_told = self.record.as_ref().is_some_and(KnownRun::is_told);
        if !is_told && !self.follow {
            return Outcome::CaughtUp;
        }
        let mut missing = self.reader.missing();
        missing.push(Missing::Ending);
        Outcome::GaveUp(missing)
    }
}

/// The stream, message by message.
pub struct EventTail {
    source: Source,
    until: Until,
    /// How long the stream may say nothing before its end counts as reached.
    silence: Duration,
}

impl std::fmt::Debug for EventTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventTail").field("until", &self.until).finish_non_exhaustive()
    }
}

impl EventTail {
    /// The next message; `None` where the stream ended when the reading began.
    ///
    /// # Errors
    /// What the stream says.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Published>, Error> {
        loop {
            if self.source.has_reached(self.until) {
                return Ok(None);
            }
            match self.source.next_within(self.silence).await? {
                Heard::Message(message) => return Ok(Some(message)),
                // It has ended before the place where reading was to begin.
                Heard::Nothing if self.until != Until::Ending => return Ok(None),
                Heard::Nothing => {}
            }
        }
    }
}
