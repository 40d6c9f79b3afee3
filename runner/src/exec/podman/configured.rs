//! Commits that give an image the configuration of the base image. A plain commit would give it
//! that of the step's container.
//!
//! Engines read the instructions of a commit in one of two dialects. It is not known in which
//! version podman changed from one to the other. So if the dialect matters for an image, the commit
//! is inspected, and repeated in the other dialect if its configuration is wrong.

use super::Podman;
use super::api::Commit;
use super::call::EngineCall;
use super::config_dialect::Dialect;
use super::http::Link;
use super::image::Base;
use crate::ports::ExecError;

impl Podman {
    /// Commits a container with the configuration of a base image. Returns the image's id. The
    /// changes in `commit` are replaced.
    pub(super) async fn commit_configured(
        &self,
        link: &mut Link,
        base: &Base,
        commit: Commit<'_>,
    ) -> Result<String, ExecError> {
        let first = self.dialect.get();
        let made = self.commit(link, &Commit { changes: &base.changes(first), ..commit }).await;
        if !base.depends_on_dialect() {
            return made;
        }
        let wrong = match made {
            Ok(id) if self.is_restored(link, base, &id).await? => return Ok(id),
            Ok(id) => Some(id),
            // The other dialect might not be able to read the instructions at all.
            Err(ExecError::Engine { .. }) if first == Dialect::Literal => None,
            Err(cause) => return Err(cause),
        };
        let second = first.other();
        let changes = base.changes(second);
        let id = self.commit(link, &Commit { changes: &changes, ..commit }).await?;
        if let Some(wrong) = wrong.filter(|wrong| *wrong != id) {
            // The second image has taken over its name. If this call fails, it is removed with the
            // run.
            link.call(EngineCall::delete(format!("/images/{wrong}"))).await.ok();
        }
        if self.is_restored(link, base, &id).await? {
            self.dialect.learn(second);
        }
        Ok(id)
    }

    async fn is_restored(&self, link: &mut Link, base: &Base, id: &str) -> Result<bool, ExecError> {
        let looked = link.image(id).await;
        let image = looked.map_err(|fault| fault.at("looking for an image", &self.http))?;
        Ok(image.is_some_and(|image| base.is_restored_in(&image.as_base())))
    }
}
