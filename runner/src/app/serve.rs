//! The worker as a service.

use protocol::id::NodeId;
use protocol::pipeline::ExecutorKind;
use tracing::info;

use super::ci::Watch;
use super::guard::{Keeper, Told};
use super::{
    Shutdown, Unavailable, cluster_ports, embedded_ports, engine, executors::with_docker, make_dir,
    new_node, worker_options,
};
use crate::config::{Config, LogFormat, Mode};
use crate::telemetry::{self, Form};
use crate::worker::Worker;

/// Runs a worker until it is asked to end, and what it drives has ended.
///
/// # Errors
/// [`Unavailable`] where a service cannot be reached at the start, and
/// [`OutOfOrder`](crate::worker::OutOfOrder) where the worker had to be broken off.
pub async fn serve(config: &Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let node = new_node();
    let config = &with_docker(config, config.worker.executors.contains(&ExecutorKind::Docker));
    // A worker that runs nothing on an engine needs none.
    let has = |executor| config.worker.executors.contains(&executor);
    let on_engine = has(ExecutorKind::Podman)
        || (has(ExecutorKind::Docker) && config.engine.docker_url.is_none());
    let found = if on_engine { Some(engine::find(&config.engine).await?) } else { None };
    let url = found.as_ref().map(|found| found.url.clone());
    info!(owner.id = %node, engine = url.as_deref().unwrap_or("none"), "bob-runner starts");
    // The embedded store ends with this function, after the worker has.
    let mut _embedded = None;
    let mut jobs = None;
    let ports = match config.mode {
        Mode::Cluster => cluster_ports(config, &node, url.clone()).await?,
        Mode::Embedded => {
            let dir = &config.data_dir;
            make_dir(dir)?;
            let (ports, embedded) = embedded_ports(config, dir, &node, url.clone(), None).await?;
            _embedded = Some(embedded);
            jobs = Watch::of(config, &ports).await?;
            ports
        }
    };
    let worker = Worker::new(ports, worker_options(config, node.clone()))
        .await
        .map_err(|cause| Unavailable::because(&cause))?;
    let keeper = match config.mode {
        // What runs on this host has supervisors of its own.
        Mode::Cluster => told(config, &node, url).map(Keeper::start),
        // No other process knows this store, as with `run FILE`: nobody can go on with a run while
        // something of it still runs, and whoever works on the store next ends that first.
        Mode::Embedded => None,
    };
    let worker = match &keeper {
        Some(keeper) => worker.guarded(keeper.guard()),
        None => worker,
    };
    let intake = shutdown.intake.clone();
    let working = async {
        let working = worker.run(shutdown);
        tokio::pin!(working);
        if let Some(jobs) = jobs {
            tokio::select! {
                worked = &mut working => return worked,
                // What is added from now on waits in the file.
                () = jobs.watch(intake) => {}
            }
        }
        working.await
    };
    let worked = Box::pin(working).await;
    if let Some(keeper) = keeper {
        keeper.end().await;
    }
    if let Some(own) = found.and_then(|found| found.own) {
        own.end().await;
    }
    Ok(worked?)
}

/// What the guard of this process is told, where there is something to guard.
fn told(config: &Config, node: &NodeId, engine: Option<String>) -> Option<Told> {
    let docker = config.engine.docker_url.as_ref().map(ToString::to_string);
    if engine.is_none() && docker.is_none() {
        return None;
    }
    let form = config.log.format.map(|format| match format {
        LogFormat::Text => Form::Text,
        LogFormat::Json => Form::Json,
        LogFormat::Ci => Form::Ci,
    });
    Some(Told {
        worker: node.clone(),
        engine,
        docker,
        level: config.log.level.as_str(),
        form: telemetry::form_of(form),
    })
}
