//! The composition root, the only place that names adapters. It turns settings into ports and ports
//! into a worker.

mod access;
mod api;
pub mod ci;
mod cluster_client;
mod definitions;
pub mod doctor;
pub mod engine;
mod executors;
pub mod guard;
mod here;
pub mod kept;
pub mod lifeline;
mod logs;
mod outputs;
mod own_secret;
mod reach;
mod render;
mod runs;
mod serve;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use protocol::id::NodeId;
use tracing::warn;

pub use access::{NoToken, UnusableHttp, sign_token};
pub use api::openapi;
pub use cluster_client::connect_client;
pub use definitions::{FindError, UnusableDefinitions, find_files};
pub use executors::{SUPERVISE, supervise};
pub use here::{
    Ended, HereRun, Jobs, KeptParent, KeptRun, Rejected, Start, job_id, kept_run, run_here,
};
pub use render::{RENDER, RenderProcess, render};
pub use serve::serve;

pub use crate::http::access::Scope;
pub use crate::ports::Position;
pub use crate::worker::Shutdown;

use executors::{executor, on_this_host};
use reach::{Publisher, policy, scopes};

use crate::client::{ServiceFault, Unavailable};
use crate::cluster::{AmqpEvents, AmqpOptions, AmqpQueue, Etcd, EtcdOptions, TlsFiles};
use crate::config::{self, Config, LiteralSecrets};
use crate::egress::Policy;
use crate::embedded::{Embedded, OpenError};

use crate::ports::{
    Events, EventsError, ExecError, Executor, Host, Ports, Queue, QueueError, Secret, Secrets,
    Store, StoreError,
};
use crate::{embedded, host, transfer, worker};

/// A configured directory cannot be used. The program exits with 78.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the directory {}: {cause}; set BOB_DATA_DIR to one that can be written", .dir.display())]
pub struct UnusableDir {
    dir: PathBuf,
    cause: std::io::Error,
}

/// The data directory cannot be written. The program exits with 78.
#[derive(Debug, thiserror::Error)]
#[error("cannot write BOB_DATA_DIR ({}): {cause}", .dir.display())]
pub struct UnwritableDataDir {
    dir: PathBuf,
    cause: String,
}

impl UnwritableDataDir {
    fn new(dir: &Path, cause: &std::io::Error) -> Self {
        Self { dir: dir.to_owned(), cause: embedded::cause_of(cause) }
    }
}

/// Creates a directory and its parents. `true` if it did not exist.
fn make_dir(dir: &Path) -> Result<bool, UnusableDir> {
    let made = match dir.parent() {
        Some(parent) => std::fs::create_dir_all(parent).and_then(|()| std::fs::create_dir(dir)),
        None => std::fs::create_dir(dir),
    };
    match made {
        Ok(()) => Ok(true),
        Err(_) if dir.is_dir() => Ok(false),
        Err(cause) => Err(UnusableDir { dir: dir.to_owned(), cause }),
    }
}

/// The subdirectory for steps that run on this host.
const LOCAL: &str = "local";

/// A new node id.
#[must_use]
pub fn new_node() -> NodeId {
    NodeId::from_uuid(uuid::Uuid::new_v4())
}

/// The pause between two sweeps of ended runs. Listing an engine's images takes seconds if there
/// are many.
const SWEEP: Duration = Duration::from_secs(600);

