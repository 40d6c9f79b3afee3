//! The chain of a run's images: the base, images taken over, and the commit of each step.

use std::sync::Arc;

use protocol::pipeline::PullPolicy;

use super::api::Commit;
use super::call::{EngineCall, Fault, Reply, no_space, removal_pauses, saw_a_removal};
use super::http::Link;
use super::image::{ImageFacts, PIN, RESUME, TAGS, is_to_squash};
use super::{Podman, path};
use crate::exec::annotations::check_image;
use crate::exec::exhausted::no_temporary_space;
use crate::ports::{ExecError, RunScope, StopLevel, StopSignal, Workspace};

/// How often a commit is retried after a layer shared with another run was removed meanwhile.
const COMMITS: u32 = 6;

impl Podman {
    /// The first workspace of a run, or of a step with an image of its own.
    pub(super) async fn first(
        &self,
        run: &RunScope,
        stop: &StopSignal,
    ) -> Result<Workspace, ExecError> {
        self.access.check_image_name(&run.image)?;
        let failed =
            |cause: &str| ExecError::Image { image: run.image.clone(), cause: cause.into() };
        let mut rejected = None;
        if run.pull != PullPolicy::Always {
            match self.base(run, &run.image).await {
                Ok(Some(base)) => return Ok(base),
                Ok(None) => {}
                // A pull of another image with the same configuration can have replaced its
                // annotations. A pull of this one restores them.
                Err(cause @ ExecError::Image { .. }) => rejected = Some(cause),
                Err(cause) => return Err(cause),
            }
        }
        if run.pull == PullPolicy::Never {
            let missing = || failed("the engine does not hold it, and its pull policy is never");
            return Err(rejected.unwrap_or_else(missing));
        }
        let pulled = tokio::select! {
            pulled = self.pull(run) => pulled,
            _ = stop.above(StopLevel::Run) => return Err(ExecError::NotStarted),
        };
        let id = pulled.map_err(|cause| {
            if matches!(cause, ExecError::Image { .. }) { rejected.unwrap_or(cause) } else { cause }
        })?;
        let gone = "it was pulled and is gone again: see what removes images on the engine's host";
        self.base(run, &id).await?.ok_or_else(|| failed(gone))
    }

    /// Pulls a run's image and returns its id.
    pub(super) async fn pull(&self, run: &RunScope) -> Result<String, ExecError> {
        // If the image already exists, bob-runner might not have pulled it.
        let before = match run.pull {
            PullPolicy::Always => self.http.link().image(&run.image).await.ok().flatten(),
            PullPolicy::Missing | PullPolicy::Never => None,
        };
        let id = self.pulls.pull(&self.http, &self.registries, &run.image).await?;
        if before.is_none_or(|before| before.id != id) {
            self.marks.pulled(&self.http, &id, &run.image);
        }
        Ok(id)
    }

