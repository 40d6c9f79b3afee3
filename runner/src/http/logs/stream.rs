//! Reads the lines of a run's log from the event stream.

use protocol::id::RunId;
use protocol::time::{Millis, Timestamp};

use super::block::End;
use super::line::{Line, LineJoiner};
use crate::client::{Client, Error, LogItem, LogTail, Missing, Outcome, PastRetention, Progress};

/// The maximum number of missing parts that are listed.
const MAX_MISSING: usize = 100;

/// A step in reading lines.
#[derive(Debug)]
pub(super) enum Step {
    /// The next lines.
    Lines(Vec<Line>),
    /// Everything that was there when reading began is read. Reported at most once.
    CaughtUp,
    /// The end of the log, after all of its lines.
    End(End),
}

/// The lines of one run, from the stream.
#[derive(Debug)]
pub(super) struct StreamLines {
    client: Client,
    run: RunId,
    tail: LogTail,
    joiner: LineJoiner,
    summary: Summary,
    /// Set before the last lines are returned.
    end: Option<End>,
}

/// Facts that a reader collects for the end of the log.
#[derive(Debug, Default)]
pub(super) struct Summary {
    lines: u64,
    last: Option<Millis>,
    unreadable: Vec<String>,
}

impl Summary {
    /// Notes the next item and the lines that it completed.
    pub(super) fn note(&mut self, item: &LogItem, lines: &[Line]) {
        match item {
            LogItem::State(event) => self.last = self.last.max(Some(event.at)),
            LogItem::Text(text) => self.last = self.last.max(Some(text.event.at)),
            LogItem::Missing(missing) if self.unreadable.len() < MAX_MISSING => {
                self.unreadable.push(missing.to_string());
            }
            LogItem::Missing(_) => {}
        }
        self.note_lines(lines);
    }

    /// Notes lines at the end of the log.
    pub(super) fn note_lines(&mut self, lines: &[Line]) {
        self.lines += lines.len() as u64;
    }

    /// The end of the log.
    pub(super) fn end(self, run: &RunId, outcome: &Outcome, past: Option<PastRetention>) -> End {
        let (ending, missing) = match outcome {
            Outcome::Ended(ending, missing) => (Some(*ending), missing.as_slice()),
            Outcome::GaveUp(missing) => (None, missing.as_slice()),
            Outcome::CaughtUp | Outcome::Rejected(_) => (None, &[Missing::Ending] as &[Missing]),
        };
        let mut all = self.unreadable;
        all.extend(missing.iter().map(ToString::to_string));
        all.truncate(MAX_MISSING);
        End {
            status: ending.map(|ending| ending.status),
            cause: ending.and_then(|ending| ending.cause),
            at: self.last,
            missing: all,
            note: past.map(|past| past_retention(run, past)),
            ..End::of(run.clone(), self.lines)
        }
    }
}

/// Says that the stream has dropped the beginning of a log.
fn past_retention(run: &RunId, past: PastRetention) -> String {
    let oldest = past.oldest.map_or_else(
        || "the stream is empty".to_owned(),
        |at| format!("its oldest event is from {}", Timestamp(at)),
    );
    format!("the log of run {run} is past the stream's retention and is not archived: {oldest}")
}

impl StreamLines {
    /// Reads the log of a run from its start, until its end.
    ///
    /// # Errors
    /// Errors of the services.
    pub(super) async fn open(client: &Client, run: &RunId) -> Result<Self, Error> {
        let tail = client.log(run, true, None).await?;
        let (client, run) = (client.clone(), run.clone());
        let (joiner, summary) = (LineJoiner::default(), Summary::default());
        Ok(Self { client, run, tail, joiner, summary, end: None })
    }

    /// The next lines.
    ///
    /// # Errors
    /// Errors of the services.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Step, Error> {
        loop {
            if let Some(end) = self.end.take() {
                return Ok(Step::End(end));
            }
            match self.tail.progress().await? {
                Progress::Item(item) => {
                    let lines = self.joiner.on(&item);
                    self.summary.note(&item, &lines);
                    if !lines.is_empty() {
                        return Ok(Step::Lines(lines));
                    }
                }
                Progress::CaughtUp => return Ok(Step::CaughtUp),
                Progress::End => {
                    let outcome = self.tail.outcome().cloned().unwrap_or(Outcome::CaughtUp);
                    let past = self.past_retention(&outcome).await?;
                    let lines = self.joiner.finish();
                    self.summary.note_lines(&lines);
                    let summary = std::mem::take(&mut self.summary);
                    self.end = Some(summary.end(&self.run, &outcome, past));
                    if !lines.is_empty() {
                        return Ok(Step::Lines(lines));
                    }
                }
            }
        }
    }

    /// Whether the stream's retention is the reason for what is missing.
    async fn past_retention(&mut self, outcome: &Outcome) -> Result<Option<PastRetention>, Error> {
        let is_missing = match outcome {
            Outcome::Ended(_, missing) | Outcome::GaveUp(missing) => !missing.is_empty(),
            Outcome::CaughtUp | Outcome::Rejected(_) => false,
        };
        match self.tail.record().map(|known| known.record.scheduled_at.0) {
            Some(scheduled) if is_missing => self.client.past_retention(scheduled).await,
            Some(_) | None => Ok(None),
        }
    }
}
