//! The HTTP API of a node: joins the room `http` to the node's own connections, and serves it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use protocol::id::NodeId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::access::{self, UnusableHttp};
use super::{
    Shutdown, Unavailable, amqp_options, connect_queue, connect_store, connect_stream,
    embedded_ports, logs, make_dir, new_node,
};
use crate::client::{Client, Services};
use crate::config::{Config, LiteralSecrets, Mode};
use crate::http::access::Access;
use crate::http::access::listen::{self, Limits, Listener};
use crate::http::projection::Projection;
use crate::http::{self, Api, Build, Hub};
use crate::ports::{Events, Ports, Queue, Store};

/// How long the server has to end beyond the time that it gives to requests in progress.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Paths that need no token.
const PUBLIC_PATHS: &[&str] = &["/healthz", "/readyz"];

/// The `OpenAPI` document of the HTTP API.
#[must_use]
pub fn openapi() -> serde_json::Value {
    http::document(&http::routes())
}

/// An open socket, whose clients wait until the API is started.
pub(super) struct Socket {
    access: Access,
    listener: Listener,
    limits: Limits,
}

impl Socket {
    /// Listens as the settings say. `None` if the API is switched off, or if the port of the
    /// default address is in use and the node has something else to do.
    pub(super) async fn open(config: &Config) -> Result<Option<Self>, UnusableHttp> {
        let Some(address) = &config.http.address else { return Ok(None) };
        match access::open(config, address, PUBLIC_PATHS).await {
            Ok((access, listener)) => {
                Ok(Some(Self { access, listener, limits: access::limits(config) }))
            }
            Err(cause) if cause.is_local() && !config.http.is_named && !is_api_only(config) => {
                warn!(
                    "this node offers no HTTP API: {cause}; set BOB_HTTP_ADDRESS to another \
                     address, or to off"
                );
                Ok(None)
            }
            Err(cause) => Err(cause),
        }
    }

    /// Starts to answer requests, in a task of its own.
    pub(super) async fn start(
        self,
        config: &Config,
        services: OwnServices,
        draining: CancellationToken,
    ) -> RunningApi {
        let Self { access, listener, limits } = self;
        let stop = CancellationToken::new();
        let (store, node) = (Arc::clone(&services.store), services.node.clone());
        let client = Client::new(Arc::new(services));
        let projection = Projection::new();
        let logs = logs::open(config, client.clone(), &store, &node, stop.clone()).await;
        let api = Api {
            hub: Hub::new(client.clone(), stop.clone()),
            client,
            projection: projection.clone(),
            logs: logs.clone(),
            literal_secrets: config.worker.literal_secrets == LiteralSecrets::Allow,
            build: Build { version: env!("CARGO_PKG_VERSION"), commit: option_env!("BOB_COMMIT") },
            draining,
            stop: stop.clone(),
        };
        let router = access.protect(http::router(api, http::routes()));
        for address in listener.addresses() {
            info!(%address, "the HTTP API listens on {address}");
        }
        let ends = stop.clone();
        let serving = async move {
            tokio::join!(
                projection.follow(&*store, &ends),
                logs.follow(),
                listen::serve(listener, router, limits, ends.clone()),
            );
            logs.ended().await;
        };
        // The worker continues if the API meets a bug.
        let serving = AssertUnwindSafe(serving).catch_unwind();
        let task = TaskTracker::new().spawn(async move {
            if serving.await.is_err() {
                error!("the HTTP API has ended because of a bug; restart this node");
            }
        });
        RunningApi { stop, task, within: limits.stop + ENDS_WITHIN }
    }
}

/// An API that answers requests.
pub(super) struct RunningApi {
    stop: CancellationToken,
    task: JoinHandle<()>,
    within: Duration,
}

impl RunningApi {
    /// Instead of the API, only archives the logs of the runs that end on this node.
    pub(super) fn archive_alone(config: &Config, services: OwnServices) -> Self {
        let (stop, config) = (CancellationToken::new(), config.clone());
        let ends = stop.clone();
        let task = TaskTracker::new().spawn(async move {
            let (store, node) = (Arc::clone(&services.store), services.node.clone());
            let client = Client::new(Arc::new(services));
            logs::archive_alone(&config, client, &store, &node, ends).await;
        });
        Self { stop, task, within: logs::ENDS_WITHIN }
    }

    /// Ends the API, and what is left of its requests after a short time.
    pub(super) async fn end(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(self.within, &mut self.task).await.is_err() {
            warn!("the HTTP API has not ended in time: it ends without its last requests");
            self.task.abort();
        }
    }
}

/// The connections of this node, for requests.
#[derive(Clone)]
pub(super) struct OwnServices {
    node: NodeId,
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    events: Arc<dyn Events>,
}

impl OwnServices {
    /// Those of a worker.
    pub(super) fn of(ports: &Ports, node: &NodeId) -> Self {
        Self {
            node: node.clone(),
            store: Arc::clone(&ports.store),
            queue: Arc::clone(&ports.queue),
            events: Arc::clone(&ports.events),
        }
    }

    /// Connections of a node that is no worker.
    async fn connect(config: &Config, node: &NodeId) -> anyhow::Result<Self> {
        match config.mode {
            Mode::Cluster => {
                let (store, queue) =
                    tokio::try_join!(connect_store(config), connect_queue(config, node.clone()))?;
                let events = connect_stream(&amqp_options(config, node.clone())).await?;
                Ok(Self { node: node.clone(), store, queue, events: Arc::new(events) })
            }
            Mode::Embedded => {
                let dir = &config.data_dir;
                make_dir(dir)?;
                let (ports, _) = embedded_ports(config, dir, node, None, None).await?;
                Ok(Self::of(&ports, node))
            }
        }
    }
}

#[async_trait]
impl Services for OwnServices {
    async fn store(&self) -> Result<Arc<dyn Store>, Unavailable> {
        Ok(Arc::clone(&self.store))
    }

    async fn queue(&self) -> Result<Arc<dyn Queue>, Unavailable> {
        Ok(Arc::clone(&self.queue))
    }

    async fn events(&self) -> Result<Arc<dyn Events>, Unavailable> {
        Ok(Arc::clone(&self.events))
    }
}

/// Whether the node is no worker.
pub(super) fn is_api_only(config: &Config) -> bool {
    config.worker.max_parallel_runs == 0
}

/// Serves the API without a worker, until the node is shut down.
pub(super) async fn serve_alone(
    config: &Config,
    socket: Option<Socket>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let Some(socket) = socket else {
        anyhow::bail!("BOB_MAX_PARALLEL_RUNS=0 and BOB_HTTP_ADDRESS=off leave nothing to do");
    };
    let node = new_node();
    info!(owner.id = %node, "bob-runner starts as an API server that runs nothing");
    let services = tokio::select! {
        biased;
        () = shutdown.intake.cancelled() => return Ok(()),
        services = Box::pin(OwnServices::connect(config, &node)) => services?,
    };
    let api = socket.start(config, services, shutdown.intake.clone()).await;
    shutdown.intake.cancelled().await;
    api.end().await;
    Ok(())
}

#[cfg(test)]
mod tests;
