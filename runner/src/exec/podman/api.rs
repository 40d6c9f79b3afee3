//! Calls of the engine that podman-api lacks. It drops the exit code of a wait and the id of a
//! commit, and does not support squash.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use protocol::id::Epoch;
use protocol::names;
use serde::Deserialize;
use tokio::time::sleep;

use super::call::{EngineCall, Fault, Repeat, Reply, removal_pauses, saw_a_removal};
use super::create::Create;
use super::http::Link;
use super::image::Inspected;
use super::path;

/// The timeout of the slowest calls, such as writing an image of many gigabytes.
pub(super) const LONG: Duration = Duration::from_secs(3600);
/// How often a call is retried after it failed because of a concurrent removal.
const REMOVALS: u32 = 5;
/// How often the removal of a busy container is retried, which takes about five seconds.
const BUSY: u32 = 10;

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerState {
    /// Created and perhaps initialized, but not started.
    NotStarted,
    Running,
    /// Its process has ended.
    Ended,
}

/// The parts of a container's description that this executor reads.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    #[serde(default)]
    id: String,
    state: State,
    #[serde(default)]
    host_config: Host,
    #[serde(default)]
    config: Config,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    #[serde(default)]
    exit_code: i32,
    #[serde(default, rename = "OOMKilled")]
    oom_killed: bool,
    #[serde(default)]
    pid: u32,
    #[serde(default)]
    conmon_pid: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Host {
    #[serde(default)]
    cgroups: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    working_dir: String,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// Whether labels name a later epoch than this one.
pub(super) fn is_of_later(labels: Option<&HashMap<String, String>>, epoch: Epoch) -> bool {
    let theirs = labels.and_then(|labels| labels.get(names::LABEL_EPOCH));
    theirs.and_then(|text| text.parse().ok()).is_some_and(|theirs| Epoch(theirs) > epoch)
}

impl ContainerState {
    /// Parses the engine's state.
    pub(super) fn of(status: &str) -> Self {
        match status {
            "created" | "configured" | "initialized" => Self::NotStarted,
            // A container is "stopped" when it ends, and "exited" after the engine's cleanup.
            "stopped" | "exited" | "removing" | "dead" => Self::Ended,
            _ => Self::Running,
        }
    }
}

impl Container {
    pub(super) fn life(&self) -> ContainerState {
        ContainerState::of(&self.state.status)
    }

    /// The process that executes the command once it is started, if the container is initialized.
    pub(super) fn prepared_process(&self) -> Option<u32> {
        self.processes().0.filter(|_| self.state.status == "initialized")
    }

    /// Whether it is being removed, so that its files can no longer be read.
    pub(super) fn is_going(&self) -> bool {
        self.state.status == "removing"
    }

    pub(super) fn exit_code(&self) -> i32 {
        self.state.exit_code
    }

    pub(super) fn oom(&self) -> bool {
        self.state.oom_killed
    }

    /// The process ids of the step and of its conmon, if the engine reports them.
    pub(super) fn processes(&self) -> (Option<u32>, Option<u32>) {
        let known = |pid: u32| (pid > 0).then_some(pid);
        (known(self.state.pid), known(self.state.conmon_pid))
    }

    /// Whether it runs without a cgroup, so that no limit is enforced.
    pub(super) fn has_no_cgroup(&self) -> bool {
        self.host_config.cgroups == "disabled"
    }

    /// The annotations in its configuration, which the engine passes to the OCI runtime.
    pub(super) fn annotations(&self) -> Option<&HashMap<String, String>> {
        self.config.annotations.as_ref()
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether a later owner of the run created it.
    pub(super) fn is_of_later(&self, epoch: Epoch) -> bool {
        is_of_later(self.config.labels.as_ref(), epoch)
    }

    pub(super) fn work_dir(&self) -> &str {
        if self.config.working_dir.is_empty() { "/" } else { &self.config.working_dir }
    }
}

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "Id", alias = "id")]
    id: String,
}

/// A commit of a container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Commit<'a> {
    pub(super) container: &'a str,
    pub(super) repository: &'a str,
    pub(super) tag: &'a str,
    pub(super) squash: bool,
    pub(super) format: &'static str,
    /// Instructions that change the image's configuration.
    pub(super) changes: &'a [String],
}

impl Link {
    /// Creates a container and returns its id.
    pub(super) async fn create(&mut self, create: &Create) -> Result<String, Fault> {
        let json =
            serde_json::to_vec(create).map_err(|cause| Fault::Malformed(cause.to_string()))?;
        let ask =
            EngineCall { json: Some(Bytes::from(json)), ..EngineCall::post("/containers/create") };
        let reply = self.call(ask).await?.good()?;
        Ok(reply.json::<Created>()?.id)
    }

    /// Starts a container. Never retried after it was sent: a second start would run an ended step
    /// again.
    pub(super) async fn start(&mut self, id: &str) -> Result<(), Fault> {
        let ask = EngineCall {
            again: Repeat::Unsent,
            within: Duration::from_secs(120),
            ..EngineCall::post(format!("/containers/{id}/start"))
        };
        self.call(ask).await?.good().map(drop)
    }

