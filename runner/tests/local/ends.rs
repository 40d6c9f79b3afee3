//! How `run` ends: by a signal, because of its size, or because its store fails. Also, what the
//! next run does about one that was killed.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::TestDir;
use test_support::skipped::{Need, skip};

const LOCAL: &str = "group: dev\nname: ends\nsteps:\n  - executor: local\n    name: only\n";

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), signal).unwrap();
}

/// Waits until a line of standard error contains a text. Returns the rest of the stream.
fn until(child: &mut Child, text: &str) -> BufReader<std::process::ChildStderr> {
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended before it printed {text:?}");
    }
    lines
}

fn rest(mut lines: BufReader<std::process::ChildStderr>) -> String {
    let mut text = String::new();
    lines.read_to_string(&mut text).unwrap();
    text
}

/// A run whose only step reports its start and waits.
fn waiting() -> TestDir {
    TestDir::new(&format!("{LOCAL}    cmd: [sh, -c, 'echo runs >&2; exec sleep 1000']\n"))
}

fn ended(mut child: Child) -> ExitStatus {
    // Another test covers blocked output.
    drop(child.stdout.take());
    child.wait().unwrap()
}

#[test]
fn sighup_stops_a_run_like_sigterm() {
    for asked in [Signal::HUP, Signal::TERM] {
        let place = waiting();
        let mut child = place.run(&[]).spawn().unwrap();
        let lines = until(&mut child, "runs");
        signal(&child, asked);
        let status = ended(child);
        assert_eq!(status.code(), Some(143), "{asked:?}: {}", rest(lines));
        let runs = place.0.path().join(".local/state/bob-runner/runs");
        assert!(std::fs::read_dir(runs).unwrap().next().is_none(), "{asked:?} left something");
    }
}

#[test]
fn sighup_stays_ignored_if_it_was_ignored_at_the_start() {
    let place =
        TestDir::new(&format!("{LOCAL}    cmd: [sh, -c, 'echo runs >&2; read -r x < go']\n"));
    let fifo = place.0.path().join("go");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let run = place.run(&[]);
    let mut command = Command::new("/bin/sh");
    // Like `nohup`.
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(run.get_program());
    command.args(run.get_args()).env_clear().current_dir(place.0.path());
    command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = until(&mut child, "runs");
    signal(&child, Signal::HUP);
    std::fs::write(&fifo, "on\n").unwrap();
    let status = ended(child);
    assert_eq!(status.code(), Some(0), "{}", rest(lines));
}

#[test]
fn a_signal_ends_a_run_whose_output_is_not_read() {
    // Far more than a pipe holds. The step reports its start on standard error, so that the test
    // knows when it writes.
    let place = TestDir::new(&format!(
        "{LOCAL}    cmd: [sh, -c, 'echo begins >&2; yes | head -c 50000000; exec sleep 1000']\n"
    ));
    let mut child = place.run(&[]).spawn().unwrap();
    let lines = until(&mut child, "begins");
    let unread = child.stdout.take().unwrap();
    signal(&child, Signal::TERM);
    let status = child.wait().unwrap();
    let said = rest(lines);
    assert_eq!(status.code(), Some(143), "{said}");
    assert!(said.contains("stopping the run"), "{said}");
    drop(unread);
}

#[test]
fn an_invalid_definition_is_rejected_before_any_step_starts() {
    let large = "x".repeat(600 * 1024);
    let place = TestDir::new(&format!("{LOCAL}    cmd: [echo, {large}]\n"));
    let run = place.run(&[]).output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(65), "{said}");
    assert!(said.contains("more than the limit of 512 KiB"), "{said}");
    assert!(!place.0.path().join(".local").exists(), "something was started");
    let valid = place.command(&["validate", "pipeline.yaml"]).output().unwrap();
    let said = String::from_utf8(valid.stdout).unwrap();
    assert_eq!(valid.status.code(), Some(65), "{said}");
    assert!(said.contains("more than the limit of 512 KiB"), "{said}");
}

#[test]
fn invalid_variables_are_rejected_before_any_step_starts() {
    let place = TestDir::new(&format!("{LOCAL}    cmd: 'true'\n"));
    // One argument can have at most 128 KiB.
    let values: Vec<String> = (0..18).map(|n| format!("V{n}={}", "x".repeat(100_000))).collect();
    let typed: Vec<&str> = values.iter().flat_map(|value| ["--var", value]).collect();
    let run = place.run(&typed).output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(65), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("error:")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(errors[0].contains("more than the limit of 512 KiB"), "{said}");
    assert!(!place.0.path().join(".local").exists(), "something was started");
}

