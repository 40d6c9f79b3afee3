//! The parts of a container's description that this executor reads.

use std::collections::HashMap;

use bollard::errors::Error;
use protocol::id::{Epoch, RunId};
use protocol::names;
use serde::Deserialize;

use super::{Docker, fault};

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerState {
    /// Created, and not started.
    NotStarted,
    Running,
    /// Its process has ended.
    Ended,
    /// Being removed.
    Going,
}

/// An inspected container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    #[serde(default)]
    pub(super) id: String,
    state: State,
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
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    working_dir: String,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
}

/// A container in a listing.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) id: String,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    state: String,
}

impl ContainerState {
    /// Parses a state of Docker or podman.
    fn of(status: &str) -> Self {
        match status {
            "created" | "configured" | "initialized" => Self::NotStarted,
            "exited" | "stopped" | "dead" => Self::Ended,
            "removing" => Self::Going,
            _ => Self::Running,
        }
    }
}

fn is_of_later(labels: Option<&HashMap<String, String>>, epoch: Epoch) -> bool {
    let theirs = labels.and_then(|labels| labels.get(names::LABEL_EPOCH));
    theirs.and_then(|text| text.parse().ok()).is_some_and(|theirs| Epoch(theirs) > epoch)
}

impl Container {
    pub(super) fn life(&self) -> ContainerState {
        ContainerState::of(&self.state.status)
    }

    pub(super) fn exit_code(&self) -> i32 {
        self.state.exit_code
    }

    pub(super) fn oom(&self) -> bool {
        self.state.oom_killed
    }

    pub(super) fn work_dir(&self) -> &str {
        if self.config.working_dir.is_empty() { "/" } else { &self.config.working_dir }
    }

    /// Whether a later owner of the run created it.
    pub(super) fn is_of_later(&self, epoch: Epoch) -> bool {
        is_of_later(self.config.labels.as_ref(), epoch)
    }
}

impl Listed {
    pub(super) fn label(&self, name: &str) -> Option<&String> {
        self.labels.as_ref()?.get(name)
    }

    pub(super) fn life(&self) -> ContainerState {
        ContainerState::of(&self.state)
    }

    /// Whether a later owner of the run created it.
    pub(super) fn is_of_later(&self, epoch: Epoch) -> bool {
        is_of_later(self.labels.as_ref(), epoch)
    }

    /// The run of a step's container. The label alone proves nothing: an image can carry it too.
    pub(super) fn run(&self) -> Option<RunId> {
        let run = self.label(names::LABEL_RUN)?;
        let begins = format!("bob-{run}-");
        let is_ours = |name: &String| name.trim_start_matches('/').starts_with(&begins);
        self.names.iter().flatten().any(is_ours).then(|| run.parse().ok())?
    }
}

impl Docker {
    /// Inspects a container. `None` if it does not exist.
    pub(super) async fn look(&self, name: &str) -> Result<Option<Container>, Error> {
        let path = format!("{}/containers/{name}/json", self.client().await?.prefix);
        match self.wire.get(&path).await {
            Ok(container) => Ok(Some(container)),
            Err(error) if fault::is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists all containers with a label, running or not.
    pub(super) async fn list(&self, label: &str) -> Result<Vec<Listed>, Error> {
        let prefix = &self.client().await?.prefix;
        let filters = serde_json::json!({ "label": [label] }).to_string();
        let filters =
            percent_encoding::utf8_percent_encode(&filters, percent_encoding::NON_ALPHANUMERIC);
        let path = format!("{prefix}/containers/json?all=true&filters={filters}");
        let listed: Option<Vec<Listed>> = self.wire.get(&path).await?;
        Ok(listed.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_has_the_name_of_a_step_is_one() {
        let of = |name: &str| {
            let labels = json!({ "bob.run": "r-1", "bob.epoch": "3" });
            let listed = json!({ "Id": "i", "Names": [name], "Labels": labels, "State": "exited" });
            serde_json::from_value::<Listed>(listed).unwrap()
        };
        assert_eq!(of("/bob-r-1-0").run(), Some("r-1".parse().unwrap()));
        assert_eq!(of("bob-r-1-0").run(), Some("r-1".parse().unwrap()));
        assert_eq!(of("/eager_lamport").run(), None);
        assert!(of("x").is_of_later(Epoch(2)) && !of("x").is_of_later(Epoch(3)));
    }

    #[test]
    fn a_state_in_a_newer_engines_words_is_taken_for_running() {
        assert_eq!(ContainerState::of("stopping"), ContainerState::Running);
        assert_eq!(ContainerState::of("exited"), ContainerState::Ended);
    }
}
