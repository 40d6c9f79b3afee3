//! Writes the record of an owned run. Each write is fenced, compares the record's revision, and is
//! applied at most once.

use std::borrow::Cow;
use std::sync::Arc;

use protocol::budget::MAX_RECORD_BYTES;
use protocol::id::{RunId, StepPosition};
use protocol::names;
use protocol::run::RunRecord;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::mask::RunMask;
use crate::ports::{Claim, Host, LeaseId, Store, StoreError, Txn, TxnReply};
use crate::rules::callback::{Notification, NotifiedStages, Stage};
use crate::worker::callbacks::inbox::Inbox;
use crate::worker::callbacks::value_of;
use crate::worker::places::Places;
use crate::worker::records::{RunKey, RunKeys, RunTxn as _, SMALL_RECORD, fitting};
use crate::worker::retry::Retry;
use crate::worker::watchdog::Heartbeat;

/// Why a record was not written.
#[derive(Debug, Error)]
pub(super) enum WriteError {
    /// Another worker owns the run, or none does.
    #[error("this node does not own the run any more")]
    Lost,
    /// The run may have another owner, but that is not certain.
    #[error("this node may not own the run any more")]
    InDoubt,
    /// The run was about to end otherwise, but a stop was recorded.
    #[error("a stop was asked for")]
    StopFound,
    /// Another run of the pipeline has changed the wait list.
    #[error("the wait list of the pipeline has changed")]
    PlacesChanged,
    /// The store rejected the write.
    #[error(transparent)]
    Refused(StoreError),
}

/// The stored record of a run.
pub(super) struct Ledger {
    store: Arc<dyn Store>,
    claim: Claim,
    modified: i64,
    lost: CancellationToken,
    outbox: Outbox,
    /// The wait list without this run, for the write of its ending. `None` if the pipeline has none.
    places: Option<Places>,
}

/// Adds callbacks to the outbox in the same write that makes them due.
pub(super) struct Outbox {
    pub(super) told: NotifiedStages,
    /// The address of the steps' logs, if there is one.
    pub(super) logs: Option<String>,
    pub(super) host: Arc<dyn Host>,
    /// Passes written entries to the loop that posts them.
    pub(super) inbox: Arc<Inbox>,
    /// The mask of the run. The worker that posts an entry later does not know the secrets.
    pub(super) mask: RunMask,
}

impl Outbox {
    fn entries(&self, record: &RunRecord) -> Vec<(String, Notification)> {
        let news = self.told.notifications(record, self.logs.as_deref(), self.host.now().0);
        let entry = |(position, stage, mut news): (StepPosition, Stage, Notification)| {
            self.mask.value(&mut news.body);
            let which = u8::from(stage == Stage::Ended);
            (names::callback_key(&record.run_id, position, which), news)
        };
        news.into_iter().map(entry).collect()
    }
}

/// What a write does in addition to the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteExtra {
    /// Nothing.
    Nothing,
    /// Requires that no stop is recorded. For an ending other than `stopped`.
    DemandNoStop,
    /// Deletes the stop, which has been obeyed. For the ending `stopped`.
    DropStop,
    /// Releases the run for another worker.
    HandOver,
    /// Releases an ended run. This is its last write.
    LetGo {
        /// The lease of the record from now on.
        record: LeaseId,
        /// The lease of the mark that keeps the run ID from being accepted again.
        seen: LeaseId,
    },
}

impl WriteExtra {
    /// Whether the record of this write is the ending of its run.
    fn is_ending(self) -> bool {
        matches!(self, Self::DemandNoStop | Self::DropStop)
    }
}

impl Ledger {
    pub(super) fn new(
        store: Arc<dyn Store>,
        claim: Claim,
        modified: i64,
        lost: CancellationToken,
        outbox: Outbox,
    ) -> Self {
        Self { store, claim, modified, lost, outbox, places: None }
    }

    /// Sets the changes of the wait list that the write of the ending includes.
    pub(super) fn set_places(&mut self, places: Option<Places>) {
        self.places = places;
    }

    /// Returns the proof of ownership.
    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Returns the transaction that writes a record.
    fn write(&self, bytes: &[u8], also: WriteExtra) -> Result<Txn, StoreError> {
        let run = &self.claim.run;
        let txn = Txn::new();
        let txn = match also {
            WriteExtra::Nothing
            | WriteExtra::DemandNoStop
            | WriteExtra::DropStop
            | WriteExtra::HandOver => txn.put_record(run, bytes.to_vec()),
            WriteExtra::LetGo { record, .. } => txn.put_ended_record(run, bytes.to_vec(), record),
        };
        let txn = txn
            .require_record(run, self.modified)
            .read_keys_otherwise(run, &[RunKey::Record, RunKey::Owner, RunKey::Stop]);
        let txn = match &self.places {
            Some(places) if also.is_ending() => places.write(txn)?,
            Some(_) | None => txn,
        };
        Ok(match also {
            WriteExtra::Nothing => txn,
            WriteExtra::DemandNoStop => txn.require_absent(run, RunKey::Stop),
            WriteExtra::DropStop => txn.delete_stop(run),
            WriteExtra::HandOver => txn.delete_owner(run),
            WriteExtra::LetGo { seen, record } => {
                txn.put_seen(run, seen).expire_definition(run, record).close(run)
            }
        })
    }

