//! The program's command line, without any service.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

mod files;

/// A directory, with an environment that has only the path.
struct TestDir {
    dir: TempDir,
}

struct ProgramOutput {
    code: i32,
    out: String,
    err: String,
}

impl TestDir {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, typed: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bob-runner"));
        command
            .args(typed)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            // Tests run concurrently, and only one can have the default port.
            .env("BOB_HTTP_ADDRESS", "off")
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    fn say(&self, typed: &[&str]) -> ProgramOutput {
        said(&self.command(typed).output().unwrap())
    }

    fn say_with(&self, typed: &[&str], variables: &[(&str, &str)]) -> ProgramOutput {
        said(&self.command(typed).envs(variables.iter().copied()).output().unwrap())
    }

    fn say_to(&self, typed: &[&str], input: &str) -> ProgramOutput {
        let mut child = self
            .command(typed)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        said(&child.wait_with_output().unwrap())
    }
}

fn said(output: &Output) -> ProgramOutput {
    ProgramOutput {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout.clone()).unwrap(),
        err: String::from_utf8(output.stderr.clone()).unwrap(),
    }
}

const GOOD: &str = "group: dev\nname: hello\nimage: docker.io/library/busybox\nsteps:\n  - cmd: echo hi\n  - name: last\n    cmd: [\"true\"]\n";

const BAD: &str = "group: dev\nnam: hello\nimage: docker.io/library/busybox\nsteps:\n  - cmd: 7\n  - vars: {a: 1}\n";

/// Addresses without a listener.
const NOWHERE: [(&str, &str); 5] = [
    ("BOB_QUEUE_URL", "amqp://127.0.0.1:1"),
    ("BOB_STORAGE_URLS", "http://127.0.0.1:1"),
    ("CONTAINER_ENGINE_URL", "unix:///nonexistent/podman.sock"),
    ("BOB_CONNECTION_RETRY_ATTEMPTS", "1"),
    ("BOB_CONNECTION_RETRY_DELAY", "0"),
];

#[test]
fn the_guard_command_rejects_being_started_by_hand() {
    let (place, typed) = (TestDir::new(), ["guard", "--level", "info", "--form", "text", "n"]);
    let said = place.say(&typed);
    assert!(said.code == 1 && said.err.contains("started by `bob-runner serve`"), "{}", said.err);
    assert_eq!(place.say_to(&typed, "").code, 0, "its worker died at once");
}

#[test]
fn help_has_examples_and_exits_with_0() {
    let place = TestDir::new();
    let help = place.say(&["--help"]);
    assert_eq!(help.code, 0);
    assert!(help.out.contains("Examples:") && help.out.contains("bob-runner run hello.yaml"));
    assert!(help.err.is_empty(), "{}", help.err);
    for command in ["run", "serve", "submit", "logs", "events", "ps", "validate", "completions"] {
        let help = place.say(&[command, "--help"]);
        assert_eq!(help.code, 0, "{command}");
        assert!(help.out.contains("Example"), "{command} has no example:\n{}", help.out);
    }
}

#[test]
fn a_usage_error_exits_with_2_and_suggests_the_correct_word() {
    let place = TestDir::new();
    for (typed, hint) in [
        (vec![], "Usage"),
        (vec!["rnu"], "run"),
        (vec!["run"], "<FILE>"),
        (vec!["run", "x.yaml", "--var", "novalue"], "NAME=VALUE"),
        (vec!["stop", "x-1"], "r-"),
        (vec!["pause", "hello"], "GROUP/NAME"),
        (vec!["ps", "--status", "done"], "passed"),
        (vec!["schema", "pipelines"], "pipeline"),
        (vec!["logger", "apply", "--name", "x"], "--url"),
        (vec!["events", "--new"], "--follow"),
        (vec!["-o", "yaml", "version"], "json"),
        (vec!["submit", "neither-file-nor-path"], "GROUP/NAME"),
    ] {
        let said = place.say(&typed);
        assert_eq!(said.code, 2, "{typed:?}: {}", said.err);
        assert!(said.err.contains(hint), "{typed:?} says nothing of {hint}:\n{}", said.err);
        assert!(said.out.is_empty(), "{typed:?} wrote data: {}", said.out);
    }
}

