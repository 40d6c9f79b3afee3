//! Sends a run's text to an external logger, in order and in batches of whole lines.
//!
//! It never makes a step wait. Text that the logger does not accept is buffered in memory, then on
//! disk. After that it is dropped and counted.
//!
//! A batch is sent until the logger confirms it. If a response is lost, the logger gets it twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use protocol::id::RunId;
use protocol::names;
use reqwest::header::CONTENT_TYPE;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use super::address::Service;
use super::answer::{accepted, reason};
use super::clients::Clients;
use super::http::Http;
use super::spill::{Spill, SpillError};
use crate::ports::{LoggerFeed, Pauses, TransferError};

/// The maximum size of the memory buffer, in bytes.
const MEMORY: usize = 1 << 20;
/// The size of a batch, in bytes. Only a single long line can exceed it.
const BATCH: usize = 256 << 10;
/// The longest line kept in one batch, in bytes. A logger can add a newline between two batches.
const LINE: usize = 4 << 20;
/// How long to wait for more text before sending a partial batch.
const LINGER: Duration = Duration::from_millis(200);
/// The pause after the first failure. It doubles with each further failure.
const BACKOFF: Duration = Duration::from_millis(100);
/// The longest pause after a failure, in general and once the run has ended.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
const LONGEST_AT_END: Duration = Duration::from_millis(500);

/// The input of a feed.
pub(super) struct Feed {
    shared: Arc<Shared>,
    /// Cancels the task when the feed is dropped.
    _task: DropGuard,
}

struct Shared {
    backlog: Mutex<Backlog>,
    /// Notified when text was pushed.
    pushed: Notify,
    /// Cancelled when no more text will be pushed.
    closing: CancellationToken,
    /// Cancelled when the task has ended.
    done: CancellationToken,
    given: AtomicU64,
    taken: AtomicU64,
}

/// Text to be sent. The text in memory is older than the text on disk.
struct Backlog {
    memory: VecDeque<Bytes>,
    bytes: usize,
    spill: Spill,
    /// Whether text is being dropped, which was already logged.
    dropping: bool,
}

impl Shared {
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock()
    }
}

