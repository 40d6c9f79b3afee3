//! Steps as commands on another host: a real sshd on loopback for each test.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use protocol::event::LogStream;
use protocol::id::Epoch;
use protocol::pipeline::{ExecutorKind, Limits, PullPolicy, Shell, Vars};
use runner::egress::Policy;
use runner::exec::local::{Local, Options as LocalOptions};
use runner::exec::ssh::{Options, Ssh};
use runner::exec::{Executors, NamedFiles};
use runner::ports::{
    ExecError, Executor, Gate, LogSink, Remote, RunScope, StepOutcome, StepSpec, StopLevel,
    StopSignal,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};
use test_support::conformance::{Act, ExecutorSubject, StepBuilder, remote};
use tokio::sync::Notify;

mod broken;
mod entry;
mod jobs;
mod reach;
mod server;
mod shells;

use server::Server;

/// Records the output of a step.
#[derive(Default)]
struct OutputRecorder {
    streams: Mutex<(Vec<u8>, Vec<u8>)>,
    more: Notify,
}

#[async_trait]
impl LogSink for OutputRecorder {
    async fn write(&self, stream: LogStream, bytes: Bytes) {
        let mut streams = self.streams.lock();
        let kept = if stream == LogStream::Stdout { &mut streams.0 } else { &mut streams.1 };
        kept.extend_from_slice(&bytes);
        drop(streams);
        self.more.notify_one();
    }
}

impl OutputRecorder {
    fn out(&self) -> Vec<u8> {
        self.streams.lock().0.clone()
    }

    fn text(&self) -> String {
        String::from_utf8(self.out()).unwrap()
    }

    /// Waits for the first complete lines of standard output.
    async fn lines(&self, count: usize) -> Vec<String> {
        loop {
            let text = self.text();
            if text.matches('\n').count() >= count {
                return text.lines().take(count).map(str::to_owned).collect();
            }
            self.more.notified().await;
        }
    }
}

fn ssh() -> Ssh {
    let inherited = std::env::vars_os().filter(|(name, _)| name == "PATH").collect();
    Ssh::new(Options {
        program: "ssh".into(),
        inherited,
        policy: Policy::unrestricted(),
        named: NamedFiles::any(),
    })
}

fn scope() -> RunScope {
    RunScope {
        run: "r-ssh".parse().unwrap(),
        epoch: Epoch(1),
        cluster: "test".into(),
        image: String::new(),
        pull: PullPolicy::Never,
        has_own_images: false,
    }
}

fn step(with: Map<String, Value>, program: &str) -> StepSpec {
    StepBuilder::new(0, ExecutorKind::Ssh).script(Shell::Sh, &[program]).with(with).build()
}

/// Waits with a timeout. Generous, because a busy host is not an error.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), future).await.expect(what)
}

/// Runs a step to its end.
async fn run(step: &StepSpec) -> (Result<StepOutcome, ExecError>, Arc<OutputRecorder>) {
    let (kept, stop) = (Arc::new(OutputRecorder::default()), StopSignal::default());
    let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
    let (ssh, scope) = (ssh(), scope());
    let ran = ssh.run_step(&scope, step, Gate::open(), out, &stop);
    (soon("the end of a step", ran).await, kept)
}

/// The exit code and the standard output of a step.
async fn ended(step: &StepSpec) -> (i32, String) {
    let (ran, kept) = run(step).await;
    (ran.unwrap().exit.code, kept.text())
}

/// A step in progress. It can be dropped while the step runs.
struct Running {
    ran: tokio::task::JoinHandle<Result<StepOutcome, ExecError>>,
    kept: Arc<OutputRecorder>,
    stop: StopSignal,
}

impl Running {
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or drops it on purpose")]
    fn start(step: StepSpec) -> Self {
        let (kept, stop) = (Arc::new(OutputRecorder::default()), StopSignal::default());
        let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
        let signal = stop.clone();
        let ran = tokio::spawn(async move {
            ssh().run_step(&scope(), &step, Gate::open(), out, &signal).await
        });
        Self { ran, kept, stop }
    }

    /// The process ids that the step has written, one per line.
    async fn pids(&self, count: usize) -> Vec<u32> {
        let lines = soon("the ids of processes", self.kept.lines(count)).await;
        let pids: Vec<u32> = lines.iter().map(|line| line.parse().unwrap()).collect();
        assert!(pids.iter().all(|pid| is_there(*pid)), "they run: {pids:?}");
        pids
    }

    async fn end(self) -> Result<StepOutcome, ExecError> {
        soon("the end of a step", self.ran).await.unwrap()
    }
}

