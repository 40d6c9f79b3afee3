//! Removes what earlier runs left: runs whose process was killed, and kept runs whose retention has
//! ended.

use std::sync::Arc;

use protocol::id::RunId;
use tracing::{debug, warn};

use crate::app::runs::{self, About, RunDir};
use crate::ports::Executor;

/// Removes what the runs of these directories left on this process's engines. Returns the runs
/// whose process was killed.
pub(super) async fn sweep(
    unused: Vec<RunDir>,
    here: About,
    executor: Arc<dyn Executor>,
) -> Vec<RunId> {
    let mut killed = Vec::new();
    for dir in unused {
        let about = dir.about().unwrap_or_else(About::of_older_version);
        let is_elsewhere =
            (about.on_podman && !here.on_podman) || (about.on_docker && !here.on_docker);
        if about.is_kept(runs::now()) || is_elsewhere {
            continue;
        }
        let run = dir.run.clone();
        match executor.destroy(&run).await {
            Ok(()) => {
                debug!(run.id = %run, "removed what run {run} had left");
                dir.remove();
                killed.extend(about.kept_until.is_none().then_some(run));
            }
            Err(cause) => warn!(run.id = %run, %cause, "cannot remove what run {run} left"),
        }
    }
    killed
}