    /// Returns whether the record is written, by this attempt or by an earlier one whose reply was lost.
    /// If it is not, the write can be repeated.
    ///
    /// `sent`: the record, if the outcome of an earlier attempt is unknown.
    fn is_written(
        &mut self,
        reply: &TxnReply,
        also: WriteExtra,
        sent: Option<&[u8]>,
    ) -> Result<bool, WriteError> {
        if reply.committed {
            self.modified = reply.revision;
            return Ok(true);
        }
        let keys = RunKeys::of(&self.claim.run, reply);
        let entry = keys.record;
        let landed = entry.as_ref().is_some_and(|entry| sent == Some(&*entry.value));
        let owned = keys.owner.is_some_and(|owner| owner.create_revision == self.claim.epoch.0);
        let lets_go = matches!(also, WriteExtra::LetGo { .. } | WriteExtra::HandOver);
        let Some(entry) = entry.filter(|_| owned || (landed && lets_go)) else {
            return Err(WriteError::Lost);
        };
        // If it is another record, a delayed earlier write of this owner was committed in between. The
        // fence proves that it was this owner's.
        self.modified = entry.mod_revision;
        if !landed && also == WriteExtra::DemandNoStop && keys.stop.is_some() {
            return Err(WriteError::StopFound);
        }
        let are_outdated = |places: &Places| also.is_ending() && places.are_outdated(reply);
        if !landed && self.places.as_ref().is_some_and(are_outdated) {
            return Err(WriteError::PlacesChanged);
        }
        Ok(landed)
    }

    /// Writes the record, retrying until the store answers, as long as the claim is valid.
    pub(super) async fn save(
        &mut self,
        heartbeat: &Heartbeat,
        record: &RunRecord,
        also: WriteExtra,
    ) -> Result<(), WriteError> {
        let run = &self.claim.run.clone();
        let mut written = Cow::Borrowed(record);
        let mut bytes = fitting_copy(run, &mut written).map_err(WriteError::Refused)?;
        let host = Arc::clone(&self.outbox.host);
        let mut retry = Retry::of_store(&*host, heartbeat);
        let mut unknown = false;
        let news = self.outbox.entries(record);
        loop {
            heartbeat.beat();
            let txn = self.write(&bytes, also).map_err(WriteError::Refused)?;
            let txn =
                news.iter().fold(txn, |txn, (key, news)| txn.put(key.clone(), value_of(news)));
            let reply = tokio::select! {
                biased;
                () = self.lost.cancelled() => return Err(WriteError::Lost),
                reply = self.store.txn(self.claim.fenced(txn)) => reply,
            };
            match reply {
                Ok(reply) if self.is_written(&reply, also, unknown.then_some(&*bytes))? => {
                    self.note_written(record, news);
                    return Ok(());
                }
                // The revision of the record was outdated.
                Ok(_) => {}
                // The caller replaces an expired long lease. `lost` reports the loss of the claim's
                // own lease.
                Err(cause @ StoreError::LeaseGone(_))
                    if matches!(also, WriteExtra::LetGo { .. }) =>
                {
                    return Err(WriteError::Refused(cause));
                }
                Err(cause) if !cause.is_invalid_request() => {
                    unknown = true;
                    warn!(run.id = %run, %cause, "a record waits");
                    if retry.pause(&self.lost).await.is_break() {
                        return Err(WriteError::Lost);
                    }
                }
                // The store's limit may be lower than expected, and the run must be able to end.
                Err(StoreError::Refused(cause))
                    if also != WriteExtra::Nothing && bytes.len() > SMALL_RECORD =>
                {
                    warn!(run.id = %run, cause, "the record is cut, as the store refuses it");
                    written.to_mut().cut_to(bytes.len() / 2);
                    bytes = fitting_copy(run, &mut written).map_err(WriteError::Refused)?;
                }
                Err(cause) => return Err(WriteError::Refused(cause)),
            }
        }
    }
}

/// Like [`fitting`], but does not copy a record that fits.
fn fitting_copy(run: &RunId, record: &mut Cow<'_, RunRecord>) -> Result<Vec<u8>, StoreError> {
    let json = serde_json::to_vec(&**record);
    let json = json.map_err(|cause| StoreError::Refused(cause.to_string()))?;
    if json.len() <= MAX_RECORD_BYTES { Ok(json) } else { fitting(run, record.to_mut(), 0) }
}

impl Ledger {
    /// Notes that a record and its callbacks are written.
    fn note_written(&mut self, record: &RunRecord, news: Vec<(String, Notification)>) {
        self.outbox.told.note(record);
        if !news.is_empty() {
            self.outbox.inbox.push(news.into_iter());
        }
    }
}
