//! The worker's side: starts the guard, reports to it, and restarts it if it dies.

use std::fs::File;
use std::io::{ErrorKind, PipeWriter, Write as _};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use parking_lot::Mutex;
use protocol::id::NodeId;
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::message::GuardMessage;
use crate::ports::{Guard, Pauses};

pub use crate::telemetry::Form;

/// The program of this process, even if its file was since replaced. Worker and guard thus always
/// have the same version.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// The pause before the first restart. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a dismissed guard can take to exit before it is killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of a guard.
#[derive(Debug, Clone)]
pub struct GuardSettings {
    /// The guarded worker.
    pub worker: NodeId,
    /// The URL of the engine, if there is one.
    pub engine: Option<String>,
    /// The URL of the Docker engine, if there is one.
    pub docker: Option<String>,
    /// The log level.
    pub level: &'static str,
    /// The log format.
    pub form: Form,
}

/// Keeps a guard of this process running.
#[derive(Debug)]
pub struct Keeper {
    link: Arc<Link>,
    /// The task that starts and restarts the guard.
    task: JoinSet<()>,
}

/// The connection to the current guard.
#[derive(Debug)]
struct Link {
    settings: GuardSettings,
    state: Mutex<LinkState>,
    /// Notified when the guard no longer reads.
    stuck: Notify,
    dismissed: CancellationToken,
}

#[derive(Debug, Default)]
struct LinkState {
    /// The pipe to the guard's standard input. `None` if no guard is running.
    pipe: Option<File>,
    /// The last reported lease deadline, which a new guard must receive.
    lease_until: Option<Duration>,
}

impl Link {
    fn state(&self) -> parking_lot::MutexGuard<'_, LinkState> {
        self.state.lock()
    }

    /// Sends a message if a guard is running.
    fn send(&self, state: &mut LinkState, message: &GuardMessage) {
        let Some(pipe) = &mut state.pipe else { return };
        match pipe.write_all(&message.line()) {
            Ok(()) => {}
            // The pipe is full because the guard has not read for hours. `attend` kills it, so that
            // it cannot wake up and act on old messages.
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => self.stuck.notify_one(),
            // The guard has died. `keep` starts another one.
            Err(_) => state.pipe = None,
        }
    }

    /// Connects to a new guard and sends it the current state.
    fn attach(&self, pipe: File) {
        let mut state = self.state();
        // A notification about an earlier guard must not kill this one.
        self.stuck.notified().now_or_never();
        state.pipe = Some(pipe);
        if let Some(engine) = &self.settings.engine {
            self.send(&mut state, &GuardMessage::Engine(engine.clone()));
        }
        if let Some(docker) = &self.settings.docker {
            self.send(&mut state, &GuardMessage::Docker(docker.clone()));
        }
        if let Some(until) = state.lease_until {
            self.send(&mut state, &GuardMessage::owned_until(until));
        }
        if self.dismissed.is_cancelled() {
            self.send(&mut state, &GuardMessage::Goodbye);
        }
    }

    fn start(&self) -> anyhow::Result<Child> {
        let (input, output) = std::io::pipe().context("cannot create a pipe")?;
        let GuardSettings { worker, level, form, .. } = &self.settings;
        let form = match form {
            // The CI format logs to standard output, which a guard does not have.
            Form::Text | Form::Ci => "text",
            Form::Json => "json",
        };
        // The guard inherits only the pipe and standard error. It inherits no environment variables,
        // because they include secrets.
        let child = Command::new(THIS_PROGRAM)
            .arg0("bob-runner")
            .args(["guard", "--level", level, "--form", form, "--"])
            .arg(worker.to_string())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(input))
            .stdout(Stdio::null())
            // Signals to the worker's process group must not reach the guard.
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .context("cannot start its process")?;
        self.attach(nonblocking(output).context("cannot make its pipe non-blocking")?);
        Ok(child)
    }
}

fn nonblocking(pipe: PipeWriter) -> std::io::Result<File> {
    let pipe = File::from(OwnedFd::from(pipe));
    rustix::io::ioctl_fionbio(&pipe, true)?;
    Ok(pipe)
}

impl Guard for Link {
    fn feed(&self, until: Duration) {
        let mut state = self.state();
        state.lease_until = Some(until);
        self.send(&mut state, &GuardMessage::owned_until(until));
    }

    fn dismiss(&self) {
        let mut state = self.state();
        self.send(&mut state, &GuardMessage::Goodbye);
        self.dismissed.cancel();
    }
}

impl Keeper {
    /// Starts a guard for this process, and restarts it whenever it dies.
    #[must_use]
    pub fn start(settings: GuardSettings) -> Self {
        let link = Arc::new(Link {
            settings,
            state: Mutex::default(),
            stuck: Notify::new(),
            dismissed: CancellationToken::new(),
        });
        let mut task = JoinSet::new();
        task.spawn(keep(Arc::clone(&link)));
        Self { link, task }
    }

    /// The handle through which the worker reports.
    #[must_use]
    pub fn guard(&self) -> Arc<dyn Guard> {
        Arc::clone(&self.link) as Arc<dyn Guard>
    }