#[test]
fn the_next_run_removes_the_objects_of_a_killed_one() {
    let place = waiting();
    let id = format!("r-killed-{}", std::process::id());
    let mut child = place.run(&["--run-id", &id]).spawn().unwrap();
    let lines = until(&mut child, "runs");
    signal(&child, Signal::KILL);
    ended(child);
    drop(lines);
    let left = place.0.path().join(".local/state/bob-runner/runs").join(&id);
    assert!(left.exists());
    std::fs::write(
        place.0.path().join("pipeline.yaml"),
        format!("{LOCAL}    cmd: [sh, -c, 'echo runs >&2']\n"),
    )
    .unwrap();
    let next = place.run(&[]).output().unwrap();
    let said = String::from_utf8(next.stderr).unwrap();
    assert_eq!(next.status.code(), Some(0), "{said}");
    assert!(said.contains(&format!("removed what run {id} left")), "{said}");
    assert!(!left.exists());
}

#[test]
fn the_id_of_a_killed_run_can_be_used_again_but_not_that_of_a_running_one() {
    let place = waiting();
    let same = format!("r-same-{}", std::process::id());
    let id = ["--run-id", same.as_str()];
    let mut child = place.run(&id).spawn().unwrap();
    let lines = until(&mut child, "runs");
    // The same data directory, and another one of the same user.
    let other = place.0.path().join("elsewhere");
    for data_dir in [None, Some(other.to_str().unwrap())] {
        let mut second = place.run(&id);
        second.envs(data_dir.map(|dir| ("BOB_DATA_DIR", dir)));
        let second = second.output().unwrap();
        let said = String::from_utf8(second.stderr).unwrap();
        assert_eq!(second.status.code(), Some(65), "{said}");
        assert!(said.contains(&format!("run {same} is running already")), "{said}");
    }
    signal(&child, Signal::KILL);
    ended(child);
    drop(lines);
    std::fs::write(place.0.path().join("pipeline.yaml"), format!("{LOCAL}    cmd: 'true'\n"))
        .unwrap();
    let again = place.run(&id).output().unwrap();
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stderr));
}

/// A command whose data directory is a small disk that only it can see, and that directory. `None`
/// without root, who alone can mount one.
fn on_small_disk(place: &TestDir, typed: &[&str], size: &str) -> Option<(Command, String)> {
    if !rustix::process::geteuid().is_root() {
        skip(&["root, to mount a small disk"], Need::Ci);
        return None;
    }
    let data_dir = place.0.path().join("data");
    std::fs::create_dir(&data_dir).unwrap();
    let program = place.command(typed);
    let mut command = Command::new("unshare");
    let line = format!("mount -t tmpfs -o size={size} tmpfs data && exec \"$@\"");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &line, "sh"]);
    command.arg(program.get_program()).args(program.get_args()).env_clear();
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("BOB_DATA_DIR", &data_dir).current_dir(place.0.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Some((command, data_dir.display().to_string()))
}

fn assert_full(mut command: Command, data_dir: &str) {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    let expected = format!("cannot write BOB_DATA_DIR ({data_dir}): no space left on device");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(errors, [format!("error: {expected}")], "{said}");
}

#[test]
fn a_run_ends_with_one_error_if_its_data_directory_is_full() {
    for size in ["64k", "1m", "64m"] {
        let step = "[sh, -c, 'yes | head -c 200000000; exec sleep 1000']";
        let place = TestDir::new(&format!("{LOCAL}    cmd: {step}\n"));
        let typed = ["run", "pipeline.yaml"];
        let Some((command, data_dir)) = on_small_disk(&place, &typed, size) else { return };
        assert_full(command, &data_dir);
    }
}

#[test]
fn a_server_ends_with_one_error_if_its_data_directory_is_full() {
    for size in ["64k", "16m"] {
        let place = TestDir::new("");
        let queue = place.0.path().join("queue");
        std::fs::write(&queue, "yes | head -c 200000000; exec sleep 1000\n").unwrap();
        let typed = ["serve", "--mode", "embedded"];
        let Some((mut command, data_dir)) = on_small_disk(&place, &typed, size) else { return };
        command.env("BOB_EXECUTORS", "local").env("BOB_CI_QUEUE", &queue);
        assert_full(command, &data_dir);
    }
}
