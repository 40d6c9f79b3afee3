//! Steps as processes of this host, supervised by the program.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::pipeline::ExecutorKind;
use runner::exec::Executors;
use runner::exec::local::{Local, Options};
use serde_json::Value;
use test_support::conformance::{Act, ExecutorSubject, executor};

mod ends;
mod folder;
mod job;
mod limits;
mod messages;
mod outputs;
mod prunner;
mod secrets;
mod settings;

fn local(dir: &Path) -> Local {
    Local::new(options(dir))
}

fn options(dir: &Path) -> Options {
    Options {
        supervisor: (env!("CARGO_BIN_EXE_bob-runner").into(), vec!["supervise".into()]),
        runs: dir.join("runs"),
        work_dir: None,
        cgroup: None,
        memory: vec!["/dev/shm".into()],
        inherited: std::env::vars_os().filter(|(name, _)| name == "PATH").collect(),
    }
}

#[tokio::test]
async fn host_processes_pass_the_executor_conformance_suite() {
    let dir = tempfile::tempdir().unwrap();
    executor(ExecutorSubject {
        prefix: "suite".into(),
        executor: Arc::new(Executors::new(None, Arc::new(local(dir.path())))),
        other: Arc::new(Executors::new(None, Arc::new(local(dir.path())))),
        kind: ExecutorKind::Local,
        with: serde_json::Map::new(),
        has_a_shell: true,
        on_images: false,
        dir: dir.path().display().to_string(),
        image: String::new(),
        missing: String::new(),
        words: Act::shell_words,
    })
    .await;
}

/// A directory with a pipeline, in which the program runs.
struct TestDir(tempfile::TempDir);

impl TestDir {
    fn new(pipeline: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pipeline.yaml"), pipeline).unwrap();
        Self(dir)
    }

    /// The program without any engine.
    fn run(&self, typed: &[&str]) -> Command {
        let mut command = self.command(&["run", "pipeline.yaml"]);
        command.args(typed);
        command
    }

    fn command(&self, typed: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bob-runner"));
        command
            .args(typed)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.0.path())
            // Tests run concurrently, and only one can have the default port.
            .env("BOB_HTTP_ADDRESS", "off")
            .env("CONTAINER_HOST", "unix:///nowhere")
            .env("GREETING", "hello")
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it to its end. Returns the exit code and the events.
    fn events(&self, typed: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, Vec<Value>) {
        let mut command = self.run(typed);
        let said = command.args(["-o", "json"]).envs(variables.iter().copied()).output().unwrap();
        let lines = String::from_utf8(said.stdout).unwrap();
        let events = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (said.status.code(), events)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// The lines of a step's standard output.
fn lines_of(events: &[Value], step: &str) -> Vec<String> {
    let of_step = events.iter().filter(|event| event["reason"] == "Log" && event["step"] == step);
    let out = of_step.filter(|event| event["stream"] == "stdout");
    let text: Vec<&str> = out.filter_map(|event| event["message"].as_str()).collect();
    text.join("\n").lines().map(str::to_owned).collect()
}

/// The steps in the order in which they started.
fn began(events: &[Value]) -> Vec<&str> {
    let began = events.iter().filter(|event| event["reason"] == "StepStarted");
    began.filter_map(|event| event["step"].as_str()).collect()
}

/// Waits for a condition with a timeout.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain: {what}");
        std::thread::yield_now();
    }
}

fn pid_in(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn is_there(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_pipeline_of_host_steps_needs_no_engine_and_runs_in_the_current_directory() {
    let place = TestDir::new(
        "{group: g, name: n, steps: [
          {name: a, executor: local, script: ['echo $GREETING > a.txt'], needs: []},
          {name: b, executor: local, cmd: 'sh -c \"echo b > b.txt\"', needs: []},
          {name: all, needs: [a, b]},
          {name: c, executor: local, script: ['cat a.txt b.txt'], needs: [all]}]}",
    );
    let said = place.run(&[]).output().unwrap();
    let out = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said.status.code(), Some(0), "{out} {}", String::from_utf8_lossy(&said.stderr));
    assert!(out.contains("hello") && out.contains('b'), "{out}");
    assert!(place.path("a.txt").exists());
}

#[test]
fn bash_programs_share_state_and_an_exit_ends_only_its_own_program() {
    let place = TestDir::new(
        "{group: g, name: n, steps: [{name: a, executor: local, shell: bash, script: [
            'declare -A map=([k]=v); f() { echo \"f of ${map[k]}\"; }; cd /; exit 0',
            'f; [ \"$PWD\" != / ] && echo back', 'exit 3', 'echo never']}]}",
    );
    let said = place.run(&[]).output().unwrap();
    let out = String::from_utf8_lossy(&said.stdout);
    assert!(out.contains("f of v") && out.contains("back") && !out.contains("never"), "{out}");
    let err = String::from_utf8_lossy(&said.stderr);
    assert!(err.contains("exit code 3") || out.contains("exit code 3"), "{out} {err}");
    assert_eq!(said.status.code(), Some(1));
}

