//! The worker's side: starts the guard, reports to it, and restarts it if it dies.

use std::fs::File;
use std::io::{ErrorKind, PipeWriter, Write as _};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
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

/// The running program, even if its file was replaced by a newer version, so that both sides match.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// The first and the longest pause before a restart.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(60);
/// How long to wait for the end of a dismissed guard.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

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

/// The guard of this process.
#[derive(Debug)]
pub struct Keeper {
    line: Arc<Line>,
    /// The task that keeps the guard running.
    keeping: JoinSet<()>,
}

/// The connection to the current guard.
#[derive(Debug)]
struct Line {
    told: GuardSettings,
    end: Mutex<End>,
    /// Notified when the guard no longer reads.
    is_stuck: Notify,
    dismissed: CancellationToken,
}

#[derive(Debug, Default)]
struct End {
    pipe: Option<File>,
    /// The last reported lease time, for the next guard.
    until: Option<Duration>,
}

impl Line {
    fn end(&self) -> parking_lot::MutexGuard<'_, End> {
        self.end.lock()
    }

    /// Sends a message if there is a guard.
    fn send(&self, end: &mut End, word: &GuardMessage) {
        let Some(pipe) = &mut end.pipe else { return };
        match pipe.write_all(&word.line()) {
            Ok(()) => {}
            // The guard has not read for hours. It must not wake up and act on old messages.
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => self.is_stuck.notify_one(),
            // The guard has died. `keep` starts another one.
            Err(_) => end.pipe = None,
        }
    }

    /// Uses a new pipe from now on, and sends the state that a new guard needs.
    fn attach(&self, pipe: File) {
        let mut end = self.end();
        end.pipe = Some(pipe);
        if let Some(engine) = &self.told.engine {
            self.send(&mut end, &GuardMessage::Engine(engine.clone()));
        }
        if let Some(docker) = &self.told.docker {
            self.send(&mut end, &GuardMessage::Docker(docker.clone()));
        }
        if let Some(until) = end.until {
            self.send(&mut end, &GuardMessage::owned_until(until));
        }
        if self.dismissed.is_cancelled() {
            self.send(&mut end, &GuardMessage::Goodbye);
        }
    }

    fn start(&self) -> anyhow::Result<Child> {
        let (input, output) = std::io::pipe().context("no pipe can be made")?;
        let GuardSettings { worker, level, form, .. } = &self.told;
        let form = match form {
            // The CI format would log to its standard output, which is null.
            Form::Text | Form::Ci => "text",
            Form::Json => "json",
        };
        // It inherits only the pipe and standard error. It inherits no variables, because they
        // include secrets.
        let child = Command::new(THIS_PROGRAM)
            .arg0("bob-runner")
            .args(["guard", "--level", level, "--form", form, "--"])
            .arg(worker.to_string())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(input))
            .stdout(Stdio::null())
            // Signals to the worker's process group must not reach it.
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .context("it cannot be started")?;
        self.attach(nonblocking(output).context("its pipe cannot be used")?);
        Ok(child)
    }
}

fn nonblocking(pipe: PipeWriter) -> std::io::Result<File> {
    let pipe = File::from(OwnedFd::from(pipe));
    rustix::io::ioctl_fionbio(&pipe, true)?;
    Ok(pipe)
}

impl Guard for Line {
    fn feed(&self, until: Duration) {
        let mut end = self.end();
        end.until = Some(until);
        self.send(&mut end, &GuardMessage::owned_until(until));
    }

    fn dismiss(&self) {
        let mut end = self.end();
        self.send(&mut end, &GuardMessage::Goodbye);
        self.dismissed.cancel();
    }
}

impl Keeper {
    /// Starts a guard for this process, and restarts it whenever it dies.
    #[must_use]
    pub fn start(told: GuardSettings) -> Self {
        let line = Arc::new(Line {
            told,
            end: Mutex::default(),
            is_stuck: Notify::new(),
            dismissed: CancellationToken::new(),
        });
        let mut keeping = JoinSet::new();
        keeping.spawn(keep(Arc::clone(&line)));
        Self { line, keeping }
    }

    /// The handle through which the worker reports.
    #[must_use]
    pub fn guard(&self) -> Arc<dyn Guard> {
        Arc::clone(&self.line) as Arc<dyn Guard>
    }

