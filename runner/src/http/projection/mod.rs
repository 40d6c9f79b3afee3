//! The state of the fleet in the memory of a node: summaries of runs, and definitions. Each prefix
//! is read once and then watched, so that requests never scan the store.
//!
//! | module | duty |
//! |---|---|
//! | `mirror` | reads and watches one prefix |
//! | `summary` | what a list shows about one run |
//! | `runs` | the summaries of all runs, with filters and pages |
//! | `entries` | pipelines, nodes and registrations |
//!
//! A further prefix, such as that of the wait lists, is one more [`Mirror`].

mod entries;
mod mirror;
mod runs;
mod summary;

use std::sync::Arc;
use std::time::Duration;

use protocol::id::{NodeId, PipelineId, RunId};
use protocol::names;
use protocol::run::{NodeEntry, Registered, StoredPipeline};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::entries::Entries;
use self::mirror::{Mirror, Rows};
use self::runs::RunRows;
use crate::client::Registry;
use crate::ports::Store;

pub use self::runs::{BadCursor, Cursor, RunPage, RunQuery};
pub use self::summary::{RunSummary, StepCounts};

/// The pause between two checks that the store answers. A watch reconnects without reporting it.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// The same while it does not answer.
const PROBE_AGAIN: Duration = Duration::from_secs(1);

/// The state of the fleet. Cloning it is cheap.
#[derive(Clone)]
pub struct Projection(Arc<Parts>);

struct Parts {
    runs: Mirror<RunRows>,
    pipelines: Mirror<Entries<StoredPipeline>>,
    nodes: Mirror<Entries<NodeEntry>>,
    providers: Mirror<Entries<Registered>>,
    stores: Mirror<Entries<Registered>>,
    loggers: Mirror<Entries<Registered>>,
    /// Why the store does not answer, if it does not.
    outage: watch::Sender<Option<String>>,
}

/// The projection is not current, so its answer could be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this node does not know the current state: {reason}; try again soon, or ask another node")]
pub struct Behind {
    /// Why it is not current.
    pub reason: String,
}

impl std::fmt::Debug for Projection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Projection").field("problem", &self.problem()).finish_non_exhaustive()
    }
}

impl Default for Projection {
    fn default() -> Self {
        Self::new()
    }
}

