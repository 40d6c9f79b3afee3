//! Reads the stream up to the end that a command wants.

use std::time::Duration;

use futures::StreamExt as _;
use protocol::event::{Event, Reason};
use protocol::id::RunId;
use protocol::time::Millis;
use tokio::time::timeout;

use super::reader::{Ending, LogItem, Missing, Reader};
use super::retention::PastRetention;
use super::state::{KnownRun, find_run};
use super::{Client, Error};
use crate::ports::{EventStream, EventsError, Position, Published};

/// How far the broker's clock can be behind: reading starts this long before the record's time.
const CLOCKS_DIFFER_MS: i64 = 60_000;
/// How long the stream can be silent. If it ends short of the wanted position, nothing more is
/// expected after this time.
const SILENCE: Duration = Duration::from_secs(10);
/// The same, if the last event on the stream is older than the wanted ones.
const NOTHING_EXPECTED: Duration = Duration::from_secs(1);

/// How reading a run's log ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// At the run's ending event. The list has the remaining gaps.
    Ended(Ending, Vec<Missing>),
    /// At the end of the stream as of the start of reading. The run is not over or is unknown.
    CaughtUp,
    /// The run has ended, but these published events are missing.
    GaveUp(Vec<Missing>),
    /// A worker rejected the start, with this message. There is no run.
    Rejected(String),
}

/// A step in reading a log.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// The next item.
    Item(LogItem),
    /// Everything that was on the stream when reading began is read. Reported at most once.
    CaughtUp,
    /// The log is read to its end.
    End,
}

/// The moment before a start is sent. The log of its run is read from there.
#[derive(Debug, Clone, Copy)]
pub struct BeforeStart {
    at: Millis,
    /// The last message of the stream. Rejections up to it are about earlier starts.
    last: Option<u64>,
}

/// The log of one run.
pub struct LogTail {
    client: Client,
    run: RunId,
    follow: bool,
    reader: Reader,
    source: Source,
    /// The record at the start of reading or later.
    record: Option<KnownRun>,
    from: Position,
    /// When the start was sent, if the caller sent it.
    sent: Option<BeforeStart>,
    /// The message of a rejection that is yet to be checked against the store.
    rejection: Option<String>,
    /// Where to stop reading.
    until: ReadUntil,
    /// The end of the stream when reading began. `None` once it is reported as reached.
    end: Option<ReadUntil>,
    /// Whether it reads beyond the ending event, to fill gaps.
    reads_on: bool,
    outcome: Option<Outcome>,
}

impl std::fmt::Debug for LogTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogTail").field("run", &self.run).finish_non_exhaustive()
    }
}

/// Where to stop reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadUntil {
    /// At the ending event.
    Ending,
    /// At this message. `None`: at once, because the stream was empty.
    Offset(Option<u64>),
}

/// The stream and the last offset read.
struct Source {
    stream: EventStream,
    last: Option<u64>,
}

/// The result of waiting for the stream.
enum StreamWait {
    Message(Published),
    Nothing,
}

impl Source {
    async fn next(&mut self) -> Result<StreamWait, Error> {
        self.next_within(SILENCE).await
    }

    async fn next_within(&mut self, silence: Duration) -> Result<StreamWait, Error> {
        match timeout(silence, self.stream.next()).await {
            Ok(Some(message)) => {
                let message = message?;
                self.last = Some(message.offset);
                Ok(StreamWait::Message(message))
            }
            Ok(None) => Err(EventsError::Closed.into()),
            Err(_elapsed) => Ok(StreamWait::Nothing),
        }
    }

    fn has_reached(&self, until: ReadUntil) -> bool {
        match until {
            ReadUntil::Ending => false,
            ReadUntil::Offset(None) => true,
            ReadUntil::Offset(Some(end)) => self.last.is_some_and(|last| last >= end),
        }
    }
}

impl KnownRun {
    /// Whether no more events of the run will be published.
    fn is_complete(&self) -> bool {
        self.record.status.is_ended() && self.record.ending_event.is_none()
    }
}

