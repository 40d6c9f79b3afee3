//! Copies of committed steps in a registry, for owners on other engines.

use protocol::id::RunId;

use super::call::{EngineCall, Fault};
use super::registry::{self, Registry};
use super::{Podman, path, pull};
use crate::exec::auth::Credentials;
use crate::ports::{ExecError, RunScope, StepSpec, Workspace};

impl Podman {
    fn login(&self, registry: &Registry) -> Result<Option<Credentials>, ExecError> {
        let image = registry.name();
        let found = self.registries.credentials(&image);
        found.map_err(|cause| ExecError::Image { image, cause })
    }

    /// Copies an image to the registry and returns its digest there.
    pub(super) async fn push_to(
        &self,
        registry: &Registry,
        run: &RunScope,
        kept: &Workspace,
        step: &StepSpec,
    ) -> Result<String, ExecError> {
        let Some(image) = kept.image() else {
            return Err(ExecError::Engine {
                doing: "copying what a step left".into(),
                cause: format!("{kept:?} is not an image"),
            });
        };
        let tag = registry::tag(&run.run, run.epoch, step.position, step.attempt);
        let to = format!("{}:{tag}", registry.name());
        pull::push(&self.http, &self.registries, image, &to).await?;
        let login = self.login(registry)?;
        let digest = registry.digest(&tag, login.as_ref()).await;
        digest.map_err(|cause| ExecError::Image { image: to, cause })
    }

    /// Pulls an image that an owner on another engine committed. Its id must match, because the id
    /// is the digest of the whole image.
    pub(super) async fn fetch_from(
        &self,
        registry: &Registry,
        run: &RunScope,
        image: &str,
        digest: &str,
    ) -> Result<Option<Workspace>, ExecError> {
        let from = format!("{}@{digest}", registry.name());
        let id = self.pulls.pull(&self.http, &self.registries, &from).await?;
        if id != image {
            let cause = format!("it is image {id}, and {image} was recorded");
            return Err(ExecError::Image { image: from, cause });
        }
        let adopted = self.name_again(run, &id).await?;
        // The name used for the pull would outlive the run.
        let ask = EngineCall::delete(format!("/images/{}", path::name(&from)));
        match self.http.call(ask).await.and_then(super::call::Reply::good) {
            Ok(_) => {}
            Err(fault) if fault.status() == Some(404) => {}
            Err(fault) => return Err(self.taking_up(fault)),
        }
        Ok(adopted)
    }

    fn taking_up(&self, fault: Fault) -> ExecError {
        fault.at("taking up an image", &self.http)
    }

    /// Removes a run's images from the registry. Failures are logged for the registry's operator;
    /// no run waits for them.
    pub(super) async fn forget_in_registry(&self, run: &RunId) {
        let Some(registry) = &self.checkpoints else { return };
        let login = match self.login(registry) {
            Ok(login) => login,
            Err(cause) => return tracing::warn!(run.id = %run, %cause, "checkpoints stay"),
        };
        if let Err(cause) = registry.forget(run, login.as_ref()).await {
            tracing::warn!(run.id = %run, cause, "checkpoints of run {run} stay in {}", registry.name());
        }
    }
}
