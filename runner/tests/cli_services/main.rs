//! The program's command line with podman, RabbitMQ and etcd from `scripts/services env`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

mod messages;

use test_support::skipped::{Need, missing_services, skip};

const NEEDED: [&str; 7] = [
    "BOB_QUEUE_URL",
    "BOB_QUEUE_USER",
    "BOB_QUEUE_PASSWORD",
    "BOB_STORAGE_URLS",
    "BOB_TEST_MANAGEMENT_URL",
    "CONTAINER_ENGINE_URL",
    "BOB_TEST_IMAGE",
];

#[expect(clippy::disallowed_methods, reason = "a test's configuration is its environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Services, a virtual host, and a directory for one test.
struct TestEnv {
    dir: TempDir,
    variables: Vec<(&'static str, String)>,
    /// The group of the test's pipelines, because the store is shared.
    group: String,
    image: String,
}

/// A program that is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Reads standard output up to a line.
    fn wait_for_line(&mut self, wanted: &str) {
        let stdout = self.0.stdout.as_mut().unwrap();
        let mut lines = BufReader::new(stdout).lines();
        assert!(lines.any(|line| line.unwrap() == wanted), "{wanted} never came");
    }

    fn code(&mut self) -> i32 {
        // Read the rest so that a full pipe does not block its end.
        if let Some(stdout) = self.0.stdout.as_mut() {
            stdout.read_to_end(&mut Vec::new()).unwrap();
        }
        self.0.wait().unwrap().code().unwrap()
    }
}

impl TestEnv {
    async fn new() -> Option<Self> {
        let missing = missing_services(&NEEDED, |name| variable(name).is_some());
        if !missing.is_empty() {
            skip(&missing, Need::Provided);
            return None;
        }
        let mut variables: Vec<_> =
            NEEDED.into_iter().filter_map(|name| Some((name, variable(name)?))).collect();
        let value = |name: &str| variables.iter().find(|(n, _)| *n == name).unwrap().1.clone();
        let (user, password) = (value("BOB_QUEUE_USER"), value("BOB_QUEUE_PASSWORD"));
        let unique = uuid::Uuid::now_v7().simple().to_string();
        let vhost = format!("cli-{unique}");
        let api = value("BOB_TEST_MANAGEMENT_URL");
        let all = r#"{"configure":".*","write":".*","read":".*"}"#;
        for (path, body) in
            [(format!("vhosts/{vhost}"), "{}"), (format!("permissions/{vhost}/{user}"), all)]
        {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let put = client
                .put(format!("{}/api/{path}", api.trim_end_matches('/')))
                .basic_auth(&user, Some(&password))
                .header("content-type", "application/json")
                .body(body);
            put.send().await.unwrap().error_for_status().unwrap();
        }
        let image = value("BOB_TEST_IMAGE");
        for (name, value) in &mut variables {
            if *name == "BOB_QUEUE_URL" {
                *value = format!("{}/{vhost}", value.trim_end_matches('/'));
            }
        }
        let dir = tempfile::tempdir().unwrap();
        Some(Self { dir, variables, group: format!("g{unique}"), image })
    }

