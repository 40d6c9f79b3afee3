//! Inspects the committed steps of a run on this host's engine: lists changed files, and opens a
//! shell.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, bail};
use protocol::id::StepName;
use protocol::run::RunRecord;

use super::{Unavailable, engine};
use crate::config::Config;
use crate::exec::podman::{self, Podman};

pub use podman::Change;

/// The commit of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptCommit {
    /// The step.
    pub step: StepName,
    /// The image.
    pub image: String,
    /// The image that the step started from. `None`: the base image.
    pub before: Option<String>,
}

/// The commit of a step, by default the last committed one.
///
/// # Errors
/// A sentence if the step was not committed.
pub fn find_commit(record: &RunRecord, step: Option<&StepName>) -> anyhow::Result<KeptCommit> {
    let run = &record.run_id;
    let of = |name: &StepName| record.steps.iter().find(|it| it.name == *name);
    let found = match step {
        None => {
            let last = record.steps.iter().rev().find(|step| step.image.is_some());
            last.with_context(|| format!("no step of run {run} was committed"))?
        }
        Some(step) => {
            of(step).with_context(|| format!("step {step} of run {run} was not begun"))?
        }
    };
    let Some(image) = found.image.clone() else {
        bail!("step {} of run {run} was not committed", found.name);
    };
    let before = record.pipeline.as_ref().and_then(|pipeline| {
        let graph = pipeline.graph();
        let position = pipeline.position(&found.name)?;
        let before = pipeline.step(graph.begins_on(position)?)?;
        of(&before.name)?.image.clone()
    });
    Ok(KeptCommit { step: found.name.clone(), image, before })
}

fn image_missing(kept: &KeptCommit) -> anyhow::Error {
    anyhow::anyhow!(
        "what step {} left is not on this machine's engine, or not any more: images stay for as \
         long as the pipeline's `retention`",
        kept.step
    )
}

/// The files that a step changed.
///
/// # Errors
/// If the engine does not answer or does not have the images.
pub async fn changes(config: &Config, kept: &KeptCommit) -> anyhow::Result<Vec<(String, Change)>> {
    let found = engine::find(&config.engine).await?;
    let options = engine::options(&config.engine, found.url.clone());
    let podman = Podman::connect(options).map_err(|cause| Unavailable::because(&cause))?;
    let changes = podman.changes(&kept.image, kept.before.as_deref()).await;
    let changes = changes.map_err(|cause| Unavailable::because(&cause))?;
    if let Some(own) = found.own {
        own.end().await;
    }
    changes.ok_or_else(|| image_missing(kept))
}

/// Replaces this program with a shell in a step's image. Changes made there are lost. Returns only
/// on failure.
///
/// # Errors
/// Why the shell could not be started.
pub async fn shell(config: &Config, kept: &KeptCommit, words: &[String]) -> anyhow::Result<()> {
    let Some(program) = &config.engine.program else {
        bail!("podman is not in PATH: it is needed to open the shell");
    };
    // Check that the image exists before handing over the terminal.
    changes(config, &KeptCommit { before: None, ..kept.clone() }).await?;
    let mut command = Command::new(program);
    if let Some(url) = &config.engine.url {
        command.args(["--remote", "--url", &url.to_string()]);
    }
    command.args(["run", "--rm", "--interactive", "--pull", "never", "--entrypoint", "[]"]);
    if rustix::termios::isatty(std::io::stdin()) {
        command.arg("--tty");
    }
    command.args(["--label", "bob.role=shell", &kept.image]).args(words);
    Err(command.exec()).with_context(|| format!("{} cannot be started", program.display()))
}