/// How long a task of the worker can stall before the watchdog acts: several successive store
/// calls, each with a timeout of 5 s.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The worker's options from the settings.
#[must_use]
pub fn worker_options(config: &Config, node: NodeId) -> worker::Options {
    let worker = &config.worker;
    worker::Options {
        node,
        slots: worker.max_parallel_runs as usize,
        parallel_steps: worker.max_parallel_steps as usize,
        lease_ttl: worker.lease_ttl,
        stall_timeout: (worker.lease_ttl * 3).max(STALL_TIMEOUT),
        kill_grace: worker.kill_grace,
        drain: worker.drain,
        network: config.engine.network.clone(),
        pull: config.engine.pull_policy,
        node_refresh: worker.health_check,
        retention: Duration::from_secs(u64::from(worker.run_retention_days) * 24 * 3600),
        retention_count: worker.run_retention_count,
        own_queue: true,
        rescue: true,
        keeps_images: true,
        max_losses: worker.max_losses,
        sweep: SWEEP,
        disk: worker::DiskOptions {
            high: worker.disk_high,
            low: worker.disk_low,
            base_images_bytes: worker.base_images_bytes,
            ..worker::DiskOptions::default()
        },
        executors: worker.executors.clone(),
        log_limit: worker.log_limit,
        literal_secrets: worker.literal_secrets == LiteralSecrets::Allow,
        changed_reruns: false,
        logs: None,
        job_env: config.job_env.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn tls(tls: &config::Tls) -> TlsFiles {
    TlsFiles {
        ca: tls.ca.clone(),
        cert: tls.identity.as_ref().map(|identity| identity.cert.clone()),
        key: tls.identity.as_ref().map(|identity| identity.key.clone()),
    }
}

/// The etcd options from the settings.
#[must_use]
pub fn etcd_options(config: &Config) -> EtcdOptions {
    let storage = &config.storage;
    EtcdOptions {
        urls: storage.urls.iter().map(|url| url.to_string().trim_end_matches('/').into()).collect(),
        user: storage.login.as_ref().map(|login| login.user.clone()),
        password: storage.login.as_ref().map(|login| login.password.expose().clone()),
        tls: tls(&storage.tls),
        retry_attempts: config.connection.retry_attempts,
        retry_delay: config.connection.retry_delay,
    }
}

/// The RabbitMQ options from the settings.
#[must_use]
pub fn amqp_options(config: &Config, node: NodeId) -> AmqpOptions {
    let broker = &config.queue.broker;
    AmqpOptions {
        url: broker.url(),
        user: broker.login.user.clone(),
        password: broker.login.password.expose().clone(),
        tls: tls(&config.queue.tls),
        node,
        retry_attempts: config.connection.retry_attempts,
        retry_delay: config.connection.retry_delay,
        stream_name: config.stream.name.clone(),
        stream_retention_days: config.stream.retention_days,
        stream_max_bytes: config.stream.max_bytes,
        stream_url: config.stream.server.as_ref().map(config::StreamServer::url),
        spill_dir: config.spill.dir.clone(),
        spill_bytes: config.spill.bytes,
        spill_cluster: None,
    }
}

/// Connects to the store of a cluster.
///
/// # Errors
/// [`Unavailable`] if it does not answer within the configured attempts.
pub async fn connect_store(config: &Config) -> Result<Arc<dyn Store>, Unavailable> {
    Ok(Arc::new(connect_etcd(config).await?))
}

/// The same, with its concrete type.
async fn connect_etcd(config: &Config) -> Result<Etcd, Unavailable> {
    let etcd = Etcd::connect(&etcd_options(config)).await;
    etcd.map_err(|cause| Unavailable {
        why: if matches!(cause, StoreError::Denied { .. }) {
            ServiceFault::Refuses
        } else {
            ServiceFault::Unreachable
        },
        ..Unavailable::because(&cause)
    })
}

/// Connects to the queues of a cluster.
///
/// # Errors
/// [`Unavailable`] if the broker does not answer within the configured attempts.
pub async fn connect_queue(config: &Config, node: NodeId) -> Result<Arc<dyn Queue>, Unavailable> {
    Ok(Arc::new(connect_broker(config, node).await?))
}

/// The same, with its concrete type.
async fn connect_broker(config: &Config, node: NodeId) -> Result<AmqpQueue, Unavailable> {
    let queue = AmqpQueue::connect(&amqp_options(config, node)).await;
    queue.map_err(|cause| Unavailable {
        why: match cause {
            QueueError::Denied { .. } => ServiceFault::Refuses,
            QueueError::WrongKind { .. } => ServiceFault::WrongKind,
            QueueError::Unreachable { .. }
            | QueueError::Unroutable { .. }
            | QueueError::NotTaken { .. }
            | QueueError::DeliveryLost => ServiceFault::Unreachable,
        },
        ..Unavailable::because(&cause)
    })
}

/// Connects to the stream of a cluster.
///
/// # Errors
/// [`Unavailable`] if the broker does not answer within the configured attempts.
pub async fn connect_events(config: &Config, node: NodeId) -> Result<Arc<dyn Events>, Unavailable> {
    Ok(Arc::new(connect_stream(&amqp_options(config, node)).await?))
}

/// The same, with its concrete type.
async fn connect_stream(options: &AmqpOptions) -> Result<AmqpEvents, Unavailable> {
    AmqpEvents::connect(options).await.map_err(|cause| Unavailable {
        why: match cause {
            EventsError::Denied { .. } => ServiceFault::Refuses,
            EventsError::WrongKind { .. } => ServiceFault::WrongKind,
            EventsError::Unreachable { .. } | EventsError::Spill { .. } | EventsError::Closed => {
                ServiceFault::Unreachable
            }
        },
        ..Unavailable::because(&cause)
    })
}

/// This host.
#[must_use]
pub fn this_host() -> Arc<dyn Host> {
    Arc::new(host::Linux::default())
}

fn transfers(config: &Config, policy: &Policy) -> anyhow::Result<transfer::Http> {
    let options = transfer::Options {
        policy: policy.clone(),
        spill_dir: config.spill.dir.clone(),
        spill_bytes: config.spill.bytes,
    };
    transfer::Http::new(options).context("cannot make an HTTP client")
}

/// The secrets provided to steps.
fn secrets(config: &Config, publisher: Publisher) -> Arc<dyn Secrets> {
    let variables = config.secrets.variables.iter();
    let hidden = |value: &config::Secret<Vec<u8>>| Secret::new(value.expose().as_slice());
    Arc::new(host::MountedSecrets {
        dirs: config.secrets.dirs.clone(),
        variables: variables.map(|(name, value)| (name.clone(), hidden(value))).collect(),
        scopes: scopes(config, publisher),
    })
}

/// Waits for the engine as long as for any other service of a cluster.
async fn engine_answers(executor: &dyn Executor, config: &Config) {
    let mut left = config.connection.retry_attempts.max(1);
    while let Err(error @ ExecError::Unreachable { .. }) = executor.info().await {
        left -= 1;
        if left == 0 {
            return;
        }
        warn!(%error, attempts_left = left, "the container engine is tried again");
        tokio::time::sleep(config.connection.retry_delay).await;
    }
}

/// The ports of a worker in a cluster, and its stream. Call [`AmqpEvents::close_and_save`] on the
/// stream after the worker has ended.
///
/// # Errors
/// [`Unavailable`] if a service does not answer.
pub async fn cluster_ports(
    config: &Config,
    node: &NodeId,
    engine: Option<String>,
) -> anyhow::Result<(Ports, AmqpEvents)> {
    let checkpoints = config.worker.checkpoint_registry.clone();
    let local = on_this_host(config, config.data_dir.join(LOCAL), None);
    let publisher = Publisher::Anyone;
    let policy = policy(config, engine.as_deref(), publisher);
    let transfer = transfers(config, &policy)?;
    let executor = executor(config, node, engine, checkpoints, local, &policy)?;
    let connected = async {
        let (store, queue) =
            tokio::try_join!(connect_store(config), connect_queue(config, node.clone()))?;
        // Last, so that an unavailable broker is reported only once. The name of the spill
        // directory needs the cluster's identity.
        let cluster = store.identity().await.map_err(|cause| Unavailable::because(&cause))?;
        let spill_cluster = Some(cluster.clone());
        let options = AmqpOptions { spill_cluster, ..amqp_options(config, node.clone()) };
        Ok::<_, Unavailable>((store, queue, connect_stream(&options).await?, cluster))
    };
    // Contacting the engine takes as long as a connection, and the executor caches the answer. The
    // worker contacts it again and reports errors.
    let (connected, ()) = tokio::join!(Box::pin(connected), engine_answers(&*executor, config));
    let (store, queue, events, cluster) = connected?;
    let outputs = outputs::keeper(config, &store, &transfer, Some(&cluster))?;
    let ports = Ports {
        queue,
        store,
        events: Arc::new(events.clone()),
        executor,
        transfer: Arc::new(transfer),
        host: this_host(),
        renderer: Arc::new(RenderProcess::of_this_program()),
        secrets: secrets(config, publisher),
        outputs,
    };
    Ok((ports, events))
}

/// Names the setting instead of the file if the file cannot be written.
fn opened_with(config: &Config, error: OpenError) -> anyhow::Error {
    match error {
        OpenError::Io { cause, .. } => {
            UnwritableDataDir { dir: config.data_dir.clone(), cause }.into()
        }
        OpenError::InUse { .. } | OpenError::Unreadable { .. } => error.into(),
    }
}

/// If the store has failed meanwhile, returns that as the cause.
fn caused_by_store(embedded: &Embedded, config: &Config, error: anyhow::Error) -> anyhow::Error {
    match embedded.failure() {
        Some(cause) => UnwritableDataDir { dir: config.data_dir.clone(), cause }.into(),
        None => error,
    }
}

/// The ports of a worker with its own store, in a file below `dir`.
///
/// # Errors
/// If the file cannot be used, or another process uses it.
pub async fn embedded_ports(
    config: &Config,
    dir: &Path,
    node: &NodeId,
    engine: Option<String>,
    work_dir: Option<PathBuf>,
) -> anyhow::Result<(Ports, Embedded)> {
    let embedded = Embedded::open(embedded::Options {
        dir: Some(dir.to_owned()),
        event_retention: Duration::from_secs(u64::from(config.stream.retention_days) * 86_400),
        host: this_host(),
    })
    .await
    .map_err(|cause| opened_with(config, cause))?;
    let store: Arc<dyn Store> = embedded.store();
    // A user who runs a file works in their own directory.
    let publisher = if work_dir.is_some() { Publisher::User } else { Publisher::Anyone };
    let policy = policy(config, engine.as_deref(), publisher);
    let transfer = transfers(config, &policy)?;
    let cluster = match publisher {
        Publisher::Anyone => Some(store.identity().await?),
        Publisher::User => None,
    };
    let local = on_this_host(config, dir.join(LOCAL), work_dir);
    let ports = Ports {
        queue: embedded.queue(node),
        outputs: outputs::keeper(config, &store, &transfer, cluster.as_deref())?,
        store,
        events: embedded.events(),
        // No other engine needs checkpoints.
        executor: executor(config, node, engine, None, local, &policy)?,
        transfer: Arc::new(transfer),
        host: this_host(),
        renderer: Arc::new(RenderProcess::of_this_program()),
        secrets: secrets(config, publisher),
    };
    Ok((ports, embedded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unavailable_service_is_reported_in_one_line_of_any_response() {
        let page = format!("404\n<html>\n\n{}\n", "not found\n".repeat(1000));
        let said = Unavailable::new(&page).to_string();
        assert!(said.starts_with("404 <html> not found not found"), "{said}");
        assert!(said.ends_with("...") && said.len() < 600 && !said.contains('\n'), "{said}");
        assert_eq!(Unavailable::new("404 page not found\n").to_string(), "404 page not found");
    }

    #[test]
    fn a_directory_is_created_or_used_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        assert!(make_dir(&path).unwrap());
        assert!(!make_dir(&path).unwrap());
        std::fs::write(path.join("file"), "").unwrap();
        let error = make_dir(&path.join("file/c")).unwrap_err().to_string();
        assert!(error.contains("file/c") && error.contains("BOB_DATA_DIR"), "{error}");
    }
}
