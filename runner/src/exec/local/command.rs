//! The command of a job, and the report if it cannot be started.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Pid;
use serde::Serialize;

use super::word::{CommandOutcome, Job};
use crate::exec::unexecutable::{self, HEAD_BYTES, Head};

/// The command of a job, ready to start.
pub(super) fn command(job: &Job) -> std::io::Result<Command> {
    let mut words = job.words.iter();
    let Some(program) = words.next() else {
        return Err(std::io::Error::other("there is nothing to run"));
    };
    let mut command = Command::new(program);
    command
        .args(words)
        .env_clear()
        .envs(job.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&job.dir)
        .stdin(Stdio::null());
    Ok(command)
}

pub(super) fn pid_of(child: &Child) -> std::io::Result<Pid> {
    Pid::from_raw(i32::try_from(child.id()).map_err(std::io::Error::other)?)
        .ok_or_else(|| std::io::Error::other("a process without an id"))
}

/// Writes one message as a line.
pub(super) fn tell(to: &mut UnixStream, what: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// The report for a command that could not be started.
pub(super) fn not_started(job: &Job, cause: &std::io::Error) -> CommandOutcome {
    let is_missing = cause.kind() == std::io::ErrorKind::NotFound;
    let program = job.words.first().map(|word| word.to_string_lossy()).unwrap_or_default();
    let why = if job.dir.is_dir() {
        unexecutable::cause(&program, &said(cause), &head(job))
    } else {
        format!("its working directory {} cannot be entered: {}", job.dir.display(), said(cause))
    };
    CommandOutcome::NotStarted { code: if is_missing { 127 } else { 126 }, cause: why }
}

/// The kernel's message without the number of the error.
fn said(cause: &std::io::Error) -> String {
    let text = cause.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// The beginning of the program of a job.
fn head(job: &Job) -> Head {
    let Some(program) = job.words.first().map(Path::new) else { return Head::Unknown };
    let path = if program.components().count() > 1 || program.is_absolute() {
        Some(job.dir.join(program))
    } else {
        let paths = job.env.iter().rfind(|(name, _)| name == "PATH").map(|(_, value)| value);
        let mut paths = paths.into_iter().flat_map(|paths| std::env::split_paths(paths));
        paths.find_map(|dir| Some(job.dir.join(dir).join(program)).filter(|path| path.is_file()))
    };
    let Some(path) = path.filter(|path| path.exists()) else { return Head::Missing };
    let mut bytes = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut bytes));
    read.map_or(Head::Unknown, |_| Head::Bytes(bytes))
}
