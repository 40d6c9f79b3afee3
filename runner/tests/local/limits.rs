//! Limits of steps that are processes of this host.
//!
//! Per-process limits are tested for real. Control groups are simulated by a plain directory laid
//! out like a delegated group. That tests who enters the group and how its files are interpreted,
//! but not that the kernel enforces a limit.

use parking_lot::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use protocol::event::LogStream;
use protocol::id::Epoch;
use protocol::pipeline::{Limits, PullPolicy};
use runner::ports::{Gate, LogSink, RunScope, StepSpec, Steps as _, StopSignal, Workspace};
use test_support::conformance::StepBuilder;

use super::*;

/// A pipeline of one step `a` with limits.
fn limited(limits: &str, step: &str) -> TestDir {
    TestDir::new(&format!(
        "{{group: g, name: n, steps: [{{name: a, executor: local, with: {{limits: {{{limits}}}}}, {step}}}]}}"
    ))
}

fn last(events: &[Value]) -> String {
    events.last().unwrap()["message"].as_str().unwrap().to_owned()
}

#[test]
fn processes_of_a_step_have_its_limits_as_hard_limits() {
    let place = limited(
        "open-files: 64, processes: 30000, file-size: 1M, memory: 512M, cpu-time: 5, core-size: 0, stack: 4M",
        "script: ['sh -c \"cat /proc/self/limits\"']",
    );
    let (code, events) = place.events(&[], &[]);
    assert_eq!(code, Some(0), "{events:#?}");
    let lines = lines_of(&events, "a");
    for expected in [
        "Max open files 64 64 files",
        "Max processes 30000 30000 processes",
        "Max file size 1048576 1048576 bytes",
        "Max address space 536870912 536870912 bytes",
        "Max cpu time 5 6 seconds",
        "Max core file size 0 0 bytes",
        "Max stack size 4194304 4194304 bytes",
    ] {
        let has = |line: &String| line.split_whitespace().eq(expected.split(' '));
        assert!(lines.iter().any(has), "{expected} is missing in {lines:#?}");
    }
}

#[test]
fn a_step_with_minimal_limits_is_still_supervised() {
    let place = limited("open-files: 4, memory: 32M", "cmd: [/bin/echo, small]");
    let (code, events) = place.events(&[], &[]);
    assert_eq!((code, lines_of(&events, "a")), (Some(0), vec!["small".to_owned()]), "{events:#?}");
    let place = limited("memory: 64M", "cmd: dd if=/dev/zero of=/dev/null bs=256M count=1");
    let (code, events) = place.events(&[], &[]);
    assert!(code == Some(1) && last(&events).contains("exit code 1"), "{events:#?}");
}

#[test]
fn a_step_over_its_limit_ends_with_the_name_of_the_limit() {
    let place = limited("cpu-time: 1s", "cmd: [sh, -c, 'while :; do :; done']");
    let (code, events) = place.events(&[], &[]);
    assert!(code == Some(1) && last(&events).contains("its limit `cpu-time`"), "{events:#?}");
    let place = limited("file-size: 1M", "script: 'head -c 2000000 /dev/zero > big'");
    let (code, events) = place.events(&[], &[]);
    assert!(code == Some(1) && last(&events).contains("its limit `file-size`"), "{events:#?}");
    assert_eq!(place.path("big").metadata().unwrap().len(), 1 << 20);
}

#[test]
fn a_limit_above_the_workers_own_is_refused_before_the_step_starts() {
    let place = limited("open-files: 4294967295", "script: 'touch began'");
    let (code, events) = place.events(&[], &[]);
    let end = events.last().unwrap();
    assert!(code == Some(1) && end["cause"] == "rejected", "{end}");
    let said = last(&events);
    assert!(said.contains("`open-files` of 4294967295 is above ") && said.contains("LimitNOFILE="));
    assert!(!place.path("began").exists());
}

#[test]
fn a_missing_program_is_reported_under_limits_too() {
    let place = limited("core-size: 0", "cmd: no-such-program");
    let (code, events) = place.events(&[], &[]);
    assert!(code == Some(1) && last(&events).contains("no-such-program"), "{events:#?}");
    let ended = events.iter().find(|event| event["reason"] == "StepCompleted").unwrap();
    assert_eq!(ended["exit-code"], 127, "{ended}");
}