    /// Pulls a base image again that was removed before anything used it. Other workers and people
    /// remove images too. Returns `false` if the same image is no longer available.
    pub(super) async fn pull_again(&self, run: &RunScope, image: &str) -> Result<bool, ExecError> {
        let is_base =
            self.memory.image(&run.run, image).is_some_and(|known| known.base.id == image);
        if !is_base || run.pull == PullPolicy::Never {
            return Ok(false);
        }
        tracing::warn!(run.id = %run.run, "image {} of run {} was removed and is pulled again", run.image, run.run);
        Ok(self.pull(run).await? == image)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all others say themselves what they are")]
    async fn base(&self, run: &RunScope, name: &str) -> Result<Option<Workspace>, ExecError> {
        let mut link = self.http.link();
        let looked = link.image(name).await;
        let looked = looked.map_err(|fault| match fault {
            // The engine rejects an invalid name with another status.
            Fault::Refused { message, .. } if !no_space(&message) => {
                ExecError::Image { image: run.image.clone(), cause: message }
            }
            other => other.at("looking for an image", &self.http),
        })?;
        let Some(image) = looked else { return Ok(None) };
        self.access.check_image_owner(&run.image, image.owner(), &run.run)?;
        check_image(&run.image, image.annotations.as_ref())?;
        if !image.is_named() {
            let query = path::query(&[("repo", PIN), ("tag", run.run.as_str())]);
            let tag = EngineCall::post(format!("/images/{}/tag?{query}", image.id));
            let tagged = link.call(tag).await.and_then(Reply::good);
            tagged.map_err(|fault| fault.at("keeping the base image", &self.http))?;
        }
        let base = Arc::new(image.as_base());
        let (layers, size) = (base.layers, base.size);
        let known = ImageFacts { base, depth: 0, layers, size, chain: Arc::default() };
        self.memory.learn_image(&run.run, &image.id, known);
        Ok(Some(Workspace::Image { id: image.id, depth: 0 }))
    }

    /// Names an image that an earlier owner committed, so that removing that owner's names keeps
    /// it.
    pub(super) async fn name_again(
        &self,
        run: &RunScope,
        image: &str,
    ) -> Result<Option<Workspace>, ExecError> {
        let failed = |fault: Fault| fault.at("taking up an image", &self.http);
        let repository = format!("{TAGS}/{RESUME}{}", run.epoch);
        let query = path::query(&[("repo", &repository), ("tag", run.run.as_str())]);
        let tag = EngineCall::post(format!("/images/{image}/tag?{query}"));
        let mut link = self.http.link();
        match link.call_again(tag).await {
            Ok(_) => {}
            Err(fault) if fault.status() == Some(404) => return Ok(None),
            Err(fault) => return Err(failed(fault)),
        }
        let Some(found) = link.image(image).await.map_err(failed)? else { return Ok(None) };
        let known = found.as_known(0).map_err(failed)?;
        let depth = known.depth;
        self.memory.learn_image(&run.run, &found.id, known);
        Ok(Some(Workspace::Image { id: found.id, depth }))
    }

    /// The image that a step builds on, and the facts about it.
    pub(super) async fn known(
        &self,
        run: &RunScope,
        on: &Workspace,
    ) -> Result<(String, ImageFacts), ExecError> {
        let Workspace::Image { id, depth } = on else {
            return Err(ExecError::Engine {
                doing: "making a container".into(),
                cause: format!("{on:?} is not an image"),
            });
        };
        if let Some(known) = self.memory.image(&run.run, id) {
            return Ok((id.clone(), known));
        }
        let looked = self.http.link().image(id).await;
        let looked = looked.map_err(|fault| fault.at("looking for an image", &self.http))?;
        let Some(image) = looked else {
            return Err(ExecError::Image {
                image: run.image.clone(),
                cause: format!("image {id}, which the step stands on, is gone"),
            });
        };
        let known = image.as_known(*depth);
        let known = known.map_err(|fault| fault.at("looking for an image", &self.http))?;
        self.memory.learn_image(&run.run, id, known.clone());
        Ok((id.clone(), known))
    }

    /// Commits a container that was created from `parent`.
    pub(super) async fn keep(
        &self,
        link: &mut Link,
        run: &RunScope,
        container: &str,
        parent: &str,
        known: &ImageFacts,
        what: &str,
    ) -> Result<Workspace, ExecError> {
        let mut size = known.size;
        let mut squash = is_to_squash(known.depth, known.layers, size);
        if squash {
            // The cached size can be several steps old.
            let looked = link.image(parent).await;
            let looked = looked.map_err(|fault| fault.at("looking for an image", &self.http))?;
            size = looked.map_or(size, |image| image.as_base().size);
            squash = is_to_squash(known.depth, known.layers, size);
        }
        // The tag of a chain moves to each new commit. A commit on an image other than the chain's
        // last one, or on no image, starts a new chain.
        let going_on = if squash { None } else { known.chain.goes_on(parent) };
        let (name, chain) = match going_on {
            Some(name) => (name, Arc::clone(&known.chain)),
            None => (format!("{what}-{}", run.epoch), Arc::default()),
        };
        let repository = format!("{TAGS}/{name}");
        let commit = Commit {
            container,
            repository: &repository,
            tag: run.run.as_str(),
            squash,
            format: known.base.format(),
            changes: &[],
        };
        let id = match self.commit_configured(link, &known.base, commit).await {
            Ok(id) => id,
            Err(cause) => {
                chain.ends_at(&name, parent);
                return Err(cause);
            }
        };
        chain.ends_at(&name, &id);
        let (depth, layers) = if squash { (0, 1) } else { (known.depth + 1, known.layers + 1) };
        let base = Arc::clone(&known.base);
        self.memory.learn_image(&run.run, &id, ImageFacts { base, depth, layers, size, chain });
        Ok(Workspace::Image { id, depth })
    }

    pub(super) async fn commit(
        &self,
        link: &mut Link,
        commit: &Commit<'_>,
    ) -> Result<String, ExecError> {
        let (mut tries, mut pauses) = (0, removal_pauses());
        loop {
            let fault = match link.commit(commit).await {
                Ok(id) => return Ok(id),
                Err(fault) => fault,
            };
            tries += 1;
            if no_temporary_space(fault.refusal()) {
                return Err(ExecError::NoSpace {
                    cause: format!(
                        "its directory for temporary files (TMPDIR) is full, which a commit needs twice the size of the layer in: {fault}"
                    ),
                });
            }
            if !saw_a_removal(fault.refusal()) || tries >= COMMITS {
                return Err(fault.at("keeping what a step left", &self.http));
            }
            tracing::debug!(container.id = commit.container, %fault, "committing once more");
            pauses.wait().await;
        }
    }
}
