//! The guard's side: listens to the worker and kills the containers that it left.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::join_all;
use protocol::id::NodeId;
use rustix::io::Errno;
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{debug, warn};

use super::message::{GuardMessage, MessageReader};
use super::remains::WorkerContainers;
use super::watch::{NextAction, Watch};
use crate::app::lifeline::keep_alive;
use crate::exec::podman::ListedContainers;
use crate::host::Linux;
use crate::ports::{ExecError, Host as _, Pauses};

/// The longest sleep while a deadline is pending. tokio's clock stops while the host sleeps.
const AWAKE: Duration = Duration::from_millis(500);
/// The first and the longest pause between two attempts.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(5);

/// The size of a read. Far more than is sent between two reads.
const BYTES: usize = 1024;

/// Guards a worker until it says goodbye, or until it is dead and all its containers have ended.
///
/// # Errors
/// If standard input is not a worker's pipe.
pub async fn guard_worker(worker: NodeId) -> anyhow::Result<()> {
    let _deaf = catch_signals()?;
    // Shows its role in process listings. The path it is started by does not name the program.
    std::fs::write("/proc/self/comm", "bob-guard").ok();
    let mut guard = Guard {
        worker,
        host: Linux::default(),
        pipe: Pipe::of_stdin().context("a guard is started by `bob-runner serve`")?,
        watch: Watch::default(),
        remains: Vec::new(),
        engine: None,
        pauses: Pauses::doubling(AGAIN_FIRST, AGAIN_MOST),
        is_away: false,
    };
    loop {
        guard.listen()?;
        match guard.watch.due(guard.host.since_boot()) {
            NextAction::End => return Ok(()),
            NextAction::Listen(left) => {
                guard.pauses.reset();
                guard.wait(left.map(|left| left.min(AWAKE))).await;
            }
            NextAction::Kill => guard.kill().await?,
        }
    }
}

/// Catches signals that reach the guard together with its worker. It ends only by the pipe.
fn catch_signals() -> anyhow::Result<Vec<Signal>> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let heard = kinds.into_iter().map(signal).collect::<Result<_, _>>();
    heard.context("cannot listen to signals")
}

struct Guard {
    worker: NodeId,
    host: Linux,
    pipe: Pipe,
    watch: Watch,
    /// The worker's containers, by engine.
    remains: Vec<WorkerContainers>,
    /// A connection that keeps the service started by the worker alive.
    engine: Option<UnixStream>,
    /// The pauses between attempts to kill the containers.
    pauses: Pauses,
    /// Whether it was already logged that the engine does not answer.
    is_away: bool,
}

impl Guard {
    /// Processes all messages received so far.
    fn listen(&mut self) -> Result<(), ExecError> {
        let ended = self.pipe.take();
        while let Some(word) = self.pipe.words.next() {
            if let GuardMessage::Engine(url) = &word {
                // This service is needed to kill the containers.
                self.engine = self.engine.take().or_else(|| keep_alive(url));
            }
            self.remains.extend(WorkerContainers::of(&self.worker, &word)?);
            self.watch.on_message(&word);
        }
        if ended {
            self.watch.is_alone(self.host.since_boot());
        }
        Ok(())
    }

    /// Waits for a message, but no longer than `at_most`.
    async fn wait(&mut self, at_most: Option<Duration>) {
        let speaks = self.pipe.readable();
        match at_most {
            Some(at_most) => drop(tokio::time::timeout(at_most, speaks).await),
            None => speaks.await,
        }
    }

