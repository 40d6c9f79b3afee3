//! The end of a history: waits until all runs have ended, ends the workers, and looks for
//! leftovers.

use std::time::Duration;

use anyhow::Context as _;
use podman_api::opts::{ContainerListFilter, ContainerListOpts, ImageListFilter, ImageListOpts};
use protocol::names;
use tokio::time::Instant;

use crate::broker::Address;
use crate::cluster::{CHECKPOINTS, Cluster, WORKERS};
use crate::facts::HistoryFacts;
use crate::history::Recorder;
use crate::journal::Journal;
use crate::nemesis::Log;
use crate::{SETTLING, say};

/// How long the cleanup can take after the last run has ended.
const TIDYING: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(500);

/// Adds the facts that are known only at the end.
pub(crate) async fn settle(
    cluster: &Cluster,
    recorder: &Recorder,
    journal: &Journal,
    address: &Address,
    log: &Log,
    facts: &mut HistoryFacts,
) -> anyhow::Result<()> {
    let published = facts.plans.len();
    let at_rest = recorder
        .until(SETTLING, |seen| {
            seen.ended() >= published && seen.keys(names::OPEN_AND_OWNERS).is_empty()
        })
        .await;
    if !at_rest {
        say("not every run has ended");
    }
    // A run that moved to another engine leaves objects that the next sweep of the old engine
    // finds. A worker sweeps soon after its start.
    if cluster.engines().len() > 1 {
        leave(cluster, log).await?;
        for place in 0..WORKERS {
            cluster.launch(&mut *cluster.worker(place).await)?;
        }
    }
    facts.left = looked(cluster, journal, address).await?;
    leave(cluster, log).await?;
    let left = recorder.look(|seen| {
        let stops = seen.keys(names::STOPS);
        let lists = seen.keys(names::WAIT_LISTS);
        let open = seen.keys(names::OPEN_AND_OWNERS).into_iter();
        open.chain(stops).chain(lists).collect::<Vec<_>>()
    });
    facts.left.extend(left.into_iter().map(|key| format!("etcd still has {key}")));
    facts.changes = recorder.changes().await?;
    let (told, strange) = address.told().await?;
    (facts.told, facts.executions) = (told, journal.executions());
    let (injected, mishaps) = log.take();
    facts.injected = injected;
    facts.mishaps = [mishaps, strange, cluster.panics()?].concat();
    Ok(())
}

/// Drains every worker.
async fn leave(cluster: &Cluster, log: &Log) -> anyhow::Result<()> {
    for place in 0..WORKERS {
        let mut worker = cluster.worker(place).await;
        if let Some(ended) = worker.has_ended()? {
            log.mishap(ended);
        }
        if let Some(wrong) = worker.drain().await? {
            log.mishap(wrong);
        }
    }
    Ok(())
}

/// The leftovers, once they no longer decrease.
async fn looked(
    cluster: &Cluster,
    journal: &Journal,
    address: &Address,
) -> anyhow::Result<Vec<String>> {
    let end = Instant::now() + TIDYING;
    loop {
        // A concurrent removal of an image makes the engine's listing fail once. An image left half
        // made by a killed commit makes it fail permanently.
        let mut left = Vec::new();
        for url in cluster.engine_urls() {
            let found = in_engine(url).await.unwrap_or_else(|cause| {
                Vec::from([format!("cannot list the objects of the engine: {cause:#}")])
            });
            left.extend(found);
        }
        if let Some(registry) = cluster.registry() {
            let tags = in_registry(registry).await?;
            left.extend(tags.into_iter().map(|tag| format!("the registry still has {tag}")));
        }
        for queue in [names::JOBS_QUEUE, names::CONTROL_QUEUE, names::DEAD_LETTER_QUEUE] {
            let waiting = address.waiting(queue).await?;
            if waiting > 0 {
                left.push(format!("{queue} still has {waiting} messages"));
            }
        }
        let running = journal.running();
        if running > 0 {
            left.push(format!("{running} steps still run"));
        }
        if left.is_empty() || Instant::now() > end {
            return Ok(left);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The tags of checkpoints.
async fn in_registry(host: &str) -> anyhow::Result<Vec<String>> {
    let url = format!("http://{host}/v2/{CHECKPOINTS}/tags/list");
    let answer = reqwest::get(url).await?;
    // A repository does not exist before the first push.
    if answer.status() == reqwest::StatusCode::NOT_FOUND {
        return Ok(Vec::new());
    }
    let list: serde_json::Value = answer.error_for_status()?.json().await?;
    let tags = list["tags"].as_array().into_iter().flatten();
    Ok(tags.map(ToString::to_string).collect())
}

async fn in_engine(url: &str) -> anyhow::Result<Vec<String>> {
    let version = podman_api::ApiVersion::new(4, Some(0), Some(0));
    let engine = podman_api::Podman::new_versioned(url, version)?;
    let label = ContainerListFilter::LabelKey(names::LABEL_RUN.into());
    let opts = ContainerListOpts::builder().all(true).filter([label]).build();
    let mut left = Vec::new();
    for container in engine.containers().list(&opts).await.context("containers")? {
        left.push(format!(
            "container {} is left, {}, {:?}",
            container.id.unwrap_or_default(),
            container.state.unwrap_or_default(),
            container.labels.unwrap_or_default(),
        ));
    }
    let label = ImageListFilter::LabelKey(names::LABEL_RUN.into());
    let opts = ImageListOpts::builder().all(true).filter([label]).build();
    for image in engine.images().list(&opts).await.context("images")? {
        left.push(format!(
            "image {} is left, {:?}",
            image.id.unwrap_or_default(),
            image.labels.unwrap_or_default(),
        ));
    }
    Ok(left)
}
