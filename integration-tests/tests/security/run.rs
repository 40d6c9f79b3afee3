//! Runs a file with the program on each available engine.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::services::{ENGINE, Services};
use test_support::skipped::{Need, skip};
use tokio::process::Command;

/// An engine, and the executor that runs steps on it.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    /// Its name, for failure messages.
    pub(crate) name: &'static str,
    url: String,
    image: String,
    /// The executor of its steps.
    executor: &'static str,
}

/// The engines of the environment. podman's own API and its Docker API count as two.
pub(crate) fn engines() -> Vec<Engine> {
    let Some(services) = Services::from_env(ENGINE) else { return Vec::new() };
    let image = services.get("BOB_TEST_IMAGE").to_owned();
    let podman = services.get("CONTAINER_ENGINE_URL").to_owned();
    let engine = |name, url: &str, executor| Engine {
        name,
        url: url.to_owned(),
        image: image.clone(),
        executor,
    };
    let mut engines = vec![
        engine("podman", &podman, "podman"),
        engine("the Docker API of podman", &podman, "docker"),
    ];
    match services.find("BOB_TEST_DOCKER_URL") {
        Some(url) => engines.push(engine("docker.io", url, "docker")),
        None => skip(&["Docker"], Need::Optional),
    }
    engines
}

impl Engine {
    /// Whether a step starts from the previous step's image.
    pub(crate) fn keeps_images(&self) -> bool {
        self.executor == "podman"
    }

    /// A directory that the engine can see.
    pub(crate) fn dir(&self) -> TempDir {
        let beside = Path::new(self.url.trim_start_matches("unix://")).parent().unwrap();
        let dir = tempfile::tempdir_in(beside).unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        dir
    }

    /// A step with a line of shell.
    pub(crate) fn step(&self, line: &str) -> Value {
        let cmd = json!(["sh", "-c", line]);
        if self.keeps_images() {
            return json!({ "cmd": cmd });
        }
        json!({ "cmd": cmd, "executor": "docker", "with": { "image": self.image } })
    }

    /// Runs these steps with `bob-runner run` in a directory.
    pub(crate) async fn run(
        &self,
        dir: &Path,
        steps: &[Value],
        settings: &[(&str, &str)],
    ) -> Output {
        let pipeline =
            json!({ "group": "security", "name": "n", "image": self.image, "steps": steps });
        std::fs::write(dir.join("pipeline.json"), pipeline.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bob-runner-under-test"));
        command
            .args(["run", "pipeline.json"])
            .current_dir(dir)
            .env_clear()
            .env("HOME", dir)
            .env("PATH", "/usr/bin:/bin")
            .env("BOB_DATA_DIR", dir.join("data"))
            .env("BOB_PULL_POLICY", "never")
            .env("BOB_NETWORK", "none")
            .env("CONTAINER_ENGINE_URL", &self.url)
            .envs(settings.iter().copied());
        if !self.keeps_images() {
            command.env("BOB_DOCKER_URL", &self.url);
        }
        command.output().await.unwrap()
    }
}

/// The program's complete output.
pub(crate) fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}
