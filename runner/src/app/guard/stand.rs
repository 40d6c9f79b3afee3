//! The guard's side: a process that listens to its worker, and kills what it left.

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

use super::remains::Remains;
use super::watch::{Due, Watch};
use super::word::{Word, Words};
use crate::app::lifeline::hold_on;
use crate::exec::podman::Seen;
use crate::host::Linux;
use crate::ports::{ExecError, Host as _};

/// How late a guard may see that its host has slept: tokio's clock stood still meanwhile.
const AWAKE: Duration = Duration::from_millis(500);
/// Between two looks, at first and at most.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(5);

/// Far more than what is said between two looks.
const BYTES: usize = 1024;

/// Guards a worker until it says goodbye, or is dead and nothing of it runs any more.
///
/// # Errors
/// Where standard input is not the pipe of a worker.
pub async fn stand(worker: NodeId) -> anyhow::Result<()> {
    let _deaf = deaf()?;
    // A list of processes shows who it is. It is started by a path that names no program.
    std::fs::write("/proc/self/comm", "bob-guard").ok();
    let mut guard = Guard {
        worker,
        host: Linux::default(),
        pipe: Pipe::of_stdin().context("a guard is started by `bob-runner serve`")?,
        watch: Watch::default(),
        remains: Vec::new(),
        engine: None,
        pause: AGAIN_FIRST,
        is_away: false,
    };
    loop {
        guard.listen()?;
        match guard.watch.due(guard.host.since_boot()) {
            Due::End => return Ok(()),
            Due::Listen(left) => {
                guard.pause = AGAIN_FIRST;
                guard.wait(left.map(|left| left.min(AWAKE))).await;
            }
            Due::Kill => guard.kill().await?,
        }
    }
}

/// The signals that ask programs to end reach it together with its worker: it ends by the pipe alone.
fn deaf() -> anyhow::Result<Vec<Signal>> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let heard = kinds.into_iter().map(signal).collect::<Result<_, _>>();
    heard.context("cannot listen to signals")
}

struct Guard {
    worker: NodeId,
    host: Linux,
    pipe: Pipe,
    watch: Watch,
    /// What it runs, by engine.
    remains: Vec<Remains>,
    /// Keeps a service that the worker has started from ending with it.
    engine: Option<UnixStream>,
    pause: Duration,
    /// That the engine does not answer was said.
    is_away: bool,
}

impl Guard {
    /// Takes everything that the worker has said so far.
    fn listen(&mut self) -> Result<(), ExecError> {
        let ended = self.pipe.take();
        while let Some(word) = self.pipe.words.next() {
            if let Word::Engine(url) = &word {
                // The containers are killed through this service.
                self.engine = self.engine.take().or_else(|| hold_on(url));
            }
            self.remains.extend(Remains::of(&self.worker, &word)?);
            self.watch.hears(&word);
        }
        if ended {
            self.watch.is_alone(self.host.since_boot());
        }
        Ok(())
    }

    /// Waits until the worker says something, for so long at most.
    async fn wait(&mut self, at_most: Option<Duration>) {
        let speaks = self.pipe.speaks();
        match at_most {
            Some(at_most) => drop(tokio::time::timeout(at_most, speaks).await),
            None => speaks.await,
        }
    }

    /// One look, and the end of what it shows.
    async fn kill(&mut self) -> Result<(), ExecError> {
        // They are said first; without them nothing was ever fed.
        if self.remains.is_empty() {
            return Ok(());
        }
        let looked = join_all(self.remains.iter().map(Remains::look)).await;
        // A worker that has come back says so before it starts anything: whatever the look has shown
        // of that, this has heard of it.
        self.listen()?;
        let now = self.host.since_boot();
        if self.watch.due(now) != Due::Kill {
            return Ok(());
        }
        // An engine that does not answer keeps nobody from what is on the other.
        let (mut all, mut killed) = (Some(Seen::default()), Ok(()));
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
            self.watch.saw(now, &seen);
        }
        match &killed {
            Err(cause) if self.is_away => debug!(%cause, "the engine is asked again"),
            Err(cause) => warn!(owner.id = %self.worker, %cause,
                "the containers of {} cannot be killed yet ({})", self.worker, self.watch.why()),
            Ok(()) => {}
        }
        self.is_away = killed.is_err();
        if self.watch.due(now) == Due::Kill {
            self.rest().await;
        }
        Ok(())
    }

    async fn end(&self, remains: &Remains, seen: &Seen) -> Result<(), ExecError> {
        remains.kill(&seen.running).await?;
        if !seen.running.is_empty() {
            warn!(owner.id = %self.worker, containers = ?seen.running,
                "the containers of {} are killed: {}", self.worker, self.watch.why());
        }
        Ok(())
    }

    /// Kills what runs on an engine that does not answer. It is looked at again once it does.
    async fn end_without_engine(&self, remains: &Remains) {
        match remains.end_processes().await {
            Ok(0) => {}
            Ok(containers) => warn!(owner.id = %self.worker, containers,
                "the worker is dead or frozen, and the engine does not answer: the processes of its \
                 containers are killed"),
            Err(cause) => warn!(owner.id = %self.worker, %cause,
                "what a dead or frozen worker ran cannot be killed yet"),
        }
    }

    /// Between two looks. A pipe at its end would wake it at once.
    async fn rest(&mut self) {
        let pause = self.pause;
        self.pause = (pause * 2).min(AGAIN_MOST);
        if self.pipe.has_ended {
            tokio::time::sleep(pause).await;
        } else {
            self.wait(Some(pause)).await;
        }
    }
}

/// The worker's words.
struct Pipe {
    from: Receiver,
    words: Words,
    has_ended: bool,
}

impl Pipe {
    fn of_stdin() -> std::io::Result<Self> {
        let file = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Self { from: Receiver::from_file(file)?, words: Words::default(), has_ended: false })
    }

    /// Takes what is there; whether that was the end. It asks the pipe itself: what the runtime knows
    /// of it may be older than what was just said.
    fn take(&mut self) -> bool {
        let mut bytes = [0; BYTES];
        while !self.has_ended {
            match rustix::io::read(&self.from, &mut bytes) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Ok(count) => self.took(&bytes[..count]),
                // Nobody can speak over it any more.
                Err(_) => self.took(&[]),
            }
        }
        self.has_ended
    }

    /// Resolves when something was said, or nothing more will be.
    ///
    /// # Cancel safety
    /// Safe.
    async fn speaks(&mut self) {
        let mut bytes = [0; BYTES];
        while !self.has_ended {
            let readable = self.from.readable().await;
            match readable.and_then(|()| self.from.try_read(&mut bytes)) {
                // It was taken already, which the runtime learns by this.
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
