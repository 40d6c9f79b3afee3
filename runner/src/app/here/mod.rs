//! Runs one pipeline in this process, with a worker over its own store.
//!
//! | module | duty |
//! |---|---|
//! | `end` | ends the run, and decides what is kept of it |
//! | `kept` | ended runs that are kept for their `retention` |
//! | `sweep` | removes what killed runs left |

mod end;
mod kept;
mod sweep;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use protocol::command;
use protocol::id::{NodeId, RunId};
use protocol::names;
use protocol::pipeline::{ExecutorKind, Params, Pipeline, Place, Step, Vars};
use serde_json::json;
use tokio::task::JoinHandle;

use super::executors::with_docker;
use super::outputs::in_directory;
use super::runs::{self, About, Claimed, IdLock, RunDir};
use super::{
    Shutdown, Unavailable, UnwritableDataDir, caused_by_store, embedded_ports, engine, new_node,
    worker_options,
};
use crate::config::Config;
use crate::embedded::Embedded;
use crate::ports::{
    EventStream, Executor, LeftoverRun, Message, Ports, Position, Queue, Route, Store,
};
use crate::worker::{self, OutOfOrder, Worker};

pub use end::Ended;
pub use kept::{KeptParent, KeptRun, kept_run};

/// A run in progress.
pub struct HereRun {
    /// Its events, from the first one. The stream does not end.
    pub events: EventStream,
    /// Ends the worker: `intake` lets the run finish, `abort` stops it.
    pub shutdown: Shutdown,
    queue: Arc<dyn Queue>,
    run: RunId,
    /// The worker. It ends by itself only if it fails.
    pub worker: JoinHandle<Result<(), OutOfOrder>>,
    /// Its store.
    pub store: OwnStore,
    /// A warning about the engine, for the user.
    pub warning: Option<String>,
    executor: Arc<dyn Executor>,
    own_engine: Option<engine::OwnService>,
    about: About,
    /// How long the images of its steps are kept.
    retention: Option<Duration>,
    dir: NewRunDir,
    sweep: JoinHandle<Vec<RunId>>,
    _id: Option<IdLock>,
}

/// The store of the run.
#[derive(Debug)]
pub struct OwnStore {
    embedded: Embedded,
    data_dir: PathBuf,
    run: RunId,
}

/// A start that `run FILE` rejects before anything runs. Holds the error message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(String);

/// The directory of a run, removed when the run is over or was not started.
struct NewRunDir {
    dir: Option<RunDir>,
    /// Whether it leads to an earlier run's containers and must stay.
    is_needed: bool,
}

impl Drop for NewRunDir {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take().filter(|_| !self.is_needed) {
            dir.remove();
        }
    }
}

impl std::fmt::Debug for HereRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Here").field("run", &self.run).finish_non_exhaustive()
    }
}

/// Whether podman runs a step of the pipeline. `has_docker`: another engine runs steps with an
/// image of their own.
fn on_engine(pipeline: &Pipeline, has_docker: bool) -> bool {
    let on_engine = |step: &Step| {
        step.executor.capabilities().place == Place::Engine
            && !step.is_join()
            && !(has_docker && step.has_own_image())
    };
    all_steps(pipeline).any(on_engine)
}

fn all_steps(pipeline: &Pipeline) -> impl Iterator<Item = &Step> {
    pipeline.all_steps()
}

/// Whether a step runs in a container of an image of its own.
fn has_own_image(step: &Step) -> bool {
    !step.is_join() && step.has_own_image()
}

/// The directories for the files of a job file.
#[derive(Debug, Clone)]
pub struct Jobs {
    /// The directory of the outputs.
    pub work_dir: PathBuf,
    /// The directory of the logs, as shown in callbacks.
    pub log_dir: String,
}

/// The default directory for outputs of `run FILE`.
const OUTPUTS: &str = "outputs";

/// The name of a job outside its run, used for its files.
#[must_use]
pub fn job_id(run: &RunId, step: &Step) -> String {
    crate::rules::job::id(run, step)
}

/// What `run FILE` starts.
#[derive(Debug, Clone, Copy)]
pub struct Start<'s> {
    /// The definition.
    pub pipeline: &'s Pipeline,
    /// Variables that override the pipeline's.
    pub vars: &'s Vars,
    /// Values for templates.
    pub params: &'s Params,
    /// The id.
    pub run: &'s RunId,
    /// Whether the user chose the id, so that it may exist already.
    pub is_named: bool,
    /// The ended run whose committed steps it takes over.
    pub after: Option<&'s KeptParent>,
}

