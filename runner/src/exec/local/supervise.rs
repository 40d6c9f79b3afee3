//! A step's supervisor. It runs one command and ends all its processes, even if the worker dies.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::ExitStatus;
use std::time::Duration;

use protocol::pipeline::EndSignal;
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, set_child_subreaper, wait,
};

use super::cgroup::Group;
use super::command::{command, not_started, pid_of, tell};
use super::descendants::below;
use super::limited;
use super::word::{CommandOutcome, Job, Request};

/// Runs one command for the worker at the other end of standard input.
///
/// Uses no async runtime and only one more thread, because it reaps every child of this process.
///
/// # Errors
/// Returned if the worker is gone or sends an invalid message.
pub fn supervise() -> std::io::Result<()> {
    // The command must not inherit the socket: its closing means that the worker is gone.
    let socket = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?);
    let mut tells = socket.try_clone()?;
    let mut asks = BufReader::new(socket);
    let told = match next(&mut asks) {
        Some(Request::Run(job)) => watch_over(job, asks)?,
        Some(Request::Become(job)) => limited::turn_into(&job),
        Some(Request::End(_) | Request::Kill) | None => return Ok(()),
    };
    tell(&mut tells, &told)
}

/// Runs a command to its end, then ends the processes it left.
fn watch_over(job: Job, mut asks: BufReader<UnixStream>) -> std::io::Result<CommandOutcome> {
    // Orphaned descendants of the command become children of this process.
    set_child_subreaper(Some(getpid()))?;
    let group = job.group.clone().map(Group::of);
    let started = if job.is_limited() {
        limited::start(job)
    } else {
        start(&job).map_err(|cause| not_started(&job, &cause))
    };
    let told = match started {
        Ok(child) => {
            let listener = group.clone();
            // The thread ends with the process.
            std::thread::Builder::new()
                .spawn(move || listen(&mut asks, child, listener.as_ref()))?;
            let code = reap(child, group.as_ref())?;
            let oom = code != 0 && group.as_ref().is_some_and(Group::is_out_of_memory);
            CommandOutcome::Ended { code, oom }
        }
        Err(told) => told,
    };
    // If this fails, the worker tries again and reports the error.
    group.map(|group| group.end().ok());
    Ok(told)
}

fn next(asks: &mut BufReader<UnixStream>) -> Option<Request> {
    let mut line = Vec::new();
    asks.read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok()
}

fn start(job: &Job) -> std::io::Result<Pid> {
    pid_of(&command(job)?.process_group(0).spawn()?)
}

/// Carries out the worker's requests. If the worker is gone, kills everything.
#[expect(clippy::disallowed_methods, reason = "a supervisor has no async runtime")]
fn listen(asks: &mut BufReader<UnixStream>, child: Pid, group: Option<&Group>) {
    loop {
        match next(asks) {
            // The command might already have ended.
            Some(Request::End(signal)) => drop(kill_process_group(child, number(signal))),
            Some(Request::Run(_) | Request::Become(_)) => {}
            Some(Request::Kill) | None => {
                // Repeat, because processes can start children in between.
                loop {
                    kill_all(group);
                    std::thread::sleep(AGAIN);
                }
            }
        }
    }
}

fn number(signal: EndSignal) -> Signal {
    match signal {
        EndSignal::Term => Signal::TERM,
        EndSignal::Int => Signal::INT,
        EndSignal::Hup => Signal::HUP,
        EndSignal::Quit => Signal::QUIT,
        EndSignal::Usr1 => Signal::USR1,
        EndSignal::Usr2 => Signal::USR2,
    }
}

/// The pause between two searches for descendants.
const AGAIN: Duration = Duration::from_millis(20);

/// Waits for the command, then ends its remaining processes. Returns its exit code.
fn reap(child: Pid, group: Option<&Group>) -> std::io::Result<i32> {
    let mut code = None;
    loop {
        if code.is_some() {
            kill_all(group);
        }
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => {
                code = Some(code_of(ExitStatus::from_raw(status.as_raw())));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return code.ok_or_else(|| Errno::CHILD.into()),
            Err(cause) => return Err(cause.into()),
        }
    }
}

/// The exit code as a shell reports it: 128 plus the signal for a killed process.
fn code_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255)
}

/// Kills the step's control group and all descendants of this process.
fn kill_all(group: Option<&Group>) {
    if let Some(group) = group {
        group.kill();
    }
    for pid in below(i64::from(getpid().as_raw_nonzero().get())) {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // The process might already be gone.
        pid.map(|pid| kill_process(pid, Signal::KILL));
    }
}
