//! One run, here and now: a worker over a store of its own, in this process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use protocol::command;
use protocol::id::RunId;
use protocol::names;
use protocol::pipeline::{ExecutorKind, Params, Pipeline, Step, Vars};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::executors::with_docker;
use super::outputs::in_directory;
use super::{Shutdown, Unavailable, embedded_ports, engine, make_dir, new_node, worker_options};
use crate::config::Config;
use crate::embedded::Embedded;
use crate::ports::{EventStream, Message, Position, Queue, Route, Store};
use crate::worker::{OutOfOrder, Worker};

/// A run on its way.
pub struct Here {
    /// Its events, from the first; they go on for ever.
    pub events: EventStream,
    /// Ends the worker: `intake` lets the run finish, `abort` stops it.
    pub shutdown: Shutdown,
    queue: std::sync::Arc<dyn Queue>,
    run: RunId,
    /// The worker, which ends before it is asked to only where it is out of order.
    pub worker: JoinHandle<Result<(), OutOfOrder>>,
    own_engine: Option<engine::OwnService>,
    embedded: Option<Embedded>,
    dir: PathBuf,
}

/// A directory that goes again, unless somebody has a use for it.
struct Fresh(Option<PathBuf>);

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Some(dir) = self.0.take() {
            // What cannot be removed takes little room, and holds nothing that anybody reads.
            std::fs::remove_dir_all(dir).ok();
        }
    }
}

impl std::fmt::Debug for Here {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Here").field("run", &self.run).finish_non_exhaustive()
    }
}

/// Whether a pipeline has a step that podman runs. `has_docker`: what has an image of its own goes to
/// another engine.
fn on_engine(pipeline: &Pipeline, has_docker: bool) -> bool {
    let on_engine = |step: &Step| match step.executor {
        ExecutorKind::Docker if has_docker => !step.is_join() && step.is_on_image(),
        ExecutorKind::Podman | ExecutorKind::Docker => !step.is_join(),
        ExecutorKind::Local
        | ExecutorKind::Custom
        | ExecutorKind::Ssh
        | ExecutorKind::Proxmox
        | ExecutorKind::Lexware
        | ExecutorKind::Sevdesk
        | ExecutorKind::Http => false,
    };
    all_steps(pipeline).any(on_engine)
}

fn all_steps(pipeline: &Pipeline) -> impl Iterator<Item = &Step> {
    pipeline.steps.iter().chain(pipeline.on_error.as_deref())
}

/// Whether a step begins with an image of its own.
fn has_own_image(step: &Step) -> bool {
    step.executor == ExecutorKind::Docker && !step.is_join() && !step.is_on_image()
}

/// Where the files of jobs are put, by the names of the jobs.
#[derive(Debug, Clone)]
pub struct Jobs {
    /// What they leave.
    pub work_dir: PathBuf,
    /// Where their logs will lie, as callbacks tell.
    pub log_dir: String,
}

/// Where the outputs of a run here and now are kept if nothing says otherwise.
const OUTPUTS: &str = "outputs";

/// What a job is called outside of its run: its files bear that name.
#[must_use]
pub fn job_id(run: &RunId, step: &Step) -> String {
    crate::rules::job::id(run, step)
}