    fn pipeline(&self, name: &str, steps: &str) -> String {
        let path = self.dir.path().join(format!("{name}.yaml"));
        let (group, image) = (&self.group, &self.image);
        let head = format!("group: {group}\nname: {name}\nimage: {image}\nnetwork: none\n");
        std::fs::write(&path, format!("{head}steps:\n{steps}")).unwrap();
        path.to_str().unwrap().to_owned()
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
            // Ignore how full the test host's disk is.
            .env("BOB_DISK_HIGH", "100")
            .env("BOB_DISK_LOW", "99")
            .envs(self.variables.iter().map(|(name, value)| (*name, value)))
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    fn say(&self, typed: &[&str]) -> Output {
        self.command(typed).output().unwrap()
    }

    fn json(&self, typed: &[&str]) -> Value {
        let said = self.say(typed);
        serde_json::from_slice(&said.stdout)
            .unwrap_or_else(|_| panic!("{typed:?} said {}", String::from_utf8_lossy(&said.stderr)))
    }

    fn begin(&self, typed: &[&str]) -> Running {
        let command = self.command(typed).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        Running(command.unwrap())
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Leading blanks, bytes that are not text, a last line without newline, and standard error.
const NOISE: &str = r#"  - name: noise
    cmd: ["sh", "-c", "printf '  one\\n\\377\\000\\n'; echo two; printf three; echo trouble >&2"]
"#;
const NOISE_BYTES: &[u8] = b"  one\n\xff\0\ntwo\nthree";

const LONG: &str = "  - name: long\n    cmd: [\"sh\", \"-c\", \"trap 'exit 9' TERM; echo begun; while :; do sleep 0.1; done\"]\n";

#[tokio::test]
async fn run_prints_output_byte_for_byte_and_exits_with_the_result() {
    let Some(place) = TestEnv::new().await else { return };
    let passes = place.pipeline("passes", NOISE);
    let said = place.say(&["run", &passes]);
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert_eq!(said.stdout, NOISE_BYTES);
    assert!(text(&said.stderr).contains("trouble\n"), "{}", text(&said.stderr));
    assert!(text(&said.stderr).ends_with("[bob] passed\n"), "{}", text(&said.stderr));
    let fails = place.pipeline("fails", "  - cmd: sh -c 'exit 7'\n  - cmd: echo never\n");
    let said = place.say(&["run", &fails]);
    assert_eq!(said.status.code(), Some(1), "{}", text(&said.stderr));
    assert!(text(&said.stderr).contains("exit code 7"), "{}", text(&said.stderr));
    assert!(said.stdout.is_empty());
    let runs = place.dir.path().join(".local/state/bob-runner/runs");
    assert_eq!(std::fs::read_dir(runs).unwrap().count(), 0, "a run leaves its store behind");
}

#[tokio::test]
async fn a_run_with_retention_is_kept_for_diff_shell_and_rerun() {
    let Some(place) = TestEnv::new().await else { return };
    let steps =
        "  - name: first\n    cmd: sh -c 'echo kept > /made'\n  - name: last\n    cmd: cat /made\n";
    let file = place.pipeline("kept", &format!("{steps}retention: 1h\n"));
    let run = format!("r-kept-{}", uuid::Uuid::now_v7());
    let said = place.say(&["run", &file, "--run-id", &run]);
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert!(
        text(&said.stderr).contains(&format!("bob-runner rerun {run}")),
        "{}",
        text(&said.stderr)
    );
    let diff = place.say(&["diff", &run, "first"]);
    assert_eq!(text(&diff.stdout), "A /made\n", "{}", text(&diff.stderr));
    let again = place.say(&["rerun", &run, "--from", "last"]);
    assert_eq!((again.status.code(), text(&again.stdout)), (Some(0), "kept\n".to_owned()));
    assert!(!text(&again.stderr).contains("step first:"), "{}", text(&again.stderr));
    // The id is in use while the run is kept.
    let taken = place.say(&["run", &file, "--run-id", &run]);
    assert_eq!(taken.status.code(), Some(65), "{}", text(&taken.stderr));
    // The next run removes runs whose retention has ended.
    let runs = place.dir.path().join(".local/state/bob-runner/runs");
    for entry in std::fs::read_dir(&runs).unwrap() {
        let about = entry.unwrap().path().join("run.json");
        let kept = std::fs::read_to_string(&about).unwrap();
        let mut kept: Value = serde_json::from_str(&kept).unwrap();
        kept["kept-until"] = 0.into();
        std::fs::write(&about, kept.to_string()).unwrap();
    }
    let next = place.pipeline("next", "  - cmd: 'true'\n");
    assert_eq!(place.say(&["run", &next]).status.code(), Some(0));
    assert_eq!(std::fs::read_dir(runs).unwrap().count(), 0);
}

#[tokio::test]
async fn objects_of_a_killed_run_block_its_id_elsewhere_and_are_removed_here() {
    let Some(place) = TestEnv::new().await else { return };
    let run = format!("r-left-{}", uuid::Uuid::now_v7());
    let long = place.pipeline("long", LONG);
    let mut running = place.begin(&["run", &long, "--run-id", &run]);
    running.wait_for_line("begun");
    running.signal(Signal::KILL);
    running.0.wait().unwrap();
    let next = place.pipeline("next", "  - cmd: 'true'\n");
    let other = place.dir.path().join("other");
    let elsewhere =
        |typed: &[&str]| place.command(typed).env("BOB_DATA_DIR", &other).output().unwrap();
    let second = elsewhere(&["run", &next, "--run-id", &run]);
    let said = text(&second.stderr);
    assert_eq!(second.status.code(), Some(65), "{said}");
    assert!(said.contains("from another BOB_DATA_DIR"), "{said}");
    let swept = place.say(&["run", &next]);
    let said = text(&swept.stderr);
    assert_eq!(swept.status.code(), Some(0), "{said}");
    assert!(said.contains(&format!("removed what run {run} left")), "{said}");
    let free = elsewhere(&["run", &next, "--run-id", &run]);
    assert_eq!(free.status.code(), Some(0), "{}", text(&free.stderr));
}

#[tokio::test]
async fn run_prints_every_event_as_a_line_of_json() {
    let Some(place) = TestEnv::new().await else { return };
    let file = place.pipeline("events", "  - cmd: sh -c 'echo $GREETING'\n");
    let said = place.say(&["run", &file, "-o", "json", "--var", "GREETING=hey", "--run-id", "r-x"]);
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    let events: Vec<Value> =
        text(&said.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (seq, event) in events.iter().enumerate() {
        assert_eq!((&event["seq"], &event["run-id"]), (&seq.into(), &"r-x".into()));
    }
    assert!(events.iter().any(|event| event["reason"] == "Log" && event["message"] == "hey"));
    assert_eq!(events.last().unwrap()["reason"], "PipelineSuccessful");
}

#[tokio::test]
async fn the_bob_examples_pass() {
    let Some(place) = TestEnv::new().await else { return };
    for (name, last) in [("hello", "done\n"), ("graph", "/root/main.o\n")] {
        let path = format!("{}/../examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        let example = std::fs::read_to_string(path).unwrap();
        // The image of the example is not available everywhere.
        let here = example.replace("docker.io/library/busybox:latest", &place.image);
        let file = place.dir.path().join(format!("{name}.yaml"));
        std::fs::write(&file, here).unwrap();
        let said = place.say(&["run", file.to_str().unwrap()]);
        assert_eq!(said.status.code(), Some(0), "{name}: {}", text(&said.stderr));
        assert!(text(&said.stdout).ends_with(last), "{name}: {}", text(&said.stdout));
    }
}

#[tokio::test]
async fn the_job_file_example_passes() {
    let Some(place) = TestEnv::new().await else { return };
    let path = format!("{}/../examples/jobs.yml", env!("CARGO_MANIFEST_DIR"));
    let example = std::fs::read_to_string(path).unwrap();
    let here = example.replace("docker.io/library/busybox:latest", &place.image);
    let dir = place.dir.path();
    std::fs::write(dir.join("jobs.yml"), here).unwrap();
    let (work, logs) = (dir.join("workdir"), dir.join("logs"));
    let typed = ["--workdir", work.to_str().unwrap(), "--log-dir", logs.to_str().unwrap()];
    let file = dir.join("jobs.yml");
    let mut all = vec!["run", file.to_str().unwrap(), "--set", "engine.network=none"];
    all.extend(typed);
    let said = place.say(&all);
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert!(text(&said.stdout).ends_with("released 1.2.0\n"), "{}", text(&said.stdout));
    let status = std::fs::read_to_string(work.join("announce/status.yaml")).unwrap();
    assert!(status.contains("status: success"), "{status}");
    let version = std::fs::read_to_string(work.join("build-1/version")).unwrap();
    assert_eq!(version, "1.2.0\n", "a11: out of the container");
    let log = std::fs::read_to_string(logs.join("build-1.log")).unwrap();
    assert!(
        log.lines().any(|line| line.starts_with("INFO: ") && line.ends_with(" built")),
        "a6: {log}"
    );
}

#[tokio::test]
async fn a_run_can_have_steps_in_containers_and_on_the_host() {
    let Some(place) = TestEnv::new().await else { return };
    let steps = "  - name: made\n    cmd: sh -c 'echo of the image > /root/a; cat /proc/1/comm'\n  \
                 - name: here\n    executor: local\n    needs: [made]\n    script: [echo of the host > b]\n  \
                 - name: both\n    needs: [here]\n    cmd: cat /root/a\n";
    let said = place.say(&["run", &place.pipeline("mixed", steps)]);
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert!(text(&said.stdout).ends_with("of the image\n"), "{}", text(&said.stdout));
    assert_eq!(std::fs::read_to_string(place.dir.path().join("b")).unwrap(), "of the host\n");
}

#[tokio::test]
async fn an_interrupt_stops_a_run_and_exits_with_130() {
    let Some(place) = TestEnv::new().await else { return };
    let file = place.pipeline("long", LONG);
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut run = place.begin(&["run", &file]);
        run.wait_for_line("begun");
        run.signal(signal);
        assert_eq!(run.code(), code);
    }
}

#[tokio::test]
async fn a_cluster_can_be_used_from_the_command_line() {
    let Some(place) = TestEnv::new().await else { return };
    let mut worker = place.begin(&["serve"]);

    let file = place.pipeline("noise", NOISE);
    let said = place.say(&["submit", &file, "--follow"]);
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert_eq!(said.stdout.len(), NOISE_BYTES.len() + "trouble\n".len());

    let submitted = place.say(&["submit", &file]);
    let run = text(&submitted.stdout).trim().to_owned();
    let log = place.say(&["logs", "-f", "--stderr", &run]);
    assert_eq!((log.status.code(), log.stdout.as_slice()), (Some(0), NOISE_BYTES));
    let again = place.say(&["logs", "--stderr", &run]);
    assert_eq!(again.stdout, NOISE_BYTES, "a log can be read repeatedly");
    let record = place.json(&["show", &run, "-o", "json"]);
    assert_eq!(record["status"], "passed");
    let told = text(&place.say(&["show", &run]).stdout);
    assert!(told.contains("passed") && told.contains("noise"), "{told}");
    let events = text(&place.say(&["events", "--run", &run, "-o", "json"]).stdout);
    let seqs: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].clone())
        .collect();
    assert_eq!(seqs, (0..seqs.len()).map(Value::from).collect::<Vec<_>>());
    let nodes = place.json(&["nodes", "-o", "json"]);
    assert!(nodes.as_array().unwrap().iter().any(|node| node["state"] == "ready"), "{nodes}");

    let fails = place.pipeline("fails", "  - cmd: sh -c 'exit 3'\n");
    assert_eq!(place.say(&["submit", &fails, "-f"]).status.code(), Some(1));

    worker.signal(Signal::TERM);
    assert_eq!(worker.code(), 0, "the drain must succeed");
}

#[tokio::test]
async fn a_stored_pipeline_can_be_paused_stopped_and_deleted() {
    let Some(place) = TestEnv::new().await else { return };
    let _worker = place.begin(&["serve"]);
    let file = place.pipeline("long", LONG);
    let path = place.path("long");
    assert!(text(&place.say(&["pipeline", "apply", &file]).stdout).ends_with(" created\n"));
    assert!(text(&place.say(&["pipeline", "apply", &file]).stdout).ends_with(" unchanged\n"));

    let run = format!("r-{}", place.group);
    let mut following = place.begin(&["submit", &path, "--run-id", &run, "-f"]);
    following.wait_for_line("begun");
    let listed = place.json(&["ps", "-o", "json", "--pipeline", &path]);
    assert_eq!(listed[0]["run-id"], run.as_str(), "{listed}");
    let refused = place.say(&["pipeline", "delete", &path]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains(&run), "{}", text(&refused.stderr));
    assert_eq!(place.say(&["stop", &run, "--reason", "enough"]).status.code(), Some(0));
    assert_eq!(following.code(), 3);
    let record = place.json(&["show", &run, "-o", "json"]);
    assert_eq!((&record["status"], &record["cause"]), (&"stopped".into(), &"user".into()));

    for (command, paused) in [("pause", true), ("unpause", false)] {
        assert_eq!(place.say(&[command, &path]).status.code(), Some(0));
        let is_so = |all: &Value| {
            let ours =
                all.as_array().unwrap().iter().find(|one| one["group"] == place.group.as_str());
            ours.unwrap()["paused"].as_bool().unwrap_or(false) == paused
        };
        while !is_so(&place.json(&["pipeline", "list", "-o", "json"])) {}
        if paused {
            let said = place.say(&["submit", &path, "-f"]);
            assert_eq!(said.status.code(), Some(1));
            assert!(text(&said.stderr).contains("paused"), "{}", text(&said.stderr));
        }
    }
    assert_eq!(
        text(&place.say(&["pipeline", "delete", &path]).stdout),
        format!("pipeline {path} deleted\n")
    );
}

#[tokio::test]
async fn services_can_be_registered_and_doctor_finds_no_fault() {
    let Some(place) = TestEnv::new().await else { return };
    let name = &place.group;
    for kind in ["provider", "store", "logger"] {
        let applied =
            place.say(&[kind, "apply", "--name", name, "--url", "http://localhost:8002/"]);
        assert!(text(&applied.stdout).ends_with("created\n"), "{}", text(&applied.stderr));
        let listed = place.json(&[kind, "list", "-o", "json"]);
        let ours = listed.as_array().unwrap().iter().find(|one| one["name"] == name.as_str());
        assert_eq!(ours.unwrap()["url"], "http://localhost:8002");
        assert_eq!(place.say(&[kind, "delete", name]).status.code(), Some(0));
    }
    let doctor = place.json(&["doctor", "-o", "json"]);
    for check in doctor.as_array().unwrap() {
        let is_disk = check["name"].as_str().unwrap().starts_with("disk");
        assert!(is_disk || check["level"] != "fail", "{check}");
    }
}

#[tokio::test]
async fn an_unknown_run_is_reported_as_unknown() {
    let Some(place) = TestEnv::new().await else { return };
    let run = format!("r-{}", place.group);
    for typed in [["show", &run], ["logs", &run]] {
        let said = place.say(&typed);
        assert_eq!(said.status.code(), Some(1), "{typed:?}");
        assert!(text(&said.stderr).contains("is not known"), "{}", text(&said.stderr));
    }
}
