//! Passes a step's output from a container engine to the sink.

use bytes::Bytes;
use protocol::event::LogStream;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::beginning::Beginning;
use super::copy::{CopyPass, GAP, ReceivedOutput, SkipModes};
use super::deadline::Flow;
use super::demux::{Demux, Piece};
use crate::ports::LogSink;

const READ_BYTES: usize = 32 * 1024;

/// The output of one step.
pub(super) struct StepOutput<'a> {
    /// The step's container.
    pub(super) container: &'a str,
    pub(super) out: &'a dyn LogSink,
    /// Whether the step has a terminal. Its output is then a single stream without frames.
    pub(super) raw: bool,
    pub(super) flow: &'a Flow,
    pub(super) seen: ReceivedOutput,
    pub(super) beginning: Beginning,
}

impl<'a> StepOutput<'a> {
    pub(super) fn new(container: &'a str, out: &'a dyn LogSink, raw: bool, flow: &'a Flow) -> Self {
        Self {
            container,
            out,
            raw,
            flow,
            seen: ReceivedOutput::default(),
            beginning: Beginning::default(),
        }
    }

    /// Passes on the output of a connection until it closes. Returns whether it ended with a complete
    /// frame. A read error or an invalid frame returns `false`.
    pub(super) async fn pump(&mut self, mut connection: impl AsyncRead + Unpin) -> bool {
        let mut demux = Demux::of(self.raw);
        let mut buffer = vec![0; READ_BYTES];
        let mut pieces = Vec::new();
        loop {
            let read = match connection.read(&mut buffer).await {
                Ok(0) => return demux.is_whole(),
                Ok(read) => read,
                Err(_) => return false,
            };
            self.flow.moved();
            let result = demux.feed(&buffer[..read], &mut pieces);
            for piece in pieces.drain(..) {
                self.pass(piece).await;
            }
            if let Err(bad) = result {
                tracing::warn!(
                    container.id = self.container, %bad,
                    "the rest of the step's output is read from the engine's copy"
                );
                return false;
            }
        }
    }

    /// Passes on a new piece of output. The first output is held back while it can still become the
    /// engine's report that the command could not be executed.
    pub(super) async fn pass(&mut self, piece: Piece) {
        self.seen.add(&piece);
        let pieces = self.beginning.take(piece);
        self.write(pieces).await;
    }

    /// Passes on output that [`pass`](Self::pass) still holds back.
    pub(super) async fn flush(&mut self) {
        let pieces = self.beginning.rest();
        self.write(pieces).await;
    }

    async fn write(&self, pieces: Vec<Piece>) {
        let _hold = self.flow.hold();
        for Piece { stream, bytes } in pieces {
            self.out.write(stream, Bytes::from(bytes)).await;
        }
    }

    /// Returns how to read the engine's copy again, or `None` if `pass` was the last pass. Notes in the
    /// step's output if some of it is missing, and warns if the copy is incomplete.
    pub(super) async fn next_pass(&self, pass: &CopyPass) -> Option<SkipModes> {
        let modes = pass.again();
        match modes {
            Some(modes) if modes.has_gap() => {
                self.out.write(LogStream::Bob, Bytes::from_static(GAP.as_bytes())).await;
            }
            Some(_) => {}
            None if pass.is_short() => tracing::warn!(
                container.id = self.container,
                "the engine's copy of the step's output is shorter than the output received before"
            ),
            None => {}
        }
        modes
    }
}
