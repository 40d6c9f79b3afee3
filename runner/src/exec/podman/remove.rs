//! Removal of everything of a run, by its labels.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use protocol::id::{Epoch, RunId};
use protocol::names;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::api::is_of_later;
use super::call::{EngineCall, Fault, Reply};
use super::image::{PIN, RESUME, TAGS};
use super::listing::{Labelled, listed};
use super::{Podman, path};
use crate::ports::{ExecError, LeftoverRun, Pauses, RunScope};

/// How many containers of one run are removed concurrently at its end.
const AT_THE_END: usize = 4;
/// How long an image can look half made while it is committed. One left by a crash stays so for
/// ever.
const HALF_MADE: Duration = Duration::from_secs(10);
/// How long the removal of a run's objects is retried.
const WITHIN: Duration = Duration::from_secs(60);
/// The pauses between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pruned {
    #[serde(default)]
    err: Option<serde_json::Value>,
}

impl Podman {
    /// Removes all objects of a run from the engine, also those that other owners created.
    pub(super) async fn destroy_run(&self, run: &RunId) -> Result<(), ExecError> {
        self.reaper.forget(run);
        self.memory.forget_run(run);
        self.again_and_again(run, || self.destroy_once(run)).await
    }

    /// Removes a run's containers.
    pub(super) async fn clear_run(&self, run: &RunId) -> Result<(), ExecError> {
        self.reaper.forget(run);
        self.memory.forget_run(run);
        self.again_and_again(run, || self.remove_containers(run, Epoch(i64::MAX))).await
    }

    async fn again_and_again<F>(
        &self,
        run: &RunId,
        mut remove: impl FnMut() -> F,
    ) -> Result<(), ExecError>
    where
        F: Future<Output = Result<(), Fault>>,
    {
        let begun = Instant::now();
        let until = begun + WITHIN;
        let mut pauses = Pauses::doubling(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let Err(fault) = remove().await else { return Ok(()) };
            if let Some(image) = half_made(fault.refusal()).filter(|_| begun.elapsed() > HALF_MADE)
            {
                tracing::warn!(image, "an image that the engine has not finished is removed");
                let ask = EngineCall {
                    within: WITHIN,
                    ..EngineCall::delete(format!("/images/{image}?force=true"))
                };
                if let Err(fault) = self.http.call(ask).await.and_then(Reply::good) {
                    tracing::warn!(image, %fault, "it stays");
                }
            }
            if fault.refusal().contains("in use by a container")
                && let Err(fault) = self.containers_and_ghosts(names::LABEL_RUN).await
            {
                tracing::debug!(run.id = %run, %fault, "what uses an image is not known");
            }
            let pause = pauses.take_next();
            // The call has already waited for an unreachable engine.
            if matches!(fault, Fault::Unreachable(_)) || Instant::now() + pause >= until {
                return Err(fault.at("removing what is left of a run", &self.http));
            }
            tracing::debug!(run.id = %run, %fault, "removing once more");
            sleep(pause).await;
        }
    }

    /// Removes the containers that owners up to this epoch created for a run. This ends an earlier
    /// owner's work, and an owner that wakes up late cannot harm its successor's containers.
    pub(super) async fn end_containers(&self, run: &RunScope) -> Result<(), ExecError> {
        let removed = self.remove_containers(&run.run, run.epoch).await;
        removed.map_err(|fault| fault.at("removing an older container", &self.http))
    }

    async fn destroy_once(&self, run: &RunId) -> Result<(), Fault> {
        self.remove_containers(run, Epoch(i64::MAX)).await?;
        for ghost in self.ghosts.take(run) {
            self.http.link().remove(&ghost).await?;
        }
        self.destroy_volumes(run).await?;
        self.destroy_images(run).await
    }

    async fn remove_containers(&self, run: &RunId, up_to: Epoch) -> Result<(), Fault> {
        self.make_room_to_remove().await;
        let mut containers = self.containers(&format!("{}={run}", names::LABEL_RUN)).await?;
        containers.retain(|container| !is_of_later(container.labels.as_ref(), up_to));
        let mut removals = futures::stream::iter(containers)
            .map(|container| async move { self.http.link().remove(&container.id).await })
            .buffer_unordered(AT_THE_END);
        let mut resisted = None;
        while let Some(removed) = removals.next().await {
            resisted = removed.err().or(resisted);
        }
        resisted.map_or(Ok(()), Err)
    }

    /// Deletes the tag of each chain's last image, which removes the unnamed images below it as
    /// well. Then prunes by label what has neither a tag nor a child. Listing by label first would
    /// make the engine inspect all its images, which takes seconds if there are many.
    ///
    /// The engine takes about 50 ms per image, because it syncs its files to disk each time.
    /// Deleting all tags in one call, concurrently, or by pruning alone takes just as long.
    async fn destroy_images(&self, run: &RunId) -> Result<(), Fault> {
        for repository in [format!("{TAGS}/*"), PIN.to_owned()] {
            let filter = path::filter("reference", &format!("{repository}:{run}"));
            let reply =
                self.http.call(EngineCall::get(format!("/images/json?{filter}"))).await?.good()?;
            for image in reply.json::<Vec<Labelled>>()? {
                for tag in image.repo_tags.iter().flatten() {
                    if let Some((repository, _)) = ours(tag, run) {
                        self.untag(&image.id, repository, run, tag).await?;
                    }
                }
            }
        }
        let label = path::filter("label", &format!("{}={run}", names::LABEL_RUN));
        let prune =
            EngineCall { within: WITHIN * 5, ..EngineCall::post(format!("/images/prune?{label}")) };
        let reply = self.http.call(prune).await?.good()?;
        let pruned: Option<Vec<Pruned>> = reply.json()?;
        match pruned.into_iter().flatten().find_map(|one| one.err.filter(|err| !err.is_null())) {
            Some(err) => Err(Fault::Refused { status: reply.status, message: err.to_string() }),
            None => Ok(()),
        }
    }