    /// A container's state. `None` if it does not exist.
    pub(super) async fn inspect(
        &mut self,
        id: &str,
        patience: Duration,
    ) -> Result<Option<Container>, Fault> {
        let ask = EngineCall { patience, ..EngineCall::get(format!("/containers/{id}/json")) };
        match self.call(ask).await?.good() {
            Ok(reply) => reply.json().map(Some),
            Err(fault) if fault.is_gone() => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Sends a signal. A container that is gone or not running is not an error.
    pub(super) async fn kill(
        &mut self,
        id: &str,
        signal: &str,
        patience: Duration,
    ) -> Result<(), Fault> {
        let path = format!("/containers/{id}/kill?signal={signal}");
        match self.call(EngineCall { patience, ..EngineCall::post(path) }).await?.good() {
            Ok(_) => Ok(()),
            Err(fault) if fault.is_gone() || fault.status() == Some(409) => Ok(()),
            Err(fault) if fault.refusal().contains("improper") => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Keeps a container's files mounted until its removal. Otherwise the engine's cleanup after a
    /// step can unmount them while an archive is read. The archive would be truncated or empty and
    /// still look complete.
    pub(super) async fn mount(&mut self, id: &str) -> Result<(), Fault> {
        self.call(EngineCall::post(format!("/containers/{id}/mount"))).await?.good().map(drop)
    }

    /// Removes a container, running or not. A missing container is not an error.
    pub(super) async fn remove(&mut self, id: &str) -> Result<(), Fault> {
        let path = format!("/containers/{id}?force=true&timeout=0&v=true");
        match self.call(EngineCall::delete(path)).await?.good() {
            Ok(_) => Ok(()),
            // A concurrent removal was faster.
            Err(fault) if fault.is_gone() => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Makes an idempotent call, and retries it if a concurrent removal disturbed it.
    pub(super) async fn call_again(&mut self, ask: EngineCall) -> Result<Reply, Fault> {
        let (mut tries, mut pauses) = (0, removal_pauses());
        loop {
            match self.call(ask.clone()).await?.good() {
                // A plain "not found" will not change.
                Err(fault)
                    if fault.status() != Some(404)
                        && saw_a_removal(fault.refusal())
                        && tries < REMOVALS =>
                {
                    tries += 1;
                    tracing::debug!(%fault, "asking once more");
                    pauses.wait().await;
                }
                answered => return answered,
            }
        }
    }

    /// Removes the storage of a container that the engine no longer knows. Its files can stay
    /// mounted for a moment.
    pub(super) async fn remove_ghost(&mut self, name: &str) -> Result<(), Fault> {
        let mut tries = 0;
        loop {
            match self.remove(name).await {
                Err(fault) if fault.refusal().contains("busy") && tries < BUSY => {
                    tries += 1;
                    tracing::debug!(name, %fault, "removing once more");
                    sleep(Duration::from_millis(100) * tries).await;
                }
                removed => return removed,
            }
        }
    }

    /// Creates an image from a container that is not running. Returns its id.
    pub(super) async fn commit(&mut self, commit: &Commit<'_>) -> Result<String, Fault> {
        let mut query = vec![
            ("container", commit.container),
            ("repo", commit.repository),
            ("tag", commit.tag),
            ("pause", "false"),
            ("squash", if commit.squash { "true" } else { "false" }),
            ("format", commit.format),
        ];
        query.extend(commit.changes.iter().map(|change| ("changes", change.as_str())));
        let query = path::query(&query);
        let ask = EngineCall { within: LONG, ..EngineCall::post(format!("/commit?{query}")) };
        let reply = self.call(ask).await?.good()?;
        let id = reply.json::<Created>()?.id;
        // Records and other calls use the id without the algorithm.
        Ok(id.strip_prefix("sha256:").map_or_else(|| id.clone(), str::to_owned))
    }

    /// An image, by name or id. `None` if the engine does not have it.
    pub(super) async fn image(&mut self, name: &str) -> Result<Option<Inspected>, Fault> {
        let ask = EngineCall::get(format!("/images/{}/json", path::name(name)));
        match self.call_again(ask).await {
            Ok(reply) => reply.json().map(Some),
            Err(fault) if fault.status() == Some(404) => Ok(None),
            Err(fault) => Err(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_says_out_of_memory_is_understood() {
        // Answer of podman 4.3.1 for a container whose cgroup ran out of memory, shortened.
        let container: Container = serde_json::from_str(
            r#"{"Id":"c","State":{"OciVersion":"1.0.2-dev","Status":"exited","Running":false,
            "OOMKilled":true,"Dead":false,"Pid":0,"ExitCode":137,"Error":""},
            "HostConfig":{"Cgroups":"default","Memory":67108864},"Config":{"WorkingDir":"/w"}}"#,
        )
        .unwrap();
        assert_eq!(container.life(), ContainerState::Ended);
        assert_eq!((container.exit_code(), container.oom()), (137, true));
        assert_eq!((container.has_no_cgroup(), container.work_dir()), (false, "/w"));
        assert_eq!(container.processes(), (None, None));
    }

    #[test]
    fn stopped_and_exited_are_both_an_end_and_an_unknown_state_is_none() {
        let life = |status: &str| {
            let json = format!(r#"{{"State":{{"Status":"{status}"}}}}"#);
            serde_json::from_str::<Container>(&json).unwrap().life()
        };
        for (status, expected) in [
            ("created", ContainerState::NotStarted),
            ("initialized", ContainerState::NotStarted),
            ("running", ContainerState::Running),
            ("stopping", ContainerState::Running),
            ("paused", ContainerState::Running),
            ("what-comes-later", ContainerState::Running),
            ("stopped", ContainerState::Ended),
            ("exited", ContainerState::Ended),
        ] {
            assert_eq!(life(status), expected, "{status}");
        }
    }
}
