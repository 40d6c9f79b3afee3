//! A really full disk: an engine on a small disk of its own.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use test_support::engine::Api;
use test_support::services::OwnServices;
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::place::{Server, TestEnv};
use crate::reader;

fn shell(line: &str) -> Value {
    json!({ "cmd": ["sh", "-c", line], "retry": { "attempts": 3, "delay": "1ms" } })
}

/// Runs a program in the engine's mount namespace, so that it sees the engine's disk at the same
/// path, as on most hosts. If the engine's root is another tree without the program, it runs
/// unchanged and has no reserve on that disk.
async fn beside(url: &str, program: Command) -> Command {
    let socket = UnixStream::connect(url.strip_prefix("unix://").unwrap()).await.unwrap();
    let pid = socket.peer_cred().unwrap().pid().unwrap();
    let of_engine = format!("/proc/{pid}/root{}", program.as_std().get_program().display());
    if !Path::new(&of_engine).exists() {
        return program;
    }
    let program = program.as_std();
    let mut entered = Command::new("/usr/bin/nsenter");
    entered
        .args([format!("--mount=/proc/{pid}/ns/mnt"), "--wd=/".to_owned()])
        .arg(program.get_program())
        .args(program.get_args())
        .env_clear()
        .envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    entered
}

/// A worker on a small engine.
struct Small {
    place: TestEnv,
    api: Api,
    server: Server,
    _engine: OwnServices,
}

impl Small {
    async fn new() -> Option<Self> {
        let place = TestEnv::new().await?;
        let engine = OwnServices::small_engine("64m").await?;
        let url = engine.services().get("CONTAINER_ENGINE_URL").to_owned();
        let marks = [("BOB_DISK_HIGH", "85"), ("BOB_DISK_LOW", "80")];
        let settings = [&[("CONTAINER_ENGINE_URL", url.as_str())], &marks[..]].concat();
        let server = place.served(beside(&url, place.program(&["serve"], &settings)).await).await;
        place.keys.clone().below("bob.node/", |node| node["disk"]["full"] == false).await;
        Some(Self { api: Api::of(&url), place, server, _engine: engine })
    }

    /// Checks that a run fails for lack of space at its last step, on the first attempt, and leaves
    /// nothing, whatever its retention. Returns the step's record.
    async fn ends_with_no_space(&self, name: &str, steps: &[Value]) -> Value {
        let run = self.place.run(name);
        let mut pipeline = self.place.pipeline(name, &json!(steps));
        pipeline["retention"] = "1h".into();
        self.place.start(&run, &pipeline).await;
        let record = self.place.keys.settled(&run).await;
        assert_eq!(
            (&record["status"], &record["cause"]),
            (&json!("failed"), &json!("no-space")),
            "{record}\n{}",
            self.server.log()
        );
        let ending = reader::events_of(&self.place, &run).await.pop().unwrap();
        assert_eq!(
            (&ending["reason"], &ending["cause"]),
            (&json!("PipelineFailed"), &json!("no-space"))
        );
        let id = run.parse().unwrap();
        assert_eq!(self.api.labelled("containers", &id).await, 0, "containers are left");
        assert_eq!(self.api.labelled("images", &id).await, 0, "images are left");
        let step = record["steps"][steps.len() - 1].clone();
        assert_eq!(step["attempt"], 1, "{record}");
        step
    }
}

impl Small {
    /// Checks that there is room again and that the worker uses it.
    async fn passes_the_next(&self) {
        let next = self.place.run("after");
        let little = shell("dd if=/dev/urandom of=/little bs=1048576 count=4");
        let steps = json!([little, shell("wc -c /little")]);
        self.place.start(&next, &self.place.pipeline("after", &steps)).await;
        let record = self.place.keys.settled(&next).await;
        assert_eq!(record["status"], "passed", "{record}\n{}", self.server.log());
        let has_room = |node: &Value| node["disk"]["full"] == false;
        let node = self.place.keys.clone().below("bob.node/", has_room).await;
        assert_eq!(node["disk"]["total"], 64 << 20, "{node}");
    }
}

fn fill(megabytes: u32) -> Value {
    shell(&format!("dd if=/dev/urandom of=/much bs=1048576 count={megabytes}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_without_disk_space_for_its_commit_ends_no_space_and_the_next_passes() {
    let Some(small) = Small::new().await else { return };
    let step = small.ends_with_no_space("commit", &[fill(40)]).await;
    assert_eq!(step["exit-code"], 0, "{step}");
    small.passes_the_next().await;
    small.server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fills_the_disk_ends_its_run_no_space_and_the_next_passes() {
    let Some(small) = Small::new().await else { return };
    let step = small.ends_with_no_space("command", &[shell("echo 1 > /a"), fill(200)]).await;
    // Podman 5 keeps its database on that disk and might fail to record the exit code.
    assert!([json!(1), Value::Null].contains(&step["exit-code"]), "{step}");
    small.passes_the_next().await;
    small.server.end().await;
}
