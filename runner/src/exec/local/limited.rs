//! A command with limits: this program once more, which takes them on and becomes the command.
//!
//! Whoever begins a process cannot set its limits without code that runs between its beginning and the
//! command; and what a supervisor took on itself, it could not get rid of again: with the address space of
//! a small step it would find no memory, with its few open files no way to tell how the step ended.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::process::Pid;

use super::cgroup::Group;
use super::limits;
use super::supervise::{command, not_started, pid_of, tell};
use super::word::{Asked, Job, Told};

/// Begins a process that becomes the command; what came of it where it does not.
pub(super) fn start(job: Job) -> Result<Pid, Told> {
    let failed = |cause: std::io::Error| Told::NotLimited(cause.to_string());
    let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut itself = Command::new("/proc/self/exe");
    // The words that made this process what it is.
    itself.args(std::env::args_os().skip(1)).env_clear().process_group(0);
    let mut child = itself.stdin(Stdio::from(OwnedFd::from(theirs))).spawn().map_err(failed)?;
    // It holds the other end, which must not stay open here.
    drop(itself);
    tell(&mut ours, &Asked::Become(job)).map_err(failed)?;
    let mut said = Vec::new();
    // The end of it is that of the process, or that it has become the command.
    ours.read_to_end(&mut said).map_err(failed)?;
    if said.is_empty() {
        return pid_of(&child).map_err(failed);
    }
    child.wait().map_err(failed)?;
    Err(serde_json::from_slice(&said).unwrap_or_else(|cause| Told::NotLimited(cause.to_string())))
}

/// Becomes the command; comes back only where it cannot.
pub(super) fn turn_into(job: &Job) -> Told {
    let mut command = match (command(job), File::open("/dev/null")) {
        (Ok(mut command), Ok(nothing)) => {
            // Opened before there may be no more files.
            command.stdin(nothing);
            command
        }
        (Err(cause), _) | (_, Err(cause)) => return not_started(job, &cause),
    };
    let entered = job.group.as_ref().map_or(Ok(()), |dir| Group::of(dir.clone()).enter());
    if let Err(cause) = entered {
        return Told::NotLimited(format!("entering its control group: {cause}"));
    }
    if let Err(why) = limits::take_on(&job.limits) {
        return Told::NotLimited(why);
    }
    not_started(job, &command.exec())
}
