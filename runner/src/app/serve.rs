//! The worker as a service.

use tracing::info;

use super::{
    Shutdown, Unavailable, cluster_ports, embedded_ports, engine, make_dir, new_node,
    worker_options,
};
use crate::config::{Config, Mode};
use crate::worker::Worker;

/// Runs a worker until it is asked to end, and what it drives has ended.
///
/// # Errors
/// [`Unavailable`] where a service cannot be reached at the start.
pub async fn serve(config: &Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let node = new_node();
    let found = engine::find(&config.engine).await?;
    info!(owner.id = %node, engine = %found.url, "bob-runner starts");
    // The embedded store ends with this function, after the worker has.
    let mut _embedded = None;
    let ports = match config.mode {
        Mode::Cluster => cluster_ports(config, &node, found.url.clone()).await?,
        Mode::Embedded => {
            let dir = &config.data_dir;
            make_dir(dir)?;
            let (ports, embedded) = embedded_ports(config, dir, &node, found.url.clone()).await?;
            _embedded = Some(embedded);
            ports
        }
    };
    let worker = Worker::new(ports, worker_options(config, node))
        .await
        .map_err(|cause| Unavailable::because(&cause))?;
    worker.run(shutdown).await;
    if let Some(own) = found.own {
        own.end().await;
    }
    Ok(())
}
