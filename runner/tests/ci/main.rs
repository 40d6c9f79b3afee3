//! Jobs as lines of a queue file, and the process that runs them. Test names begin with the row of
//! the acceptance table.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic, and waits")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

mod crash;
mod jobs;
mod rows;

/// A directory with a queue file and a server's state.
struct TestDir(tempfile::TempDir);

impl TestDir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn queue(&self) -> PathBuf {
        self.path("ci-job-queue")
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The program as called by a user who names the queue file.
    fn command(&self, program: &Path, typed: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(typed)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.0.path())
            // Tests run concurrently, and only one can have the default port.
            .env("BOB_HTTP_ADDRESS", "off")
            .env("BOB_CI_QUEUE", self.queue())
            // Jobs use it to name files.
            .env("D", self.0.path())
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn program(&self, typed: &[&str]) -> Command {
        self.command(Path::new(env!("CARGO_BIN_EXE_bob-runner")), typed)
    }

    /// Adds a job and returns its run id.
    fn add(&self, typed: &[&str]) -> String {
        id_of(self.program(&["add"]).args(typed).spawn().unwrap())
    }

    /// Starts a server and waits until it has written its first line.
    fn serve(&self, settings: &[(&str, &str)]) -> Server {
        let log = self.path(&format!("log-{}", uuid::Uuid::new_v4()));
        let mut command = self.program(&["serve", "--mode", "embedded"]);
        command
            .env("BOB_EXECUTORS", "local")
            .env("BOB_LOG_FORMAT", "ci")
            .env("BOB_KILL_GRACE_SECONDS", "2")
            .env("BOB_CI_DELAY", "1s")
            .envs(settings.iter().copied())
            .stdout(File::create(&log).unwrap())
            .stderr(File::create(log.with_extension("err")).unwrap());
        Server { child: command.spawn().unwrap(), log }
    }
}

/// The id that `add` prints.
fn id_of(adding: Child) -> String {
    let said = adding.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8(said.stdout).unwrap(), String::from_utf8(said.stderr));
    assert!(said.status.success(), "{err:?}");
    assert!(out.starts_with("r-") && out.lines().count() == 1, "{out}");
    out.trim().to_owned()
}

/// A running server, killed when dropped.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Its log so far.
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Its log lines with a level and a text.
    fn lines(&self, level: &str, about: &str) -> Vec<String> {
        let (level, log) = (format!("] [{level}] "), self.log());
        let fits = |line: &&str| line.contains(&level) && line.contains(about);
        log.lines().filter(fits).map(str::to_owned).collect()
    }

    /// Waits for such a log line.
    fn says(&self, level: &str, about: &str) {
        until(&format!("[{level}] {about}"), &self.log, || {
            (!self.lines(level, about).is_empty()).then_some(())
        });
    }

    fn passed(&self, run: &str) {
        self.says("INFO", &format!("run {run} passed"));
    }

    /// Waits for another condition.
    fn until<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        until(what, &self.log, look)
    }

    /// Ends it like a service manager and returns its log.
    fn end(mut self) -> String {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        let err = std::fs::read_to_string(self.log.with_extension("err")).unwrap();
        assert!(status.success() && err.is_empty(), "{status} {err} {}", self.log());
        self.log()
    }

    /// Kills it.
    fn kill(mut self) -> ExitStatus {
        self.child.kill().unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits for a condition with a timeout.
fn until<T>(what: &str, log: &Path, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        let waited = begun.elapsed() > Duration::from_secs(240);
        assert!(!waited, "in vain: {what}\n{}", std::fs::read_to_string(log).unwrap_or_default());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_there(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
