//! Jobs that are lines of a queue file. Any number of writers add lines; one server runs them.
//!
//! A line becomes a start and is then removed. Its run id is given in the line or derived from its
//! place. A server restarted in between sends the start again with the same run id, and a run id is
//! accepted only once.

mod spool;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use protocol::command::{self, MAX_START_BYTES};
use protocol::dialect::Job;
use protocol::id::RunId;
use protocol::pipeline::ExecutorKind;
use serde_json::json;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use self::spool::{Line, Spool};
use crate::config::{Ci, Config};
use crate::ports::{Message, Ports, Queue, Route};

/// The pause between checks of the file.
const LOOK: Duration = Duration::from_millis(500);

/// Adds a job to a queue file. It is on disk when this returns.
///
/// # Errors
/// If the file cannot be written. It then has no part of the job.
pub fn add(queue: &Path, job: &Job) -> anyhow::Result<()> {
    spool::add(queue, job)
        .with_context(|| format!("cannot add a job to the queue file {}", queue.display()))
}

/// The jobs that wait in a queue file, oldest first. Invalid lines are left out.
///
/// # Errors
/// If the file exists and cannot be read.
pub fn waiting(queue: &Path) -> anyhow::Result<Vec<Job>> {
    let bytes = match std::fs::read(queue) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.with_context(|| format!("cannot read {}", queue.display()))?,
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(lines.filter_map(|line| Job::of_line(line).ok()).collect())
}

/// Fills in the defaults from the settings.
#[must_use]
pub fn with_usual(job: Job, usual: &Ci) -> Job {
    Job {
        attempts: job.attempts.or(Some(usual.attempts)),
        delay: job.delay.or(Some(usual.delay)),
        timeout: job.timeout.or(usual.timeout),
        ..job
    }
}

/// Takes the jobs of a queue file.
pub(super) struct Watch {
    queue: Arc<dyn Queue>,
    usual: Ci,
    spool: Spool,
}

impl Watch {
    /// A watch over the configured queue file. `None` if this server cannot run its jobs.
    pub(super) async fn of(config: &Config, ports: &Ports) -> anyhow::Result<Option<Self>> {
        let usual = config.ci.clone();
        if !config.worker.executors.contains(&ExecutorKind::Local) {
            if usual.is_named {
                bail!(UnusableQueue {
                    queue: usual.queue,
                    why: "its jobs are processes of this host; let BOB_EXECUTORS name local".into(),
                });
            }
            return Ok(None);
        }
        let store = ports.store.identity().await?;
        let spool = Spool::open(&usual.queue, &store);
        let spool = spool.map_err(|cause| UnusableQueue {
            queue: usual.queue.clone(),
            why: format!("{cause:#}"),
        })?;
        Ok(Some(Self { queue: Arc::clone(&ports.queue), usual, spool }))
    }

    /// Takes jobs until `stop` is cancelled.
    ///
    /// # Cancel safety
    /// Lines that were not removed from the file are taken again under the same run ids.
    pub(super) async fn watch(self, stop: CancellationToken) {
        let Self { queue, usual, mut spool } = self;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = looks.tick() => {}
            }
            // Can block: another process can hold the file's lock while its disk is slow.
            let looking = tokio::task::spawn_blocking(move || {
                let looked = spool.look();
                (spool, looked)
            });
            let Ok((back, looked)) = looking.await else {
                return error!(
                    "the reader of the queue file {} has failed; restart this worker",
                    usual.queue.display()
                );
            };
            spool = back;
            let taken = match looked {
                Ok(lines) => take(&*queue, &usual, &mut spool, lines).await,
                Err(cause) => Err(cause),
            };
            // Warn once, not at every check.
            let trouble = taken.err().map(|cause| format!("{cause:#}"));
            if let Some(trouble) = trouble.as_ref().filter(|now| told.as_ref() != Some(*now)) {
                warn!("no job is taken from {}: {trouble}", usual.queue.display());
            }
            told = trouble;
        }
    }
}

/// A queue file that a server cannot take jobs from.
#[derive(Debug, thiserror::Error)]
#[error("the queue file {} (BOB_CI_QUEUE) cannot be used: {why}", .queue.display())]
pub struct UnusableQueue {
    queue: PathBuf,
    why: String,
}

/// Turns lines into starts, in order.
async fn take(
    queue: &dyn Queue,
    usual: &Ci,
    spool: &mut Spool,
    lines: Vec<Line>,
) -> anyhow::Result<()> {
    for line in lines {
        match start_of(&line, usual) {
            Ok(None) => {}
            Ok(Some((run, message))) => {
                queue.publish(Route::Jobs, message).await?;
                debug!(run.id = %run, "job {run} is taken from {}", usual.queue.display());
            }
            Err(why) => {
                let kept = spool.refuse(&line)?;
                error!(
                    "a line of {} is not a valid job: {why}; it was moved to {}",
                    usual.queue.display(),
                    kept.display()
                );
            }
        }
        spool.is_taken(&line);
    }
    Ok(())
}

/// The start for a line. `None` if the line is blank. The error is a sentence.
fn start_of(line: &Line, usual: &Ci) -> Result<Option<(RunId, Message)>, String> {
    let text = std::str::from_utf8(&line.bytes).map_err(|cause| cause.to_string())?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let job = Job::of_line(text).map_err(|bad| bad.to_string())?;
    // The same place in the same file gives the same run id, whichever process reads it.
    let run = job.run_id.clone().unwrap_or_else(|| RunId::from_message_id(&line.place()));
    let pipeline = with_usual(job, usual).pipeline();
    let body = json!({ "run-id": run, "pipeline": pipeline }).to_string().into_bytes();
    if body.len() > MAX_START_BYTES {
        return Err(format!(
            "it has {} bytes as a start, and at most {MAX_START_BYTES} are taken",
            body.len()
        ));
    }
    let message = Message {
        kind: Some(command::START.to_owned()),
        id: Some(run.to_string()),
        headers: std::collections::BTreeMap::new(),
        body,
    };
    Ok(Some((run, message)))
}
