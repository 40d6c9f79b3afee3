//! Every name on a wire: exchanges, queues, keys, labels, headers. Nothing else spells them.

use crate::id::{NodeId, PipelineId, RunId, StepPosition};

/// Direct exchange for every command.
pub const EXCHANGE: &str = "bob.direct";
/// Exchange for dead-lettered messages.
pub const DEAD_LETTER_EXCHANGE: &str = "bob.dlx";
/// Shared queue for starts. Also its routing key.
pub const JOBS_QUEUE: &str = "bob.jobs";
/// Shared queue for stops and pauses. Also its routing key.
pub const CONTROL_QUEUE: &str = "bob.control";
/// Queue for dead-lettered messages. Also its routing key.
pub const DEAD_LETTER_QUEUE: &str = "bob.dlq";
/// Default name of the event stream.
pub const EVENT_STREAM: &str = "bob.event-stream";
/// How often a message can return to a quorum queue before it is dead-lettered.
pub const DELIVERY_LIMIT: i64 = 20;

/// The exclusive queue of one worker. Also its routing key.
#[must_use]
pub fn node_queue(node: &NodeId) -> String {
    format!("bob.jobs.{node}")
}

/// Header of a start that is published again because no worker could take it: how often that
/// happened.
pub const HEADER_REJECTIONS: &str = "bob-rejections";
/// Stream filter property of RabbitMQ 3.13 and later. Its value is the run id.
pub const HEADER_STREAM_FILTER: &str = "x-stream-filter-value";
/// Content type of every message.
pub const CONTENT_TYPE: &str = "application/json";

/// Key prefix of pipelines.
pub const PIPELINES: &str = "bob.pipeline/";
/// Key prefix of run records.
pub const RUNS: &str = "bob.pipeline.run/";
/// Key prefix of the immutable parts of runs.
pub const DEFINITIONS: &str = "bob.run.definition/";
/// Key prefix of runs that still need attention.
pub const OPEN: &str = "bob.run.open/";
/// Key prefix of run owners.
pub const OWNERS: &str = "bob.run.owner/";
/// Common prefix of [`OPEN`] and [`OWNERS`] alone, so that one watch covers both.
pub const OPEN_AND_OWNERS: &str = "bob.run.o";
/// Key prefix of callbacks that still have to be delivered.
pub const CALLBACKS: &str = "bob.run.callback/";
/// Key prefix of stop requests.
pub const STOPS: &str = "bob.run.stop/";
/// Key prefix of markers for run ids that were once accepted.
pub const SEEN: &str = "bob.run.seen/";
/// Key prefix of wait lists.
pub const WAIT_LISTS: &str = "bob.wait/";
/// Key of the worker that removes runs past their retention.
pub const RETENTION: &str = "bob.retention";
/// Key prefix of nodes.
pub const NODES: &str = "bob.node/";
/// Key prefix of resource providers.
pub const PROVIDERS: &str = "bob.resource-provider/";
/// Key prefix of artifact stores.
pub const STORES: &str = "bob.artifact-store/";
/// Key prefix of loggers.
pub const LOGGERS: &str = "bob.logger/";

/// Key of a pipeline's definition.
#[must_use]
pub fn pipeline_key(id: &PipelineId) -> String {
    format!("{PIPELINES}{}:{}", id.group(), id.name())
}

/// Key of a pipeline's wait list.
#[must_use]
pub fn wait_key(id: &PipelineId) -> String {
    format!("{WAIT_LISTS}{}:{}", id.group(), id.name())
}

/// Key of a run record.
#[must_use]
pub fn run_key(run: &RunId) -> String {
    format!("{RUNS}{run}")
}

/// Key of the immutable parts of a run. Created and deleted with the record.
#[must_use]
pub fn definition_key(run: &RunId) -> String {
    format!("{DEFINITIONS}{run}")
}

/// Key that marks a run that still needs attention.
#[must_use]
pub fn open_key(run: &RunId) -> String {
    format!("{OPEN}{run}")
}

/// Key of an undelivered callback for the step at `position`. `which` is 0 for its start and 1 for
/// its end.
#[must_use]
pub fn callback_key(run: &RunId, position: StepPosition, which: u8) -> String {
    format!("{CALLBACKS}{run}/{position}-{which}")
}

/// Key that exists while a run has an owner. Its create-revision is the epoch.
#[must_use]
pub fn owner_key(run: &RunId) -> String {
    format!("{OWNERS}{run}")
}

/// Key of a stop request.
#[must_use]
pub fn stop_key(run: &RunId) -> String {
    format!("{STOPS}{run}")
}

/// Key that prevents a redelivered start from running again after retention removed the run.
#[must_use]
pub fn seen_key(run: &RunId) -> String {
    format!("{SEEN}{run}")
}

/// Key of a node.
#[must_use]
pub fn node_key(node: &NodeId) -> String {
    format!("{NODES}{node}")
}

/// Label: the run that a container, image or volume belongs to.
pub const LABEL_RUN: &str = "bob.run";
/// Label: the step's name.
pub const LABEL_STEP: &str = "bob.step";
/// Label: the epoch of the owner that created the object.
pub const LABEL_EPOCH: &str = "bob.epoch";
/// Label: the step's attempt.
pub const LABEL_ATTEMPT: &str = "bob.attempt";
/// Label: the store that holds the run. Independent clusters can share an engine.
pub const LABEL_CLUSTER: &str = "bob.cluster";
/// Container label: the id of the node that created it, which is unique to one worker process. A
/// commit copies labels to the image, so on an image this label has no meaning.
pub const LABEL_WORKER: &str = "bob.worker";
/// Label: the object's purpose (`step`, `mount`).
pub const LABEL_ROLE: &str = "bob.role";
/// Label: the base image's settings for its containers, as JSON.
pub const LABEL_BASE: &str = "bob.base";

/// URL path of a resource, on the artifact store (internal) or resource provider (external) that it
/// names.
pub const RESOURCE_PATH: &str = "bob_resource";
/// URL path of artifacts on an artifact store.
pub const ARTIFACT_PATH: &str = "bob_artifact";
/// URL path of logs on a logger.
pub const LOG_PATH: &str = "bob_logs";
/// Name of the archived log of a run, below the run's outputs. No step has a name that begins so.
pub const LOG_ARCHIVE: &str = "_log.jsonl.gz";
/// Upload header: the run.
pub const HEADER_RUN: &str = "bob-run";
/// Upload header: the epoch of the run's owner.
pub const HEADER_EPOCH: &str = "bob-epoch";
/// Upload header: the step's attempt.
pub const HEADER_ATTEMPT: &str = "bob-attempt";
