//! Named volumes that steps create and share. They belong to no run, so they are removed only if
//! the engine's disk needs room.

use bytes::Bytes;
use protocol::names;
use serde_json::json;

use super::call::{EngineCall, Fault, Reply};
use super::http::Link;
use super::volume_uses::{Described, SHARED};
use super::{Podman, path};
use crate::exec::mount::{JobMount, Source};
use crate::ports::{ExecError, StepSpec};

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
