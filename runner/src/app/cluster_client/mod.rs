//! Connections to the configured cluster.

use std::sync::Arc;

use async_trait::async_trait;
use protocol::id::NodeId;
use tokio::sync::OnceCell;

use super::{connect_events, connect_queue, connect_store};
use crate::client::{Client, Error, Services, Unavailable};
use crate::config::{Config, Mode};
use crate::ports::{Events, Queue, Store};

/// How often a connection is tried. Few attempts, because a user waits at a terminal.
const TRIES: u32 = 2;

/// Connections made on first use.
struct Cluster {
    config: Config,
    node: NodeId,
    store: OnceCell<Arc<dyn Store>>,
    queue: OnceCell<Arc<dyn Queue>>,
    events: OnceCell<Arc<dyn Events>>,
}

/// A client of the configured cluster. Does not connect yet.
///
/// # Errors
/// [`Error::Embedded`] in embedded mode.
pub fn connect_client(mut config: Config) -> Result<Client, Error> {
    if config.mode == Mode::Embedded {
        return Err(Error::Embedded);
    }
    config.connection.retry_attempts = config.connection.retry_attempts.min(TRIES);
    let cluster = Cluster {
        config,
        node: NodeId::from_stored(&format!("bob/cli-{}", uuid::Uuid::new_v4())),
        store: OnceCell::new(),
        queue: OnceCell::new(),
        events: OnceCell::new(),
    };
    Ok(Client::new(Arc::new(cluster)))
}

#[async_trait]
impl Services for Cluster {
    async fn store(&self) -> Result<Arc<dyn Store>, Unavailable> {
        self.store.get_or_try_init(|| connect_store(&self.config)).await.map(Arc::clone)
    }

    async fn queue(&self) -> Result<Arc<dyn Queue>, Unavailable> {
        let connect = || connect_queue(&self.config, self.node.clone());
        self.queue.get_or_try_init(connect).await.map(Arc::clone)
    }

    async fn events(&self) -> Result<Arc<dyn Events>, Unavailable> {
        let connect = || connect_events(&self.config, self.node.clone());
        self.events.get_or_try_init(connect).await.map(Arc::clone)
    }
}

#[cfg(test)]
mod tests;
