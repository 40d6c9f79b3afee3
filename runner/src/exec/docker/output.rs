//! Passes a step's output to the sink, and determines how the step ended.
//!
//! The attached connection closes when the step ends, but also when the engine does. So the
//! container is always inspected. If it still runs or the engine was unreachable, the missing
//! output is read from the engine's own copy after the step has ended. Over TCP the copy is always
//! read: something in between can close the connection just before the step ends.

use std::time::Duration;

use bollard::errors::Error;
use tokio::io::AsyncRead;
use tokio::time::Instant;

use super::look::{Container, ContainerState};
use super::wire::next_bytes;
use super::{Docker, fault};
use crate::exec::copy::{CopyPass, SkipModes};
use crate::exec::demux::Demux;
use crate::exec::output::StepOutput;
use crate::ports::{ExecError, Pauses};

/// How long to wait for an engine that became unreachable during a step.
const PATIENCE: Duration = Duration::from_secs(120);
const FASTEST_POLL: Duration = Duration::from_millis(1);
const SLOWEST_POLL: Duration = Duration::from_millis(500);

/// Follows a step from its start to its end.
pub(super) struct Follower<'a> {
    pub(super) docker: &'a Docker,
    pub(super) output: StepOutput<'a>,
    /// Whether the engine was unreachable while the step ran.
    pub(super) went: bool,
}

impl Follower<'_> {
    /// Passes the output on until the step has ended. Returns its container.
    pub(super) async fn follow(
        &mut self,
        from: impl AsyncRead + Unpin,
    ) -> Result<Container, ExecError> {
        let id = self.output.container;
        let mut whole = self.output.pump(from).await && self.docker.socket().is_some();
        let mut until = Instant::now() + PATIENCE;
        let mut pauses = Pauses::doubling(FASTEST_POLL, SLOWEST_POLL);
        loop {
            match self.docker.look(id).await {
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
                            cause: format!("container {} was started and is not", id),
                        });
                    }
                },
                Ok(None) => return Err(self.gone()),
                Err(error) if fault::is_away(&error) && Instant::now() < until => {
                    tracing::warn!(container.id = id, %error, "the Docker engine is away while a step runs");
                    self.went = true;
                }
                Err(error) => return Err(self.docker.failed("looking at a step", &error)),
            }
            pauses.wait().await;
        }
    }

    fn gone(&self) -> ExecError {
        ExecError::Engine {
            doing: "looking at a step".into(),
            cause: format!(
                "container {} was removed by another client of the engine",
                self.output.container
            ),
        }
    }

    /// Passes on output that the engine kept and that was not received before.
    async fn catch_up(&mut self) -> Result<(), ExecError> {
        let failed = |docker: &Docker, error| {
            docker.failed("reading what is missing of a step's output", &error)
        };
        let reading = self.read_copy(SkipModes::default()).await;
        let mut reading = reading.map_err(|error| failed(self.docker, error))?;
        while let Some(ways) = self.output.next_pass(&reading).await {
            let again = self.read_copy(ways).await;
            reading = again.map_err(|error| failed(self.docker, error))?;
        }
        Ok(())
    }

    /// Reads the engine's copy once and passes on output that was not received before.
    async fn read_copy(&mut self, ways: SkipModes) -> Result<CopyPass, Error> {
        let id = self.output.container;
        let mut reading = self.output.seen.read(ways);
        let prefix = &self.docker.client().await?.prefix;
        let path = format!("{prefix}/containers/{id}/logs?follow=false&stdout=true&stderr=true");
        let mut body = self.docker.wire.open(&path).await?;
        let (mut demux, mut pieces) = (Demux::of(self.output.raw), Vec::new());
        while let Some(bytes) = next_bytes(&mut body).await? {
            self.output.flow.moved();
            let fed = demux.feed(&bytes, &mut pieces);
            for piece in pieces.drain(..) {
                if let Some(piece) = reading.take(piece) {
                    self.output.pass(piece).await;
                }
            }
            fed.map_err(std::io::Error::other)?;
        }
        Ok(reading)
    }
}