#[test]
fn validate_reports_every_fault_of_every_file_with_its_line() {
    let place = TestDir::new();
    place.file("good.yaml", GOOD);
    place.file("bad.yaml", BAD);
    let good = place.say(&["validate", "good.yaml"]);
    assert_eq!((good.code, good.err.as_str()), (0, ""), "{}", good.out);
    assert_eq!(good.out, "good.yaml: valid: pipeline dev/hello, 2 steps\n");
    let bad = place.say(&["validate", "bad.yaml", "good.yaml", "absent.yaml"]);
    assert_eq!(bad.code, 65);
    for place in ["bad.yaml:2:", "bad.yaml:5:", "bad.yaml:6:", "absent.yaml: ", "good.yaml: valid"]
    {
        assert!(bad.out.contains(place), "{place} is missing in\n{}", bad.out);
    }
    let json = place.say(&["validate", "-o", "json", "bad.yaml"]);
    assert_eq!(json.code, 65);
    let faults: Vec<Value> = serde_json::from_str(&json.out).unwrap();
    assert!(faults.len() >= 3, "{}", json.out);
    assert!(faults.iter().all(|fault| fault["file"] == "bad.yaml" && fault["line"].is_u64()));
}

#[test]
fn plan_prints_the_model_with_all_defaults_and_its_output_parses_back() {
    let place = TestDir::new();
    place.file("good.yaml", GOOD);
    let plan = place.say(&["plan", "good.yaml"]);
    assert_eq!(plan.code, 0);
    let model: Value = serde_json::from_str(&plan.out).unwrap();
    assert_eq!(model["steps"][0]["name"], "0");
    assert_eq!(model["steps"][1]["executor"], "podman");
    place.file("again.json", &plan.out);
    assert_eq!(place.say(&["plan", "again.json"]).out, plan.out);
}

#[test]
fn keys_of_later_versions_are_rejected_with_a_clear_message() {
    let place = TestDir::new();
    let text = GOOD.replace("name: last", "name: last\n    executor: ssh\n    secrets: [key]");
    place.file("later.yaml", &text);
    for typed in [["validate", "later.yaml"], ["run", "later.yaml"], ["submit", "later.yaml"]] {
        let said = place.say(&typed);
        assert_eq!(said.code, 65, "{typed:?}: {}{}", said.out, said.err);
        assert!(format!("{}{}", said.out, said.err).contains("not supported by this version"));
    }
}

#[test]
fn every_schema_is_printed_as_json() {
    let place = TestDir::new();
    for what in ["pipeline", "command", "event", "run", "asyncapi", "openapi"] {
        let said = place.say(&["schema", what]);
        assert_eq!(said.code, 0);
        let schema: Value = serde_json::from_str(&said.out).unwrap();
        assert!(schema.is_object(), "{what}");
    }
}

#[test]
fn wrong_settings_exit_with_78_naming_every_fault_but_no_password() {
    let place = TestDir::new();
    place.file("bob-runner.toml", "[queue]\nurls = \"x\"\npassword = 5\n");
    let variables =
        [("BOB_MODE", "both"), ("BOB_QUEUE_URL", "http://u:hunter2@h"), ("BOB_DISK_LOW", "200")];
    for typed in [["ps"].as_slice(), &["settings"], &["doctor"], &["serve"]] {
        let said = place.say_with(typed, &variables);
        assert_eq!(said.code, 78, "{typed:?}: {}", said.err);
        for name in ["queue.urls", "BOB_MODE", "BOB_QUEUE_URL", "BOB_DISK_LOW"] {
            assert!(said.err.contains(name), "{name} is missing in\n{}", said.err);
        }
        assert!(!said.err.contains("hunter2"), "{}", said.err);
        assert!(said.out.is_empty(), "{}", said.out);
    }
}