#[test]
fn a_graph_of_1000_steps_passes_within_the_parallelism_limit() {
    let steps: String = (0..999)
        .map(|at| format!("{{name: s{at}, executor: local, cmd: [sh, -c, ':'], needs: []}},"))
        .collect();
    let needs = (0..999).map(|at| format!("s{at}")).collect::<Vec<_>>().join(", ");
    let place = TestDir::new(&format!(
        "{{group: g, name: n, steps: [{steps}
          {{name: last, executor: local, cmd: [echo, done], needs: [{needs}]}}]}}"
    ));
    let (code, events) = place.events(&[], &[("BOB_MAX_PARALLEL_STEPS", "16")]);
    assert_eq!(code, Some(0));
    let (mut now, mut most, mut ended) = (0_i32, 0, 0);
    for event in &events {
        match event["reason"].as_str() {
            Some("StepStarted") => now += 1,
            Some("StepCompleted") => {
                assert_eq!(event["exit-code"], 0);
                (now, ended) = (now - 1, ended + 1);
            }
            _ => {}
        }
        most = most.max(now);
    }
    assert_eq!((now, most, ended), (0, 16, 1000));
    assert_eq!(began(&events).last(), Some(&"last"));
}

#[test]
fn processes_that_a_step_leaves_running_end_with_it() {
    let place = TestDir::new(
        "{group: g, name: n, steps: [{name: a, executor: local, script: [
            'setsid sh -c \"echo \\$\\$ > pid; exec sleep 1000\" & while [ ! -s pid ]; do :; done']}]}",
    );
    assert_eq!(place.run(&[]).output().unwrap().status.code(), Some(0));
    let pid = pid_in(&place.path("pid")).unwrap();
    assert!(!is_there(pid), "it had a session of its own");
}

#[test]
fn a_step_and_all_its_processes_die_with_its_worker() {
    let place = TestDir::new(
        "{group: g, name: n, steps: [{name: a, executor: local, script: [
            'setsid sh -c \"trap : TERM; echo \\$\\$ > pid; while :; do sleep 1000; done\" & wait']}]}",
    );
    let mut worker = place.run(&[]).spawn().unwrap();
    let pid = until("the step runs", || pid_in(&place.path("pid")));
    assert!(is_there(pid));
    worker.kill().unwrap();
    worker.wait().unwrap();
    until("its process has ended", || (!is_there(pid)).then_some(()));
}

#[test]
fn a_step_does_not_inherit_the_settings_of_its_worker() {
    let place = TestDir::new("{group: g, name: n, steps: [{name: a, executor: local, cmd: env}]}");
    let mut command = place.run(&[]);
    let said = command.env("BOB_RABBITMQ_PASSWORD", "s3cret").env("HOME_OF", "x").output().unwrap();
    let out = String::from_utf8_lossy(&said.stdout);
    assert!(out.contains("HOME_OF=x") && !out.contains("s3cret"), "{out}");
}

#[test]
fn the_examples_of_other_dialects_pass() {
    let place = TestDir::new("");
    for (name, typed, last) in [
        ("pipelines.yml", &["--var", "tag=v1"][..], "packing v1\n"),
        ("ci-job-queue", &[], "one command a line\n"),
    ] {
        let path = format!("{}/../examples/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::copy(path, place.path(name)).unwrap();
        let mut command = place.command(&["run", name]);
        let said = command.args(typed).output().unwrap();
        let (out, err) = (said.stdout, String::from_utf8_lossy(&said.stderr));
        assert_eq!(said.status.code(), Some(0), "{name}: {err}");
        assert!(String::from_utf8_lossy(&out).ends_with(last), "{name}");
    }
}

#[test]
fn one_of_several_pipelines_must_be_named_and_the_dialect_can_be() {
    let place =
        TestDir::new("pipelines: { a: { tasks: {} }, b: { tasks: { t: { script: [echo] } } } }");
    let said = place.run(&[]).output().unwrap();
    let err = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.code() == Some(65) && err.contains("--pipeline: a, b"), "{err}");
    assert_eq!(began(&place.events(&["--pipeline", "b"], &[]).1), ["t"]);
    let said = place.run(&["--pipeline", "c"]).output().unwrap();
    let err = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.code() == Some(65) && err.contains("no pipeline \"c\""), "{err}");
    let line = TestDir::new("echo of a line");
    let (code, events) = line.events(&["--dialect", "ci"], &[]);
    assert_eq!((code, lines_of(&events, "0")), (Some(0), vec!["of a line".to_owned()]));
}
