//! Jobs in containers of their own, with `run FILE` and in a cluster. The same file with the same
//! settings has the same effect.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use podman_api::Podman;
use podman_api::opts::{ContainerListFilter, ContainerListOpts};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::place::{TestEnv, in_time};
use crate::reader;

/// What jobs may use on the engine's host: a directory visible to the engine, whatever its root,
/// and a volume.
struct Shared {
    dir: TempDir,
    volume: String,
    namespace: String,
    engine: Podman,
}

impl Shared {
    fn new(place: &TestEnv) -> Self {
        let url = place.services.get("CONTAINER_ENGINE_URL");
        let beside = Path::new(url.trim_start_matches("unix://")).parent().unwrap();
        let dir = tempfile::tempdir_in(beside).unwrap();
        // The engine can run as another user.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("file"), "given\n").unwrap();
        let version = podman_api::ApiVersion::new(4, Some(0), Some(0));
        Self {
            dir,
            volume: format!("v-{}", place.tag),
            namespace: format!("team-{}", place.tag),
            engine: Podman::new_versioned(url, version).unwrap(),
        }
    }

    /// A job that prints all settings of its container, one that fails in the middle, and one on a
    /// terminal.
    fn jobs(&self, image: &str) -> Value {
        let directory = format!("{}:/given:ro", self.dir.path().display());
        let volume = format!("{}:/kept", self.volume);
        json!([
            { "id": "shows", "job_id": "shows", "executor": "docker",
              "variables": { "MODE": "fast" }, "artifacts": [{ "path": "made" }],
              "product": {
                "image": image, "namespace": self.namespace, "env": { "MORE": "more" },
                "mounts": [directory, volume],
                "before_script": ["X=before", "echo $G $X"],
                "commands": "echo $X commands\ncd /tmp",
                "script": [
                    "pwd", "echo $MODE $MORE $JOB_ID",
                    "echo $RUNNER_ID $RUNNER_HOSTNAME $RUNNER_WORKDIR $RUNNER_LOG_DIR",
                    "cd $JOB_WORKDIR", "ls -A | wc -l", "echo made > made",
                    "cat /given/file", "! touch /given/no 2> /dev/null", "echo kept > /kept/file",
                    "until [ -e /given/go ]; do sleep 0.1; done"] } },
            { "id": "stops", "executor": "docker", "product": {
                "image": image, "script": "echo one\nfalse\necho never" } },
            { "id": "terminal", "executor": "docker", "variables": { "TTY": "true" }, "product": {
                "image": image, "mounts": [volume],
                "script": ["test -t 1", "cat /kept/file", "echo $X$G"] } },
        ])
    }

    /// Waits for the first job's container, found by its namespace, and lets the job end.
    async fn let_go(&self) {
        let label = || ContainerListFilter::LabelKeyVal("namespace".into(), self.namespace.clone());
        let running = async {
            loop {
                let opts = ContainerListOpts::builder().filter([label()]).build();
                if !self.engine.containers().list(&opts).await.unwrap().is_empty() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        in_time("a container of that namespace", running).await;
        std::fs::write(self.dir.path().join("go"), "").unwrap();
    }

    async fn end(self) {
        self.engine.volumes().get(&self.volume).remove().await.unwrap();
    }
}

/// Checks the results of the jobs in either mode.
fn assert_done(events: &[Value], runner: &str) {
    let outputs = reader::outputs(events);
    let lines = |step: &str| {
        let bytes = outputs.get(&(step.to_owned(), "stdout".to_owned()));
        String::from_utf8(bytes.cloned().unwrap_or_default()).unwrap().replace('\r', "")
    };
    let expected =
        ["global before", "before commands", "/tmp", "fast more shows", runner, "0", "given"];
    assert_eq!(lines("shows").lines().map(str::trim).collect::<Vec<_>>(), expected);
    assert_eq!(lines("stops"), "one\n", "commands after a failed one do not run");
    assert_eq!(lines("terminal"), "kept\nglobal\n");
    let code = |step: &str| {
        let ended = |event: &&Value| event["reason"] == "StepCompleted" && event["step"] == step;
        events.iter().find(ended).unwrap()["exit-code"].clone()
    };
    assert_eq!(["shows", "stops", "terminal"].map(code), [json!(0), json!(1), json!(0)]);
}

/// Writes the jobs to a file, and settings with commands that precede each job, under one of the
/// setting's two names.
fn write(place: &TestEnv, jobs: &Value, before_script: &str) {
    place.write("jobs.json", &jobs.to_string());
    place.write("config.yaml", &format!("{before_script}: [G=global]\n"));
}

// Rows (embedded): A2, A12, A21
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_gives_containers_the_options_and_directories_of_their_jobs() {
    let Some(place) = TestEnv::new().await else { return };
    let shared = Shared::new(&place);
    write(&place, &shared.jobs(place.image()), "before_script");
    let mut command =
        place.program(&["run", "jobs.json", "-o", "json"], &[("BOB_NETWORK", "none")]);
    let running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    shared.let_go().await;
    let said = in_time("the end of a run", running.wait_with_output()).await.unwrap();
    let err = String::from_utf8_lossy(&said.stderr);
    let out = String::from_utf8(said.stdout).unwrap();
    let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(said.status.code(), Some(1), "one has failed: {err}");
    assert_done(&events, "unknown localhost /runner/workdir /runner/logs");
    let made = std::fs::read_to_string(place.dir.path().join("workdir/shows/made")).unwrap();
    assert_eq!(made, "made\n");
    shared.end().await;
}

// Rows: A2, A12, A21
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_containers_get_the_same_options_and_the_directories_of_their_worker() {
    let Some(place) = TestEnv::new().await else { return };
    let shared = Shared::new(&place);
    write(&place, &shared.jobs(place.image()), "global_before_script");
    let outputs = place.dir.path().join("outputs").display().to_string();
    let server = place
        .serve(&[
            ("BOB_EXECUTORS", "docker"),
            ("BOB_NETWORK", "none"),
            ("BOB_SHARED_DIRS", &shared.dir.path().display().to_string()),
            ("BOB_OUTPUTS", &outputs),
            ("RUNNER_ID", "one"),
            ("RUNNER_HOSTNAME", "build-1"),
            ("RUNNER_WORKDIR", "/w"),
            ("RUNNER_LOG_DIR", "/l"),
        ])
        .await;
    let run = place.submit("jobs.json").await;
    shared.let_go().await;
    assert_eq!(place.keys.settled(&run).await["status"], "failed");
    let events = reader::events_of(&place, &run).await;
    assert_done(&events, "one build-1 /w /l");
    let made = format!("{outputs}/job/jobs/{run}/shows/made");
    assert_eq!(std::fs::read_to_string(made).unwrap(), "made\n");
    crate::after::assert_nothing_is_left(&place, &run, &events).await;

    // Neither an unlisted directory nor the engine's socket can be mounted.
    let url = place.services.get("CONTAINER_ENGINE_URL");
    let socket = url.trim_start_matches("unix://");
    for (source, why) in [("/etc", "BOB_SHARED_DIRS"), (socket, "a container engine's socket")] {
        let job = json!({ "id": "sees", "executor": "docker", "product": {
            "image": place.image(), "mounts": [format!("{source}:/seen")], "script": "ls /seen" } });
        place.write("sees.json", &job.to_string());
        let run = place.submit("sees.json").await;
        let record = place.keys.settled(&run).await;
        assert_eq!(record["status"], "failed");
        assert!(record["message"].as_str().unwrap().contains(why), "{record}");
    }
    server.end().await;
    shared.end().await;
}