fn is_there(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

async fn all_gone(pids: &[u32]) {
    let gone = async {
        while pids.iter().any(|pid| is_there(*pid)) {
            tokio::task::yield_now().await;
        }
    };
    soon("the end of all processes", gone).await;
}

#[tokio::test]
async fn remote_commands_pass_the_executor_conformance_suite() {
    let Some(server) = Server::start() else { return };
    let executor = || -> Arc<dyn Executor> {
        let local = Local::new(LocalOptions {
            supervisor: ("/nowhere".into(), Vec::new()),
            runs: server.path("runs"),
            work_dir: None,
            cgroup: None,
            inherited: Vec::new(),
            memory: Vec::new(),
        });
        Arc::new(Executors::new(None, Arc::new(local)).with(ExecutorKind::Ssh, Arc::new(ssh())))
    };
    remote(ExecutorSubject {
        prefix: "suite".into(),
        executor: executor(),
        other: executor(),
        kind: ExecutorKind::Ssh,
        with: server.with(),
        has_a_shell: true,
        on_images: false,
        dir: server.dir.path().display().to_string(),
        image: String::new(),
        missing: String::new(),
        words: Act::shell_words,
    })
    .await;
}

#[tokio::test]
async fn a_step_has_the_result_of_its_remote_program() {
    let Some(server) = Server::start() else { return };
    for (program, code) in [
        ("true", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("exit 127", 127),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        ("sh -c 'kill -SEGV $$'", 139),
    ] {
        assert_eq!(ended(&step(server.with(), program)).await.0, code, "{program}");
    }
}

#[tokio::test]
async fn a_step_has_empty_input_and_its_leftover_processes_end_with_it() {
    let Some(server) = Server::start() else { return };
    let begun = step(server.with(), "cat; sleep 1000 & echo $!");
    let (code, text) = ended(&begun).await;
    assert_eq!(code, 0);
    all_gone(&[text.trim().parse().unwrap()]).await;
}

#[tokio::test]
async fn a_line_of_one_mebibyte_arrives_complete_on_both_streams() {
    let Some(server) = Server::start() else { return };
    // Bytes that are not text, and no newline at the end.
    let pattern: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').cycle().take(1 << 20).collect();
    std::fs::write(server.path("line"), &pattern).unwrap();
    let path = server.path("line");
    let (ran, kept) =
        run(&step(server.with(), &format!("cat {0} & cat {0} >&2; wait", path.display()))).await;
    assert_eq!(ran.unwrap().exit.code, 0);
    let streams = kept.streams.lock();
    assert!(streams.0 == pattern, "standard output: {} bytes", streams.0.len());
    assert!(streams.1 == pattern, "standard error: {} bytes", streams.1.len());
}

#[tokio::test]
async fn a_bash_program_is_run_by_bash_and_several_are_refused() {
    let Some(server) = Server::start() else { return };
    let of = |programs: &[&str]| {
        let step = StepBuilder::new(0, ExecutorKind::Ssh).with(server.with());
        step.script(Shell::Bash, programs).build()
    };
    let (code, text) = ended(&of(&["declare -A map=([k]=v); echo ${map[k]}"])).await;
    assert_eq!((code, text.as_str()), (0, "v\n"));
    match run(&of(&["true", "true"])).await.0 {
        Err(ExecError::Unsupported(why)) => assert!(why.contains("several programs"), "{why}"),
        other => panic!("it must be refused: {other:?}"),
    }
}

#[test]
fn the_program_runs_a_pipeline_on_another_host() {
    let Some(server) = Server::start() else { return };
    let pipeline = json!({ "group": "g", "name": "n", "steps": [
        { "name": "a", "executor": "ssh", "with": server.with(), "vars": { "WORD": "it's" },
          "script": ["echo \"$WORD there\""] },
        { "name": "b", "executor": "ssh", "with": server.with(), "cmd": ["sh", "-c", "exit 9"] },
    ]});
    let path = server.path("pipeline.json");
    std::fs::write(&path, pipeline.to_string()).unwrap();
    let said = std::process::Command::new(env!("CARGO_BIN_EXE_bob-runner"))
        .arg("run")
        .arg(&path)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", server.dir.path())
        .current_dir(server.dir.path())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(out.contains("it's there"), "{out} {err}");
    assert!(format!("{out}{err}").contains("exit code 9"), "{out} {err}");
    assert_eq!(said.status.code(), Some(1));
}

/// The `ssh` process that this process started for a port.
fn client_of(port: u16) -> PathBuf {
    let own = std::process::id().to_string();
    let wanted = format!("-p\0{port}\0");
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut found = entries.map(|entry| entry.path()).filter(|path| {
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
        let stat = read("stat");
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        parent == Some(own.as_str()) && read("cmdline").contains(&wanted)
    });
    found.next().expect("there is a client")
}

fn kill(process: &Path) {
    let pid: i32 = process.file_name().unwrap().to_str().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}
