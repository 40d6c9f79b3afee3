//! Runs of `run FILE` that have ended and are kept for their `retention`. Their store can be read,
//! and a new run can take over their committed steps.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::id::{NodeId, RunId};
use protocol::names;
use protocol::run::Parent;

use crate::app::runs::{self, RunDir};
use crate::app::{Unavailable, new_node, this_host};
use crate::client::{Client, Services};
use crate::config::Config;
use crate::embedded::{self, Embedded};
use crate::ports::{Events, Queue, Store, Txn};

/// An ended run that is kept. This value locks the run's directory, so that no other process
/// removes it.
pub struct KeptRun {
    embedded: Embedded,
    run: RunId,
    _dir: RunDir,
}

impl std::fmt::Debug for KeptRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptRun").field("run", &self.run).finish_non_exhaustive()
    }
}

/// The parent of a new run, with the part of its store that the new run needs.
#[derive(Debug, Clone)]
pub struct KeptParent {
    pub(super) parent: Parent,
    /// The keys and values of the parent's record and definition.
    entries: Vec<(String, Vec<u8>)>,
}

/// Opens the ended run with this id. Returns `None` if the data directory has no kept run with this
/// id, or if another process uses it.
///
/// # Errors
/// If its store cannot be read.
pub async fn kept_run(config: &Config, run: &RunId) -> anyhow::Result<Option<KeptRun>> {
    let Some(dir) = runs::take_unused(&runs::below(&config.data_dir), run) else {
        return Ok(None);
    };
    if !dir.about().is_some_and(|about| about.is_kept(runs::now())) {
        return Ok(None);
    }
    let days = u64::from(config.stream.retention_days);
    let embedded = Embedded::open(embedded::Options {
        dir: Some(dir.path.clone()),
        event_retention: Duration::from_secs(days * 86_400),
        host: this_host(),
    })
    .await?;
    Ok(Some(KeptRun { embedded, run: run.clone(), _dir: dir }))
}

impl KeptRun {
    /// Returns a client of the run's store.
    #[must_use]
    pub fn client(&self) -> Client {
        let services = EmbeddedServices { embedded: self.embedded.clone(), node: new_node() };
        Client::new(Arc::new(services))
    }

    /// Reads the entries that a new run needs to take over committed steps of this one.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn parent(&self, parent: Parent) -> anyhow::Result<KeptParent> {
        let keys = [names::run_key(&self.run), names::definition_key(&self.run)];
        let store = self.embedded.store();
        let mut entries = Vec::new();
        for key in keys {
            let entry = store.get(&key).await?;
            entries.extend(entry.map(|entry| (key, entry.value)));
        }
        Ok(KeptParent { parent, entries })
    }
}

impl KeptParent {
    /// Copies the entries to the store of the new run, which reads them there.
    pub(super) async fn write_to(&self, store: &dyn Store) -> anyhow::Result<()> {
        let put = |txn: Txn, (key, value): &(String, Vec<u8>)| txn.put(key.clone(), value.clone());
        let txn = self.entries.iter().fold(Txn::new(), put);
        // A transaction without conditions always commits.
        let _committed = store.txn(txn).await?;
        Ok(())
    }
}

/// The services of one embedded store.
struct EmbeddedServices {
    embedded: Embedded,
    node: NodeId,
}

#[async_trait]
impl Services for EmbeddedServices {
    async fn store(&self) -> Result<Arc<dyn Store>, Unavailable> {
        Ok(self.embedded.store())
    }

    async fn queue(&self) -> Result<Arc<dyn Queue>, Unavailable> {
        Ok(self.embedded.queue(&self.node))
    }

    async fn events(&self) -> Result<Arc<dyn Events>, Unavailable> {
        Ok(self.embedded.events())
    }
}
