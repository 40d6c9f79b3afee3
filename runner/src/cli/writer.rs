//! Writes output on separate threads, so that a blocked reader delays neither signals nor the run.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use super::exit::{Exit, Failure};
use super::output::{self, Style};
use super::view::Piece;

/// Maximum number of unwritten bytes before the display pauses.
const ROOM_BYTES: usize = 256 * 1024;

/// Writers for standard output and standard error.
#[derive(Debug)]
pub(super) struct Writer {
    out: WriterThread,
    /// `None` if both are the same terminal, pipe or file. One thread then preserves their order.
    err: Option<WriterThread>,
}

/// A thread that writes pieces in order.
#[derive(Debug)]
struct WriterThread {
    pieces: Sender<Piece>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of unwritten bytes.
    waiting: watch::Sender<usize>,
    /// Why standard output no longer accepts data.
    unwritten: Mutex<Option<Failure>>,
}

impl Writer {
    pub(super) fn start(style: Style) -> Result<Self, Failure> {
        let err = if style.together { None } else { Some(WriterThread::start()?) };
        Ok(Self { out: WriterThread::start()?, err })
    }

    /// Queues a piece after all earlier ones for the same output. Never blocks.
    pub(super) fn send(&self, piece: Piece) {
        match (&piece, &self.err) {
            (Piece::Err(_), Some(err)) => err.send(piece),
            (Piece::Err(_) | Piece::Out(_), _) => self.out.send(piece),
        }
    }

    /// Whether more output can be queued.
    pub(super) fn has_room(&self) -> bool {
        self.lanes().all(|lane| *lane.state.waiting.borrow() < ROOM_BYTES)
    }

    /// Resolves when more output can be queued.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn room(&self) {
        for lane in self.lanes() {
            lane.until(|waiting| waiting < ROOM_BYTES).await;
        }
    }

    /// Resolves when everything is written.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn flushed(&self) {
        for lane in self.lanes() {
            lane.until(|waiting| waiting == 0).await;
        }
    }

    /// Resolves when everything is written, or when no progress is made for `patience`. Returns
    /// `false` in the latter case.
    pub(super) async fn flushed_unless_stuck(&self, patience: Duration) -> bool {
        for lane in self.lanes() {
            let mut waiting = lane.state.waiting.subscribe();
            while *waiting.borrow_and_update() > 0 {
                if timeout(patience, waiting.changed()).await.is_err() {
                    return false;
                }
            }
        }
        true
    }

    /// Resolves when standard output no longer accepts data.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn failed(&self) -> Failure {
        // The count changes after each piece, also after one that was not written.
        let mut waiting = self.out.state.waiting.subscribe();
        loop {
            if let Some(failure) = self.unwritten() {
                return failure;
            }
            // `self` holds the sender, so this cannot fail.
            drop(waiting.changed().await);
        }
    }

    /// Why standard output no longer accepts data, if so.
    pub(super) fn unwritten(&self) -> Option<Failure> {
        self.out.state.unwritten()
    }

    fn lanes(&self) -> impl Iterator<Item = &WriterThread> {
        [Some(&self.out), self.err.as_ref()].into_iter().flatten()
    }
}

impl WriterThread {
    fn start() -> Result<Self, Failure> {
        let (pieces, receiver) = channel();
        let state = Arc::new(State::default());
        let of_thread = Arc::clone(&state);
        // The thread ends with the process, even in a blocking write.
        let started = std::thread::Builder::new()
            .name("output".into())
            .spawn(move || write_all(&receiver, &of_thread));
        match started {
            Ok(_thread) => Ok(Self { pieces, state }),
            Err(cause) => Err(Failure::new(
                Exit::Failed,
                format!("cannot start a thread for output: {cause}"),
            )),
        }
    }

    fn send(&self, piece: Piece) {
        self.state.waiting.send_modify(|waiting| *waiting += piece.len());
        // The thread lives as long as its sender, so this cannot fail.
        drop(self.pieces.send(piece));
    }

    async fn until(&self, is_so: impl Fn(usize) -> bool) {
        let mut waiting = self.state.waiting.subscribe();
        // `self` holds the sender, so this cannot fail.
        drop(waiting.wait_for(|waiting| is_so(*waiting)).await);
    }
}

impl State {
    fn unwritten(&self) -> Option<Failure> {
        self.unwritten.lock().clone()
    }
}

fn write_all(pieces: &Receiver<Piece>, state: &State) {
    for piece in pieces {
        let length = piece.len();
        match piece {
            Piece::Out(_) if state.unwritten().is_some() => {}
            Piece::Out(bytes) => {
                let failure = output::data(&bytes).err();
                *state.unwritten.lock() = failure;
            }
            Piece::Err(bytes) => output::write_stderr(&bytes),
        }
        state.waiting.send_modify(|waiting| *waiting -= length);
    }
}
