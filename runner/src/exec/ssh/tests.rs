//! Connections to a reachable host that does not carry out requests.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use protocol::event::LogStream;
use protocol::pipeline::ExecutorKind;
use serde_json::json;
use tokio::time::sleep;

use super::*;
use crate::exec::fast_clock::quickly;
use crate::exec::job::tests::docker_step;

/// Becomes ready, and ignores all requests after that.
const DEAF: &str = r#"#!/bin/sh
IFS= read -r line
mark=${line#mark=}
mark=${mark%%;*}
echo "$mark ready"
echo "$mark ready" >&2
exec sleep 600
"#;

struct Nowhere;

#[async_trait]
impl LogSink for Nowhere {
    async fn write(&self, _stream: LogStream, _bytes: Bytes) {}
}

/// Writes a program through another process. A descriptor of this process could be inherited by a
/// program that a concurrent test starts, and a file that is open for writing cannot be executed.
fn program(at: &Path, text: &str) {
    let write = r#"printf %s "$1" > "$0" && chmod +x "$0""#;
    let written = Command::new("sh").args(["-c", write]).arg(at).arg(text).status();
    assert!(written.unwrap().success());
}

/// Runs a step on a host that ignores requests, and stops it after a minute.
async fn stopped(line: &str, level: StopLevel) -> Result<StepOutcome, ExecError> {
    let dir = tempfile::tempdir().unwrap();
    let ssh = dir.path().join("ssh");
    program(&ssh, DEAF);
    let inherited = std::env::vars_os().filter(|(name, _)| name == "PATH").collect();
    let ssh = Ssh::new(Options {
        program: ssh.into(),
        inherited,
        policy: Policy::unrestricted(),
        named: NamedFiles::any(),
    });
    let with = json!({ "host": "h.example", "user": "u" });
    let step = StepSpec { executor: ExecutorKind::Ssh, ..docker_step(with) };
    let target = Target::read(&step.with).unwrap();
    let link = ssh.connect(target, &[], NamedTempFile::new().unwrap()).unwrap();
    let stop = StopSignal::default();
    let running = run(link, line, &step, Gate::open(), Arc::new(Nowhere), &stop);
    let stopping = async {
        sleep(Duration::from_secs(60)).await;
        stop.raise(level);
    };
    quickly(futures::future::join(running, stopping)).await.0
}

#[tokio::test]
async fn a_killed_step_of_a_host_that_does_not_answer_is_lost() {
    for level in [StopLevel::Kill, StopLevel::Stop { grace: Duration::from_secs(30) }] {
        let ran = stopped("a step\n", level).await;
        assert!(matches!(ran, Err(ExecError::Disconnected { .. })), "{ran:?}");
    }
}

#[tokio::test]
async fn a_step_that_the_host_does_not_read_is_stopped_before_it_begins() {
    let line = format!("{}\n", "x".repeat(1 << 20));
    for level in [StopLevel::Kill, StopLevel::Stop { grace: Duration::from_secs(30) }] {
        let ran = stopped(&line, level).await;
        assert!(matches!(ran, Err(ExecError::NotStarted)), "{ran:?}");
    }
}
