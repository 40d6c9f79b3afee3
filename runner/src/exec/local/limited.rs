//! Starts a command with limits: a child process applies them to itself and becomes the command.
//!
//! Setting limits between fork and exec would need unsafe code. The supervisor cannot set them on
//! itself, because it could not lift them again. It would run out of memory with a small step's
//! address space, and could not report the step's end with its few open files.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::process::Pid;

use super::cgroup::Group;
use super::command::{command, not_started, pid_of, tell};
use super::limits;
use super::word::{CommandOutcome, Job, Request};

/// Starts a process that becomes the command. The error says why it did not.
pub(super) fn start(job: Job) -> Result<Pid, CommandOutcome> {
    let failed = |cause: std::io::Error| CommandOutcome::NotLimited(cause.to_string());
    let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut itself = Command::new("/proc/self/exe");
    // Pass the arguments that made this process a supervisor.
    itself.args(std::env::args_os().skip(1)).env_clear().process_group(0);
    let mut child = itself.stdin(Stdio::from(OwnedFd::from(theirs))).spawn().map_err(failed)?;
    // `Command` holds the other end of the socket, which must be closed here.
    drop(itself);
    tell(&mut ours, &Request::Become(job)).map_err(failed)?;
    let mut said = Vec::new();
    // The socket closes when the process becomes the command or ends.
    ours.read_to_end(&mut said).map_err(failed)?;
    if said.is_empty() {
        return pid_of(&child).map_err(failed);
    }
    child.wait().map_err(failed)?;
    Err(serde_json::from_slice(&said)
        .unwrap_or_else(|cause| CommandOutcome::NotLimited(cause.to_string())))
}

/// Replaces this process with the command. Returns only on failure.
pub(super) fn turn_into(job: &Job) -> CommandOutcome {
    let mut command = match (command(job), File::open("/dev/null")) {
        (Ok(mut command), Ok(nothing)) => {
            // Opened before a limit on open files applies.
            command.stdin(nothing);
            command
        }
        (Err(cause), _) | (_, Err(cause)) => return not_started(job, &cause),
    };
    let entered = job.group.as_ref().map_or(Ok(()), |dir| Group::of(dir.clone()).enter());
    if let Err(cause) = entered {
        return CommandOutcome::NotLimited(format!("entering its control group: {cause}"));
    }
    if let Err(why) = limits::take_on(&job.limits) {
        return CommandOutcome::NotLimited(why);
    }
    not_started(job, &command.exec())
}
