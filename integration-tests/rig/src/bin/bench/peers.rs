//! podman's own command line, run as the engine's user on the engine's store.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

/// Starts programs next to the engine. The command comes from `scripts/bench`.
#[derive(Debug)]
pub(crate) struct Peers {
    enter: String,
}

/// A container and an image for every step.
const RUN_AND_COMMIT: &str = r#"
set -eu
image=$1
for i in $(seq "$2"); do
  podman run --network none --init --name "bench-peer-$i" "$image" true
  podman commit --quiet "bench-peer-$i" "localhost/bench-peer:$i" >/dev/null
  image=localhost/bench-peer:$i
done
"#;
const TIDY_RUN_AND_COMMIT: &str = r#"
for i in $(seq "$1" -1 1); do
  podman rm --force --time 0 "bench-peer-$i" >/dev/null
  podman rmi --force "localhost/bench-peer:$i" >/dev/null
done
"#;
const BUILD: &str = r#"
set -eu
context=$(mktemp -d)
{ echo "FROM $1"; for i in $(seq "$2"); do echo RUN true; done; } >"$context/Containerfile"
podman build --quiet --layers --no-cache --network none --tag localhost/bench-built "$context" >/dev/null
rm -r "$context"
"#;
const TIDY_BUILD: &str = "podman rmi --force localhost/bench-built >/dev/null";

impl Peers {
    pub(crate) fn new(enter: impl Into<String>) -> Self {
        Self { enter: enter.into() }
    }

    pub(crate) async fn run_and_commit(
        &self,
        image: &str,
        steps: usize,
    ) -> anyhow::Result<Duration> {
        let steps = steps.to_string();
        let took = self.shell(RUN_AND_COMMIT, &[image, &steps]).await?;
        self.shell(TIDY_RUN_AND_COMMIT, &[&steps]).await?;
        Ok(took)
    }

    pub(crate) async fn build(&self, image: &str, steps: usize) -> anyhow::Result<Duration> {
        let took = self.shell(BUILD, &[image, &steps.to_string()]).await?;
        self.shell(TIDY_BUILD, &[]).await?;
        Ok(took)
    }

    async fn shell(&self, script: &str, arguments: &[&str]) -> anyhow::Result<Duration> {
        let executions = Instant::now();
        let output = Command::new(&self.enter)
            .args(["sh", "-c", script, "sh"])
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| self.enter.clone())?;
        ensure!(
            output.status.success(),
            "podman's command line: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(executions.elapsed())
    }
}
