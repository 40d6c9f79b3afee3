//! Follows the event stream, and writes the logs of new runs to the cache.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::event::{Event, Reason};
use protocol::id::RunId;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::archive::EndedRun;
use super::archiver;
use super::file::LogFile;
use super::line::LineJoiner;
use super::shared::Shared;
use super::stream::Summary;
use crate::client::{Error, Outcome, Reader};
use crate::ports::{Pauses, Position};

/// The maximum number of runs whose logs are written at once. If there are more, the one that was
/// written least recently is given up, and read again on demand.
const MAX_RUNS: usize = 1000;
/// The maximum size of all lines that wait in memory.
const MAX_WAITING: usize = 16 << 20;
/// The pauses before the stream is opened again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);
/// The maximum time to read the last events once the node stops.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// A run whose log is being written.
struct Writer {
    reader: Reader,
    joiner: LineJoiner,
    summary: Summary,
    log: Arc<LogFile>,
    /// The offset of the last event.
    last: u64,
    /// The size of the lines that are not in the file yet.
    waiting: usize,
}

/// Writes the logs of runs that start from now on, until the node stops.
pub(super) async fn follow(shared: &Arc<Shared>) {
    if !shared.has_cache() && shared.archive.is_none() {
        return;
    }
    let mut follower = Follower { shared, next: None, writers: HashMap::new(), waiting: 0 };
    shared.stop.run_until_cancelled(follower.run()).await;
    if shared.archive.is_some() {
        match timeout(LAST_EVENTS, follower.read_rest()).await {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => warn!(%cause, "the logs of the last runs might not be archived"),
            Err(_elapsed) => warn!("the logs of the last runs might not be archived"),
        }
    }
    follower.end().await;
}

struct Follower<'s> {
    shared: &'s Arc<Shared>,
    /// The offset of the next event. `None` before the stream was read.
    next: Option<u64>,
    writers: HashMap<RunId, Writer>,
    /// The size of all lines that wait in memory.
    waiting: usize,
}

impl Follower<'_> {
    /// Follows the stream, across failures.
    async fn run(&mut self) {
        let mut pauses = Pauses::doubling(RETRY_FIRST, RETRY_MOST);
        loop {
            let next = self.next;
            match self.read(true).await {
                Ok(()) => debug!("the stream of events ended"),
                Err(cause) => warn!(%cause, "logs are not cached until the stream can be read"),
            }
            if self.next != next {
                pauses.reset();
            }
            pauses.wait().await;
        }
    }

    /// Reads the events that came before the node stopped. Some end the last runs of its worker.
    async fn read_rest(&mut self) -> Result<(), Error> {
        let Some(next) = self.next else { return Ok(()) };
        let end = self.shared.client.stream_end().await?;
        if end.is_some_and(|end| end >= next) { self.read(false).await } else { Ok(()) }
    }

    /// Reads the stream: to its present end, or on and on.
    ///
    /// # Cancel safety
    /// The event that is being written is read again by the next call.
    async fn read(&mut self, follow: bool) -> Result<(), Error> {
        let client = &self.shared.client;
        let next = match self.next {
            Some(next) => next,
            None => client.stream_end().await?.map_or(0, |end| end + 1),
        };
        self.next = Some(next);
        let position = if next == 0 { Position::First } else { Position::Offset(next) };
        let mut events = client.events(position, follow).await?;
        while let Some(message) = events.next().await? {
            if let Some(event) = message.event() {
                self.event(event, message.offset).await;
            }
            self.next = Some(message.offset + 1);
        }
        Ok(())
    }

    async fn event(&mut self, event: Event, offset: u64) {
        let Some(run) = event.run_id.clone() else { return };
        if matches!(event.reason, Reason::PipelineRunScheduled { .. }) {
            self.begin(&run, &event).await;
        }
        let ended = self.shared.archive.clone().filter(|archive| archive.is_responsible(&event));
        let ended = ended.zip(EndedRun::of(&event));
        self.write(&run, event, offset).await;
        if let Some((archive, ended)) = ended {
            self.shared.tasks.spawn(archiver::store(Arc::clone(self.shared), archive, ended));
        }
    }

    /// Writes an event to the log of its run, if that is being written.
    async fn write(&mut self, run: &RunId, event: Event, offset: u64) {
        let Some(writer) = self.writers.get_mut(run) else { return };
        writer.last = offset;
        let Some(item) = writer.reader.on(event) else { return };
        let lines = writer.joiner.on(&item);
        writer.summary.note(&item, &lines);
        let waited = writer.waiting;
        let is_written = lines.is_empty() || self.shared.push(&writer.log, lines).await;
        writer.waiting = writer.log.waiting();
        self.waiting = self.waiting - waited + writer.waiting;
        if !is_written {
            self.drop_writer(run);
            return;
        }
        if writer.reader.ending().is_some() {
            self.finish(run).await;
        } else if self.waiting > MAX_WAITING {
            self.flush_all().await;
        }
    }

    /// Begins the log of a run, unless there is one already.
    async fn begin(&mut self, run: &RunId, event: &Event) {
        if self.writers.contains_key(run) {
            return;
        }
        if let Some(old) = self.shared.cached(run).await {
            let end = old.end();
            let is_of_earlier_run = end.is_some_and(|end| end.at.is_some_and(|at| at < event.at));
            if !is_of_earlier_run {
                return;
            }
            // The id of a run can be used again once its record is past its retention.
            self.shared.remove(&old).await;
        }
        let Some(log) = self.shared.create(run).await else { return };
        log.note_current();
        if self.writers.len() >= MAX_RUNS {
            self.give_up_oldest().await;
        }
        let writer = Writer {
            reader: Reader::new(run.clone()),
            joiner: LineJoiner::default(),
            summary: Summary::default(),
            log,
            last: 0,
            waiting: 0,
        };
        self.writers.insert(run.clone(), writer);
    }

    /// Completes the log of a run that has ended. If an event is missing, it can still arrive, and a
    /// reader waits for it on demand.
    async fn finish(&mut self, run: &RunId) {
        let Some(mut writer) = self.drop_writer(run) else { return };
        let missing = writer.reader.missing();
        match writer.reader.ending() {
            Some(ending) if missing.is_empty() => {
                let lines = writer.joiner.finish();
                writer.summary.note_lines(&lines);
                writer.log.push(lines);
                let end = writer.summary.end(run, &Outcome::Ended(ending, missing), None);
                self.shared.finish(&writer.log, end).await;
            }
            Some(_) | None => self.shared.remove(&writer.log).await,
        }
    }

    fn drop_writer(&mut self, run: &RunId) -> Option<Writer> {
        let writer = self.writers.remove(run)?;
        self.waiting -= writer.waiting;
        Some(writer)
    }

    async fn give_up_oldest(&mut self) {
        let oldest = self.writers.iter().min_by_key(|(_, writer)| writer.last);
        let Some(run) = oldest.map(|(run, _)| run.clone()) else { return };
        if let Some(writer) = self.drop_writer(&run) {
            self.shared.remove(&writer.log).await;
        }
    }

    async fn flush_all(&mut self) {
        let mut gone = Vec::new();
        for (run, writer) in &mut self.writers {
            if !self.shared.flush(&writer.log).await {
                gone.push(run.clone());
            }
            self.waiting -= writer.waiting;
            writer.waiting = 0;
        }
        for run in gone {
            self.drop_writer(&run);
        }
    }

    /// Ends the logs that are not complete: no one continues them.
    async fn end(self) {
        for writer in self.writers.into_values() {
            self.shared.remove(&writer.log).await;
        }
    }
}
