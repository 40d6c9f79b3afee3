//! Runs steps as commands on other hosts, through the `ssh` program of the worker's host.
//!
//! So the ssh settings, agents and jump hosts of the worker's user apply. `ssh` is started without
//! a shell. Everything given to a step is sent on standard input; none of it is in an argument
//! list.

mod complaint;
mod route;
mod shell;
mod stream;
mod target;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::File;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::event::LogStream;
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::stream::{MarkedStream, ReportedEnd};
use self::target::Target;
use crate::egress::Policy;
use crate::exec::NamedFiles;
use crate::exec::deadline::{Flow, HoldingSink};
use crate::ports::{
    ExecError, Exit, Gate, LogSink, Remote, RunScope, StepEnd, StepOutcome, StepSpec, StopLevel,
    StopSignal, Workspace,
};

/// How to reach hosts.
#[derive(Debug, Clone)]
pub struct Options {
    /// The OpenSSH client program.
    pub program: OsString,
    /// Its environment, which leads it to the agent and the settings of the worker's user.
    pub inherited: Vec<(OsString, OsString)>,
    /// The addresses that a step may connect to.
    pub policy: Policy,
    /// The files on the worker's host that a step may name.
    pub named: NamedFiles,
}

/// The executor of steps that run on other hosts.
#[derive(Debug, Clone)]
pub struct Ssh {
    options: Arc<Options>,
    tasks: TaskTracker,
}

/// How long to wait for `ssh` to exit after its step has ended.
const PARTING: Duration = Duration::from_secs(2);

/// How long to wait for a host to report the end of a killed step.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// The interval between checks whether the sink has taken a step's output.
const WRITING: Duration = Duration::from_millis(100);

/// The error if a host does not end a killed step.
const UNENDED: &str = "it did not end the step within 10 s of SIGKILL";

/// The error if the worker's host has no `ssh`.
const NO_SSH: &str = "there is no program ssh on the worker's host: install OpenSSH's client (Debian: \
                      openssh-client)";

/// The cause of a broken connection if `ssh` reports none.
const LOST: &str = "it was closed without a word";

impl Ssh {
    /// Creates an executor. Does not connect yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options: Arc::new(options), tasks: TaskTracker::new() }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.options.program);
        command
            .env_clear()
            .envs(self.options.inherited.iter().map(|(name, value)| (name, value)))
            .kill_on_drop(true)
            // Signals from the worker's terminal must not reach the step.
            .process_group(0);
        command
    }

    fn cannot_start(&self, cause: &std::io::Error) -> String {
        if cause.kind() == std::io::ErrorKind::NotFound {
            return NO_SSH.to_owned();
        }
        format!("{} cannot be started: {cause}", self.options.program.display())
    }

    fn connect(
        &self,
        target: Target,
        route: &[String],
        log: NamedTempFile,
    ) -> std::io::Result<Link> {
        let mark = Uuid::new_v4().simple().to_string();
        let mut command = self.command();
        command
            .args(target.arguments(log.path(), route, shell::COMMAND))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let broken = || std::io::Error::other("a process without its streams");
        let stdin = child.stdin.take().ok_or_else(broken)?;
        let stdout = MarkedStream::new(child.stdout.take().ok_or_else(broken)?, &mark);
        let stderr = MarkedStream::new(child.stderr.take().ok_or_else(broken)?, &mark);
        Ok(Link { target, opened: Vec::new(), mark, log, child, stdin, stdout, stderr })
    }

    /// The host of a step, after checking that the step can run there.
    fn target(step: &StepSpec) -> Result<Target, String> {
        if step.limits.cpu.is_some() || step.limits.mem.is_some() {
            return Err("limits of a step of executor ssh are not enforced".to_owned());
        }
        if !step.secrets.granted.is_empty() {
            return Err("a step of executor ssh can be given no secrets".to_owned());
        }
        Target::read(&step.with)
    }
}

/// A connection to a host.
struct Link {
    target: Target,
    /// Files that `ssh` reads, kept open.
    opened: Vec<File>,
    /// A random marker. The step does not know it, so it cannot forge the host's reports.
    mark: String,
    /// The messages of `ssh` itself, since its streams carry the host's output.
    log: NamedTempFile,
    child: Child,
    stdin: ChildStdin,
    stdout: MarkedStream<ChildStdout>,
    stderr: MarkedStream<ChildStderr>,
}

