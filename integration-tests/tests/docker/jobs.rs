//! Row A12: `bob-runner run` runs job files with a Docker engine and without podman. Covers the
//! order of `before_script`, failures, `$JOB_WORKDIR`, variables, mounts and a terminal.

use std::process::Output;

use tokio::process::Command;

use super::engine::{Engine, engines};

/// Runs a job file with `bob-runner run` in an environment with only a Docker engine.
async fn run(engine: &Engine, dir: &std::path::Path, jobs: &str) -> Output {
    std::fs::write(dir.join("jobs.yml"), jobs).unwrap();
    Command::new(env!("CARGO_BIN_EXE_bob-runner-under-test"))
        .args(["run", "jobs.yml", "--config", "config.yaml"])
        .current_dir(dir)
        .env_clear()
        .env("HOME", dir)
        // The runner must not find podman.
        .env("PATH", "/nonexistent")
        .env("BOB_DATA_DIR", dir.join("data"))
        .env("BOB_DOCKER_URL", &engine.url)
        .env("BOB_PULL_POLICY", "never")
        .env("BOB_NETWORK", "none")
        .env("CONTAINER_ENGINE_URL", "unix:///nonexistent/podman.sock")
        .env("RUNNER_ID", "runner-7")
        .output()
        .await
        .unwrap()
}

/// Standard output, then standard error.
fn output_text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

// Rows: A12
#[tokio::test]
async fn a_docker_job_runs_with_the_options_of_its_file() {
    for engine in engines() {
        let (dir, shared) = (tempfile::tempdir().unwrap(), engine.dir());
        std::fs::write(dir.path().join("config.yaml"), "before_script: [echo global]\n").unwrap();
        std::fs::write(shared.path().join("given"), "of the host\n").unwrap();
        let jobs = format!(
            "
executor: docker
id: a12
job_id: a12
variables: {{ WHO: me }}
product:
  image: {image}
  namespace: tests
  tty: true
  mounts: ['{host_file}:/given:ro']
  env: {{ EXTRA: more }}
  before_script: [echo before]
  commands: |
    echo commands
  script:
    - '[ -t 1 ] && echo terminal'
    - cat /given
    - echo \"$WHO $EXTRA $JOB_ID $RUNNER_ID $JOB_WORKDIR\"
    - echo kept > \"$JOB_WORKDIR/left\"
artifacts: [{{ path: left }}]
",
            image = engine.image,
            host_file = shared.path().join("given").display(),
        );
        let output = run(&engine, dir.path(), &jobs).await;
        assert!(output.status.success(), "{}: {}", engine.name, output_text(&output));
        let log = std::fs::read_to_string(dir.path().join("logs/a12.log")).unwrap();
        let expected = ["global", "before", "commands", "terminal", "of the host"];
        let mut lines = log.lines().map(|line| line.trim_end_matches('\r'));
        for suffix in expected.into_iter().chain(["me more a12 runner-7 /runner/jobworkdir"]) {
            assert!(
                lines.any(|line| line.ends_with(suffix)),
                "{suffix:?} is missing or out of order: {log}"
            );
        }
        let artifact = dir.path().join("workdir/a12/left");
        assert_eq!(std::fs::read_to_string(artifact).unwrap(), "kept\n");
    }
}

// Rows: A12
#[tokio::test]
async fn a_failing_command_ends_its_docker_job_with_its_exit_code() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.yaml"), "{}\n").unwrap();
        let jobs = format!(
            "
executor: docker
job_id: fails
product:
  image: {}
  script: [echo one, (exit 7), echo never]
",
            engine.image
        );
        let output = run(&engine, dir.path(), &jobs).await;
        assert!(!output.status.success(), "{}", output_text(&output));
        let log = std::fs::read_to_string(dir.path().join("logs/fails.log")).unwrap();
        assert!(log.contains("one") && !log.contains("never"), "{log}");
        let status = std::fs::read_to_string(dir.path().join("workdir/fails/status.yaml")).unwrap();
        assert!(status.contains("exit_code: 7"), "{status}");
    }
}
