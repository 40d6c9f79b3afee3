//! Named volumes that steps create and share. They belong to no run, so they are removed only if
//! the engine's disk needs room.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use protocol::names;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{EngineCall, Fault, Reply};
use super::http::Link;
use super::{Podman, path};
use crate::exec::mount::{JobMount, Source};
use crate::ports::{ExecError, StepSpec};

/// An inspected volume.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    #[serde(default)]
    name: String,
    /// In RFC 3339, with the time zone of the engine.
    #[serde(default)]
    created_at: String,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
    #[serde(default)]
    options: Option<HashMap<String, Value>>,
}

impl Described {
    /// Whether a step created it, so that nothing else on the host backs it.
    fn is_of_steps(&self) -> bool {
        let labels = self.labels.as_ref();
        let is_ours = labels.and_then(|labels| labels.get(names::LABEL_ROLE));
        is_ours.is_some_and(|role| role == SHARED)
            && self.options.as_ref().is_none_or(HashMap::is_empty)
    }
}

/// The role label of named volumes that steps created and share.
const SHARED: &str = "shared";

/// The order in which this process last used volumes. The engine stores only their creation.
#[derive(Debug, Default)]
pub(super) struct VolumeUses(Mutex<HashMap<String, u64>>);

impl VolumeUses {
    fn note(&self, name: &str) {
        let mut uses = self.0.lock();
        let next = uses.values().max().map_or(1, |last| last + 1);
        uses.insert(name.to_owned(), next);
    }

    /// Sorts volumes by their last use, or by their creation if this process has not used them.
    /// Forgets all others.
    fn sort(&self, volumes: &mut [Described]) {
        let mut uses = self.0.lock();
        uses.retain(|name, _| volumes.iter().any(|volume| volume.name == *name));
        let used = |volume: &Described| uses.get(&volume.name).copied();
        volumes.sort_by(|one, other| {
            (used(one), &one.created_at).cmp(&(used(other), &other.created_at))
        });
    }
}

impl Podman {
    /// Creates the missing named volumes of a step, and rejects those that no step created. The
    /// engine itself handles volumes that the operator allows.
    pub(super) async fn has_volumes(
        &self,
        link: &mut Link,
        step: &StepSpec,
        mounts: &[JobMount],
    ) -> Result<(), ExecError> {
        for mount in mounts {
            if let Source::Volume(name) = &mount.source
                && !self.access.has_volume(name)
            {
                self.has_volume(link, step, name).await?;
                self.volume_uses.note(name);
            }
        }
        Ok(())
    }

    async fn has_volume(
        &self,
        link: &mut Link,
        step: &StepSpec,
        name: &str,
    ) -> Result<(), ExecError> {
        let body = json!({ "Name": name, "Label": { names::LABEL_ROLE: SHARED } });
        let json = Some(Bytes::from(body.to_string()));
        let made = link.call(EngineCall { json, ..EngineCall::post("/volumes/create") }).await;
        match made.and_then(Reply::good) {
            Ok(_) => {}
            Err(fault) if fault.refusal().contains("already exists") => {}
            Err(fault) => return Err(fault.at("creating a volume for a step", &self.http)),
        }
        // Check even after a create: some versions return an existing volume.
        let ask = EngineCall::get(format!("/volumes/{}/json", path::name(name)));
        let described = link.call(ask).await.and_then(Reply::good);
        let described = described.and_then(|reply| reply.json::<Described>());
        let described =
            described.map_err(|fault| fault.at("looking at a volume of a step", &self.http))?;
        if described.is_of_steps() {
            return Ok(());
        }
        Err(ExecError::Unsupported(format!(
            "step {}: volume {name:?} was not created by a step: the operator of this worker can add it to BOB_SHARED_VOLUMES",
            step.name
        )))
    }

    /// The names of the volumes that steps created, least recently used first.
    pub(super) async fn volumes_of_steps(&self) -> Result<Vec<String>, ExecError> {
        let filter = path::filter("label", &format!("{}={SHARED}", names::LABEL_ROLE));
        let listed = async {
            let reply =
                self.http.call(EngineCall::get(format!("/volumes/json?{filter}"))).await?.good()?;
            reply.json::<Option<Vec<Described>>>()
        };
        let listed =
            listed.await.map_err(|fault: Fault| fault.at("listing volumes", &self.http))?;
        let mut volumes = listed.unwrap_or_default();
        // A volume that the operator names is not only for steps.
        volumes.retain(|volume| volume.is_of_steps() && !self.access.has_volume(&volume.name));
        self.volume_uses.sort(&mut volumes);
        Ok(volumes.into_iter().map(|volume| volume.name).collect())
    }

    /// Removes a volume that steps created. `false` if a container uses it.
    pub(super) async fn remove_volume_of_steps(&self, name: &str) -> Result<bool, ExecError> {
        let ask = EngineCall::delete(format!("/volumes/{}", path::name(name)));
        match self.http.call(ask).await.and_then(Reply::good) {
            Ok(_) => Ok(true),
            Err(fault) if fault.status() == Some(404) => Ok(true),
            Err(fault) if fault.status() == Some(409) => Ok(false),
            Err(fault) => Err(fault.at("removing a volume", &self.http)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_the_steps_only_with_their_label_and_nothing_behind_it() {
        let is_of_steps =
            |json: Value| serde_json::from_value::<Described>(json).unwrap().is_of_steps();
        assert!(is_of_steps(json!({ "Labels": { "bob.role": "shared" }, "Options": {} })));
        assert!(is_of_steps(json!({ "Labels": { "bob.role": "shared" } })));
        for other in [
            json!({}),
            json!({ "Labels": {} }),
            json!({ "Labels": { "bob.run": "r-1" } }),
            json!({ "Labels": { "bob.role": "shared" }, "Options": { "device": "/etc" } }),
        ] {
            assert!(!is_of_steps(other.clone()), "{other}");
        }
    }

    #[test]
    fn volumes_are_sorted_by_their_last_use_and_else_by_their_creation() {
        let volume = |name: &str, created: &str| -> Described {
            serde_json::from_value(json!({ "Name": name, "CreatedAt": created })).unwrap()
        };
        let all = || {
            vec![
                volume("used-last", "2026-01-01T00:00:00Z"),
                volume("used-first", "2026-01-04T00:00:00Z"),
                volume("new", "2026-01-03T00:00:00Z"),
                volume("old", "2026-01-02T00:00:00Z"),
            ]
        };
        let uses = VolumeUses::default();
        for name in ["used-last", "gone", "used-first", "used-last"] {
            uses.note(name);
        }
        let mut sorted = all();
        uses.sort(&mut sorted);
        let names: Vec<&str> = sorted.iter().map(|volume| &*volume.name).collect();
        assert_eq!(names, ["old", "new", "used-first", "used-last"]);
        assert_eq!(uses.0.lock().len(), 2, "the rest is forgotten");
    }
}