impl Client {
    /// Reads a run's log. Reads to the end of the run if `follow`, else to the current end of the
    /// stream.
    ///
    /// `sent` is the moment before the caller sent the start. The run might have no record yet. If
    /// the start is rejected, reading ends.
    ///
    /// # Errors
    /// Errors of the services.
    pub async fn log(
        &self,
        run: &RunId,
        follow: bool,
        sent: Option<BeforeStart>,
    ) -> Result<LogTail, Error> {
        let store = self.services.store().await?;
        // Read the record first: if it says that everything is published, the stream's end is
        // later.
        let record = find_run(store.as_ref(), run).await?;
        let events = self.services.events().await?;
        let end = events.end().await?;
        let since = record.as_ref().map(|known| known.record.scheduled_at.0);
        let since = since.or_else(|| sent.map(|sent| sent.at));
        let from = match since {
            Some(Millis(at)) => Position::Since(Millis(at - CLOCKS_DIFFER_MS)),
            None => Position::First,
        };
        let is_told = record.as_ref().is_some_and(KnownRun::is_complete);
        let until = if follow && !is_told { ReadUntil::Ending } else { ReadUntil::Offset(end) };
        let end = Some(ReadUntil::Offset(end));
        let source = Source { stream: events.follow(from).await?, last: None };
        let (client, run) = (self.clone(), run.clone());
        let reader = Reader::new(run.clone());
        let (reads_on, outcome) = (false, None);
        Ok(LogTail {
            client,
            run,
            follow,
            reader,
            source,
            record,
            from,
            sent,
            rejection: None,
            until,
            end,
            reads_on,
            outcome,
        })
    }

    /// Notes the position in the stream, to send a start and follow its run.
    ///
    /// # Errors
    /// Errors of the stream.
    pub async fn before_start(&self) -> Result<BeforeStart, Error> {
        let last = self.services.events().await?.end().await?;
        Ok(BeforeStart { at: self.now(), last })
    }

    /// Reads the stream from a position. Reads forever if `follow`, else to the current end.
    ///
    /// If `from` is a time, it reads the events with that time or a later one. The broker's clock
    /// determines the position at which the search starts.
    ///
    /// # Errors
    /// Errors of the stream.
    pub async fn events(&self, from: Position, follow: bool) -> Result<EventTail, Error> {
        let events = self.services.events().await?;
        let until = if follow { ReadUntil::Ending } else { ReadUntil::Offset(events.end().await?) };
        let Position::Since(since) = from else {
            let source = Source { stream: events.follow(from).await?, last: None };
            return Ok(EventTail { source, until, silence: SILENCE, since: None });
        };
        let mut silence = SILENCE;
        if let ReadUntil::Offset(Some(end)) = until {
            // If the last message is too old, nothing is expected, so do not wait long.
            let last = Source { stream: events.follow(Position::Offset(end)).await?, last: None };
            if let StreamWait::Message(last) = { last }.next().await?
                && last.event().is_some_and(|event| event.at < since)
            {
                silence = NOTHING_EXPECTED;
            }
        }
        let from = Position::Since(Millis(since.0.saturating_sub(CLOCKS_DIFFER_MS)));
        let source = Source { stream: events.follow(from).await?, last: None };
        Ok(EventTail { source, until, silence, since: Some(since) })
    }

    /// The time `span` ago, for [`Position::Since`].
    #[must_use]
    pub fn ago(&self, span: Duration) -> Millis {
        let span = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Millis(self.now().0.saturating_sub(span))
    }
}

