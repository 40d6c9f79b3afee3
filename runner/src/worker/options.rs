//! The settings of a worker, and how it is asked to end.

use std::time::Duration;

use protocol::id::NodeId;
use protocol::pipeline::{ExecutorKind, PullPolicy, Vars};
use tokio_util::sync::CancellationToken;

use super::room::DiskOptions;

/// The settings of a worker.
#[derive(Debug, Clone)]
pub struct Options {
    /// The worker's ID.
    pub node: NodeId,
    /// The maximum number of runs in progress.
    pub slots: usize,
    /// The maximum number of steps of a run in progress.
    pub parallel_steps: usize,
    /// The time to live of the lease.
    pub lease_ttl: Duration,
    /// How long a task may stall before the watchdog trips. Exceeds the timeouts of all ports.
    pub stall_timeout: Duration,
    /// The default time between SIGTERM and SIGKILL of a step.
    pub kill_grace: Duration,
    /// How long runs may continue after the worker was asked to end.
    pub drain: Duration,
    /// The default network of steps.
    pub network: Option<String>,
    /// The default pull policy.
    pub pull: PullPolicy,
    /// The interval between updates of the node's entry.
    pub node_refresh: Duration,
    /// How long ended runs are kept whose pipelines do not set it.
    pub retention: Duration,
    /// How many ended runs of a pipeline are kept that does not set it. `None` means no limit.
    pub retention_count: Option<u32>,
    /// The interval between removals of resources that are no longer needed.
    pub sweep: Duration,
    /// Limits of the engine's disk.
    pub disk: DiskOptions,
    /// Whether the worker has its own queue, for dispatchers that choose a worker.
    pub own_queue: bool,
    /// Whether the worker resumes runs of others and hands over its own. If not, it ends runs it
    /// cannot finish.
    pub rescue: bool,
    /// Whether images are kept for the `retention` of their pipeline and removed later.
    pub keeps_images: bool,
    /// The number of owners that a run may lose between two commits.
    pub max_losses: u32,
    /// The available executors.
    pub executors: Vec<ExecutorKind>,
    /// The maximum output of a step, and of all steps of a run, in bytes. `None` means no limit.
    pub log_limit: Option<u64>,
    /// Whether to run definitions that contain secrets in clear text.
    pub literal_secrets: bool,
    /// Whether a rerun can take over steps with a definition or variables other than its parent's.
    pub changed_reruns: bool,
    /// The address of the steps' logs in callbacks.
    pub logs: Option<String>,
    /// Variables for every job of the `docker` executor.
    pub job_env: Vars,
    /// The worker's version.
    pub version: String,
}

/// How a worker is asked to end, in two stages.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Accept no new work; runs in progress may finish.
    pub intake: CancellationToken,
    /// Stop the runs in progress.
    pub abort: CancellationToken,
}
