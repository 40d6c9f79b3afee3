//! Ends a run of `run FILE`: in order, or because its store or its worker has failed.

use std::time::Duration;

use protocol::id::RunId;
use protocol::names;
use protocol::run::RunRecord;
use protocol::time::Millis;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::{HereRun, OwnStore};
use crate::app::UnwritableDataDir;
use crate::app::runs::{self, About, RunDir};
use crate::ports::{Entry, ExecError, Store, Txn};
use crate::rules::callback::Notification;

/// How long to wait for callbacks after their run has ended.
const CALLBACKS_WITHIN: Duration = Duration::from_secs(10);
/// How long the removal of killed runs' remains can delay the end.
const SWEEP_WITHIN: Duration = Duration::from_secs(10);
/// The pause between two reads of the in-process store.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often the removal of an abandoned run's remains is tried, and the pause between tries.
const REMOVAL_TRIES: u32 = 40;
const REMOVAL_PAUSE: Duration = Duration::from_millis(250);

/// The result of ending a run, for the user.
#[derive(Debug, Default)]
pub struct Ended {
    /// The receivers of undelivered callbacks, which are not retried.
    pub undelivered: Vec<String>,
    /// The runs of killed processes whose remains were removed.
    pub swept: Vec<RunId>,
    /// How long the images of its steps are kept.
    pub kept: Option<Duration>,
}

impl OwnStore {
    /// Resolves when the store can no longer be written.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failed(&self) -> UnwritableDataDir {
        let cause = self.embedded.failed().await;
        UnwritableDataDir { dir: self.data_dir.clone(), cause }
    }

    /// Resolves when the run has ended and nothing is left to do for it, whether its events were
    /// read or not.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&self) {
        let store = self.embedded.store();
        loop {
            let look = Txn::new().read(names::run_key(&self.run)).read(names::open_key(&self.run));
            if let Ok(reply) = store.txn(look).await {
                let record = reply.entry(0).and_then(|entry| decoded(&entry.value));
                let is_ended = record.is_some_and(|record| record.status.is_ended());
                if is_ended && reply.entry(1).is_none() {
                    return;
                }
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Resolves when the start is dead-lettered because it was delivered too often.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn start_exhausted(&self) {
        self.embedded.start_exhausted(&self.run).await;
    }

    async fn record(&self) -> Option<RunRecord> {
        let entry = self.embedded.store().get(&names::run_key(&self.run)).await.ok()??;
        decoded(&entry.value)
    }
}

fn decoded(value: &[u8]) -> Option<RunRecord> {
    serde_json::from_slice(value).ok()
}

impl HereRun {
    /// Ends the worker once the run has ended, and removes the run's store unless the run is kept.
    pub async fn end(mut self) -> Ended {
        let undelivered = undelivered(&*self.store.embedded.store()).await;
        self.shutdown.intake.cancel();
        // The run has ended, so the worker's result does not matter.
        drop((&mut self.worker).await);
        let kept = self.keep().await;
        let swept = match timeout(SWEEP_WITHIN, &mut self.sweep).await {
            Ok(swept) => swept.unwrap_or_default(),
            // The next run sweeps the rest.
            Err(_) => {
                self.sweep.abort();
                Vec::new()
            }
        };
        match (self.retention, kept) {
            // The directory of a kept run stays.
            (Some(_), Some(_)) => drop(self.dir.dir.take().map(RunDir::release)),
            // The worker left the images, but no kept directory leads to them.
            (Some(_), None) => {
                if let Err(cause) = self.remove_all().await {
                    warn!(%cause, "cannot remove what run {} left", self.run);
                }
            }
            (None, _) => {}
        }
        self.close().await;
        Ended { undelivered, swept, kept }
    }

    /// Ends a run whose end cannot be recorded, because its store or its worker has failed. Removes
    /// its containers and images.
    ///
    /// # Errors
    /// If something of the run might be left.
    pub async fn abandon(self) -> Result<(), ExecError> {
        // Its tasks wait for the store, and start no step without it.
        self.worker.abort();
        self.sweep.abort();
        let removed = self.remove_all().await;
        self.close().await;
        removed
    }

    /// Removes everything of the run from the engines. Retries, because a container that was being
    /// created can appear late.
    async fn remove_all(&self) -> Result<(), ExecError> {
        let mut tries = 0;
        loop {
            tries += 1;
            self.executor.destroy(&self.run).await?;
            let left = self.executor.leftovers().await?;
            if !left.iter().any(|left| left.run == self.run) {
                return Ok(());
            }
            if tries == REMOVAL_TRIES {
                let doing = format!("removing what run {} left", self.run);
                let cause = "something is still there".to_owned();
                return Err(ExecError::Engine { doing, cause });
            }
            sleep(REMOVAL_PAUSE).await;
        }
    }

    /// Records that the images are kept, if the pipeline wants it and there are any.
    async fn keep(&self) -> Option<Duration> {
        let retention = self.retention?;
        let record = self.store.record().await?;
        record.steps.iter().find(|step| step.image.is_some())?;
        let until =
            runs::now().0.saturating_add(i64::try_from(retention.as_millis()).unwrap_or(i64::MAX));
        let about = About { kept_until: Some(Millis(until)), ..self.about.clone() };
        match self.dir.dir.as_ref()?.note(&about) {
            Ok(()) => Some(retention),
            Err(cause) => {
                warn!(%cause, "run {} is not kept", self.run);
                None
            }
        }
    }

    /// Closes the store, ends the engine if this process started it, and removes the directory.
    async fn close(self) {
        let Self { events, queue, store, own_engine, dir, .. } = self;
        drop((events, queue));
        // Every acknowledged write is already in the file.
        store.embedded.close().await.ok();
        if let Some(own) = own_engine {
            own.end().await;
        }
        drop(dir);
    }
}

/// The receiver of a callback; its name in the outbox if the entry cannot be read.
fn receiver(entry: &Entry) -> String {
    let news = serde_json::from_slice::<Notification>(&entry.value).ok();
    news.and_then(|news| news.receiver()).unwrap_or_else(|| {
        entry.key.strip_prefix(names::CALLBACKS).unwrap_or(&entry.key).to_owned()
    })
}

/// The callbacks that are not delivered in time.
async fn undelivered(store: &dyn Store) -> Vec<String> {
    let until = Instant::now() + CALLBACKS_WITHIN;
    loop {
        let left = match store.list(names::CALLBACKS).await {
            Ok(listing) => listing.entries,
            Err(_unreadable) => return Vec::new(),
        };
        if left.is_empty() || Instant::now() >= until {
            return left.iter().map(receiver).collect();
        }
        sleep(LOOK_AGAIN).await;
    }
}