impl Start<'_> {
    /// Checks what intake would reject.
    ///
    /// # Errors
    /// [`Rejected`].
    pub fn check(&self) -> Result<(), Rejected> {
        let too_large = command::too_large(Some(self.pipeline), self.vars, self.params);
        too_large.map_or(Ok(()), |why| Err(Rejected(why)))
    }

    fn message(&self) -> Message {
        let Self { pipeline, vars, params, run, after, .. } = self;
        let mut body =
            json!({ "run-id": run, "pipeline": pipeline, "vars": vars, "params": params });
        if let Some(after) = after {
            body["parent"] = json!(after.parent);
        }
        Message {
            kind: Some(command::START.to_owned()),
            id: Some(run.to_string()),
            headers: BTreeMap::new(),
            body: body.to_string().into_bytes(),
        }
    }
}

/// Starts a pipeline in embedded mode, in its own store below the data directory. `jobs`: the
/// directories of its files, if it is a job file.
///
/// # Errors
/// [`Rejected`] if the start is rejected; other errors if the store cannot be created or the engine
/// does not answer.
pub async fn run_here(
    config: &Config,
    start: Start<'_>,
    jobs: Option<Jobs>,
) -> anyhow::Result<HereRun> {
    start.check()?;
    let (pipeline, run) = (start.pipeline, start.run);
    let id = IdLock::take(run, &config.data_dir).map_err(|who| in_use(run, &who))?;
    let (dir, earlier) = directory(config, run)?;
    let path = dir.path.clone();
    let needs_docker = all_steps(pipeline).any(has_own_image);
    let was_on = |engine: fn(&About) -> bool| earlier.as_ref().is_some_and(engine);
    let config = &with_docker(config, needs_docker || was_on(|about| about.on_docker));
    let has_docker = config.engine.docker_url.is_some();
    let about = About {
        on_podman: on_engine(pipeline, has_docker) || was_on(|about| about.on_podman),
        on_docker: has_docker,
        kept_until: None,
    };
    dir.note(&about).map_err(|cause| unwritable(config, &cause))?;
    // The directory leads to an earlier run's containers until those are removed.
    let mut dir = NewRunDir { dir: Some(dir), is_needed: earlier.is_some() };
    let found = if about.on_podman { Some(engine::find(&config.engine).await?) } else { None };
    // Steps on this host work in the user's directory.
    let here = std::env::current_dir().context("cannot determine the working directory")?;
    let (node, url) = (new_node(), found.as_ref().map(|found| found.url.clone()));
    let (ports, embedded) = embedded_ports(config, &path, &node, url, Some(here)).await?;
    let executor = Arc::clone(&ports.executor);
    if earlier.is_some() {
        executor.destroy(run).await.map_err(|cause| Unavailable::because(&cause))?;
        dir.is_needed = false;
    }
    let begun = begin(config, &start, node, ports, jobs).await;
    let begun = begun.map_err(|cause| caused_by_store(&embedded, config, cause))?;
    let unused = runs::unused(&runs::below(&config.data_dir), run);
    let sweep = sweep::sweep(unused, about.clone(), Arc::clone(&executor));
    #[expect(clippy::disallowed_methods, reason = "joined in `end`")]
    let sweep = tokio::spawn(sweep);
    Ok(HereRun {
        events: begun.events,
        shutdown: begun.shutdown,
        queue: begun.queue,
        run: run.clone(),
        worker: begun.worker,
        store: OwnStore { embedded, data_dir: config.data_dir.clone(), run: run.clone() },
        warning: begun.warning,
        executor,
        own_engine: found.and_then(|found| found.own),
        about,
        retention: pipeline.retention.map(|span| span.as_duration()),
        dir,
        sweep,
        _id: id,
    })
}

/// A worker that has received its start.
struct Begun {
    events: EventStream,
    shutdown: Shutdown,
    queue: Arc<dyn Queue>,
    worker: JoinHandle<Result<(), OutOfOrder>>,
    warning: Option<String>,
}

/// Starts a worker and sends it the start.
async fn begin(
    config: &Config,
    start: &Start<'_>,
    node: NodeId,
    mut ports: Ports,
    jobs: Option<Jobs>,
) -> anyhow::Result<Begun> {
    if start.is_named {
        demand_unused(&*ports.executor, &*ports.store, start.run).await?;
    }
    if let Some(after) = start.after {
        after.write_to(&*ports.store).await?;
    }
    let events = ports.events.follow(Position::First).await?;
    let options = options(config, node, &mut ports, jobs);
    let (queue, executor) = (Arc::clone(&ports.queue), Arc::clone(&ports.executor));
    let worker = Worker::new(ports, options).await.map_err(|cause| Unavailable::because(&cause))?;
    // The worker has already requested it, and the executor caches it.
    let warning = executor.info().await.ok().and_then(|engine| engine.warning);
    let shutdown = Shutdown::default();
    #[expect(clippy::disallowed_methods, reason = "the one task of this process, joined in `end`")]
    let worker = tokio::spawn(worker.run(shutdown.clone()));
    queue.publish(Route::Jobs, start.message()).await?;
    Ok(Begun { events, shutdown, queue, worker, warning })
}

