//! Passes a step's output to the sink, and determines how the step ended.
//!
//! The attached connection closes when the step ends, but also when the engine does. So the
//! container is always inspected. If the engine's process changed, the missing output is read from
//! the engine's own copy, which is byte-exact. (Attaching again with past output is not, because
//! its frames have wrong lengths.) Over TCP the copy is always read: something in between can close
//! the connection before the step ends.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep};

use super::api::{Container, ContainerState};
use super::call::{ANSWERS, EngineCall, Fault, empty, next_bytes, read};
use super::http::{Http, Link};
use super::watcher::Watcher;
use crate::exec::copy::{CopyPass, SkipModes};
use crate::exec::demux::{Demux, Piece};
use crate::exec::output::StepOutput;
use crate::ports::{ExecError, Pauses};

/// The output stream of a container, attached before the start.
pub(super) type Attached = TokioIo<hyper::upgrade::Upgraded>;

/// The pause between pings. An engine closes a connection after 10 s without a request, which would
/// look like a restart.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// How long to wait for an engine that became unreachable during a step.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
const FASTEST_POLL: Duration = Duration::from_millis(1);
const SLOWEST_POLL: Duration = Duration::from_millis(500);
/// The pause before the copy is read again, as a multiple of the time the last read took.
const READ_SHARE: u32 = 10;
/// The longest such pause.
const LONGEST_REST: Duration = Duration::from_secs(3);

/// Attaches to a container that is not started. This makes the engine prepare the container's
/// process, so errors in its settings appear here.
pub(super) async fn attach(http: &Http, id: &str) -> Result<Attached, Fault> {
    let query = "stream=true&stdin=false&stdout=true&stderr=true&logs=false";
    http.upgrade(&format!("/containers/{id}/attach?{query}")).await
}

/// Follows a step from its start to its end.
pub(super) struct Follower<'a> {
    pub(super) http: &'a Arc<Http>,
    pub(super) output: StepOutput<'a>,
}

impl Follower<'_> {
    /// Passes the output on until the step has ended. Returns its container.
    pub(super) async fn follow(
        &mut self,
        attached: Attached,
        link: &mut Link,
    ) -> Result<Container, ExecError> {
        let id = self.output.container;
        let breaks = link.breaks;
        let whole = self.pump_beside_pings(attached, link).await;
        let mut watcher = Watcher::default();
        let mut pauses = Pauses::doubling(FASTEST_POLL, SLOWEST_POLL);
        loop {
            let looked = link.inspect(id, PATIENCE).await;
            let looked = looked.map_err(|fault| fault.at("looking at a step", self.http))?;
            // A removal kills the step first, which can look like an ordinary end.
            let Some(container) = looked.filter(|container| !container.is_going()) else {
                return Err(ExecError::Engine {
                    doing: "looking at a step".into(),
                    cause: format!("container {} was removed by another client of the engine", id),
                });
            };
            // An unbroken connection means that the engine's process is the same, so the end of the
            // output was the step's.
            let sure = whole && link.breaks == breaks && self.http.is_local();
            let begun = Instant::now();
            match container.life() {
                ContainerState::Ended => {
                    if !sure {
                        self.catch_up(CopyUntil::End).await?;
                    }
                    return Ok(container);
                }
                ContainerState::Running if !sure => self.catch_up(CopyUntil::LastFrame).await?,
                ContainerState::Running => {}
                ContainerState::NotStarted => {
                    return Err(ExecError::Engine {
                        doing: "looking at a step".into(),
                        cause: format!("container {} was started and is not", id),
                    });
                }
            }
            watcher.look(self.http, &container)?;
            let read = (begun.elapsed() * READ_SHARE).min(LONGEST_REST);
            sleep(pauses.take_next().max(read)).await;
        }
    }

    /// Passes output on until the connection closes. Returns whether it ended with a complete
    /// frame.
    async fn pump_beside_pings(&mut self, attached: Attached, link: &mut Link) -> bool {
        let mut pumping = std::pin::pin!(self.output.pump(attached));
        loop {
            tokio::select! {
                whole = &mut pumping => return whole,
                () = sleep(KEEP_ALIVE) => {
                    let ping = EngineCall {
                        within: Duration::from_secs(2),
                        patience: Duration::ZERO,
                        ..EngineCall::get("/_ping")
                    };
                    // A failure shows in `link.breaks`.
                    drop(link.call(ping).await);
                }
            }
        }
    }

    /// Passes on output that the engine kept and that was not received before.
    async fn catch_up(&mut self, until: CopyUntil) -> Result<(), ExecError> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.catch_up_once(until).await {
                Ok(()) => return Ok(()),
                Err(Fault::Unreachable(_) | Fault::Broken(_)) if Instant::now() < end => {
                    sleep(Duration::from_millis(100)).await;
                }
                Err(fault) => return Err(fault.at("reading a step's output", self.http)),
            }
        }
    }

    async fn catch_up_once(&mut self, until: CopyUntil) -> Result<(), Fault> {
        let mut reading = self.read_copy(until, SkipModes::default()).await?;
        if until != CopyUntil::End {
            return Ok(());
        }
        while let Some(ways) = self.output.next_pass(&reading).await {
            reading = self.read_copy(until, ways).await?;
        }
        Ok(())
    }

    /// Reads the engine's copy once and passes on output that was not received before.
    async fn read_copy(&mut self, until: CopyUntil, ways: SkipModes) -> Result<CopyPass, Fault> {
        let id = self.output.container;
        let mut reading = self.output.seen.read(ways);
        let path = format!("/containers/{id}/logs?follow=false&stdout=true&stderr=true");
        let answer = self.http.open(&Method::GET, &path, &[], empty()).await?;
        if !answer.status().is_success() {
            read(answer).await?.good()?;
            return Err(Fault::Malformed("an answer without an output".to_owned()));
        }
        let (mut demux, mut held) = (Demux::of(self.output.raw), Vec::new());
        let mut body = answer.into_body();
        while let Some(mut bytes) = next_bytes(&mut body, ANSWERS).await? {
            self.output.flow.moved();
            while !bytes.is_empty() {
                let piece = demux.split(&mut bytes);
                let piece = piece.map_err(|cause| Fault::Malformed(cause.to_string()))?;
                let Some((piece, begins_frame)) = piece else { continue };
                // A line that is being written can be incomplete.
                if begins_frame || until == CopyUntil::End {
                    self.pass_all(&mut held, &mut reading).await;
                }
                held.push(piece);
            }
        }
        if until == CopyUntil::End {
            self.pass_all(&mut held, &mut reading).await;
        }
        Ok(reading)
    }

    async fn pass_all(&mut self, held: &mut Vec<Piece>, reading: &mut CopyPass) {
        for piece in held.drain(..) {
            if let Some(piece) = reading.take(piece) {
                self.output.pass(piece).await;
            }
        }
    }
}

/// How far the engine's copy is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CopyUntil {
    End,
    /// All but the last frame, which can be incomplete.
    LastFrame,
}
