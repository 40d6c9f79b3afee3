//! Every name on a wire: exchanges, queues, keys, labels, headers. Nothing else spells them.

use crate::id::{NodeId, PipelineId, RunId};

/// The direct exchange that every command goes through.
pub const EXCHANGE: &str = "bob.direct";
/// The exchange of what was dead-lettered.
pub const DEAD_LETTER_EXCHANGE: &str = "bob.dlx";
/// The shared queue of starts; also its routing key.
pub const JOBS_QUEUE: &str = "bob.jobs";
/// The shared queue of stops and pauses; also its routing key.
pub const CONTROL_QUEUE: &str = "bob.control";
/// The queue of what was dead-lettered; also its routing key.
pub const DEAD_LETTER_QUEUE: &str = "bob.dlq";
/// The stream of events, unless the settings name another.
pub const EVENT_STREAM: &str = "bob.event-stream";
/// How often a message may come back to a quorum queue before it is dead-lettered.
pub const DELIVERY_LIMIT: i64 = 20;

/// The exclusive queue of one worker; also its routing key.
#[must_use]
pub fn node_queue(node: &NodeId) -> String {
    format!("bob.jobs.{node}")
}

/// Header (dead-lettered messages of ours): why it was dead-lettered, as a sentence.
pub const HEADER_REJECTED_BECAUSE: &str = "bob-rejected-because";
/// The stream message property that brokers from 3.13 on filter by; its value is the run id.
pub const HEADER_STREAM_FILTER: &str = "x-stream-filter-value";
/// The content type of every message.
pub const CONTENT_TYPE: &str = "application/json";

/// The prefix of pipelines.
pub const PIPELINES: &str = "bob.pipeline/";
/// The prefix of run records.
pub const RUNS: &str = "bob.pipeline.run/";
/// The prefix of the immutable parts of runs.
pub const DEFINITIONS: &str = "bob.run.definition/";
/// The prefix of runs that still have to be looked after.
pub const OPEN: &str = "bob.run.open/";
/// The prefix of owner keys.
pub const OWNERS: &str = "bob.run.owner/";
/// What [`OPEN`] and [`OWNERS`] begin with, and nothing else: one watch sees both.
pub const OPEN_AND_OWNERS: &str = "bob.run.o";
/// The prefix of news that somebody is to be told of.
pub const CALLBACKS: &str = "bob.run.callback/";
/// The prefix of stop requests.
pub const STOPS: &str = "bob.run.stop/";
/// The prefix of the marks that a run id was once accepted.
pub const SEEN: &str = "bob.run.seen/";
/// The prefix of nodes.
pub const NODES: &str = "bob.node/";
/// The prefix of resource providers.
pub const PROVIDERS: &str = "bob.resource-provider/";
/// The prefix of artifact stores.
pub const STORES: &str = "bob.artifact-store/";
/// The prefix of loggers.
pub const LOGGERS: &str = "bob.logger/";

/// Key of a pipeline's definition.
#[must_use]
pub fn pipeline_key(id: &PipelineId) -> String {
    format!("{PIPELINES}{}:{}", id.group(), id.name())
}

/// Key of a run record.
#[must_use]
pub fn run_key(run: &RunId) -> String {
    format!("{RUNS}{run}")
}

/// Key of the immutable parts of a run. It lives as long as the record.
#[must_use]
pub fn definition_key(run: &RunId) -> String {
    format!("{DEFINITIONS}{run}")
}

/// Key that says a run still has to be looked after.
#[must_use]
pub fn open_key(run: &RunId) -> String {
    format!("{OPEN}{run}")
}

/// Key of what is to be told of the step at a position: the first, or the second thing.
#[must_use]
pub fn callback_key(run: &RunId, position: usize, which: u8) -> String {
    format!("{CALLBACKS}{run}/{position}-{which}")
}

/// Key that exists while a run has an owner; its create-revision is the epoch.
#[must_use]
pub fn owner_key(run: &RunId) -> String {
    format!("{OWNERS}{run}")
}

/// Key of a stop request.
#[must_use]
pub fn stop_key(run: &RunId) -> String {
    format!("{STOPS}{run}")
}

/// Key that keeps a redelivery from running again what retention has removed.
#[must_use]
pub fn seen_key(run: &RunId) -> String {
    format!("{SEEN}{run}")
}

/// Key of a node.
#[must_use]
pub fn node_key(node: &NodeId) -> String {
    format!("{NODES}{node}")
}

/// Label of everything an engine keeps for us: the run it belongs to.
pub const LABEL_RUN: &str = "bob.run";
/// Label: the step, by name.
pub const LABEL_STEP: &str = "bob.step";
/// Label: the epoch of the owner that made it.
pub const LABEL_EPOCH: &str = "bob.epoch";
/// Label: the step's attempt.
pub const LABEL_ATTEMPT: &str = "bob.attempt";
/// The store that knows the run: engines are shared by clusters that know nothing of each other.
pub const LABEL_CLUSTER: &str = "bob.cluster";
/// Label of a container: the process that made it, by its node's id, which no other process ever has.
/// Commits carry it on, so that it says nothing of an image.
pub const LABEL_WORKER: &str = "bob.worker";
/// Label: what the thing is for (`step`, `mount`).
pub const LABEL_ROLE: &str = "bob.role";
/// Label: what the base image says of its containers, as JSON.
pub const LABEL_BASE: &str = "bob.base";

/// The store that an internal resource names, and the provider that an external one names, are asked
/// under this path.
pub const RESOURCE_PATH: &str = "bob_resource";
/// The path of artifacts in a store.
pub const ARTIFACT_PATH: &str = "bob_artifact";
/// The path of logs in a logger.
pub const LOG_PATH: &str = "bob_logs";
/// Header of an upload: the run it is of.
pub const HEADER_RUN: &str = "bob-run";
/// Header of an upload: the epoch of the run's owner.
pub const HEADER_EPOCH: &str = "bob-epoch";
/// Header of an upload: the step's attempt.
pub const HEADER_ATTEMPT: &str = "bob-attempt";