impl Feed {
    /// Opens a feed and starts its task.
    pub(super) fn open(http: &Http, registered: &str, run: &RunId) -> Result<Self, TransferError> {
        let service = Service::at("logger", registered)?;
        let url = service.path(&[names::LOG_PATH, run.as_str()])?;
        let backlog = Backlog {
            memory: VecDeque::new(),
            bytes: 0,
            spill: Spill::new(Arc::clone(&http.room)),
            dropping: false,
        };
        let shared = Arc::new(Shared {
            backlog: Mutex::new(backlog),
            pushed: Notify::new(),
            closing: CancellationToken::new(),
            done: CancellationToken::new(),
            given: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        });
        let sender = Sender {
            shared: Arc::clone(&shared),
            clients: http.clients.clone(),
            idle: http.timeouts.idle,
            service,
            url,
            ahead: BytesMut::new(),
        };
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        http.tasks.spawn(async move {
            let _done = sender.shared.done.clone().drop_guard();
            tokio::select! {
                () = sender.run() => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(Self { shared, _task: cancel.drop_guard() })
    }
}

#[async_trait]
impl LoggerFeed for Feed {
    fn push(&self, text: Bytes) {
        let shared = &self.shared;
        shared.given.fetch_add(text.len() as u64, Ordering::Relaxed);
        // Text pushed after the end would never be sent, so it counts as lost.
        if text.is_empty() || shared.closing.is_cancelled() {
            return;
        }
        shared.backlog().push(text);
        shared.pushed.notify_one();
    }

    async fn finish(&self, deadline: Duration) -> u64 {
        let shared = &self.shared;
        shared.closing.cancel();
        if let Err(late) = tokio::time::timeout(deadline, shared.done.cancelled()).await {
            tracing::debug!(%late, "the logger did not take all of a run's text");
        }
        let (given, taken) =
            (shared.given.load(Ordering::Relaxed), shared.taken.load(Ordering::Relaxed));
        given.saturating_sub(taken)
    }
}

impl Backlog {
    fn push(&mut self, text: Bytes) {
        if self.spill.is_empty() && self.bytes + text.len() <= MEMORY {
            self.bytes += text.len();
            self.memory.push_back(text);
            return;
        }
        let full = self.spill.push(&text);
        match (&full, self.dropping) {
            (Ok(()), _) => {}
            (Err(_), true) => return,
            (Err(SpillError::Room), false) => {
                tracing::warn!("a logger takes too little; text for it is dropped");
            }
            (Err(SpillError::Disk(error)), false) => {
                tracing::warn!(%error, "cannot spill text for a logger; it is dropped");
            }
        }
        self.dropping = full.is_err();
    }
}

/// Sends the backlog to the logger.
struct Sender {
    shared: Arc<Shared>,
    clients: Clients,
    idle: Duration,
    service: Service,
    url: Url,
    /// Text taken from the backlog and not sent yet, mostly the beginning of a line.
    ahead: BytesMut,
}

/// The outcome of sending a batch.
enum Answer {
    Taken,
    /// The logger rejected it for good.
    Refused,
    /// A retry can succeed.
    Failed(TransferError),
}

impl Sender {
    async fn run(mut self) {
        loop {
            let closing = self.shared.closing.is_cancelled();
            self.fill().await;
            if let Some(batch) = cut(&mut self.ahead, closing) {
                self.deliver(batch).await;
                continue;
            }
            if closing {
                // Nothing was pushed meanwhile: `closing` was read before the backlog.
                return;
            }
            tokio::select! {
                () = self.shared.pushed.notified() => {
                    tokio::select! {
                        () = self.enough() => {}
                        () = tokio::time::sleep(LINGER) => {}
                        () = self.shared.closing.cancelled() => {}
                    }
                }
                () = self.shared.closing.cancelled() => {}
            }
        }
    }

    /// Returns when there is enough text for a batch.
    async fn enough(&self) {
        while self.ahead.len() + self.shared.backlog().bytes < BATCH {
            self.shared.pushed.notified().await;
        }
    }

    /// Takes up to a batch, or one long line, from the backlog.
    async fn fill(&mut self) {
        while self.ahead.len() < BATCH || (self.ahead.len() < LINE && !self.ahead.contains(&b'\n'))
        {
            let piece = {
                let mut backlog = self.shared.backlog();
                if let Some(text) = backlog.memory.pop_front() {
                    backlog.bytes -= text.len();
                    self.ahead.extend_from_slice(&text);
                    continue;
                }
                backlog.spill.first(BATCH)
            };
            let Some(piece) = piece else { return };
            let read = tokio::task::spawn_blocking(move || (piece.read(), piece)).await;
            let Ok((text, piece)) = read else { return };
            match text {
                Ok(text) => self.ahead.extend_from_slice(&text),
                // It counts as lost. Text after it might still be readable.
                Err(error) => tracing::warn!(%error, "cannot read text for a logger from disk"),
            }
            self.shared.backlog().spill.drop_first(&piece);
        }
    }

    /// Sends a batch until the logger accepts or rejects it for good.
    async fn deliver(&self, batch: Bytes) {
        let mut pauses = Pauses::doubling(BACKOFF, LONGEST_BACKOFF);
        let mut failed = false;
        loop {
            match self.put(batch.clone()).await {
                Answer::Taken => {
                    if failed {
                        tracing::info!(logger = self.service.named(), "the logger answers again");
                    }
                    self.shared.taken.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    return;
                }
                Answer::Refused => return,
                Answer::Failed(error) => {
                    if !std::mem::replace(&mut failed, true) {
                        tracing::warn!(%error, "a logger does not take a run's text; it waits");
                    }
                }
            }
            let closing = self.shared.closing.is_cancelled();
            let pause = pauses.take_next();
            if closing {
                tokio::time::sleep(pause.min(LONGEST_AT_END)).await;
            } else {
                // When the run ends, retry at once.
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.shared.closing.cancelled() => {}
                }
            }
        }
    }

    async fn put(&self, batch: Bytes) -> Answer {
        let sent = async {
            let client = self.clients.to(&self.url).await?;
            let request = client.put(self.url.clone()).header(CONTENT_TYPE, "text/plain");
            let sent = request.body(batch).timeout(self.idle).send().await;
            sent.map_err(|error| reason(&error))
        };
        let answer = match sent.await {
            Ok(response) => accepted(&self.service, response, self.idle).await.map(drop),
            Err(cause) => Err(self.service.unreachable(cause)),
        };
        match answer {
            Ok(()) => Answer::Taken,
            // These statuses mean that the text itself is invalid. It must not block the rest.
            Err(TransferError::Refused { status: status @ (400 | 413 | 415 | 422), .. }) => {
                let logger = self.service.named();
                tracing::warn!(logger, status, "a logger refuses a piece of a run's text");
                Answer::Refused
            }
            Err(error) => Answer::Failed(error),
        }
    }
}

/// Takes a batch of whole lines from the front. Takes everything if the feed is closing, or if one
/// line fills the batch.
fn cut(ahead: &mut BytesMut, closing: bool) -> Option<Bytes> {
    let within = &ahead[..ahead.len().min(BATCH)];
    let last = within.iter().rposition(|byte| *byte == b'\n');
    let whole = last.or_else(|| ahead.iter().position(|byte| *byte == b'\n'));
    let end = match whole {
        Some(newline) => newline + 1,
        None if closing || ahead.len() >= LINE => ahead.len().min(LINE),
        None => return None,
    };
    (end > 0).then(|| ahead.split_to(end).freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(text: &[u8], closing: bool) -> Vec<usize> {
        let mut ahead = BytesMut::from(text);
        std::iter::from_fn(|| cut(&mut ahead, closing)).map(|batch| batch.len()).collect()
    }

    #[test]
    fn a_batch_ends_at_the_end_of_a_line() {
        assert_eq!(cuts(b"a\nb\nc", false), [4]);
        assert_eq!(cuts(b"a\nb\nc", true), [4, 1]);
        assert_eq!(cuts(b"", true), [0; 0]);
        let many = b"0123456\n".repeat(40_000);
        assert_eq!(cuts(&many, false), [BATCH, 320_000 - BATCH]);
    }

    #[test]
    fn a_long_line_is_kept_whole_up_to_the_limit() {
        let mut long = vec![b'x'; 1 << 20];
        assert!(cuts(&long, false).is_empty(), "its end may be on its way");
        long.extend_from_slice(b"\nshort\n");
        assert_eq!(cuts(&long, false), [(1 << 20) + 1, 6]);
        assert_eq!(cuts(&vec![b'x'; LINE + 5], true), [LINE, 5]);
        assert_eq!(cuts(&vec![b'x'; LINE + 5], false), [LINE]);
    }
}
