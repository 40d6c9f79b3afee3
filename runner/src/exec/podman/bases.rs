//! Lists and removes the base images that bob-runner pulled. No removal is forced.

use std::collections::{BTreeSet, HashSet};

use protocol::time::Millis;

use super::Podman;
use super::base_marks::{HOUR_MILLIS, Listed, list, remove_name, tag, untag};
use super::call::Fault;
use crate::ports::{BaseImage, ExecError};

impl Podman {
    /// Lists the images that bob-runner pulled, least recently used first. Marks new images, and
    /// those that a reference in `used` resolves to, as used at `now`.
    pub(super) async fn pulled_images(
        &self,
        used: &BTreeSet<String>,
        now: Millis,
    ) -> Result<Vec<BaseImage>, ExecError> {
        let images = list(&self.http).await;
        let images = images.map_err(|fault| fault.at("listing images", &self.http))?;
        let parents: HashSet<&str> = images.iter().map(|image| image.parent_id.as_str()).collect();
        let hour = now.0 / HOUR_MILLIS;
        let mut bases = Vec::new();
        for image in &images {
            let Some(mut base) = image.as_base(&parents) else { continue };
            let is_new = image.marks().iter().any(|mark| mark.hour().is_none());
            if is_new || used.iter().any(|reference| base.answers_to(reference)) {
                base.used = Millis(hour.saturating_mul(HOUR_MILLIS));
                if let Err(fault) = self.mark_used(image, hour).await {
                    tracing::debug!(image = image.id, %fault, "the last use of an image cannot be recorded");
                }
            }
            bases.push(base);
        }
        bases.sort_by(|one, other| (one.used, &one.id).cmp(&(other.used, &other.id)));
        Ok(bases)
    }

    /// Marks an image as used at `hour`. Adds the new mark first, because bob-runner would forget
    /// an image without marks.
    async fn mark_used(&self, image: &Listed, hour: i64) -> Result<(), Fault> {
        for (repository, stale_tags) in image.moved(hour) {
            tag(&self.http, &image.id, &repository, &hour.to_string()).await?;
            for stale_tag in stale_tags {
                untag(&self.http, &image.id, &repository, &stale_tag).await?;
            }
        }
        Ok(())
    }

    /// Removes an image's names one by one, marks first. The engine keeps the last name of an image
    /// that a container uses, so the name that pipelines use is removed last.
    ///
    /// Returns false if the image is in use, or if its names differ from those in `base`.
    pub(super) async fn remove_pulled(&self, base: &BaseImage) -> Result<bool, ExecError> {
        let removal = async {
            let images = list(&self.http).await?;
            let parents: HashSet<&str> =
                images.iter().map(|image| image.parent_id.as_str()).collect();
            let Some(image) = images.iter().find(|image| image.id == base.id) else {
                return Ok(true);
            };
            let current = image.as_base(&parents);
            let is_unchanged = |current: &BaseImage| !current.in_use && current.names == base.names;
            let Some(current) = current.filter(is_unchanged) else {
                return Ok(false);
            };
            let marks = image.marks();
            let marks = marks.iter().map(|mark| format!("{}:{}", mark.repository, mark.when));
            let names: Vec<String> = marks.chain(current.names).collect();
            for (index, name) in names.iter().enumerate() {
                if !remove_name(&self.http, name).await? {
                    // A container has started to use the image: restore the names removed so far.
                    // A name by digest cannot be restored. It returns with the next pull.
                    for removed_name in names.iter().take(index).filter(|name| !name.contains('@'))
                    {
                        if let Some((repository, old_tag)) = removed_name.rsplit_once(':') {
                            tag(&self.http, &base.id, repository, old_tag).await?;
                        }
                    }
                    return Ok(false);
                }
            }
            Ok(true)
        };
        removal.await.map_err(|fault: Fault| fault.at("removing a base image", &self.http))
    }
}