/// Starts a pipeline in embedded mode, in a store of its own below the data directory, with variables
/// and values for its templates. `jobs`:
/// where the files of its steps are put, where they are jobs.
///
/// # Errors
/// Where the store cannot be made or the engine does not answer.
pub async fn run_here(
    config: &Config,
    pipeline: &Pipeline,
    (vars, params): (&Vars, &Params),
    run: &RunId,
    jobs: Option<Jobs>,
) -> anyhow::Result<Here> {
    let node = new_node();
    let dir = config.data_dir.join("runs").join(run.as_str());
    // One that stands already may be that of another process.
    let mut fresh = Fresh(make_dir(&dir)?.then(|| dir.clone()));
    let config = &with_docker(config, all_steps(pipeline).any(has_own_image));
    let on_engine = on_engine(pipeline, config.engine.docker_url.is_some());
    let found = if on_engine { Some(engine::find(&config.engine).await?) } else { None };
    // Steps on this host work where their user is.
    let here = std::env::current_dir().context("there is no working directory")?;
    let url = found.as_ref().map(|found| found.url.clone());
    let ports = embedded_ports(config, &dir, &node, url, Some(here)).await?;
    let (mut ports, embedded) = ports;
    let events = ports.events.follow(Position::First).await?;
    let mut options = worker_options(config, node);
    options.slots = 1;
    options.own_queue = false;
    // What its user can do anyway.
    options.executors = ExecutorKind::ALL.to_vec();
    let outputs = jobs.as_ref().map(|jobs| jobs.work_dir.clone());
    options.logs = jobs.map(|jobs| jobs.log_dir);
    if let Some(dir) = outputs {
        ports.outputs = Some(in_directory(dir));
    } else if ports.outputs.is_none() {
        ports.outputs = Some(in_directory(PathBuf::from(OUTPUTS)));
    }
    // Nobody else would go on with it.
    options.rescue = false;
    let queue = std::sync::Arc::clone(&ports.queue);
    let worker = Worker::new(ports, options).await.map_err(|cause| Unavailable::because(&cause))?;
    let shutdown = Shutdown::default();
    #[expect(clippy::disallowed_methods, reason = "the one task of this process, joined in `end`")]
    let worker = tokio::spawn(worker.run(shutdown.clone()));
    let body = json!({ "run-id": run, "pipeline": pipeline, "vars": vars, "params": params });
    let message = Message {
        kind: Some(command::START.to_owned()),
        id: Some(run.to_string()),
        headers: std::collections::BTreeMap::new(),
        body: body.to_string().into_bytes(),
    };
    queue.publish(Route::Jobs, message).await?;
    fresh.0 = None;
    Ok(Here {
        events,
        shutdown,
        queue,
        run: run.clone(),
        worker,
        own_engine: found.and_then(|found| found.own),
        embedded: Some(embedded),
        dir,
    })
}

impl Here {
    /// Asks the run to stop, as the command does.
    ///
    /// # Errors
    /// Where the store's file cannot be written.
    pub async fn stop(&self, reason: &str) -> anyhow::Result<()> {
        let body = json!({ "run-id": self.run, "reason": reason });
        let message = Message {
            kind: Some(command::STOP.to_owned()),
            id: None,
            headers: std::collections::BTreeMap::new(),
            body: body.to_string().into_bytes(),
        };
        Ok(self.queue.publish(Route::Control, message).await?)
    }

    /// Ends the worker once the run has ended, and removes the run's store. The callbacks that nobody
    /// has taken: they have been tried for some time, and are not any more.
    pub async fn end(mut self) -> Vec<String> {
        let untold = match &self.embedded {
            Some(embedded) => untold(&*embedded.store()).await,
            None => Vec::new(),
        };
        self.shutdown.intake.cancel();
        // The run has ended, whatever became of the worker since.
        drop(self.worker.await);
        drop(self.events);
        drop(self.queue);
        drop(self.embedded.take());
        if let Some(own) = self.own_engine {
            own.end().await;
        }
        // What cannot be removed takes little room, and holds nothing that anybody reads.
        std::fs::remove_dir_all(&self.dir).ok();
        untold
    }
}

/// How long callbacks are waited for once their run has ended.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// The callbacks that are not told in time.
async fn untold(store: &dyn Store) -> Vec<String> {
    let until = Instant::now() + TOLD_WITHIN;
    loop {
        // A store of this process, in memory and on its disk.
        let left = match store.list(names::CALLBACKS).await {
            Ok(listing) => listing.entries,
            Err(_gone) => return Vec::new(),
        };
        if left.is_empty() || Instant::now() >= until {
            let name = |key: &str| key.strip_prefix(names::CALLBACKS).unwrap_or(key).to_owned();
            return left.iter().map(|entry| name(&entry.key)).collect();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
