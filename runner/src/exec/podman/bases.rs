//! The base images that bob-runner pulled: listing and removing them. Nothing is removed by force.

use std::collections::{BTreeSet, HashSet};

use protocol::time::Millis;

use super::Podman;
use super::base_marks::{HOUR_MILLIS, Listed, list, remove_name, tag, untag};
use super::call::Fault;
use crate::ports::{BaseImage, ExecError};

impl Podman {
    /// The images that bob-runner pulled, least recently used first.
    pub(super) async fn pulled_images(
        &self,
        used: &BTreeSet<String>,
        now: Millis,
    ) -> Result<Vec<BaseImage>, ExecError> {
        let listed = list(&self.http).await;
        let images = listed.map_err(|fault| fault.at("listing images", &self.http))?;
        let parents: HashSet<&str> = images.iter().map(|image| image.parent_id.as_str()).collect();
        let hour = now.0 / HOUR_MILLIS;
        let mut bases = Vec::new();
        for image in &images {
            let Some(mut base) = image.as_base(&parents) else { continue };
            let is_new = image.marks().iter().any(|mark| mark.hour().is_none());
            if is_new || used.iter().any(|reference| base.answers_to(reference)) {
                base.used = Millis(hour.saturating_mul(HOUR_MILLIS));
                if let Err(fault) = self.note(image, hour).await {
                    tracing::debug!(image = image.id, %fault, "when an image was used is not noted");
                }
            }
            bases.push(base);
        }
        bases.sort_by(|one, other| (one.used, &one.id).cmp(&(other.used, &other.id)));
        Ok(bases)
    }

    /// Marks an image as used at `hour`. Adds the new mark first, because bob-runner would forget
    /// an image without marks.
    async fn note(&self, image: &Listed, hour: i64) -> Result<(), Fault> {
        for (repository, stale) in image.moved(hour) {
            tag(&self.http, &image.id, &repository, &hour.to_string()).await?;
            for when in stale {
                untag(&self.http, &image.id, &repository, &when).await?;
            }
        }
        Ok(())
    }

    /// Removes an image's names one by one, marks first. The engine keeps the last name of an image
    /// that a container uses, so the name that pipelines use must go last.
    pub(super) async fn remove_pulled(&self, base: &BaseImage) -> Result<bool, ExecError> {
        let removed = async {
            let images = list(&self.http).await?;
            let parents: HashSet<&str> =
                images.iter().map(|image| image.parent_id.as_str()).collect();
            let Some(image) = images.iter().find(|image| image.id == base.id) else {
                return Ok(true);
            };
            let now = image.as_base(&parents);
            let Some(now) = now.filter(|now| !now.in_use && now.names == base.names) else {
                return Ok(false);
            };
            let ours = image.marks();
            let ours = ours.iter().map(|mark| format!("{}:{}", mark.repository, mark.when));
            let all: Vec<String> = ours.chain(now.names).collect();
            for (at, name) in all.iter().enumerate() {
                if !remove_name(&self.http, name).await? {
                    // A container started using it. Restore the names; one by digest returns with
                    // the next pull.
                    for taken in all.iter().take(at).filter(|name| !name.contains('@')) {
                        if let Some((repository, when)) = taken.rsplit_once(':') {
                            tag(&self.http, &base.id, repository, when).await?;
                        }
                    }
                    return Ok(false);
                }
            }
            Ok(true)
        };
        removed.await.map_err(|fault: Fault| fault.at("removing a base image", &self.http))
    }
}
