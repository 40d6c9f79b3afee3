//! A step's output on its way to the stream and to an external logger.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use protocol::event::LogStream;
use protocol::id::StepName;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::emitter::Emitter;
use crate::ports::{LogSink, LoggerFeed};
use crate::rules::lines::{Lines, Piece};

/// Cuts a step's output into texts, publishes them in time, and feeds them to the run's logger.
pub(super) struct Output {
    emitter: Arc<Emitter>,
    feed: Option<Arc<dyn LoggerFeed>>,
    step: StepName,
    attempt: u32,
    began: Instant,
    streams: Mutex<Streams>,
    /// A text waits for its time.
    waits: Notify,
}

#[derive(Debug, Default)]
struct Streams {
    out: Lines,
    err: Lines,
    /// What the logger got last is a part of a line of this stream.
    unfinished: Option<LogStream>,
    ended: bool,
}

impl Streams {
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
    ) -> Self {
        Self {
            emitter,
            feed,
            step,
            attempt,
            began: Instant::now(),
            streams: Mutex::default(),
            waits: Notify::new(),
        }
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
                    tokio::time::sleep_until(self.began + at).await;
                    let now = self.began.elapsed();
                    let mut streams = self.streams.lock().await;
                    let (out, err) = (streams.out.due(now), streams.err.due(now));
                    self.publish(&mut streams.unfinished, LogStream::Stdout, out).await;
                    self.publish(&mut streams.unfinished, LogStream::Stderr, err).await;
                }
            }
        }
    }

    /// Publishes what is left: the step has ended. Returns the bytes of its two streams.
    pub(super) async fn finish(&self) -> (u64, u64) {
        let mut streams = self.streams.lock().await;
        streams.ended = true;
        let (out, err) = (streams.out.finish(), streams.err.finish());
        self.publish(&mut streams.unfinished, LogStream::Stdout, out).await;
        self.publish(&mut streams.unfinished, LogStream::Stderr, err).await;
        if streams.unfinished.is_some() {
            self.feed_newline();
        }
        self.waits.notify_one();
        (streams.out.total(), streams.err.total())
    }

    /// A logger has one text for all: where other text follows a part of a line, it gets a line of
    /// its own.
    fn feed_newline(&self) {
        if let Some(feed) = &self.feed {
            feed.push(Bytes::from_static(b"\n"));
        }
    }

    async fn publish(
        &self,
        unfinished: &mut Option<LogStream>,
        stream: LogStream,
        pieces: Vec<Piece>,
    ) {
        for piece in pieces {
            if unfinished.is_some_and(|of| of != stream) {
                self.feed_newline();
            }
            *unfinished = piece.partial.then_some(stream);
            if let Some(feed) = &self.feed {
                let mut text = piece.bytes.clone();
                if !piece.partial {
                    text.push(b'\n');
                }
                feed.push(text.into());
            }
            self.emitter.log((&self.step, self.attempt), stream, piece).await;
        }
    }
}

#[async_trait]
impl LogSink for Output {
    async fn write(&self, stream: LogStream, bytes: Bytes) {
        let mut streams = self.streams.lock().await;
        let now = self.began.elapsed();
        let waited = streams.deadline().is_some();
        let pieces = match stream {
            LogStream::Stderr => streams.err.push(now, &bytes),
            LogStream::Stdout | LogStream::Bob => streams.out.push(now, &bytes),
        };
        // The lock is held meanwhile: a publisher that is full holds back the step, and nothing of
        // one stream overtakes.
        self.publish(&mut streams.unfinished, stream, pieces).await;
        if !waited && streams.deadline().is_some() {
            self.waits.notify_one();
        }
    }
}
