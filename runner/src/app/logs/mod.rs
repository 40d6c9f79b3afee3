//! Joins the logs of the HTTP API to the directory and the output store that the settings name.

use std::sync::Arc;
use std::time::Duration;

use protocol::id::NodeId;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::outputs::output_store;
use super::reach::{Publisher, policy};
use super::transfers;
use crate::client::Client;
use crate::config::Config;
use crate::http::logs::{Archive, Logs, Options};
use crate::ports::Store;

/// The directory of the log cache, below the data directory.
const CACHE: &str = "log-cache";

/// How long the logs that are being archived have once the node stops.
pub(super) const ENDS_WITHIN: Duration = Duration::from_secs(6);

/// Opens the logs of a node. A cache or an archive that cannot be used causes a warning.
pub(super) async fn open(
    config: &Config,
    client: Client,
    store: &Arc<dyn Store>,
    node: &NodeId,
    stop: CancellationToken,
) -> Logs {
    let archive = archive(config, store, node).await.unwrap_or_else(|cause| {
        warn!("logs are not archived in BOB_OUTPUTS: {cause:#}");
        None
    });
    let options = Options { dir: config.data_dir.join(CACHE), bytes: config.http.log_cache_bytes };
    Logs::open(options, client, archive, stop).await
}

/// Archives logs without serving them, until `stop`. Ends at once if no output store is configured.
pub(super) async fn archive_alone(
    config: &Config,
    client: Client,
    store: &Arc<dyn Store>,
    node: &NodeId,
    stop: CancellationToken,
) {
    if config.outputs.is_none() {
        return;
    }
    let logs = open(config, client, store, node, stop).await;
    logs.follow().await;
    logs.ended().await;
}

async fn archive(
    config: &Config,
    store: &Arc<dyn Store>,
    node: &NodeId,
) -> anyhow::Result<Option<Archive>> {
    if config.outputs.is_none() {
        return Ok(None);
    }
    let cluster = store.identity().await?;
    let http = transfers(config, &policy(config, None, Publisher::Anyone))?;
    let kept = output_store(config, store, &http, Some(&cluster))?;
    Ok(kept.map(|kept| Archive::new(kept, node.clone(), config.spill.dir.clone())))
}

#[cfg(test)]
mod tests;
