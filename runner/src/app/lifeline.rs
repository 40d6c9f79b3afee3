//! Ends a service started by a worker when the worker ends, even by SIGKILL.
//!
//! The service is a child of this program in lifeline mode. The worker holds a pipe to the
//! lifeline's standard input. The worker's guard holds a connection to a socket in the directory of
//! the service, because it needs the service to kill the containers of a dead worker. When all of
//! these ends are closed, the lifeline ends the service and removes the directory.

use std::io::{self, Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::process::{Pid, Signal, kill_process_group};

/// The argument that makes this program a lifeline.
pub const LIFELINE: &str = "lifeline";
/// The socket in the directory of the service.
const SOCKET: &str = "lifeline.sock";
/// How long a holder waits for the answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// The time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// Keeps the service at an engine's URL alive, if a worker has started it, until the returned
/// connection is dropped.
#[must_use]
pub fn keep_alive(engine_url: &str) -> Option<UnixStream> {
    let socket = Path::new(engine_url.strip_prefix("unix://")?);
    let mut end = UnixStream::connect(socket.parent()?.join(SOCKET)).ok()?;
    // The lifeline answers once it counts this connection.
    end.set_read_timeout(Some(ANSWERS_WITHIN)).ok()?;
    end.read_exact(&mut [0]).ok()?;
    Some(end)
}

/// Runs a service until it ends or has no holder left, then removes its directory.
///
/// # Errors
/// If the service cannot be started.
pub fn hold(dir: &Path, program: &mut Command) -> io::Result<ExitStatus> {
    let held = run(io::stdin(), dir, program);
    // If the worker is alive, it removes the directory too.
    std::fs::remove_dir_all(dir).ok();
    held
}

fn run(
    worker: impl Read + Send + 'static,
    dir: &Path,
    program: &mut Command,
) -> io::Result<ExitStatus> {
    let listener = UnixListener::bind(dir.join(SOCKET))?;
    let mut service = program.stdin(Stdio::null()).process_group(0).spawn()?;
    let group = i32::try_from(service.id()).ok().and_then(Pid::from_raw);
    let shared = Arc::new(Shared::default());
    hold_while_open(&shared, worker)?;
    let accepts = Arc::clone(&shared);
    spawn(move || {
        // If no thread can be started, the connection is closed and does not count.
        listener.incoming().flatten().for_each(|one| drop(accept(&accepts, one)));
    })?;
    let ends = Arc::clone(&shared);
    spawn(move || ends.end_when_nobody_holds(group))?;
    let status = service.wait();
    shared.lock().has_ended = true;
    shared.changed.notify_all();
    status
}

fn spawn(task: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().spawn(task).map(drop)
}

fn accept(shared: &Arc<Shared>, end: UnixStream) -> io::Result<()> {
    let mut answer = end.try_clone()?;
    hold_while_open(shared, end)?;
    answer.write_all(b"+")
}

/// Counts a holder until its end is closed. Bytes that it sends are ignored.
fn hold_while_open(shared: &Arc<Shared>, mut end: impl Read + Send + 'static) -> io::Result<()> {
    let holder = Holder::new(Arc::clone(shared));
    spawn(move || {
        drop(io::copy(&mut end, &mut io::sink()));
        drop(holder);
    })
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    holders: usize,
    has_ended: bool,
}

/// A connection that keeps the service alive.
struct Holder(Arc<Shared>);

impl Holder {
    fn new(shared: Arc<Shared>) -> Self {
        shared.lock().holders += 1;
        Self(shared)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.lock().holders -= 1;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn end_when_nobody_holds(&self, group: Option<Pid>) {
        let mut state = self.lock();
        self.changed.wait_while(&mut state, |state| state.holders > 0 && !state.has_ended);
        kill(group, &state, Signal::TERM);
        self.changed.wait_while_for(&mut state, |state| !state.has_ended, GRACE);
        kill(group, &state, Signal::KILL);
    }
}

/// Signals the group of the service unless it has ended: the id could have been reused.
fn kill(group: Option<Pid>, state: &State, signal: Signal) {
    if let (Some(group), false) = (group, state.has_ended) {
        // The group might already be gone.
        kill_process_group(group, signal).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("1000");
        command
    }

    #[test]
    fn a_service_ends_when_its_last_user_releases_it() {
        let dir = tempfile::tempdir().unwrap();
        let (read, write) = std::io::pipe().unwrap();
        let path = dir.path().to_owned();
        let held = std::thread::spawn(move || run(read, &path, &mut sleeper()));
        let url = format!("unix://{}", dir.path().join("podman.sock").display());
        let guard = loop {
            match keep_alive(&url) {
                Some(guard) => break guard,
                None => std::thread::yield_now(),
            }
        };
        drop(write);
        assert!(!held.is_finished(), "the guard holds on");
        drop(guard);
        let status = held.join().unwrap().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    }

    #[test]
    fn a_service_that_exits_on_its_own_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (read, _write) = std::io::pipe().unwrap();
        let mut program = Command::new("sh");
        let status = run(read, dir.path(), program.args(["-c", "exit 7"])).unwrap();
        assert_eq!(status.code(), Some(7));
    }

    #[test]
    fn an_address_without_an_own_service_has_no_lifeline() {
        assert!(keep_alive("http://localhost:8080").is_none());
        assert!(keep_alive("unix:///nonexistent/podman.sock").is_none());
    }
}
