//! The shared buffer, and the notification of its users.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use protocol::id::{Epoch, RunId};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::buffer::{BATCH_BYTES, Buffer, Leftover, Unconfirmed, Waiting};
use super::spill::{Spill, SpillOutcome};
use crate::cluster::amqp::Link;
use crate::ports::EventsError;

/// A broker that confirms nothing for this time has stalled, and events are spilled to disk. A
/// shorter stall only slows down the emitters while the buffer is full.
const STALLED: Duration = Duration::from_millis(500);

/// Effectively no timeout: `moves` announces events to move.
const LONG: Duration = Duration::from_secs(3600);

/// State shared by emitters, publisher and spiller.
pub(super) struct Shared {
    state: Mutex<State>,
    /// There are events to publish.
    work: Notify,
    /// There may be events to move between memory and disk.
    moves: Notify,
    /// There is room again, or the buffer is closed.
    room: Notify,
    /// All tickets up to this one are confirmed or discarded. `None` once the buffer is closed.
    done: watch::Sender<Option<u64>>,
    /// Cancelled when buffered events must be saved for the next worker.
    leaving: CancellationToken,
}

struct State {
    buffer: Buffer,
    /// The time of the last confirm, or the last time at which none was pending.
    progress: Instant,
    closed: bool,
    /// Why the broker rejects events. Reset by the next confirm.
    refusal: Option<String>,
    /// The directory with the events on disk, if there are any.
    dir: Option<PathBuf>,
}

impl Shared {
    pub(super) fn new() -> Self {
        let state = State {
            buffer: Buffer::default(),
            progress: Instant::now(),
            closed: false,
            refusal: None,
            dir: None,
        };
        Self {
            state: Mutex::new(state),
            work: Notify::new(),
            moves: Notify::new(),
            room: Notify::new(),
            done: watch::channel(Some(0)).0,
            leaving: CancellationToken::new(),
        }
    }

