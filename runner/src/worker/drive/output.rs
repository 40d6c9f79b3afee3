//! Publishes a step's output to the event stream and to an external logger.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf as _, Bytes, BytesMut};
use protocol::event::LogStream;
use protocol::id::StepName;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::emitter::Emitter;
use super::mask::RunMask;
use crate::ports::{LogSink, LoggerFeed, StopLevel, StopSignal};
use crate::rules::lines::{Lines, Piece, prefix_within, published_bytes};
use crate::rules::mask::Masker;
use crate::worker::watchdog::Heartbeat;

/// The output budget of a run's steps, including the recorded output of earlier owners.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    limit: Option<u64>,
    used: Arc<AtomicU64>,
}

impl Budget {
    /// Creates the budget of a run whose steps have published `used` bytes so far.
    pub(super) fn new(limit: Option<u64>, used: u64) -> Self {
        Self { limit, used: Arc::new(AtomicU64::new(used)) }
    }

    /// Takes up to `bytes` from the budget. Returns how many were taken.
    fn take(&self, bytes: u64) -> u64 {
        let Some(limit) = self.limit else { return bytes };
        let left = |used: u64| limit.saturating_sub(used).min(bytes);
        let add = |used: u64| Some(used + left(used));
        let used = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        left(used.unwrap_or_else(|used| used))
    }
}

/// What happens to a step whose output reaches the limit.
#[derive(Debug, Clone)]
pub(super) enum AtLimit {
    /// It continues, and the rest of its output is discarded.
    Discard,
    /// It is stopped with this signal and grace, and fails.
    Stop(StopSignal, Duration),
}

/// Splits a step's output into texts, publishes them in time, and feeds them to the run's logger.
pub(super) struct Output {
    emitter: Arc<Emitter>,
    feed: Option<Arc<dyn LoggerFeed>>,
    step: StepName,
    attempt: u32,
    began: Instant,
    streams: Mutex<Streams>,
    /// The mask of the run.
    mask: RunMask,
    budget: Budget,
    at_limit: AtLimit,
    /// The number of bytes of notices.
    own: AtomicU64,
    /// The last bytes of each stream, if they are needed.
    tails: Option<parking_lot::Mutex<Tails>>,
    /// Notified when a text waits for its deadline.
    waits: Notify,
    /// The heartbeat of the tasks that write or publish output. They have no watchdog: they wait while the
    /// stream accepts no events.
    unwatched: Heartbeat,
}

#[derive(Debug, Default)]
struct Streams {
    out: Lines,
    err: Lines,
    /// The maskers of both streams, once the run has secrets.
    maskers: Option<(Masker, Masker)>,
    ended: bool,
    /// Whether the limit is reached. The rest is discarded.
    full: bool,
    /// The stream whose unfinished line the logger received last.
    fed: Option<LogStream>,
}

/// The last bytes of each stream.
#[derive(Debug, Default)]
struct Tails {
    out: BytesMut,
    err: BytesMut,
}

/// The maximum size of the tail of a stream.
const TAIL: usize = 16 * 1024;

impl Tails {
    fn of(&self, stream: LogStream) -> &[u8] {
        match stream {
            LogStream::Stdout | LogStream::Bob => &self.out,
            LogStream::Stderr => &self.err,
        }
    }

    fn add(&mut self, stream: LogStream, bytes: &[u8]) {
        let tail = match stream {
            LogStream::Stdout | LogStream::Bob => &mut self.out,
            LogStream::Stderr => &mut self.err,
        };
        tail.extend_from_slice(bytes);
        if let Some(over) = tail.len().checked_sub(TAIL) {
            tail.advance(over);
        }
    }
}

impl Streams {
    /// Masks bytes and returns those that can be published; the rest is withheld. The mask may have
    /// grown, because another step was given secrets.
    fn masked(&mut self, mask: &RunMask, stream: LogStream, bytes: Bytes) -> Bytes {
        if let Some(mask) = mask.current() {
            let new = || (Masker::new(Arc::clone(&mask)), Masker::new(Arc::clone(&mask)));
            let (out, err) = self.maskers.get_or_insert_with(new);
            out.renew(&mask);
            err.renew(&mask);
        }
        match (&mut self.maskers, stream) {
            (None, _) => bytes,
            (Some((out, _)), LogStream::Stdout | LogStream::Bob) => out.push(&bytes).into(),
            (Some((_, err)), LogStream::Stderr) => err.push(&bytes).into(),
        }
    }

