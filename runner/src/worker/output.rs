//! A step's output on its way to the stream and to an external logger.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf as _, Bytes, BytesMut};
use protocol::event::LogStream;
use protocol::id::StepName;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::emitter::Emitter;
use crate::ports::{LogSink, LoggerFeed};
use crate::rules::lines::{Lines, Piece};
use crate::rules::mask::{Mask, Masker};

/// Cuts a step's output into texts, publishes them in time, and feeds them to the run's logger.
pub(super) struct Output {
    emitter: Arc<Emitter>,
    feed: Option<Arc<dyn LoggerFeed>>,
    step: StepName,
    attempt: u32,
    began: Instant,
    streams: Mutex<Streams>,
    /// Bytes of our own lines.
    own: AtomicU64,
    /// The last of each stream, where that is wanted.
    tails: Option<std::sync::Mutex<Tails>>,
    /// A text waits for its time.
    waits: Notify,
}

#[derive(Debug, Default)]
struct Streams {
    out: Lines,
    err: Lines,
    /// What hides the secrets of the step in each of the two, where it has any.
    maskers: Option<(Masker, Masker)>,
    ended: bool,
    /// The stream whose unfinished line was the last that the logger got.
    fed: Option<LogStream>,
}

/// The last bytes of each stream.
#[derive(Debug, Default)]
struct Tails {
    out: BytesMut,
    err: BytesMut,
}

/// The most bytes of a stream that are kept for the end.
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
    /// What of these bytes may be seen now; the rest waits for more of them.
    fn masked(&mut self, stream: LogStream, bytes: Bytes) -> Bytes {
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
        mask: Option<Arc<Mask>>,
    ) -> Self {
        let masker = |mask: &Arc<Mask>| Masker::new(Arc::clone(mask));
        let maskers = mask.map(|mask| (masker(&mask), masker(&mask)));
        Self {
            emitter,
            feed,
            step,
            attempt,
            began: Instant::now(),
            streams: Mutex::new(Streams { maskers, ..Streams::default() }),
            own: AtomicU64::new(0),
            tails: keeps_tail.then(std::sync::Mutex::default),
            waits: Notify::new(),
        }
    }

    /// The last of what a stream said, as text.
    pub(super) fn tail(&self, stream: LogStream) -> String {
        let Some(tails) = &self.tails else { return String::new() };
        let tails = tails.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(tails.of(stream)).into_owned()
    }

    /// Publishes a line of our own about the step.
    pub(super) async fn note(&self, line: &str) {
        let bytes = line.as_bytes().to_vec();
        let offset = self.own.fetch_add(bytes.len() as u64 + 1, Ordering::Relaxed);
        if let Some(feed) = &self.feed {
            feed.push(format!("[bob] {line}\n").into());
        }
        let piece = Piece { offset, bytes, partial: false };
        self.emitter.log((&self.step, self.attempt), LogStream::Bob, piece).await;
    }

    /// Publishes what has waited long enough, until `finish`.
    pub(super) async fn publish_in_time(&self) {
        loop {
            let deadline = {
                let streams = self.streams.lock().await;
                if streams.ended {
                    return;
                }
                streams.deadline()
            };
            match deadline {
                None => self.waits.notified().await,
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep_until(self.began + at) => {}
                        // There is an earlier one.
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
        }
    }

    /// Publishes what is left: the step has ended. Returns the bytes of its two streams.
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

    /// Takes bytes that may be seen.
    async fn take(&self, streams: &mut Streams, now: Duration, stream: LogStream, bytes: &[u8]) {
        if let Some(tails) = &self.tails {
            tails.lock().unwrap_or_else(PoisonError::into_inner).add(stream, bytes);
        }
        let pieces = match stream {
            LogStream::Stderr => streams.err.push(now, bytes),
            LogStream::Stdout | LogStream::Bob => streams.out.push(now, bytes),
        };
        // The lock is held meanwhile: a publisher that is full holds back the step, and nothing of
        // one stream overtakes.
        self.publish(stream, pieces, &mut streams.fed).await;
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
            self.emitter.log((&self.step, self.attempt), stream, piece).await;
        }
    }

    /// An external logger knows neither steps nor streams: what comes next from another one begins
    /// on a line of its own.
    fn feed_newline(&self, fed: &mut Option<LogStream>) {
        if let (Some(feed), Some(_unfinished)) = (&self.feed, fed.take()) {
            feed.push(Bytes::from_static(b"\n"));
        }
    }
}

#[async_trait]
impl LogSink for Output {
    async fn write(&self, stream: LogStream, bytes: Bytes) {
        let mut streams = self.streams.lock().await;
        let now = self.began.elapsed();
        let before = streams.deadline();
        let bytes = streams.masked(stream, bytes);
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