    /// Adds an event, waiting until there is room.
    pub(super) async fn push(
        &self,
        run: Option<RunId>,
        epoch: Option<Epoch>,
        body: Bytes,
    ) -> Result<u64, EventsError> {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Register before the check, so that no notification in between is missed.
            room.as_mut().enable();
            {
                let mut state = self.lock();
                if state.closed {
                    return Err(EventsError::Closed);
                }
                if let Some(ticket) = state.buffer.push(run.clone(), epoch, &body) {
                    let moves = state.buffer.wants_spill();
                    drop(state);
                    self.work.notify_one();
                    if moves {
                        self.moves.notify_one();
                    }
                    return Ok(ticket);
                }
            }
            self.moves.notify_one();
            room.await;
        }
    }

    /// Waits until all events up to a ticket are completed.
    pub(super) async fn done(&self, ticket: u64) -> Result<(), EventsError> {
        let mut done = self.done.subscribe();
        let reached = done.wait_for(|done| done.is_none_or(|done| done >= ticket)).await;
        match reached.as_deref() {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => Err(EventsError::Closed),
        }
    }

    /// Returns true if the event with this ticket cannot be read from disk.
    pub(super) fn is_unreadable(&self, ticket: u64) -> bool {
        self.lock().buffer.is_unreadable(ticket)
    }

    /// Modifies the buffer and notifies everyone affected.
    pub(super) fn change<T>(&self, work: impl FnOnce(&mut Buffer) -> T) -> T {
        let mut state = self.lock();
        let answer = work(&mut state.buffer);
        state.buffer.advance();
        let done = state.buffer.done();
        let closed = state.closed;
        drop(state);
        if !closed {
            self.done.send_if_modified(|last| {
                let grown = last.is_some_and(|last| last < done);
                if grown {
                    *last = Some(done);
                }
                grown
            });
        }
        self.work.notify_one();
        self.moves.notify_one();
        self.room.notify_waiters();
        answer
    }

    /// Returns the next events to publish.
    pub(super) fn take(&self, batch: usize, window: usize, bytes: usize) -> Vec<Waiting> {
        let mut state = self.lock();
        if !state.buffer.has_sent() {
            state.progress = Instant::now();
        }
        state.buffer.take(batch, window, bytes)
    }

    /// Confirms the `count` oldest sent events.
    pub(super) fn confirm(&self, count: usize) {
        {
            let mut state = self.lock();
            state.progress = Instant::now();
            state.refusal = None;
        }
        self.change(|buffer| {
            for _ in 0..count {
                buffer.confirm();
            }
        });
    }

    /// Notes that the broker rejects events.
    pub(super) fn note_rejection(&self, cause: &str) {
        self.lock().refusal = Some(cause.to_owned());
    }

    /// Returns why the broker rejects events, if it does.
    pub(super) fn refusal(&self) -> Option<String> {
        self.lock().refusal.clone()
    }

    /// Returns the time since the last confirm, or `None` if none is pending.
    pub(super) fn since_last_confirm(&self) -> Option<Duration> {
        let state = self.lock();
        state.buffer.has_sent().then(|| state.progress.elapsed())
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.lock().buffer.has_unsent()
    }

    /// Waits for an event to publish.
    pub(super) async fn work(&self) {
        self.work.notified().await;
    }

    /// Closes the buffer and notifies everyone waiting.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.done.send_replace(None);
        self.room.notify_waiters();
    }

    /// Closes the buffer, and requests that events in memory are saved to disk.
    pub(super) fn close_and_save(&self) {
        self.close();
        self.leaving.cancel();
        self.moves.notify_one();
    }

    /// Returns the events that are lost, and those that remain on disk, if no more events can be
    /// saved.
    pub(super) fn unsaved(&self) -> SpillOutcome {
        let state = self.lock();
        let Unconfirmed { on_disk, in_memory } = state.buffer.unconfirmed();
        let dir = state.dir.clone().filter(|_| on_disk > 0);
        SpillOutcome { events: on_disk, bytes: None, dir, dropped: in_memory }
    }

    fn take_all(&self) -> Leftover {
        self.lock().buffer.take_all()
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The next operation on the disk.
enum DiskMove {
    Write(Vec<Waiting>),
    Read,
    /// The last operation: save everything to disk.
    Keep,
    /// Wait for a notification, but at most this long.
    Nothing(Duration),
}

/// Moves events to disk while the broker does not accept them, and back. Ends with the publisher
/// and returns what was saved, or `None` if the runtime shut down first.
pub(super) async fn spill_and_refill(
    shared: Arc<Shared>,
    link: Link,
    spill: Spill,
) -> Option<io::Result<SpillOutcome>> {
    let mut spill = Some(spill);
    let mut told = false;
    while let Some(mut files) = spill.take() {
        files.confirmed(shared.lock().buffer.done());
        shared.lock().dir = files.own_dir();
        let (back, outcome) = match shared.next_move(&link, &files) {
            DiskMove::Keep => {
                let leftover = shared.take_all();
                return tokio::task::spawn_blocking(move || files.keep(leftover)).await.ok();
            }
            DiskMove::Nothing(limit) => {
                drop(tokio::time::timeout(limit, shared.moves.notified()).await);
                spill = Some(files);
                continue;
            }
            DiskMove::Write(batch) => {
                let work = move || {
                    let written = files.append(&batch);
                    (files, batch, written)
                };
                // The runtime is shutting down.
                let Ok((files, batch, written)) = tokio::task::spawn_blocking(work).await else {
                    return None;
                };
                shared.change(|buffer| match &written {
                    Ok(()) => buffer.spilled(),
                    Err(_) => buffer.not_spilled(batch),
                });
                (files, written)
            }
            DiskMove::Read => {
                let work = move || {
                    let read = files.refill(BATCH_BYTES);
                    (files, read)
                };
                let Ok((files, read)) = tokio::task::spawn_blocking(work).await else {
                    return None;
                };
                let read = read.map(|refill| shared.change(|buffer| buffer.refill(refill)));
                (files, read)
            }
        };
        if let Err(cause) = outcome {
            // Nothing is lost: events that cannot be written wait in memory and slow down emitters.
            if !std::mem::replace(&mut told, true) {
                let path = back.dir().display().to_string();
                warn!("{}", EventsError::Spill { path, cause: cause.to_string() });
            }
            shared.leaving.run_until_cancelled(tokio::time::sleep(STALLED)).await;
        } else {
            told = false;
        }
        spill = Some(back);
    }
    None
}

impl Shared {
    fn next_move(&self, link: &Link, files: &Spill) -> DiskMove {
        let mut state = self.lock();
        if self.leaving.is_cancelled() {
            return DiskMove::Keep;
        }
        if state.buffer.has_on_disk() && state.buffer.wants_refill() {
            return DiskMove::Read;
        }
        let owed = state.buffer.has_sent() && state.progress.elapsed() >= STALLED;
        if !state.buffer.wants_spill() {
            return DiskMove::Nothing(LONG);
        }
        if files.has_room(2 * BATCH_BYTES) && (owed || link.fault().is_some()) {
            return DiskMove::Write(state.buffer.take_tail());
        }
        // The broker stalls without any notification, so check again after this time.
        DiskMove::Nothing(STALLED)
    }
}