    fn deadline(&self) -> Option<Duration> {
        match (self.out.deadline(), self.err.deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

impl Output {
    pub(super) fn new(
        emitter: Arc<Emitter>,
        feed: Option<Arc<dyn LoggerFeed>>,
        step: StepName,
        attempt: u32,
        keeps_tail: bool,
        mask: RunMask,
        (budget, at_limit): (Budget, AtLimit),
    ) -> Self {
        Self {
            emitter,
            feed,
            step,
            attempt,
            began: Instant::now(),
            streams: Mutex::default(),
            mask,
            budget,
            at_limit,
            own: AtomicU64::new(0),
            tails: keeps_tail.then(parking_lot::Mutex::default),
            waits: Notify::new(),
            unwatched: Heartbeat::unwatched(),
        }
    }

    /// Returns the tail of a stream as text.
    pub(super) fn tail(&self, stream: LogStream) -> String {
        let Some(tails) = &self.tails else { return String::new() };
        let tails = tails.lock();
        String::from_utf8_lossy(tails.of(stream)).into_owned()
    }

    /// Publishes a notice about the step, from a task of the step.
    pub(super) async fn note(&self, line: &str) {
        self.note_from(&self.unwatched, line).await;
    }

    /// Publishes a notice about the step, from the task with this heartbeat.
    pub(super) async fn note_from(&self, heartbeat: &Heartbeat, line: &str) {
        let line = self.mask.text(line);
        let bytes = line.as_bytes().to_vec();
        let offset = self.own.fetch_add(bytes.len() as u64 + 1, Ordering::Relaxed);
        if let Some(feed) = &self.feed {
            feed.push(format!("[bob] {line}\n").into());
        }
        let piece = Piece { offset, bytes, partial: false };
        self.emitter.log(heartbeat, (&self.step, self.attempt), LogStream::Bob, piece).await;
    }

    /// Publishes texts at their deadlines, until `finish`.
    pub(super) async fn publish_in_time(&self) {
        loop {
            let deadline = {
                let streams = self.streams.lock().await;
                if streams.ended {
                    return;
                }
                streams.deadline()
            };
            let Some(at) = deadline else {
                self.waits.notified().await;
                continue;
            };
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(self.began + at) => {}
                // There is an earlier deadline.
                () = self.waits.notified() => continue,
            }
            let now = self.began.elapsed();
            let mut streams = self.streams.lock().await;
            let (out, err) = (streams.out.due(now), streams.err.due(now));
            let fed = &mut streams.fed;
            self.publish(LogStream::Stdout, out, fed).await;
            self.publish(LogStream::Stderr, err, fed).await;
        }
    }

    /// Publishes the remaining output after the step has ended. Returns the sizes of both streams.
    pub(super) async fn finish(&self) -> (u64, u64) {
        let mut streams = self.streams.lock().await;
        streams.ended = true;
        if let Some((out, err)) = streams.maskers.take() {
            let now = self.began.elapsed();
            for (stream, mut masker) in [(LogStream::Stdout, out), (LogStream::Stderr, err)] {
                self.take(&mut streams, now, stream, &masker.finish()).await;
            }
        }
        let (out, err) = (streams.out.finish(), streams.err.finish());
        let fed = &mut streams.fed;
        self.publish(LogStream::Stdout, out, fed).await;
        self.publish(LogStream::Stderr, err, fed).await;
        self.feed_newline(fed);
        self.waits.notify_one();
        (streams.out.total(), streams.err.total())
    }

    /// Processes masked bytes.
    async fn take(&self, streams: &mut Streams, now: Duration, stream: LogStream, bytes: &[u8]) {
        if let Some(tails) = &self.tails {
            tails.lock().add(stream, bytes);
        }
        if streams.full {
            return;
        }
        let within = self.within_limit(bytes);
        let pieces = match stream {
            LogStream::Stderr => streams.err.push(now, within),
            LogStream::Stdout | LogStream::Bob => streams.out.push(now, within),
        };
        // Publishing under the lock lets a full publisher slow down the step, and keeps texts in
        // order.
        self.publish(stream, pieces, &mut streams.fed).await;
        if within.len() < bytes.len() {
            self.reach_limit(streams).await;
        }
    }

    /// Returns the bytes within the limit. If that is not all of them, returns only complete lines.
    fn within_limit<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        let needed = published_bytes(bytes);
        let taken = self.budget.take(needed);
        if taken == needed {
            return bytes;
        }
        let within = prefix_within(bytes, taken);
        let end = within.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        within.get(..end).unwrap_or_default()
    }

    /// Publishes the notice that the limit is reached. The rest of the output is discarded.
    async fn reach_limit(&self, streams: &mut Streams) {
        streams.full = true;
        let (out, err) = (streams.out.finish(), streams.err.finish());
        self.publish(LogStream::Stdout, out, &mut streams.fed).await;
        self.publish(LogStream::Stderr, err, &mut streams.fed).await;
        self.feed_newline(&mut streams.fed);
        let limit = self.budget.limit.unwrap_or_default();
        let (step, attempt) = (&self.step, self.attempt);
        let what = match &self.at_limit {
            AtLimit::Discard => "the rest of its output is discarded",
            AtLimit::Stop(..) => "the step is stopped, as its `on-log-limit` is `fail`",
        };
        self.note(&format!(
            "attempt {attempt} of step {step} has reached the limit of {limit} bytes that a step, and all steps of a run together, may write (BOB_LOG_LIMIT_BYTES): {what}"
        ))
        .await;
        if let AtLimit::Stop(stop, grace) = &self.at_limit {
            stop.raise(StopLevel::Stop { grace: *grace });
        }
    }

    /// Returns why the step failed, if it reached the limit and `on-log-limit` is `fail`.
    pub(super) async fn failed_at_limit(&self) -> Option<String> {
        let full = self.streams.lock().await.full;
        let fails = matches!(self.at_limit, AtLimit::Stop(..));
        (full && fails).then(|| {
            format!(
                "step {} was stopped: it reached the limit of {} bytes of output (BOB_LOG_LIMIT_BYTES), and its `on-log-limit` is `fail`",
                self.step,
                self.budget.limit.unwrap_or_default()
            )
        })
    }

    async fn publish(&self, stream: LogStream, pieces: Vec<Piece>, fed: &mut Option<LogStream>) {
        for piece in pieces {
            if let Some(feed) = &self.feed {
                if fed.is_some_and(|unfinished| unfinished != stream) {
                    self.feed_newline(fed);
                }
                let mut text = piece.bytes.clone();
                if !piece.partial {
                    text.push(b'\n');
                }
                *fed = piece.partial.then_some(stream);
                feed.push(text.into());
            }
            let step = (&self.step, self.attempt);
            self.emitter.log(&self.unwatched, step, stream, piece).await;
        }
    }

    /// Ends an unfinished line. An external logger does not distinguish steps or streams, so output
    /// of another one must start on a new line.
    fn feed_newline(&self, fed: &mut Option<LogStream>) {
        if let (Some(feed), Some(_unfinished)) = (&self.feed, fed.take()) {
            feed.push(Bytes::from_static(b"\n"));
        }
    }
}

#[async_trait]
impl LogSink for Output {
    async fn write(&self, stream: LogStream, bytes: Bytes) {
        if stream == LogStream::Bob {
            return self.note(&String::from_utf8_lossy(&bytes)).await;
        }
        let mut streams = self.streams.lock().await;
        let now = self.began.elapsed();
        let before = streams.deadline();
        let bytes = streams.masked(&self.mask, stream, bytes);
        self.take(&mut streams, now, stream, &bytes).await;
        let sooner = match (before, streams.deadline()) {
            (Some(before), Some(after)) => after < before,
            (None, after) => after.is_some(),
            (Some(_), None) => false,
        };
        if sooner {
            self.waits.notify_one();
        }
    }
}
