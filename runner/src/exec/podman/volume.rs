//! In-memory volumes, each for one attempt of a step. They hold its secrets, or a script that is
//! too long for a command line.
//!
//! Anyone who knows the name of a volume can mount it, and every part of a run's id is public on
//! the event stream. Therefore the names are random.

use bytes::Bytes;
use protocol::id::RunId;
use protocol::names;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use uuid::Uuid;

use super::call::{EngineCall, Fault, Reply};
use super::http::Link;
use super::{Podman, path};
use crate::ports::{ExecError, RunScope};

const TMPFS: &str = "tmpfs";

/// An empty tmpfs volume.
#[derive(Debug, Clone)]
pub(super) struct Tmpfs {
    name: String,
    at: &'static str,
}

impl Tmpfs {
    /// A new volume, mounted at a path of the container.
    pub(super) fn new(at: &'static str) -> Self {
        Self { name: format!("bob-{}", Uuid::new_v4().simple()), at }
    }

    /// The volume as a field of the request that creates a container.
    pub(super) fn mounted(&self) -> Value {
        json!({"Name": self.name, "Dest": self.at, "Options": ["nosuid", "nodev", "noexec"]})
    }

    fn body(&self, run: &RunScope) -> Value {
        json!({
            "Name": self.name,
            "Options": {"type": TMPFS, "device": TMPFS, "o": "mode=0755,nosuid,nodev,noexec"},
            "Label": {
                names::LABEL_RUN: run.run.to_string(),
                names::LABEL_EPOCH: run.epoch.to_string(),
                names::LABEL_CLUSTER: run.cluster.to_string(),
            },
        })
    }
}

/// The needed fields of an inspected volume.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Volume {
    name: String,
    #[serde(default)]
    driver: String,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
    #[serde(default)]
    options: Option<HashMap<String, String>>,
}

impl Volume {
    pub(super) fn label(&self, name: &str) -> Option<&String> {
        self.labels.as_ref()?.get(name)
    }

    /// Whether it is a tmpfs created for this owner of the run.
    fn is_tmpfs_of(&self, run: &RunScope) -> bool {
        let option = |name: &str| self.options.as_ref()?.get(name).map(String::as_str);
        let is_label = |name: &str, value: String| self.label(name) == Some(&value);
        self.driver == "local"
            && option("type") == Some(TMPFS)
            && option("device") == Some(TMPFS)
            && is_label(names::LABEL_RUN, run.run.to_string())
            && is_label(names::LABEL_EPOCH, run.epoch.to_string())
            && is_label(names::LABEL_CLUSTER, run.cluster.to_string())
    }
}

impl Podman {
    /// Creates an empty volume.
    pub(super) async fn make_volume(
        &self,
        link: &mut Link,
        run: &RunScope,
        volume: &Tmpfs,
    ) -> Result<(), ExecError> {
        let failed = |fault: Fault| fault.at("making a volume in memory", &self.http);
        let json = Some(Bytes::from(volume.body(run).to_string()));
        let made = link.call(EngineCall { json, ..EngineCall::post("/volumes/create") }).await;
        let fault = match made.and_then(Reply::good) {
            Ok(_) => return Ok(()),
            Err(fault) => fault,
        };
        if !fault.refusal().contains("already exists") {
            return Err(failed(fault));
        }
        // Either the engine created it and the response was lost, or it belongs to someone else.
        let ask = EngineCall::get(format!("/volumes/{}/json", path::name(&volume.name)));
        let there = async { link.call(ask).await?.good()?.json::<Volume>() };
        if there.await.map_err(failed)?.is_tmpfs_of(run) {
            return Ok(());
        }
        Err(ExecError::Engine {
            doing: "making a volume in memory".to_owned(),
            cause: format!("volume {} exists and is not one of this run in memory", volume.name),
        })
    }

    /// Lists the volumes with a label.
    pub(super) async fn volumes(&self, label: &str) -> Result<Vec<Volume>, Fault> {
        let filter = path::filter("label", label);
        let reply =
            self.http.call(EngineCall::get(format!("/volumes/json?{filter}"))).await?.good()?;
        Ok(reply.json::<Option<Vec<Volume>>>()?.unwrap_or_default())
    }

    /// Removes the volumes of a run after its containers.
    pub(super) async fn destroy_volumes(&self, run: &RunId) -> Result<(), Fault> {
        for volume in self.volumes(&format!("{}={run}", names::LABEL_RUN)).await? {
            let ask = EngineCall::delete(format!("/volumes/{}", path::name(&volume.name)));
            match self.http.call(ask).await?.good() {
                Ok(_) => {}
                Err(fault) if fault.status() == Some(404) => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::id::Epoch;
    use protocol::pipeline::PullPolicy;

    fn run() -> RunScope {
        RunScope {
            cluster: "c".into(),
            run: "r-1".parse().unwrap(),
            epoch: Epoch(7),
            image: "busybox".into(),
            pull: PullPolicy::Missing,
            has_own_images: false,
        }
    }

    #[test]
    fn no_part_of_a_run_is_in_the_name_of_its_volume() {
        let (one, another) = (Tmpfs::new("/run/secrets"), Tmpfs::new("/run/secrets"));
        assert_ne!(one.name, another.name);
        assert_eq!(one.name.len(), "bob-".len() + 32, "{}", one.name);
        assert!(!one.name.contains("r-1"), "{}", one.name);
    }

    #[test]
    fn a_volume_that_exists_is_taken_only_if_it_is_in_memory_and_of_this_owner() {
        let made = Tmpfs::new("/run/secrets").body(&run());
        let there = |change: &dyn Fn(&mut Value)| {
            let mut there = json!({
                "Name": "v", "Driver": "local",
                "Options": made["Options"], "Labels": made["Label"],
            });
            change(&mut there);
            serde_json::from_value::<Volume>(there).unwrap().is_tmpfs_of(&run())
        };
        assert!(there(&|_| {}));
        assert!(!there(&|it| it["Options"] = Value::Null));
        assert!(!there(&|it| it["Options"]["type"] = "none".into()));
        assert!(!there(&|it| it["Options"]["device"] = "/home/u".into()));
        assert!(!there(&|it| it["Driver"] = "image".into()));
        assert!(!there(&|it| it["Labels"] = Value::Null));
        assert!(!there(&|it| it["Labels"]["bob.run"] = "r-2".into()));
        assert!(!there(&|it| it["Labels"]["bob.epoch"] = "6".into()));
    }
}