#[test]
fn a_step_with_limits_ends_with_all_its_processes() {
    let place = limited(
        "core-size: 0",
        "script: ['setsid sh -c \"echo \\$\\$ > pid; exec sleep 1000\" & while [ ! -s pid ]; do :; done']",
    );
    assert_eq!(place.run(&[]).output().unwrap().status.code(), Some(0));
    assert!(!is_there(pid_in(&place.path("pid")).unwrap()));
}

#[test]
fn limits_of_a_job_file_are_enforced() {
    let place = TestDir::new(
        "{ id: j, executor: custom, product: { script: 'ulimit -n', limits: { open_files: 77 } } }",
    );
    let (code, events) = place.events(&[], &[]);
    assert_eq!((code, lines_of(&events, "j")), (Some(0), vec!["77".to_owned()]));
}

#[test]
fn a_run_whose_limits_cannot_be_enforced_is_refused_with_a_hint() {
    if runner::exec::local::limits_refused(runner::exec::local::own_cgroup().as_deref()).is_none() {
        return;
    }
    let place = TestDir::new(
        "{group: g, name: n, quotas: {limits: {mem: 64M}}, steps: [
            {name: a, executor: local, script: 'touch began'}]}",
    );
    let (code, events) = place.events(&[], &[]);
    let end = events.last().unwrap();
    assert!(code == Some(1) && end["cause"] == "rejected", "{end}");
    assert!(last(&events).contains("Delegate=yes"), "{end}");
    assert!(!place.path("began").exists() && began(&events).is_empty());
}

/// Records the output of a step.
#[derive(Default)]
struct OutputRecorder(Mutex<Vec<u8>>);

#[async_trait]
impl LogSink for OutputRecorder {
    async fn write(&self, _stream: LogStream, bytes: Bytes) {
        self.0.lock().extend_from_slice(&bytes);
    }
}

fn spec(program: &str) -> StepSpec {
    let limits = Limits { cpu: "1.0".parse().ok(), mem: "64M".parse().ok() };
    let step = StepBuilder::new(0, ExecutorKind::Local).words(&["sh", "-c", program]);
    StepSpec { name: "a".parse().unwrap(), ..step.limits(limits).build() }
}

#[tokio::test]
async fn a_step_enters_its_own_control_group_and_kernel_events_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    std::fs::create_dir(&own).unwrap();
    for (file, text) in [
        ("cgroup.controllers", "cpu memory pids"),
        ("cgroup.procs", ""),
        ("cgroup.subtree_control", ""),
    ] {
        std::fs::write(own.join(file), text).unwrap();
    }
    let local = Local::new(Options { cgroup: Some(own.clone()), ..options(dir.path()) });
    assert_eq!(local.info().await.unwrap().limits_refused, None);
    let scope = RunScope {
        run: "r-limits".parse().unwrap(),
        epoch: Epoch(1),
        cluster: "c".into(),
        image: String::new(),
        pull: PullPolicy::Missing,
        has_own_images: false,
    };
    let group = own.join("r-limits.0-1");
    let program =
        format!("echo $$; echo 'oom_kill 1' > '{}/memory.events'; exit 137", group.display());
    let said = Arc::new(OutputRecorder::default());
    let out = Arc::clone(&said) as Arc<dyn LogSink>;
    let stop = StopSignal::default();
    let ran =
        local.run_step(&scope, &Workspace::None, &spec(&program), Gate::open(), out, &stop).await;
    let exit = ran.unwrap().exit;
    assert_eq!((exit.code, exit.oom), (137, true));
    let pid = String::from_utf8(said.0.lock().clone()).unwrap();
    assert_eq!(std::fs::read_to_string(group.join("cgroup.procs")).unwrap(), pid.trim());
    assert_eq!(std::fs::read_to_string(group.join("memory.max")).unwrap(), "67108864");
    assert_eq!(std::fs::read_to_string(group.join("cgroup.kill")).unwrap(), "1");
}