    /// Waits for the end of a dismissed guard. A guard that was not dismissed still has work after
    /// the end of this process.
    pub async fn end(mut self) {
        if self.line.dismissed.is_cancelled() {
            while self.keeping.join_next().await.is_some() {}
        }
    }
}

/// Keeps a guard running until it is dismissed.
async fn keep(line: Arc<Line>) {
    let (mut pauses, mut failed) = (Pauses::doubling(AGAIN_FIRST, AGAIN_MOST), false);
    while !line.dismissed.is_cancelled() {
        let begun = Instant::now();
        match line.start() {
            Ok(mut child) => {
                if failed {
                    info!("a guard could be started");
                    failed = false;
                }
                attend(&line, &mut child).await;
                if line.dismissed.is_cancelled() {
                    return;
                }
                if begun.elapsed() > AGAIN_MOST {
                    pauses.reset();
                }
                warn!("the guard of this worker has ended by itself; another one is started");
            }
            Err(cause) if failed => debug!("still no guard: {cause:#}"),
            Err(cause) => {
                failed = true;
                warn!(
                    "this worker has no guard ({cause:#}): should it be killed or freeze, its \
                     steps run on until another worker takes their runs up on the same engine"
                );
            }
        }
        tokio::select! {
            biased;
            () = line.dismissed.cancelled() => {}
            () = pauses.wait() => {}
        }
    }
}

/// Waits for the end of a guard, and kills it if it is stuck.
async fn attend(line: &Line, child: &mut Child) {
    tokio::select! {
        biased;
        _ = child.wait() => return line.end().pipe = None,
        () = line.is_stuck.notified() => warn!("the guard of this worker stands still"),
        () = line.dismissed.cancelled() => {
            if timeout(ENDS_WITHIN, child.wait()).await.is_ok() {
                return;
            }
        }
    }
    // Keep the pipe open until it is dead. It would take a closed pipe for the worker's death.
    child.kill().await.ok();
    line.end().pipe = None;
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::super::message::MessageReader;
    use super::*;

    fn line() -> Line {
        let told = GuardSettings {
            worker: NodeId::from_stored("bob/runner-1"),
            engine: Some("unix:///e".into()),
            docker: Some("unix:///d".into()),
            level: "info",
            form: Form::Text,
        };
        let dismissed = CancellationToken::new();
        Line { told, end: Mutex::default(), is_stuck: Notify::new(), dismissed }
    }

    fn read_messages(mut from: std::io::PipeReader) -> Vec<GuardMessage> {
        let (mut bytes, mut words) = (Vec::new(), MessageReader::default());
        from.read_to_end(&mut bytes).unwrap();
        words.push(&bytes);
        std::iter::from_fn(|| words.next()).collect()
    }

    #[test]
    fn each_new_guard_receives_the_engine_and_the_end_of_the_lease() {
        let line = line();
        let mut pipes = Vec::new();
        for secs in [1, 2] {
            let (input, output) = std::io::pipe().unwrap();
            line.attach(nonblocking(output).unwrap());
            line.feed(Duration::from_secs(secs));
            pipes.push(input);
        }
        line.dismiss();
        drop(line);
        let (engine, docker) =
            (GuardMessage::Engine("unix:///e".into()), GuardMessage::Docker("unix:///d".into()));
        let until = GuardMessage::StandsUntil;
        let heard: Vec<_> = pipes.into_iter().map(read_messages).collect();
        assert_eq!(heard[0], [engine.clone(), docker.clone(), until(1000)]);
        assert_eq!(heard[1], [engine, docker, until(1000), until(2000), GuardMessage::Goodbye]);
    }

    #[tokio::test]
    async fn a_guard_that_does_not_read_is_noticed_and_blocks_nothing() {
        let line = line();
        let (input, output) = std::io::pipe().unwrap();
        line.attach(nonblocking(output).unwrap());
        for secs in 0..10_000 {
            line.feed(Duration::from_secs(secs));
        }
        line.is_stuck.notified().await;
        drop(input);
        line.feed(Duration::from_secs(1));
        assert!(line.end().pipe.is_none(), "no one is listening");
    }
}
