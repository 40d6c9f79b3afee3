//! Runs the worker as a service.

use std::path::Path;
use std::sync::Arc;

use protocol::id::NodeId;
use protocol::pipeline::Place;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::api::{self, OwnServices, RunningApi, Socket};
use super::ci::Watch;
use super::definitions::Loader;
use super::engine::EngineService;
use super::guard::{GuardSettings, Keeper};
use super::{
    Shutdown, Unavailable, UnwritableDataDir, caused_by_store, cluster_ports, embedded_ports,
    engine, executors::with_docker, make_dir, new_node, worker_options,
};
use crate::cluster::AmqpEvents;
use crate::config::{Config, LogFormat, Mode};
use crate::embedded::Embedded;
use crate::ports::{ExecError, Executor};
use crate::telemetry::{self, Form};
use crate::worker::{OutOfOrder, Worker};

/// A worker and its connections.
struct WorkerParts {
    config: Config,
    node: NodeId,
    worker: Worker,
    found: Option<EngineService>,
    /// The stream of a cluster.
    stream: Option<AmqpEvents>,
    /// The embedded store, which outlives the worker.
    own_store: Option<OwnStore>,
    jobs: Option<Watch>,
    definitions: Option<Loader>,
    /// The worker's connections, for the HTTP API.
    services: OwnServices,
}

/// Connects to everything that a worker needs.
async fn connect(config: &Config) -> anyhow::Result<WorkerParts> {
    let node = new_node();
    let executors = || config.worker.executors.iter().map(|kind| kind.capabilities());
    let has_own_images = executors().any(|executor| executor.has_own_images);
    let config = with_docker(config, has_own_images);
    // A worker without steps on an engine needs no engine.
    let has_docker = config.engine.docker_url.is_some();
    let on_engine = executors().any(|executor| {
        executor.place == Place::Engine && !(executor.has_own_images && has_docker)
    });
    let found = if on_engine { Some(engine::find(&config.engine).await?) } else { None };
    let url = found.as_ref().map(|found| found.url.clone());
    info!(owner.id = %node, engine = url.as_deref().unwrap_or("none"), "bob-runner starts");
    let (mut stream, mut own_store, mut jobs) = (None, None, None);
    let ports = match config.mode {
        Mode::Cluster => {
            let (ports, events) = cluster_ports(&config, &node, url).await?;
            stream = Some(events);
            ports
        }
        Mode::Embedded => {
            let dir = &config.data_dir;
            make_dir(dir)?;
            let (ports, embedded) = embedded_ports(&config, dir, &node, url, None).await?;
            let begun = async {
                let cluster = ports.store.identity().await?;
                anyhow::Ok((cluster, Watch::of(&config, &ports).await?))
            };
            let begun = begun.await.map_err(|cause| caused_by_store(&embedded, &config, cause))?;
            let cluster;
            (cluster, jobs) = begun;
            own_store = Some(OwnStore { embedded, cluster, executor: Arc::clone(&ports.executor) });
            ports
        }
    };
    let services = OwnServices::of(&ports, &node);
    // Before the worker takes starts, which can name these definitions.
    let definitions = Loader::start(&config, &ports, &node).await?;
    let worker =
        Worker::new(ports, worker_options(&config, node.clone())).await.map_err(|cause| {
            let cause = Unavailable::because(&cause).into();
            match &own_store {
                Some(own) => caused_by_store(&own.embedded, &config, cause),
                None => cause,
            }
        })?;
    Ok(WorkerParts { config, node, worker, found, stream, own_store, jobs, definitions, services })
}