impl Projection {
    /// An empty projection. [`Self::follow`] fills it.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Parts {
            runs: Mirror::new(names::RUNS),
            pipelines: Mirror::new(names::PIPELINES),
            nodes: Mirror::new(names::NODES),
            providers: Mirror::new(names::PROVIDERS),
            stores: Mirror::new(names::STORES),
            loggers: Mirror::new(names::LOGGERS),
            outage: watch::Sender::new(None),
        }))
    }

    /// Keeps the projection current until `stop` is cancelled.
    pub async fn follow(&self, store: &dyn Store, stop: &CancellationToken) {
        let Parts { runs, pipelines, nodes, providers, stores, loggers, .. } = &*self.0;
        tokio::join!(
            runs.follow(store, stop),
            pipelines.follow(store, stop),
            nodes.follow(store, stop),
            providers.follow(store, stop),
            stores.follow(store, stop),
            loggers.follow(store, stop),
            self.probe(store, stop),
        );
    }

    /// Notes whether the store answers.
    async fn probe(&self, store: &dyn Store, stop: &CancellationToken) {
        let key = format!("{}-probe", names::NODES);
        loop {
            let answer = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                answer = store.get(&key) => answer,
            };
            let outage = answer.err().map(|cause| cause.to_string());
            let pause = if outage.is_some() { PROBE_AGAIN } else { PROBE_EVERY };
            let before = self.0.outage.send_replace(outage.clone());
            if let (Some(cause), None) = (outage, before) {
                warn!(cause, "the HTTP API answers no reads until the store answers");
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Why the projection is not current. `None` if it is.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let Parts { runs, pipelines, nodes, providers, stores, loggers, .. } = &*self.0;
        let outage = self.0.outage.borrow().clone();
        outage
            .or_else(|| runs.problem())
            .or_else(|| pipelines.problem())
            .or_else(|| nodes.problem())
            .or_else(|| providers.problem())
            .or_else(|| stores.problem())
            .or_else(|| loggers.problem())
    }

    fn look<R: Rows, T>(
        &self,
        mirror: &Mirror<R>,
        look: impl FnOnce(&R) -> T,
    ) -> Result<T, Behind> {
        let outage = self.0.outage.borrow().clone();
        match outage.or_else(|| mirror.problem()) {
            Some(reason) => Err(Behind { reason }),
            None => Ok(mirror.read(look)),
        }
    }

    /// A page of the runs that match a query, newest first.
    ///
    /// # Errors
    /// [`Behind`]
    pub fn runs(
        &self,
        query: &RunQuery,
        after: Option<&Cursor>,
        most: usize,
    ) -> Result<RunPage, Behind> {
        self.look(&self.0.runs, |rows| rows.page(query, after, most))
    }

    /// The summary of a run. `None` if it has no record.
    ///
    /// # Errors
    /// [`Behind`]
    pub fn run(&self, run: &RunId) -> Result<Option<RunSummary>, Behind> {
        self.look(&self.0.runs, |rows| rows.get(run))
    }

    /// The number of runs that have a record.
    ///
    /// # Errors
    /// [`Behind`]
    pub fn run_count(&self) -> Result<usize, Behind> {
        self.look(&self.0.runs, RunRows::len)
    }

    /// The stored pipelines, sorted by group and name.
    ///
    /// # Errors
    /// [`Behind`]
    pub fn pipelines(&self) -> Result<Vec<Arc<StoredPipeline>>, Behind> {
        self.look(&self.0.pipelines, |rows| rows.iter().map(|(_, one)| Arc::clone(one)).collect())
    }

    /// A stored pipeline.
    ///
    /// # Errors
    /// [`Behind`]
    pub fn pipeline(&self, id: &PipelineId) -> Result<Option<Arc<StoredPipeline>>, Behind> {
        self.look(&self.0.pipelines, |rows| rows.get(&names::pipeline_key(id)).cloned())
    }

    /// The nodes, the oldest first.
    ///
    /// # Errors
    /// [`Behind`]
    pub fn nodes(&self) -> Result<Vec<(NodeId, Arc<NodeEntry>)>, Behind> {
        let mut nodes: Vec<(NodeId, Arc<NodeEntry>)> = self.look(&self.0.nodes, |rows| {
            let name =
                |key: &str| NodeId::from_stored(key.strip_prefix(names::NODES).unwrap_or(key));
            rows.iter().map(|(key, node)| (name(key), Arc::clone(node))).collect()
        })?;
        nodes.sort_by_key(|(_, node)| node.started_at);
        Ok(nodes)
    }

    fn registry(&self, registry: Registry) -> &Mirror<Entries<Registered>> {
        match registry {
            Registry::Providers => &self.0.providers,
            Registry::Stores => &self.0.stores,
            Registry::Loggers => &self.0.loggers,
        }
    }

    /// The registered services of a kind, sorted by name.
    ///
    /// # Errors
    /// [`Behind`]
    pub fn registered(&self, registry: Registry) -> Result<Vec<Arc<Registered>>, Behind> {
        self.look(self.registry(registry), |rows| {
            rows.iter().map(|(_, one)| Arc::clone(one)).collect()
        })
    }

    /// Waits until the projection has read everything and the store answers.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ready(&self) {
        let Parts { runs, pipelines, nodes, providers, stores, loggers, .. } = &*self.0;
        tokio::join!(
            runs.until(|_| true),
            pipelines.until(|_| true),
            nodes.until(|_| true),
            providers.until(|_| true),
            stores.until(|_| true),
            loggers.until(|_| true),
        );
        // The sender is a field of this projection, so waiting does not fail.
        self.0.outage.subscribe().wait_for(Option::is_none).await.ok();
    }

    /// Waits until a run fulfils a condition.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn run_until(&self, run: &RunId, condition: impl Fn(Option<&RunSummary>) -> bool) {
        self.0.runs.until(|rows| condition(rows.get(run).as_ref())).await;
    }

    /// Waits until the nodes fulfil a condition.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn node_until(&self, condition: impl Fn(&[&NodeEntry]) -> bool) {
        let fulfils = |rows: &Entries<NodeEntry>| {
            let all: Vec<&NodeEntry> = rows.iter().map(|(_, one)| &**one).collect();
            condition(&all)
        };
        self.0.nodes.until(fulfils).await;
    }

    /// Waits until a pipeline fulfils a condition.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn pipeline_until(
        &self,
        id: &PipelineId,
        condition: impl Fn(Option<&StoredPipeline>) -> bool,
    ) {
        let key = names::pipeline_key(id);
        self.0.pipelines.until(|rows| condition(rows.get(&key).map(|one| &**one))).await;
    }

    /// Waits until a registration fulfils a condition.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn registered_until(
        &self,
        registry: Registry,
        condition: impl Fn(&[&Registered]) -> bool,
    ) {
        let fulfils = |rows: &Entries<Registered>| {
            let all: Vec<&Registered> = rows.iter().map(|(_, one)| &**one).collect();
            condition(&all)
        };
        self.registry(registry).until(fulfils).await;
    }
}
