//! Letting go: containers one by one off the critical path, and everything of a run by its labels.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use podman_api::opts::{ContainerListFilter, ContainerListOpts, ImageListFilter, ImageListOpts};
use protocol::id::RunId;
use protocol::names;
use serde::Deserialize;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::http::{Ask, Fault, Http};
use super::image::{PIN, TAGS};
use super::{Podman, path};
use crate::ports::ExecError;

/// How long a container is left alone after its end: the engine tidies up after it in a process of
/// its own, and a removal at the same time makes the next step's start wait for both.
const REST: Duration = Duration::from_secs(1);
/// How many containers are removed at a time.
const AT_A_TIME: usize = 2;
/// How many containers of one run are removed at a time where it ends.
const AT_THE_END: usize = 4;
/// How long a run's things may resist.
const WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Due {
    run: RunId,
    container: String,
    at: Instant,
}

#[derive(Debug, Default)]
struct Queue {
    due: VecDeque<Due>,
    workers: usize,
}

/// Removes containers a little later, a few at a time.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    queue: Arc<Mutex<Queue>>,
    tasks: TaskTracker,
}

impl Reaper {
    /// Removes a container soon. What fails is left to the end of its run.
    pub(super) fn soon(&self, http: &Arc<Http>, run: &RunId, container: String) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.due.push_back(Due { run: run.clone(), container, at: Instant::now() + REST });
        if queue.workers < AT_A_TIME {
            queue.workers += 1;
            let (queue, http) = (Arc::clone(&self.queue), Arc::clone(http));
            drop(self.tasks.spawn(async move { work(&queue, &http).await }));
        }
    }

    /// Leaves a run's containers to somebody else.
    fn forget(&self, run: &RunId) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.due.retain(|due| due.run != *run);
    }
}

async fn work(queue: &Mutex<Queue>, http: &Arc<Http>) {
    loop {
        let due = {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(due) = queue.due.front() else {
                queue.workers -= 1;
                return;
            };
            if due.at <= Instant::now() {
                queue.due.pop_front().ok_or_else(Instant::now)
            } else {
                Err(due.at)
            }
        };
        match due {
            Err(at) => sleep_until(at).await,
            Ok(due) => {
                if let Err(fault) = http.link().remove(&due.container).await {
                    tracing::debug!(run.id = %due.run, container.id = due.container, %fault,
                        "a container is left to the end of its run");
                }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tagged {
    id: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pruned {
    #[serde(default)]
    err: Option<serde_json::Value>,
}

impl Podman {
    /// Removes everything of a run that the engine has, whoever made it.
    pub(super) async fn destroy_run(&self, run: &RunId) -> Result<(), ExecError> {
        self.reaper.forget(run);
        self.memory.forget_run(run);
        let until = Instant::now() + WITHIN;
        let mut pause = Duration::from_millis(20);
        loop {
            let left = self.destroy_once(run).await?;
            match left {
                None => return Ok(()),
                Some(fault) if Instant::now() + pause >= until => {
                    return Err(fault.at("removing what is left of a run", &self.http));
                }
                Some(fault) => tracing::debug!(run.id = %run, %fault, "removing once more"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// What still resisted, where something did.
    async fn destroy_once(&self, run: &RunId) -> Result<Option<Fault>, ExecError> {
        let label = ContainerListFilter::LabelKeyVal(names::LABEL_RUN.into(), run.to_string());
        let containers = self.containers(label).await?;
        let mut removals = futures::stream::iter(containers)
            .map(|(id, _)| async move { self.http.link().remove(&id).await })
            .buffer_unordered(AT_THE_END);
        let mut resisted = None;
        while let Some(removed) = removals.next().await {
            resisted = removed.err().or(resisted);
        }
        drop(removals);
        if resisted.is_some() {
            return Ok(resisted);
        }
        Ok(self.destroy_images(run).await.err())
    }

    /// The last image of each chain goes by its tag, and takes those below it that have no name along;
    /// what has neither tag nor follower is pruned by label. Listing all by label would make the engine
    /// look at every image that it has, which takes seconds where there are many.
    async fn destroy_images(&self, run: &RunId) -> Result<(), Fault> {
        for repository in [format!("{TAGS}/*"), PIN.to_owned()] {
            let filter = path::filter("reference", &format!("{repository}:{run}"));
            let reply = self.http.call(Ask::get(format!("/images/json?{filter}"))).await?.good()?;
            for image in reply.json::<Vec<Tagged>>()? {
                for tag in image.repo_tags.iter().flatten() {
                    if let Some((repository, _)) = ours(tag, run) {
                        self.untag(&image.id, repository, run, tag).await?;
                    }
                }
            }
        }
        let label = path::filter("label", &format!("{}={run}", names::LABEL_RUN));
        let prune = Ask { within: WITHIN * 5, ..Ask::post(format!("/images/prune?{label}")) };
        let reply = self.http.call(prune).await?.good()?;
        let pruned: Option<Vec<Pruned>> = reply.json()?;
        match pruned.into_iter().flatten().find_map(|one| one.err.filter(|err| !err.is_null())) {
            Some(err) => Err(Fault::Refused { status: reply.status, message: err.to_string() }),
            None => Ok(()),
        }
    }

    async fn untag(&self, id: &str, repository: &str, run: &RunId, tag: &str) -> Result<(), Fault> {
        let ask = if repository == PIN {
            // The base image itself stays.
            let query = path::query(&[("repo", PIN), ("tag", run.as_str())]);
            Ask::post(format!("/images/{id}/untag?{query}"))
        } else {
            Ask { within: WITHIN, ..Ask::delete(format!("/images/{}", path::name(tag))) }
        };
        match self.http.call(ask).await?.good() {
            Ok(_) => Ok(()),
            Err(fault) if fault.status() == Some(404) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// The containers that a filter finds, with their labels.
    async fn containers(
        &self,
        filter: ContainerListFilter,
    ) -> Result<Vec<(String, Option<String>)>, ExecError> {
        let opts = ContainerListOpts::builder().all(true).filter([filter]).build();
        let listed = self.client.containers().list(&opts).await;
        let listed = listed.map_err(|cause| self.client_failed("listing containers", &cause))?;
        Ok(listed
            .into_iter()
            .filter_map(|container| {
                let run = container.labels.and_then(|mut labels| labels.remove(names::LABEL_RUN));
                container.id.map(|id| (id, run))
            })
            .collect())
    }

    /// The runs of which something is left.
    pub(super) async fn runs_left(&self) -> Result<Vec<RunId>, ExecError> {
        let label = ContainerListFilter::LabelKey(names::LABEL_RUN.into());
        let containers = self.containers(label).await?;
        let mut runs: BTreeSet<RunId> =
            containers.into_iter().filter_map(|(_, run)| run?.parse().ok()).collect();
        let label = ImageListFilter::LabelKey(names::LABEL_RUN.into());
        let opts = ImageListOpts::builder().all(true).filter([label]).build();
        let images = self.client.images().list(&opts).await;
        let images = images.map_err(|cause| self.client_failed("listing images", &cause))?;
        for image in images {
            let run = image.labels.and_then(|mut labels| labels.remove(names::LABEL_RUN));
            let Some(run) = run.and_then(|run| run.parse::<RunId>().ok()) else { continue };
            let tags = image.repo_tags.unwrap_or_default();
            // What somebody gave a name of their own is theirs to keep.
            if tags.is_empty() || tags.iter().any(|tag| ours(tag, &run).is_some()) {
                runs.insert(run);
            }
        }
        Ok(runs.into_iter().collect())
    }
}

/// Whether a tag is one that we gave an image of that run; its two parts.
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