/// The options of a worker for one run, with outputs and logs in the user's directories.
fn options(
    config: &Config,
    node: NodeId,
    ports: &mut Ports,
    jobs: Option<Jobs>,
) -> worker::Options {
    let mut options = worker_options(config, node);
    options.slots = 1;
    options.own_queue = false;
    // The user could do all this anyway.
    options.executors = ExecutorKind::ALL.to_vec();
    options.literal_secrets = true;
    options.changed_reruns = true;
    // No other worker could resume the run.
    options.rescue = false;
    let outputs = jobs.as_ref().map(|jobs| jobs.work_dir.clone());
    options.logs = jobs.map(|jobs| jobs.log_dir);
    if let Some(dir) = outputs {
        ports.outputs = Some(in_directory(dir));
    } else if ports.outputs.is_none() {
        ports.outputs = Some(in_directory(PathBuf::from(OUTPUTS)));
    }
    options
}

/// The empty directory of a run, and the facts about an earlier run with the same id if it was
/// killed.
fn directory(config: &Config, run: &RunId) -> anyhow::Result<(RunDir, Option<About>)> {
    let claimed = runs::claim(&runs::below(&config.data_dir), run);
    let claimed = claimed.map_err(|cause| unwritable(config, &cause))?;
    match claimed {
        None => Err(in_use(run, "").into()),
        Some(Claimed::New(dir)) => Ok((dir, None)),
        Some(Claimed::Earlier(dir)) => {
            let about = dir.about().unwrap_or_else(About::of_older_version);
            if about.is_kept(runs::now()) {
                return Err(Rejected(format!(
                    "run {run} has ended and is kept for its `retention`; choose another --run-id"
                ))
                .into());
            }
            dir.empty().map_err(|cause| unwritable(config, &cause))?;
            Ok((dir, Some(about)))
        }
    }
}

fn unwritable(config: &Config, cause: &std::io::Error) -> UnwritableDataDir {
    UnwritableDataDir::new(&config.data_dir, cause)
}

fn in_use(run: &RunId, who: &str) -> Rejected {
    let who = if who.is_empty() { String::new() } else { format!(" ({who})") };
    Rejected(format!("run {run} is running already{who}; choose another --run-id"))
}

/// Rejects a run id that something on the engine already uses. Two runs with one id would remove
/// each other's containers.
async fn demand_unused(
    executor: &dyn Executor,
    store: &dyn Store,
    run: &RunId,
) -> anyhow::Result<()> {
    let own = store.identity().await?;
    let left = executor.leftovers().await.map_err(|cause| Unavailable::because(&cause))?;
    let is_other = |left: &LeftoverRun| left.run == *run && left.cluster.as_deref() != Some(&own);
    if left.iter().any(is_other) {
        return Err(Rejected(format!(
            "the container engine has containers or images of a run {run} from another BOB_DATA_DIR; \
             choose another --run-id"
        ))
        .into());
    }
    Ok(())
}

impl HereRun {
    /// The containers that the run leaves if this process is killed, as the rest of a sentence.
    /// Empty if there are none.
    #[must_use]
    pub fn remains(&self) -> String {
        let run = &self.run;
        let program = match (self.about.on_podman, self.about.on_docker) {
            (true, _) => "podman",
            (false, true) => "docker",
            (false, false) => return String::new(),
        };
        format!(
            "; it may leave containers named bob-{run}-*, which the next `bob-runner run` removes, or \
             `{program} rm --force $({program} ps --all --quiet --filter label={}={run})`",
            names::LABEL_RUN
        )
    }

    /// Stops the run, as the command `stop` does.
    ///
    /// # Errors
    /// If the store's file cannot be written.
    pub async fn stop(&self, reason: &str) -> anyhow::Result<()> {
        let body = json!({ "run-id": self.run, "reason": reason });
        let message = Message {
            kind: Some(command::STOP.to_owned()),
            id: None,
            headers: BTreeMap::new(),
            body: body.to_string().into_bytes(),
        };
        Ok(self.queue.publish(Route::Control, message).await?)
    }
}
