//! Output of a command that reads a log or the stream. Signals are received even if the output is not
//! read.

use std::time::Duration;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::signals::Signals;
use super::view::Piece;
use super::writer::Writer;

/// How long blocked output can delay the exit after a signal.
const UNREAD: Duration = Duration::from_secs(2);

pub(super) struct Display<'c> {
    context: &'c Context,
    writer: Writer,
    signals: Signals,
}

/// Why waiting for the next item ended.
pub(super) enum Next<T> {
    Item(T),
    /// A signal asks the command to end.
    Signal(Exit),
}

impl<'c> Display<'c> {
    /// Starts the output. From now on, signals no longer terminate the process.
    pub(super) fn start(context: &'c Context) -> Result<Self, Failure> {
        Ok(Self { context, writer: Writer::start(context.style)?, signals: Signals::listen()? })
    }

    /// Waits until there is room for output, and then for the next item. Fails if standard output
    /// no longer accepts data.
    ///
    /// `item` must be cancel safe.
    pub(super) async fn next<T>(
        &mut self,
        item: impl Future<Output = T>,
    ) -> Result<Next<T>, Failure> {
        let Self { writer, signals, .. } = self;
        let writer = &*writer;
        let item = async {
            writer.room().await;
            item.await
        };
        tokio::select! {
            item = item => Ok(Next::Item(item)),
            signal = signals.next() => Ok(Next::Signal(signal)),
            failure = writer.failed() => Err(failure),
        }
    }

    pub(super) fn send(&self, piece: Piece) {
        self.writer.send(piece);
    }

    pub(super) fn warn(&self, text: &str) {
        let line = format!("{}\n", self.context.warning(text));
        self.writer.send(Piece::Err(line.into_bytes()));
    }

    /// Waits until everything is written. Returns the exit code of a signal that arrives first.
    pub(super) async fn end(mut self) -> Result<Option<Exit>, Failure> {
        let signal = tokio::select! {
            () = self.writer.flushed() => None,
            signal = self.signals.next() => Some(signal),
        };
        match self.writer.unwritten().filter(|_| signal.is_none()) {
            Some(failure) => Err(failure),
            None => Ok(signal),
        }
    }

    /// Ends the output after a signal. Output that nobody reads is dropped.
    pub(super) async fn end_soon(self) {
        self.writer.flushed_unless_stuck(UNREAD).await;
    }
}