#[test]
fn settings_prints_each_value_and_its_source() {
    let place = TestDir::new();
    let file = place.file("other.toml", "[worker]\nmax-parallel-runs = 9\n");
    let typed =
        ["settings", "-o", "json", "--config", file.to_str().unwrap(), "--set", "mode=embedded"];
    let said = place.say_with(&typed, &[("BOB_QUEUE_PASSWORD", "hunter2")]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(!said.out.contains("hunter2"));
    let all: Vec<Value> = serde_json::from_str(&said.out).unwrap();
    let of = |name: &str| all.iter().find(|one| one["name"] == name).unwrap().clone();
    assert_eq!(of("worker.max-parallel-runs")["value"], "9");
    assert!(of("worker.max-parallel-runs")["from"].as_str().unwrap().contains("other.toml"));
    assert_eq!(of("mode")["from"], "--set mode");
    assert_eq!(of("queue.password")["value"], "***");
    assert_eq!(of("queue.url")["from"], Value::Null);
    assert!(place.say(&["settings"]).out.contains("default"));
}

#[test]
fn an_unreachable_service_exits_with_69_and_is_named_with_its_address() {
    let place = TestDir::new();
    place.file("good.yaml", GOOD);
    for (typed, at) in [
        (vec!["ps"], "127.0.0.1:1"),
        (vec!["show", "r-1"], "127.0.0.1:1"),
        (vec!["nodes"], "127.0.0.1:1"),
        (vec!["submit", "good.yaml"], "127.0.0.1:1"),
        (vec!["stop", "r-1"], "127.0.0.1:1"),
        (vec!["pause", "dev/hello"], "127.0.0.1:1"),
        (vec!["logs", "r-1"], "127.0.0.1:1"),
        (vec!["events"], "127.0.0.1:1"),
        (vec!["pipeline", "apply", "good.yaml"], "127.0.0.1:1"),
        (vec!["logger", "list"], "127.0.0.1:1"),
        (vec!["serve"], "127.0.0.1:1"),
        (vec!["run", "good.yaml"], "/nonexistent/podman.sock"),
        (vec!["validate", "--here", "good.yaml"], "/nonexistent/podman.sock"),
    ] {
        let said = place.say_with(&typed, &NOWHERE);
        assert_eq!(said.code, 69, "{typed:?}: {}", said.err);
        assert!(said.err.contains(at), "{typed:?} does not say where:\n{}", said.err);
        assert!(said.err.contains("bob-runner doctor"), "{typed:?} has no advice: {}", said.err);
        assert!(said.out.is_empty(), "{typed:?} wrote data: {}", said.out);
    }
}

#[test]
fn doctor_reports_what_is_down_and_what_to_do() {
    let place = TestDir::new();
    let said = place.say_with(&["doctor", "-o", "json"], &NOWHERE);
    assert_eq!(said.code, 69, "{}", said.err);
    let checks: Vec<Value> = serde_json::from_str(&said.out).unwrap();
    for name in ["engine", "broker", "stream", "etcd"] {
        let check = checks.iter().find(|check| check["name"] == name).unwrap();
        assert_eq!(check["level"], "fail", "{check}");
        assert!(check["advice"].is_string(), "{check}");
    }
    let text = place.say_with(&["doctor"], &NOWHERE);
    assert!(text.out.contains("FAIL engine") && text.out.contains("to do: "), "{}", text.out);
}

#[test]
fn embedded_mode_rejects_commands_that_need_a_server() {
    let place = TestDir::new();
    for typed in [["ps"].as_slice(), &["stop", "r-1"], &["submit", "dev/x"], &["logs", "r-1"]] {
        let said = place.say_with(typed, &[("BOB_MODE", "embedded")]);
        assert_eq!(said.code, 69, "{typed:?}");
        assert!(said.err.contains("BOB_MODE=cluster"), "{}", said.err);
    }
}

#[test]
fn registrations_are_checked_before_a_service_is_contacted() {
    let place = TestDir::new();
    place.file("logs.yaml", "name: logs\nurl: ftp://nowhere\nextra: 1\n");
    let said = place.say_with(&["logger", "apply", "logs.yaml"], &NOWHERE);
    assert_eq!(said.code, 65);
    assert!(said.err.contains("ftp://nowhere") && said.err.contains("extra"), "{}", said.err);
}

#[test]
fn completions_are_generated_for_three_shells() {
    let place = TestDir::new();
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef"), ("fish", "complete -c")] {
        let said = place.say(&["completions", shell]);
        assert_eq!(said.code, 0);
        assert!(said.out.contains(word), "{shell}");
        assert!(said.out.contains("validate"), "{shell}");
    }
    assert_eq!(place.say(&["completions", "csh"]).code, 2);
}

#[test]
fn version_prints_commit_and_protocol() {
    let place = TestDir::new();
    let text = place.say(&["version"]).out;
    assert!(text.starts_with(&format!("bob-runner {}", env!("CARGO_PKG_VERSION"))), "{text}");
    let json: Value = serde_json::from_str(&place.say(&["version", "-o", "json"]).out).unwrap();
    assert_eq!(json["protocol"], 1);
    for flag in ["--version", "-V"] {
        let said = place.say(&[flag]);
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, text.as_str(), ""));
    }
}