/// Runs a worker until it is shut down and its runs have ended or are handed over. Definitions from
/// files are loaded again whenever `reload` is notified.
///
/// # Errors
/// [`Unavailable`] if a service cannot be reached at the start, and
/// [`OutOfOrder`](crate::worker::OutOfOrder) if a task of the worker stalled or failed.
pub async fn serve(config: &Config, shutdown: Shutdown, reload: Arc<Notify>) -> anyhow::Result<()> {
    // First, so that an address that cannot be used is reported at once.
    let socket = Socket::open(config).await?;
    if api::is_api_only(config) {
        return Box::pin(api::serve_alone(config, socket, shutdown)).await;
    }
    let parts = tokio::select! {
        biased;
        () = shutdown.intake.cancelled() => {
            info!("bob-runner ends: it was asked to before it had connected to its services");
            return Ok(());
        }
        parts = Box::pin(connect(config)) => parts?,
    };
    let WorkerParts { config, node, worker, found, stream, own_store, jobs, definitions, services } =
        parts;
    let api = match socket {
        Some(socket) => socket.start(&config, services, shutdown.intake.clone()).await,
        None => RunningApi::archive_alone(&config, services),
    };
    let url = found.as_ref().map(|found| found.url.clone());
    let keeper = match config.mode {
        // Steps on this host have supervisors.
        Mode::Cluster => guard_settings(&config, &node, url).map(Keeper::start),
        // No other process can resume a run of this store while something of it still runs. The
        // next process on the store ends that first.
        Mode::Embedded => None,
    };
    let worker = match &keeper {
        Some(keeper) => worker.guarded(keeper.guard()),
        None => worker,
    };
    let inputs = Inputs { jobs, definitions, reload };
    let working = Box::pin(work(worker, shutdown, inputs));
    let worked = match &own_store {
        None => working.await.map_err(anyhow::Error::from),
        Some(store) => tokio::select! {
            worked = working => worked.map_err(anyhow::Error::from),
            failure = store.failed(&config.data_dir) => Err(failure.into()),
        },
    };
    api.end().await;
    if let Some(stream) = stream {
        stream.close_and_save().await;
    }
    if let Some(keeper) = keeper {
        keeper.end().await;
    }
    if let Some(own) = found.and_then(|found| found.own) {
        own.end().await;
    }
    worked
}

/// Files that this process reads beside the worker.
struct Inputs {
    jobs: Option<Watch>,
    definitions: Option<Loader>,
    reload: Arc<Notify>,
}

impl Inputs {
    /// Reads the files until `stop` is cancelled. Jobs added after that wait in their file.
    async fn read(self, stop: CancellationToken) {
        let Self { jobs, definitions, reload } = self;
        let jobs = async {
            if let Some(jobs) = jobs {
                jobs.watch(stop.clone()).await;
            }
        };
        let definitions = async {
            if let Some(definitions) = definitions {
                definitions.keep(reload, stop.clone()).await;
            }
        };
        tokio::join!(jobs, definitions);
    }
}

/// Runs a worker, and reads the inputs meanwhile.
async fn work(worker: Worker, shutdown: Shutdown, inputs: Inputs) -> Result<(), OutOfOrder> {
    let intake = shutdown.intake.clone();
    let working = worker.run(shutdown);
    tokio::pin!(working);
    tokio::select! {
        worked = &mut working => return worked,
        () = inputs.read(intake) => {}
    }
    working.await
}

/// The store of a worker in embedded mode, with the executor of its runs.
struct OwnStore {
    embedded: Embedded,
    cluster: String,
    executor: Arc<dyn Executor>,
}

impl OwnStore {
    /// Resolves when the store can no longer be written and the containers of its runs are removed.
    /// The end of their steps could not be recorded. Committed images stay for the next start.
    async fn failed(&self, data_dir: &Path) -> UnwritableDataDir {
        let cause = self.embedded.failed().await;
        if let Err(cause) = self.clear().await {
            error!(%cause, "cannot remove the containers of this worker's runs");
        }
        UnwritableDataDir { dir: data_dir.to_owned(), cause }
    }

    async fn clear(&self) -> Result<(), ExecError> {
        for left in self.executor.leftovers().await? {
            if left.cluster.as_deref() == Some(&self.cluster) {
                self.executor.clear(&left.run).await?;
            }
        }
        Ok(())
    }
}

/// The settings of this process's guard. `None` if there is nothing to guard.
fn guard_settings(config: &Config, node: &NodeId, engine: Option<String>) -> Option<GuardSettings> {
    let docker = config.engine.docker_url.as_ref().map(ToString::to_string);
    if engine.is_none() && docker.is_none() {
        return None;
    }
    let form = config.log.format.map(|format| match format {
        LogFormat::Text => Form::Text,
        LogFormat::Json => Form::Json,
        LogFormat::Ci => Form::Ci,
    });
    Some(GuardSettings {
        worker: node.clone(),
        engine,
        docker,
        level: config.log.level.as_str(),
        form: telemetry::effective_form(form),
    })
}
