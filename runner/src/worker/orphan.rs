//! Claims an orphan: a new epoch, in one transaction with the record.

use protocol::definition::Stored;
use protocol::id::{Epoch, RunId};
use protocol::run::RunRecord;
use tracing::warn;

use super::claimant::Claimant;
use super::lease::HeldLease;
use super::look::{logger_key, logger_url};
use super::records::{
    Ownership, RunKey, RunKeys, RunTxn as _, SMALL_RECORD, entry, fitting, not_restored,
    read_record,
};
use super::release::release;
use super::retry::Retry;
use super::shared::Shared;
use crate::ports::{Claim, Entry, StoreError, Txn, TxnReply};
use crate::rules::run::PreviousOwner;

/// Why an orphan is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To end it, or to publish its ending.
    End,
    /// To resume it, unless a stop is recorded. `lost` tells whether this counts as a loss.
    Resume { lost: bool },
}

/// How often a worker may lose its lease and claim the same run again before each time counts as a
/// loss. The run itself may be the reason, and without other workers nothing else would ever end
/// it.
const FREE_RECLAIMS: u32 = 3;

/// Updates the run's counters of losses and reclaims.
fn count_loss(record: &mut RunRecord, purpose: Purpose) {
    match purpose {
        Purpose::End => {}
        Purpose::Resume { lost: true } => record.losses += 1,
        Purpose::Resume { lost: false } => {
            record.reclaims += 1;
            if record.reclaims > FREE_RECLAIMS {
                record.losses += 1;
            }
        }
    }
}

/// Changes the record of an earlier owner to that of a next attempt.
fn begin_attempt(record: &mut RunRecord, purpose: Purpose) {
    // A run that has waited until now has had no owner.
    if record.released.is_none() && record.attempt > 0 {
        count_loss(record, purpose);
    }
    record.attempt += 1;
    record.epoch = None;
    record.last_seq = None;
    record.released = None;
}

/// Repeats a transaction under the same conditions until it is answered, as long as the lease is
/// valid. At most one attempt commits, and the state of the previous owner is not lost.
async fn until_answered(
    claimant: Claimant<'_>,
    run: &RunId,
    txn: Txn,
) -> Result<TxnReply, StoreError> {
    let Claimant { shared, held, heartbeat } = claimant;
    let mut retry = Retry::of_store(&*shared.ports.host, heartbeat);
    loop {
        let cause = match shared.ports.store.txn(txn.clone()).await {
            Err(cause) if cause.retryable() => cause,
            answer => return answer,
        };
        let refused = shared.writes.note(&cause);
        if !refused {
            warn!(run.id = %run, %cause, "a claim waits");
        }
        if (refused && shared.draining.is_cancelled()) || retry.pause(&held.lost).await.is_break() {
            return Err(cause);
        }
    }
}

/// Returns the claim of an orphan, without its record.
fn claiming(
    shared: &Shared,
    held: &HeldLease,
    run: &RunId,
    record: &Entry,
    purpose: Purpose,
) -> Txn {
    let mut txn = Txn::new();
    if matches!(purpose, Purpose::Resume { .. }) {
        txn = txn.require_absent(run, RunKey::Stop);
    }
    txn.create_owner(run, &shared.options.node, held.lease)
        .require_open(run)
        .require_record(run, record.mod_revision)
        .read_keys(run, &[RunKey::Owner, RunKey::Record])
        .read_keys_otherwise(run, &[RunKey::Definition])
}

/// Returns a claim of this worker whose reply was lost, if the run has one. No drive exists for it,
/// because the caller holds its place in the roster.
async fn earlier_claim(
    claimant: Claimant<'_>,
    keys: &RunKeys,
    run: &RunId,
    logger_url: Option<String>,
) -> Result<Option<Ownership>, StoreError> {
    let Claimant { shared, held, heartbeat } = claimant;
    if !keys.is_owned_under(&shared.options.node, held.lease) {
        return Ok(None);
    }
    let Some(owned) = keys.ownership(run, logger_url)? else { return Ok(None) };
    if owned.record.epoch == Some(owned.claim.epoch) {
        // The run was started under this claim, so nothing more may be published under its epoch.
        // The next scan finds it without an owner.
        release(shared, heartbeat, &owned.claim, &held.lost).await;
        return Ok(None);
    }
    Ok(Some(owned))
}

/// Claims an orphan with a new epoch and the next attempt. Returns `None` if the run has an owner
/// or has changed. The caller must hold the run's place in the roster.
pub(super) async fn claim_orphan(
    claimant: Claimant<'_>,
    run: &RunId,
    record: &Entry,
    purpose: Purpose,
) -> Result<Option<(Ownership, PreviousOwner)>, StoreError> {
    let Claimant { shared, held, .. } = claimant;
    let parsed = read_record(run, record, None)?.record;
    let node = parsed.node.clone().unwrap_or_else(|| shared.options.node.clone());
    // An owner records its epoch with its first write. Before that, its claim is the last change.
    let epoch = parsed.epoch.unwrap_or(Epoch(record.mod_revision));
    let (handed_over, last_seq) = (parsed.released.is_some(), parsed.last_seq);
    let past = PreviousOwner { node, epoch, handed_over, last_seq };
    // Check for a restored store before the claim, because a claim would modify that store.
    let mut look = Txn::new().read_keys(run, &[RunKey::Definition]);
    if let Some(logger) = &parsed.logger {
        look = look.read(logger_key(logger));
    }
    let look = shared.ports.store.txn(look).await?;
    not_restored(run, record, look.revision)?;
    let logger = parsed.logger.as_ref().and_then(|logger| entry(&look, &logger_key(logger)));
    let logger_url = logger_url(logger.as_ref());
    let definition = RunKeys::of(run, &look).definition;
    let Stored { record: mut parsed, inline, .. } = read_record(run, record, definition.as_ref())?;
    if !parsed.status.is_ended() {
        begin_attempt(&mut parsed, purpose);
    }
    parsed.node = Some(shared.options.node.clone());
    let claim = claiming(shared, held, run, record, purpose);
    // Moves the immutable parts to their own key.
    let claim = match &inline {
        Some(inline) => claim.put_definition(run, inline.clone()),
        None => claim,
    };
    let reply = loop {
        let value = fitting(run, &mut parsed, inline.as_ref().map_or(0, Vec::len))?;
        let size = value.len();
        let txn = claim.clone().put_record(run, value);
        match until_answered(claimant, run, txn).await {
            Err(StoreError::Refused(_)) if purpose == Purpose::End && size > SMALL_RECORD => {
                // The run must end even if the store's limit is lower than the expected one.
                parsed.cut_to(size / 2);
            }
            answer => break answer?,
        }
    };
    if !reply.committed {
        let keys = RunKeys::of(run, &reply);
        let owned = earlier_claim(claimant, &keys, run, logger_url).await?;
        return Ok(owned.map(|owned| (owned, past)));
    }
    let (epoch, node) = (Epoch(reply.revision), shared.options.node.clone());
    let claim = Claim { run: run.clone(), epoch, node };
    let modified = reply.revision;
    Ok(Some((Ownership { claim, record: parsed, modified, logger_url }, past)))
}