#[test]
fn planned_commands_are_refused_with_one_clear_message() {
    let place = TestDir::new();
    for typed in [["dlq", "list"].as_slice(), &["dlq", "replay", "--all", "x"]] {
        let said = place.say(typed);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{typed:?}");
        assert!(said.err.contains("comes with a later version"), "{typed:?}: {}", said.err);
    }
    let help = place.say(&["--help"]).out;
    assert!(!help.contains("dlq") && !help.contains("guard"), "{help}");
}

#[test]
fn a_failed_write_of_output_is_reported_in_one_sentence() {
    let place = TestDir::new();
    place.file("good.yaml", GOOD);
    for typed in [
        ["schema", "pipeline"].as_slice(),
        &["version"],
        &["--version"],
        &["--help"],
        &["settings"],
        &["validate", "good.yaml"],
        &["plan", "good.yaml"],
        &["completions", "bash"],
    ] {
        let full = std::fs::File::create("/dev/full").unwrap();
        let said = said(&place.command(typed).stdout(full).output().unwrap());
        assert_eq!(said.code, 1, "{typed:?}");
        assert!(said.err.starts_with("error: cannot write to standard output: "), "{}", said.err);
        assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    }
}

/// A web server that answers every request with "not found".
fn no_engine() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            assert!(std::io::Read::read(&mut stream, &mut request).unwrap() > 0);
            let body = "404 page\n\nnot found\n";
            let head = "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length";
            write!(stream, "{head}: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    url
}

#[test]
fn an_invalid_engine_is_reported_in_one_line_and_leaves_no_files() {
    let place = TestDir::new();
    place.file("good.yaml", GOOD);
    let said =
        place.say_with(&["run", "good.yaml"], &[("CONTAINER_ENGINE_URL", no_engine().as_str())]);
    assert_eq!(said.code, 69, "{}", said.err);
    let last: Vec<&str> = said.err.lines().collect();
    assert!(
        matches!(last[..], [_run, error] if error.contains("404 page not found;")),
        "{}",
        said.err
    );
    let runs = place.dir.path().join(".local/state/bob-runner/runs");
    assert_eq!(std::fs::read_dir(runs).unwrap().count(), 0);
}

#[test]
fn a_data_directory_that_cannot_be_created_is_a_settings_error() {
    let place = TestDir::new();
    let file = place.file("good.yaml", GOOD).join("below");
    let said = place
        .say_with(&["run", "good.yaml"], &[("BOB_DATA_DIR", file.to_str().unwrap()), NOWHERE[2]]);
    assert_eq!(said.code, 78, "{}", said.err);
    assert!(said.err.contains("BOB_DATA_DIR"), "{}", said.err);
}

#[test]
fn output_has_no_colours_by_default_if_not_a_terminal() {
    let place = TestDir::new();
    let bad = place.file("bad.yaml", BAD);
    let bad = bad.to_str().unwrap();
    let has_colour = |said: &ProgramOutput| said.out.contains('\u{1b}');
    let terminal = [("TERM", "xterm")];
    assert!(!has_colour(&place.say_with(&["validate", bad], &terminal)));
    assert!(has_colour(&place.say_with(&["validate", "--color", "always", bad], &terminal)));
    assert!(!has_colour(&place.say_with(&["validate", "--color=never", bad], &terminal)));
}

#[test]
fn a_closed_output_pipe_is_not_an_error() {
    let place = TestDir::new();
    let mut child = place
        .command(&["schema", "asyncapi"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let said = said(&child.wait_with_output().unwrap());
    assert_eq!((said.code, said.err.as_str()), (0, ""));
}

#[test]
fn hostile_files_are_refused_and_nothing_panics() {
    let place = TestDir::new();
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e, *e, *e]\n";
    let huge = format!("group: {}\n", "x".repeat(2 * 1024 * 1024));
    for (name, text) in [
        ("deep.json", deep.as_str()),
        ("bomb.yaml", bomb),
        ("huge.yaml", &huge),
        ("empty.yaml", ""),
    ] {
        place.file(name, text);
        for command in ["validate", "plan", "run", "submit"] {
            let said = place.say_with(&[command, name], &NOWHERE);
            assert_eq!(said.code, 65, "{command} {name}: {}", said.err);
            assert!(!said.err.contains("panicked"), "{}", said.err);
        }
    }
    let directory = Path::new(".");
    let said = place.say(&["plan", directory.to_str().unwrap()]);
    assert_eq!(said.code, 65);
}
