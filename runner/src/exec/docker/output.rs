//! Passes a step's output to the sink, and determines how the step ended.
//!
//! The attached connection closes when the step ends, but also when the engine does. So the
//! container is always inspected. If it still runs or the engine was unreachable, the missing
//! output is read from the engine's own copy after the step has ended.

use std::time::Duration;

use bollard::errors::Error;
use bytes::Bytes;
use protocol::event::LogStream;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, sleep};

use super::look::{Container, ContainerState};
use super::wire::next_bytes;
use super::{Docker, fault};
use crate::exec::beginning::Beginning;
use crate::exec::copy::{CopyPass, GAP, ReceivedOutput, SkipModes};
use crate::exec::deadline::Flow;
use crate::exec::demux::{Demux, Piece};
use crate::ports::{ExecError, LogSink};

const READ_BYTES: usize = 32 * 1024;
/// How long to wait for an engine that became unreachable during a step.
const PATIENCE: Duration = Duration::from_secs(120);
const SLOWEST_POLL: Duration = Duration::from_millis(500);

/// Follows a step from its start to its end.
pub(super) struct Follower<'a> {
    pub(super) docker: &'a Docker,
    pub(super) id: &'a str,
    pub(super) out: &'a dyn LogSink,
    pub(super) seen: ReceivedOutput,
    pub(super) beginning: Beginning,
    /// Whether the step has a terminal, so that its single stream is not framed.
    pub(super) raw: bool,
    /// Whether the engine was unreachable while the step ran.
    pub(super) went: bool,
    pub(super) flow: &'a Flow,
}

impl Follower<'_> {
    /// Passes the output on until the step has ended. Returns its container.
    pub(super) async fn follow(
        &mut self,
        from: impl AsyncRead + Unpin,
    ) -> Result<Container, ExecError> {
        let mut whole = self.pump(from).await;
        let mut until = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(1);
        loop {
            match self.docker.look(self.id).await {
                Ok(Some(container)) => match container.life() {
                    ContainerState::Ended => {
                        if !whole || self.went {
                            self.catch_up().await?;
                        }
                        return Ok(container);
                    }
                    ContainerState::Running => {
                        // It might be about to end, or something in between closed the connection.
                        whole = false;
                        until = Instant::now() + PATIENCE;
                    }
                    ContainerState::Going => return Err(self.gone()),
                    ContainerState::NotStarted => {
                        return Err(ExecError::Engine {
                            doing: "looking at a step".into(),
                            cause: format!("container {} was started and is not", self.id),
                        });
                    }
                },
                Ok(None) => return Err(self.gone()),
                Err(error) if fault::is_away(&error) && Instant::now() < until => {
                    tracing::warn!(container.id = self.id, %error, "the Docker engine is away while a step runs");
                    self.went = true;
                }
                Err(error) => return Err(self.docker.failed("looking at a step", &error)),
            }
            sleep(pause).await;
            pause = (pause * 2).min(SLOWEST_POLL);
        }
    }

    fn gone(&self) -> ExecError {
        ExecError::Engine {
            doing: "looking at a step".into(),
            cause: format!("container {} was removed by somebody else", self.id),
        }
    }

    /// Passes output on until the connection closes. Returns whether it ended with a complete
    /// frame.
    async fn pump(&mut self, mut from: impl AsyncRead + Unpin) -> bool {
        let mut demux = Demux::of(self.raw);
        let mut buffer = vec![0; READ_BYTES];
        let mut pieces = Vec::new();
        loop {
            let read = match from.read(&mut buffer).await {
                Ok(0) => return demux.is_whole(),
                Ok(read) => read,
                Err(_) => return false,
            };
            self.flow.moved();
            let fed = demux.feed(&buffer[..read], &mut pieces);
            for piece in pieces.drain(..) {
                self.pass(piece).await;
            }
            if let Err(bad) = fed {
                tracing::warn!(container.id = self.id, %bad, "the rest of the step's output is read at its end");
                return false;
            }
        }
    }

    async fn pass(&mut self, piece: Piece) {
        self.seen.add(&piece);
        let pieces = self.beginning.take(piece);
        self.write(pieces).await;
    }

    /// Passes on output held back because it began like an engine report.
    pub(super) async fn release(&mut self) {
        let pieces = self.beginning.rest();
        self.write(pieces).await;
    }

    async fn write(&self, pieces: Vec<Piece>) {
        let _hold = self.flow.hold();
        for Piece { stream, bytes } in pieces {
            self.out.write(stream, Bytes::from(bytes)).await;
        }
    }

    /// Passes on output that the engine kept and that was not received before.
    async fn catch_up(&mut self) -> Result<(), ExecError> {
        let failed = |docker: &Docker, error| {
            docker.failed("reading what is missing of a step's output", &error)
        };
        let reading = self.read_copy(SkipModes::default()).await;
        let mut reading = reading.map_err(|error| failed(self.docker, error))?;
        while let Some(ways) = reading.again() {
            if ways.has_gap() {
                self.out.write(LogStream::Bob, Bytes::from_static(GAP.as_bytes())).await;
            }
            let again = self.read_copy(ways).await;
            reading = again.map_err(|error| failed(self.docker, error))?;
        }
        if reading.is_short() {
            tracing::warn!(
                container.id = self.id,
                "the engine kept less of the step's output than came before it went away"
            );
        }
        Ok(())
    }

    /// Reads the engine's copy once and passes on output that was not received before.
    async fn read_copy(&mut self, ways: SkipModes) -> Result<CopyPass, Error> {
        let mut reading = self.seen.read(ways);
        let prefix = &self.docker.client().await?.prefix;
        let path =
            format!("{prefix}/containers/{}/logs?follow=false&stdout=true&stderr=true", self.id);
        let mut body = self.docker.wire.open(&path).await?;
        let (mut demux, mut pieces) = (Demux::of(self.raw), Vec::new());
        while let Some(bytes) = next_bytes(&mut body).await? {
            self.flow.moved();
            let fed = demux.feed(&bytes, &mut pieces);
            for piece in pieces.drain(..) {
                if let Some(piece) = reading.take(piece) {
                    self.pass(piece).await;
                }
            }
            fed.map_err(std::io::Error::other)?;
        }
        Ok(reading)
    }
}