    async fn untag(&self, id: &str, repository: &str, run: &RunId, tag: &str) -> Result<(), Fault> {
        let ask = if repository == PIN || repository.starts_with(&format!("{TAGS}/{RESUME}")) {
            // Only untag it. The base image stays. An image that was taken over can belong to
            // another run; if it belongs to this run, the prune removes it.
            let query = path::query(&[("repo", repository), ("tag", run.as_str())]);
            EngineCall::post(format!("/images/{id}/untag?{query}"))
        } else {
            EngineCall {
                within: WITHIN,
                ..EngineCall::delete(format!("/images/{}", path::name(tag)))
            }
        };
        match self.http.call(ask).await?.good() {
            Ok(_) => Ok(()),
            Err(fault) if fault.status() == Some(404) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Lists the containers with a label.
    async fn containers(&self, label: &str) -> Result<Vec<Labelled>, Fault> {
        let filter = path::filter("label", label);
        listed(&self.http, EngineCall::get(format!("/containers/json?all=true&{filter}"))).await
    }

    /// Like [`Self::containers`], and also records the ghosts.
    async fn containers_and_ghosts(&self, label: &str) -> Result<Vec<Labelled>, Fault> {
        let filter = path::filter("label", label);
        let ask = EngineCall::get(format!("/containers/json?all=true&external=true&{filter}"));
        let containers = listed(&self.http, ask).await?;
        let mut ghosts: BTreeMap<RunId, Vec<String>> = BTreeMap::new();
        for (run, name) in containers.iter().filter_map(Labelled::ghost) {
            ghosts.entry(run).or_default().push(name.to_owned());
        }
        self.ghosts.seen(ghosts);
        Ok(containers)
    }

    /// Lists the images with a label.
    async fn images(&self, label: &str) -> Result<Vec<Labelled>, Fault> {
        let filter = path::filter("label", label);
        listed(&self.http, EngineCall::get(format!("/images/json?all=true&{filter}"))).await
    }

    /// The runs that still have objects on the engine.
    pub(super) async fn runs_left(&self) -> Result<Vec<LeftoverRun>, ExecError> {
        let listed = self.containers_and_ghosts(names::LABEL_RUN).await;
        let containers = listed.map_err(|fault| fault.at("listing containers", &self.http))?;
        let listed = self.images(names::LABEL_RUN).await;
        let images = listed.map_err(|fault| fault.at("listing images", &self.http))?;
        let mut left: BTreeMap<RunId, Option<String>> = BTreeMap::new();
        let mut is_left = |what: &Labelled| {
            if let Some(run) = what.run() {
                let cluster = left.entry(run).or_default();
                *cluster = cluster.take().or_else(|| what.label(names::LABEL_CLUSTER));
            }
        };
        containers.iter().for_each(&mut is_left);
        for image in &images {
            let Some(run) = image.run() else { continue };
            let tags = image.repo_tags.as_deref().unwrap_or_default();
            // An image with only other names belongs to the user who named it.
            if tags.is_empty() || tags.iter().any(|tag| ours(tag, &run).is_some()) {
                is_left(image);
            }
        }
        let listed = self.volumes(names::LABEL_RUN).await;
        for volume in listed.map_err(|fault| fault.at("listing volumes", &self.http))? {
            if let Some(run) = volume.label(names::LABEL_RUN).and_then(|run| run.parse().ok()) {
                let cluster = left.entry(run).or_default();
                *cluster = cluster.take().or_else(|| volume.label(names::LABEL_CLUSTER).cloned());
            }
        }
        Ok(left.into_iter().map(|(run, cluster)| LeftoverRun { run, cluster }).collect())
    }
}

/// The id of an image that an engine was killed while creating. Every listing and removal that
/// includes it fails with this message until it is removed.
fn half_made(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("locating item named")?;
    let (_, rest) = rest.split_once("for image with ID \"")?;
    let (id, _) = rest.split_once('"')?;
    (id.len() == 64 && id.chars().all(|c| c.is_ascii_hexdigit())).then_some(id)
}

/// Splits a tag that bob-runner gave to an image of the run. `None` for other tags.
fn ours<'a>(tag: &'a str, run: &RunId) -> Option<(&'a str, &'a str)> {
    tag.rsplit_once(':').filter(|(repository, of)| {
        let known = *repository == PIN
            || repository.strip_prefix(TAGS).is_some_and(|rest| rest.starts_with('/'));
        known && *of == run.as_str()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_was_never_finished_is_named() {
        let id = "5075aba3".repeat(8);
        let said = format!(
            "locating item named \"manifest\" for image with ID \"{id}\" (consider removing the \
             image to resolve the issue): file does not exist"
        );
        assert_eq!(half_made(&said), Some(id.as_str()));
        let short = "locating item named \"x\" for image with ID \"ab\": no";
        for other in ["image not known", "for image with ID \"x\"", short, ""] {
            assert_eq!(half_made(other), None, "{other}");
        }
    }

    #[test]
    fn only_tags_that_we_gave_are_taken_away() {
        let run: RunId = "r-A.b".parse().unwrap();
        assert!(ours("localhost/bob-run/3-1:r-A.b", &run).is_some());
        assert!(ours("localhost/bob-base:r-A.b", &run).is_some());
        for theirs in [
            "localhost/bob-run/3-1:r-A",
            "localhost/bob-runs/3-1:r-A.b",
            "localhost/mine:r-A.b",
            "localhost/bob-pin/r-A.b:1",
            "r-A.b",
        ] {
            assert_eq!(ours(theirs, &run), None, "{theirs}");
        }
    }
}