impl LogTail {
    /// Whether the run has a record or an event.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.record.is_some() || self.reader.has_begun()
    }

    /// The record at the start of reading or later.
    #[must_use]
    pub fn record(&self) -> Option<&KnownRun> {
        self.record.as_ref()
    }

    /// The next item. `None` at the end; [`LogTail::outcome`] then says how it ended.
    ///
    /// # Errors
    /// Errors of the services.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<Option<LogItem>, Error> {
        loop {
            match self.progress().await? {
                Progress::Item(item) => return Ok(Some(item)),
                Progress::CaughtUp => {}
                Progress::End => return Ok(None),
            }
        }
    }

    /// Like [`Self::next`], and also reports when the end of the stream as of the start of reading
    /// is reached. Equally cancel safe.
    ///
    /// # Errors
    /// Errors of the services.
    pub async fn progress(&mut self) -> Result<Progress, Error> {
        loop {
            self.end_if_rejected().await?;
            if let Some(Outcome::Rejected(_)) = self.outcome {
                return Ok(Progress::End);
            }
            if let Some(ending) = self.reader.ending() {
                let missing = self.reader.missing();
                if missing.is_empty() || (self.reads_on && self.source.has_reached(self.until)) {
                    self.outcome = Some(Outcome::Ended(ending, missing));
                    return Ok(Progress::End);
                }
                if !self.reads_on {
                    // The next worker on a host publishes events that an earlier one left on its
                    // disk. They can come after the ending event.
                    self.reads_on = true;
                    self.until =
                        ReadUntil::Offset(self.client.services.events().await?.end().await?);
                    continue;
                }
            }
            if self.source.has_reached(self.until) {
                self.outcome = Some(self.gave_up_or_caught_up());
                return Ok(Progress::End);
            }
            if self.end.is_some_and(|end| self.source.has_reached(end)) {
                self.end = None;
                return Ok(Progress::CaughtUp);
            }
            match self.source.next().await? {
                StreamWait::Message(message) => {
                    let item = message.event().and_then(|event| self.reader.on(event));
                    if let Some(LogItem::State(event)) = &item
                        && self.is_rejection(event, message.offset)
                    {
                        self.rejection = Some(event.message.clone());
                        continue;
                    }
                    if let Some(item) = item {
                        return Ok(Progress::Item(item));
                    }
                }
                StreamWait::Nothing => {
                    self.look_again().await?;
                    // A silent stream has nothing more to read.
                    if self.until == ReadUntil::Ending && self.end.take().is_some() {
                        return Ok(Progress::CaughtUp);
                    }
                }
            }
        }
    }

    /// Whether an event rejects the start that the caller sent.
    fn is_rejection(&self, event: &Event, offset: u64) -> bool {
        let is_later = self.sent.is_some_and(|sent| sent.last.is_none_or(|last| offset > last));
        is_later && matches!(event.reason, Reason::CommandRejected { .. }) && !self.is_known()
    }

    /// Ends reading if the start was rejected and the store does not know the run either.
    async fn end_if_rejected(&mut self) -> Result<(), Error> {
        let Some(why) = &self.rejection else { return Ok(()) };
        let store = self.client.services.store().await?;
        self.record = find_run(store.as_ref(), &self.run).await?;
        if self.record.is_none() {
            self.outcome = Some(Outcome::Rejected(why.clone()));
        }
        self.rejection = None;
        Ok(())
    }

    /// How reading ended. `None` before the end.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Whether the stream has dropped the beginning of the run's log, judged by its oldest event.
    ///
    /// # Errors
    /// Errors of the stream.
    pub async fn past_retention(&self) -> Result<Option<PastRetention>, Error> {
        let Some(known) = &self.record else { return Ok(None) };
        self.client.past_retention(known.record.scheduled_at.0).await
    }

    /// Called when the stream is silent. Either the run is quiet, or an assumption was wrong.
    async fn look_again(&mut self) -> Result<(), Error> {
        if self.until == ReadUntil::Ending {
            let store = self.client.services.store().await?;
            self.record = find_run(store.as_ref(), &self.run).await?.or_else(|| self.record.take());
            if self.record.as_ref().is_some_and(KnownRun::is_complete) {
                let events = self.client.services.events().await?;
                self.until = ReadUntil::Offset(events.end().await?);
            }
            return Ok(());
        }
        // The end of the stream is before the starting position, because the clocks of broker and
        // worker differ too much. Read everything.
        if self.source.last.is_none() && self.from != Position::First {
            self.from = Position::First;
            let events = self.client.services.events().await?;
            self.source.stream = events.follow(self.from).await?;
            return Ok(());
        }
        self.until = ReadUntil::Offset(None);
        Ok(())
    }

    fn gave_up_or_caught_up(&self) -> Outcome {
        let is_told = self.record.as_ref().is_some_and(KnownRun::is_complete);
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
    until: ReadUntil,
    /// How long the stream can be silent before its end counts as reached.
    silence: Duration,
    /// Earlier events are left out. Messages that are not events are kept.
    since: Option<Millis>,
}

impl std::fmt::Debug for EventTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventTail").field("until", &self.until).finish_non_exhaustive()
    }
}

impl EventTail {
    /// The next message. `None` at the end of the stream as of the start of reading.
    ///
    /// # Errors
    /// Errors of the stream.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Published>, Error> {
        loop {
            if self.source.has_reached(self.until) {
                return Ok(None);
            }
            match self.source.next_within(self.silence).await? {
                StreamWait::Message(message) => {
                    let is_early = self
                        .since
                        .is_some_and(|since| message.event().is_some_and(|event| event.at < since));
                    if !is_early {
                        return Ok(Some(message));
                    }
                }
                // The stream ends before the starting position.
                StreamWait::Nothing if self.until != ReadUntil::Ending => return Ok(None),
                StreamWait::Nothing => {}
            }
        }
    }
}