impl Link {
    /// Waits until the host can start the step.
    async fn ready(&mut self, step: &StepSpec) -> Result<(), ExecError> {
        let first = shell::ready(&self.mark, shell::of(step));
        // If `ssh` is gone, the other streams show it.
        self.stdin.write_all(first.as_bytes()).await.ok();
        let said = match tokio::join!(self.stdout.ready(), self.stderr.ready()) {
            (Ok(()), Ok(())) => return Ok(()),
            (Ok(()) | Err(_), Err(said)) => said,
            (Err(_), Ok(())) => Vec::new(),
        };
        let cause = self.why_not(&String::from_utf8_lossy(&said)).await;
        Err(ExecError::Start { step: step.name.clone(), cause, code: 255 })
    }

    async fn why_not(&mut self, said: &str) -> String {
        let ended = match self.child.wait().await {
            Ok(status) => format!("ssh ended with {status}"),
            Err(cause) => format!("ssh cannot be waited for: {cause}"),
        };
        complaint::not_connected(&self.target, &self.log().await, said, &ended)
    }

    async fn log(&self) -> String {
        let log = tokio::fs::read(self.log.path()).await.unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Runs the step in `line` to its end.
    async fn run(
        &mut self,
        step: &StepSpec,
        line: &str,
        out: &Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError> {
        let flow = Arc::new(Flow::default());
        let out: Arc<dyn LogSink> =
            Arc::new(HoldingSink { out: Arc::clone(out), flow: Arc::clone(&flow) });
        let output = async {
            tokio::join!(
                self.stdout.pass(LogStream::Stdout, &out),
                self.stderr.pass(LogStream::Stderr, &out),
            )
        };
        let (first, second) = tokio::select! {
            biased;
            told = output => told,
            asked = ask(&mut self.stdin, line, step.end, stop, &flow) => {
                asked?;
                let (host, cause) = (self.target.at(), UNENDED.to_owned());
                return Err(ExecError::Disconnected { host, cause });
            }
        };
        match first.or(second) {
            Some(ReportedEnd::Ended(code)) => {
                Ok(StepOutcome::new(Exit { code, oom: false }, Workspace::None))
            }
            Some(told) => Err(self.not_started(step, told)),
            None => {
                // It has closed its streams and logs the reason before it exits.
                timeout(PARTING, self.child.wait()).await.ok();
                let cause = complaint::last_words(&self.log().await, "");
                let cause = cause.unwrap_or_else(|| LOST.to_owned());
                Err(ExecError::Disconnected { host: self.target.at(), cause })
            }
        }
    }

    fn not_started(&self, step: &StepSpec, told: ReportedEnd) -> ExecError {
        let at = self.target.at();
        let shell = shell::of(step).program();
        let program = step.words.first().map_or(shell, String::as_str);
        let dir = step.work_dir.as_deref().unwrap_or_default();
        let (code, cause) = match told {
            ReportedEnd::Missing => (127, format!("there is no program {program:?} on {at}")),
            ReportedEnd::NoDir => (126, format!("there is no directory {dir:?} on {at}")),
            ReportedEnd::NoGroup => {
                let cause = format!(
                    "{at} has no `setsid`, and its `sh` no job control: a stop would not reach all \
                     that the step begins"
                );
                (126, cause)
            }
            ReportedEnd::Broke(code) | ReportedEnd::Ended(code) => {
                (code, format!("{shell:?} on {at} ended with {code} before the step began"))
            }
        };
        ExecError::Start { step: step.name.clone(), cause, code }
    }

    /// Waits for `ssh` to exit and kills it if it does not.
    async fn end(self) {
        let Self { mut child, stdin, opened, .. } = self;
        drop(stdin);
        // A process that the step left can hold the streams open, and `ssh` waits for it.
        if timeout(PARTING, child.wait()).await.is_err() {
            // If it cannot be killed, it has already ended.
            child.kill().await.ok();
        }
        drop(opened);
    }
}

/// Sends the step, then carries out stop requests. A host that loses the connection ends the step
/// itself, and the other streams show it. Returns if the host does not end a killed step.
///
/// # Errors
/// [`ExecError::NotStarted`] if the step is stopped before its whole line is sent. A host does not
/// run an incomplete line.
async fn ask(
    stdin: &mut ChildStdin,
    line: &str,
    end: StepEnd,
    stop: &StopSignal,
    flow: &Flow,
) -> Result<(), ExecError> {
    tokio::select! {
        biased;
        // If the host is gone, the other streams show it.
        _ = stdin.write_all(line.as_bytes()) => {}
        _ = stop.above(StopLevel::Run) => return Err(ExecError::NotStarted),
    }
    let mut level = stop.above(StopLevel::Run).await;
    if let StopLevel::Stop { grace } = level {
        let term = async {
            stdin.write_all(b"TERM\n").await.ok();
            std::future::pending::<()>().await
        };
        let grace = sleep(end.grace_or(grace));
        // A second stop does not extend the grace.
        let kill = async {
            while level != StopLevel::Kill {
                level = stop.above(level).await;
            }
        };
        tokio::select! {
            () = term => {}
            () = grace => {}
            () = kill => {}
        }
    }
    let until = Instant::now() + AFTER_KILL;
    timeout_at(until, stdin.write_all(b"KILL\n")).await.ok();
    sleep_until(until).await;
    // The report of the end can be behind output that the sink has not taken yet.
    while flow.is_held() {
        sleep(WRITING).await;
    }
    Ok(())
}

/// Runs one step, from its gate to its end.
async fn run(
    mut link: Link,
    line: &str,
    step: &StepSpec,
    mut gate: Gate,
    out: Arc<dyn LogSink>,
    stop: &StopSignal,
) -> Result<StepOutcome, ExecError> {
    let opened = async { if gate.opened().await { Ok(()) } else { Err(ExecError::NotStarted) } };
    let begins = async { tokio::try_join!(opened, link.ready(step)) };
    tokio::select! {
        biased;
        _ = stop.above(StopLevel::Run) => return Err(ExecError::NotStarted),
        begins = begins => begins?,
    };
    if !gate.is_owned() {
        return Err(ExecError::NotStarted);
    }
    let ran = link.run(step, line, &out, stop).await;
    link.end().await;
    ran
}

#[async_trait]
impl Remote for Ssh {
    async fn run_step(
        &self,
        _run: &RunScope,
        step: &StepSpec,
        gate: Gate,
        out: Arc<dyn LogSink>,
        stop: &StopSignal,
    ) -> Result<StepOutcome, ExecError> {
        let refused = |why: String| ExecError::Unsupported(format!("step {}: {why}", step.name));
        let prepared = async {
            let mut target = Self::target(step)?;
            let opened = target.open(&self.options.named).await?;
            let route = self.route(&target).await?;
            Ok((target, opened, route))
        };
        // Stay stoppable while a file is opened: the file system can hang.
        let (target, opened, route) = tokio::select! {
            biased;
            _ = stop.above(StopLevel::Run) => return Err(ExecError::NotStarted),
            prepared = prepared => prepared.map_err(refused)?,
        };
        let line = shell::step(step).map_err(refused)?;
        let log = NamedTempFile::new();
        let log = log.map_err(|cause| failed("making a file for what ssh says", &cause))?;
        let mut link = self.connect(target, &route, log).map_err(|cause| {
            if cause.kind() == std::io::ErrorKind::NotFound {
                return refused(NO_SSH.to_owned());
            }
            failed("starting ssh", &cause)
        })?;
        link.opened = opened;
        let (step, stop) = (step.clone(), stop.clone());
        // The caller can be dropped, but the step must run to its end.
        let ran = self.tasks.spawn(async move { run(link, &line, &step, gate, out, &stop).await });
        ran.await.unwrap_or_else(|cause| Err(failed("running a step", &cause)))
    }
}

fn failed(doing: &str, cause: &dyn std::error::Error) -> ExecError {
    ExecError::Engine { doing: doing.to_owned(), cause: cause.to_string() }
}