    /// Waits until a dismissed guard has exited. Returns at once if the guard was not dismissed: it
    /// still has work after this process has ended.
    pub async fn end(mut self) {
        if self.link.dismissed.is_cancelled() {
            while self.task.join_next().await.is_some() {}
        }
    }
}

/// Keeps a guard running until it is dismissed.
async fn keep(link: Arc<Link>) {
    let (mut pauses, mut failed) = (Pauses::doubling(FIRST_PAUSE, LONGEST_PAUSE), false);
    while !link.dismissed.is_cancelled() {
        let started = Instant::now();
        match link.start() {
            Ok(mut child) => {
                if failed {
                    info!("started a guard for this worker");
                    failed = false;
                }
                attend(&link, &mut child).await;
                if link.dismissed.is_cancelled() {
                    return;
                }
                if started.elapsed() > LONGEST_PAUSE {
                    pauses.reset();
                }
                warn!("the guard of this worker has died; starting another one");
            }
            Err(cause) if failed => debug!("still cannot start a guard: {cause:#}"),
            Err(cause) => {
                failed = true;
                warn!(
                    "this worker has no guard ({cause:#}): if the worker is killed or freezes, its \
                     steps keep running until another worker resumes their runs on the same engine"
                );
            }
        }
        tokio::select! {
            biased;
            () = link.dismissed.cancelled() => {}
            () = pauses.wait() => {}
        }
    }
}

/// Waits until a guard exits. Kills it if it is stuck, or does not exit after its dismissal.
async fn attend(link: &Link, child: &mut Child) {
    tokio::select! {
        biased;
        _ = child.wait() => return link.state().pipe = None,
        () = link.stuck.notified() => warn!("the guard of this worker is stuck; killing it"),
        () = link.dismissed.cancelled() => {
            if timeout(EXIT_TIMEOUT, child.wait()).await.is_ok() {
                return;
            }
        }
    }
    // Keep the pipe open until the guard is dead. A closed pipe would tell it that the worker has
    // died.
    child.kill().await.ok();
    link.state().pipe = None;
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::super::message::MessageReader;
    use super::*;

    fn link() -> Link {
        let settings = GuardSettings {
            worker: NodeId::from_stored("bob/runner-1"),
            engine: Some("unix:///e".into()),
            docker: Some("unix:///d".into()),
            level: "info",
            form: Form::Text,
        };
        let dismissed = CancellationToken::new();
        Link { settings, state: Mutex::default(), stuck: Notify::new(), dismissed }
    }

    fn read_messages(mut pipe: std::io::PipeReader) -> Vec<GuardMessage> {
        let (mut bytes, mut reader) = (Vec::new(), MessageReader::default());
        pipe.read_to_end(&mut bytes).unwrap();
        reader.push(&bytes);
        std::iter::from_fn(|| reader.next()).collect()
    }

    #[test]
    fn each_new_guard_receives_the_engines_and_the_lease_deadline() {
        let link = link();
        let mut pipes = Vec::new();
        for secs in [1, 2] {
            let (input, output) = std::io::pipe().unwrap();
            link.attach(nonblocking(output).unwrap());
            link.feed(Duration::from_secs(secs));
            pipes.push(input);
        }
        link.dismiss();
        drop(link);
        let (engine, docker) =
            (GuardMessage::Engine("unix:///e".into()), GuardMessage::Docker("unix:///d".into()));
        let until = GuardMessage::StandsUntil;
        let received: Vec<_> = pipes.into_iter().map(read_messages).collect();
        assert_eq!(received[0], [engine.clone(), docker.clone(), until(1000)]);
        assert_eq!(received[1], [engine, docker, until(1000), until(2000), GuardMessage::Goodbye]);
    }

    #[tokio::test]
    async fn a_guard_that_does_not_read_is_detected_and_does_not_block_the_worker() {
        let link = link();
        let (input, output) = std::io::pipe().unwrap();
        link.attach(nonblocking(output).unwrap());
        for secs in 0..10_000 {
            link.feed(Duration::from_secs(secs));
        }
        link.stuck.notified().await;
        drop(input);
        // A process that another test is starting can hold a copy of that end until it has executed
        // its program.
        let dropped = async {
            while link.state().pipe.is_some() {
                link.feed(Duration::from_secs(1));
                tokio::task::yield_now().await;
            }
        };
        let dropped = tokio::time::timeout(Duration::from_secs(60), dropped).await;
        assert!(dropped.is_ok(), "the pipe to a dead guard must be dropped");
    }

    #[test]
    fn a_stuck_guard_does_not_make_the_next_one_count_as_stuck() {
        let link = link();
        let (_stuck, output) = std::io::pipe().unwrap();
        link.attach(nonblocking(output).unwrap());
        for secs in 0..10_000 {
            link.feed(Duration::from_secs(secs));
        }
        let (_reads, output) = std::io::pipe().unwrap();
        link.attach(nonblocking(output).unwrap());
        assert!(link.stuck.notified().now_or_never().is_none());
    }
}