    /// Lists the containers and kills them.
    async fn kill(&mut self) -> Result<(), ExecError> {
        // Engines are named before anything else, so nothing was ever started.
        if self.remains.is_empty() {
            return Ok(());
        }
        let looked = join_all(self.remains.iter().map(WorkerContainers::look)).await;
        // A worker that has recovered reports before it starts anything. So if the listing shows
        // new containers, their report has arrived by now.
        self.listen()?;
        let now = self.host.since_boot();
        if self.watch.due(now) != NextAction::Kill {
            return Ok(());
        }
        // One engine that does not answer must not protect containers on the other.
        let (mut all, mut killed) = (Some(ListedContainers::default()), Ok(()));
        for (remains, seen) in self.remains.iter().zip(looked) {
            let done = match seen {
                Ok(seen) => {
                    let done = self.end(remains, &seen).await;
                    all = all.map(|all| all.and(seen));
                    done
                }
                Err(cause) => {
                    all = None;
                    self.end_without_engine(remains).await;
                    Err(cause)
                }
            };
            killed = killed.and(done);
        }
        if let Some(seen) = all {
            self.watch.on_listing(now, &seen);
        }
        match &killed {
            Err(cause) if self.is_away => debug!(%cause, "the engine is asked again"),
            Err(cause) => warn!(owner.id = %self.worker, %cause,
                "the containers of {} cannot be killed yet ({})", self.worker, self.watch.reason()),
            Ok(()) => {}
        }
        self.is_away = killed.is_err();
        if self.watch.due(now) == NextAction::Kill {
            self.rest().await;
        }
        Ok(())
    }

    async fn end(
        &self,
        remains: &WorkerContainers,
        seen: &ListedContainers,
    ) -> Result<(), ExecError> {
        remains.kill(&seen.running).await?;
        if !seen.running.is_empty() {
            warn!(owner.id = %self.worker, containers = ?seen.running,
                "the containers of {} are killed: {}", self.worker, self.watch.reason());
        }
        Ok(())
    }

    /// Kills containers of an engine that does not answer. They are checked again once it does.
    async fn end_without_engine(&self, remains: &WorkerContainers) {
        match remains.end_processes().await {
            Ok(0) => {}
            Ok(containers) => warn!(owner.id = %self.worker, containers,
                "the engine does not answer: the processes of the containers of {} are killed ({})",
                self.worker, self.watch.reason()),
            Err(cause) => warn!(owner.id = %self.worker, %cause,
                "the processes of the containers of {} cannot be killed yet ({})",
                self.worker, self.watch.reason()),
        }
    }

    /// Sleeps between two attempts. A closed pipe would wake it at once, so it is not polled.
    async fn rest(&mut self) {
        let pause = self.pauses.take_next();
        if self.pipe.has_ended {
            tokio::time::sleep(pause).await;
        } else {
            self.wait(Some(pause)).await;
        }
    }
}

/// The messages of the worker.
struct Pipe {
    from: Receiver,
    words: MessageReader,
    has_ended: bool,
}

impl Pipe {
    fn of_stdin() -> std::io::Result<Self> {
        let file = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Self {
            from: Receiver::from_file(file)?,
            words: MessageReader::default(),
            has_ended: false,
        })
    }

    /// Reads what is available, and returns whether the pipe has ended. It reads the pipe directly,
    /// because the runtime's readiness can be out of date.
    fn take(&mut self) -> bool {
        let mut bytes = [0; BYTES];
        while !self.has_ended {
            match rustix::io::read(&self.from, &mut bytes) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Ok(count) => self.took(&bytes[..count]),
                // The pipe is broken. Treat it as closed.
                Err(_) => self.took(&[]),
            }
        }
        self.has_ended
    }

    /// Resolves when a message arrived or the pipe has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn readable(&mut self) {
        let mut bytes = [0; BYTES];
        while !self.has_ended {
            let readable = self.from.readable().await;
            match readable.and_then(|()| self.from.try_read(&mut bytes)) {
                // It was already read. This clears the runtime's readiness.
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {}
                Ok(count) => return self.took(&bytes[..count]),
                Err(_) => self.took(&[]),
            }
        }
    }

    fn took(&mut self, bytes: &[u8]) {
        self.words.push(bytes);
        self.has_ended = bytes.is_empty();
    }
}
