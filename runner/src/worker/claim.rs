//! Claims new runs: reads the state of a run, and claims it in one transaction.

use std::sync::Arc;

use protocol::command::{RunIdSource, Start, Target};
use protocol::definition::{self, Stored};
use protocol::id::{Epoch, RunId};
use protocol::names;
use protocol::pipeline::Pipeline;
use protocol::run::{Open, OwnerEntry, RunRecord, Status};
use serde::Deserialize;

use super::Shared;
use super::lease::HeldLease;
use super::look::{Look, logger_url, pipeline_id};
use super::records::owner_value;
use super::retry::Retry;
use super::verdict::{NotNow, Refusal, Verdict, is_trusted, judge};
use crate::ports::{Claim, Entry, Expect, StoreError, Txn};

/// The outcome of a start.
pub(super) enum ClaimOutcome {
    /// The run is claimed.
    Claimed(Box<Claimed>),
    /// The run ID was seen before.
    Known,
    /// This worker cannot run it now. It is published again after a while.
    NotNow(NotNow),
    /// The lease was lost: the start returns to the queue.
    LeaseLost,
    /// The worker ends while the store refuses writes: the start returns to the queue unclaimed.
    WorkerEnds,
    /// The store will never accept the run. Holds the message.
    Impossible(String),
}

/// A run claimed by this worker.
pub(super) struct Claimed {
    pub(super) claim: Claim,
    pub(super) record: RunRecord,
    pub(super) modified: i64,
    pub(super) verdict: Verdict,
    pub(super) logger_url: Option<String>,
}

/// Returns an error if the store's revision is below an epoch in a record. The store was then
/// restored from an older snapshot, and could issue that epoch again (docs/wire.md section 3).
pub(super) fn not_restored(run: &RunId, record: &Entry, revision: i64) -> Result<(), StoreError> {
    match serde_json::from_slice::<RunRecord>(&record.value).ok().and_then(|record| record.epoch) {
        Some(Epoch(epoch)) if epoch > revision => {
            Err(StoreError::Restored { run: run.to_string(), epoch, revision })
        }
        Some(_) | None => Ok(()),
    }
}

/// The outcome of one attempt.
enum ClaimAttempt {
    Taken(ClaimOutcome),
    /// The state was stale. Holds the current state.
    Changed(Box<Look>),
}

/// Reads the state of a start and claims its run, as long as the lease is valid.
///
/// If an answer is lost, the transaction is repeated under the same conditions, so that at most one
/// attempt commits.
///
/// `refusal`: the run is recorded as failed for this reason, unless another one comes first.
pub(super) async fn take(
    shared: &Arc<Shared>,
    held: &HeldLease,
    run: &RunId,
    start: &Start,
    refusal: Option<&Refusal>,
) -> ClaimOutcome {
    let mut retry = Retry::of_store(&*shared.ports.host);
    let mut known = guess(shared, start);
    let (mut changed, mut refused) = (false, false);
    loop {
        let tried = tokio::select! {
            biased;
            () = held.lost.cancelled() => return ClaimOutcome::LeaseLost,
            tried = try_take(shared, held, run, (start, refusal), known.take()) => tried,
        };
        match tried {
            Ok(ClaimAttempt::Taken(taken)) => return taken,
            // The optimistic read was stale: retry with the current state.
            Ok(ClaimAttempt::Changed(look)) if !changed => {
                changed = true;
                known = Some(*look);
                continue;
            }
            Ok(ClaimAttempt::Changed(look)) => known = Some(*look),
            Err(cause) if cause.is_invalid_request() => {
                return ClaimOutcome::Impossible(cause.to_string());
            }
            Err(cause) => {
                refused = shared.writes.note(&cause);
                if !refused {
                    tracing::warn!(run.id = %run, %cause, "a claim waits");
                }
                if matches!(cause, StoreError::LeaseGone(_)) {
                    shared.seen.forget().await;
                }
            }
        }
        if retry.pause(&held.lost).await.is_break() {
            return ClaimOutcome::LeaseLost;
        }
        if refused && shared.draining.is_cancelled() {
            return ClaimOutcome::WorkerEnds;
        }
    }
}

/// Guesses the state of a start that includes its pipeline. Most of them are new, with nothing
/// about them in the store, and are claimed without a read. The claim's conditions verify the
/// guess. If it is wrong, the reply contains the actual state.
fn guess(shared: &Shared, start: &Start) -> Option<Look> {
    let nothing = Look::default();
    let brings_all = matches!(start.target, Target::Inline(_))
        && start.logger.is_none()
        && start.parent.is_none();
    (brings_all && matches!(judge(shared, start, None, &nothing), Ok((_, Verdict::Run))))
        .then_some(nothing)
}

async fn try_take(
    shared: &Arc<Shared>,
    held: &HeldLease,
    run: &RunId,
    (start, refusal): (&Start, Option<&Refusal>),
    known: Option<Look>,
) -> Result<ClaimAttempt, StoreError> {
    let look = match known {
        Some(look) => look,
        None => Look::of(&shared.ports.store.txn(Look::read(run, start)).await?, start),
    };
    if let (Some(owner), Some(record)) = (&look.owner, &look.record)
        && owner.value == owner_value(&shared.options.node, held.lease)
    {
        // A claim of this worker whose reply was lost. No drive exists for it, because this call
        // holds the run's only place in the roster.
        return adopt(run, owner, record, &look).map(ClaimAttempt::Taken);
    }
    if look.seen || look.record.is_some() {
        return Ok(ClaimAttempt::Taken(ClaimOutcome::Known));
    }
    let (pipeline, verdict) = match judge(shared, start, refusal, &look) {
        Ok(judged) => judged,
        Err(not_now) => return Ok(ClaimAttempt::Taken(ClaimOutcome::NotNow(not_now))),
    };
    let trusted = is_trusted(start, pipeline.as_ref(), &look);
    let record = RunRecord { trusted, ..record_of(shared, run, start, pipeline, &verdict) };
    let seen = shared.seen.current(&shared.ports).await?;
    let mut txn = Txn::new()
        .when(names::owner_key(run), Expect::Absent)
        .when(names::run_key(run), Expect::Absent)
        .when(names::seen_key(run), Expect::Absent)
        .put_leased(
            names::owner_key(run),
            owner_value(&shared.options.node, held.lease),
            held.lease,
        )
        .put(names::run_key(run), json(&record)?)
        .put(names::open_key(run), json(&Open::default())?)
        .put_leased(names::seen_key(run), Vec::new(), seen);
    if let Some(definition) = definition_of(&record)? {
        txn = txn.put(names::definition_key(run), definition);
    }
    if !matches!(verdict, Verdict::Stop(_)) {
        txn = txn.when(names::stop_key(run), Expect::Absent);
    }
    if let Some(id) = pipeline_id(start) {
        txn = txn.when(
            names::pipeline_key(&id),
            look.pipeline.as_ref().map_or(Expect::Absent, |e| Expect::ModifiedAt(e.mod_revision)),
        );
    }
    let reply = shared.ports.store.txn(Look::claim(txn, run, start)).await?;
    if !reply.committed {
        return Ok(ClaimAttempt::Changed(Box::new(Look::of(&reply, start))));
    }
    let claim =
        Claim { run: run.clone(), epoch: Epoch(reply.revision), node: shared.options.node.clone() };
    let logger_url = logger_url(look.logger.as_ref());
    let modified = reply.revision;
    let claimed = Claimed { claim, record, modified, verdict, logger_url };
    Ok(ClaimAttempt::Taken(ClaimOutcome::Claimed(Box::new(claimed))))
}

/// Returns the record of a claimed run.
fn record_of(
    shared: &Shared,
    run: &RunId,
    start: &Start,
    pipeline: Option<Pipeline>,
    verdict: &Verdict,
) -> RunRecord {
    let (group, name) = names_of(start);
    let refused = match verdict {
        Verdict::Refuse(cause, why) => (Some(*cause), Some(why.clone())),
        Verdict::Run | Verdict::Resume(_) | Verdict::Stop(_) => (None, None),
    };
    let steps = match verdict {
        Verdict::Resume(steps) => steps.clone(),
        Verdict::Run | Verdict::Refuse(..) | Verdict::Stop(_) => Vec::new(),
    };
    RunRecord {
        group,
        name,
        run_id: run.clone(),
        status: Status::Pending,
        // If this owner dies before it ends the run, the next owner ends it with this cause.
        cause: refused.0,
        message: refused.1,
        logger: start.logger.clone(),
        trusted: false,
        vars: start.vars.clone(),
        params: start.params.clone(),
        pipeline,
        node: Some(shared.options.node.clone()),
        epoch: None,
        parent: start.parent.clone(),
        attempt: 1,
        losses: 0,
        reclaims: 0,
        furthest: 0,
        last_seq: None,
        released: None,
        scheduled_at: shared.ports.host.now().into(),
        initiated_at: None,
        initialized_at: None,
        started_at: None,
        completed_at: None,
        steps,
        ending_event: None,
        rest: serde_json::Map::new(),
    }
}

fn adopt(
    run: &RunId,
    owner: &Entry,
    record: &Entry,
    look: &Look,
) -> Result<ClaimOutcome, StoreError> {
    let (claim, parsed, modified) = adopted(run, owner, (record, look.definition.as_ref()))?;
    if parsed.status.is_ended() {
        return Ok(ClaimOutcome::Known);
    }
    if parsed.epoch.is_some() || parsed.status != Status::Pending {
        // The run was started under this claim, which is being released.
        return Ok(ClaimOutcome::Known);
    }
    let verdict = match look.stop_why() {
        Some(stop) => Verdict::Stop(stop),
        None => match parsed.cause {
            Some(cause) => Verdict::Refuse(cause, parsed.message.clone().unwrap_or_default()),
            None if parsed.steps.is_empty() => Verdict::Run,
            None => Verdict::Resume(parsed.steps.clone()),
        },
    };
    Ok(ClaimOutcome::Claimed(Box::new(Claimed {
        claim,
        record: parsed,
        modified,
        verdict,
        logger_url: logger_url(look.logger.as_ref()),
    })))
}

/// Parses a claim that this worker holds according to etcd.
pub(super) fn adopted(
    run: &RunId,
    owner: &Entry,
    (record, definition): (&Entry, Option<&Entry>),
) -> Result<(Claim, RunRecord, i64), StoreError> {
    let parsed = read_record(run, record, definition)?.record;
    let entry: OwnerEntry = serde_json::from_slice(&owner.value).map_err(|cause| {
        StoreError::Unreadable(format!("{} in the store: {cause}", names::owner_key(run)))
    })?;
    let claim = Claim { run: run.clone(), epoch: Epoch(owner.create_revision), node: entry.node };
    Ok((claim, parsed, record.mod_revision))
}

/// Reads a record together with the immutable definition of its run.
pub(super) fn read_record(
    run: &RunId,
    record: &Entry,
    definition: Option<&Entry>,
) -> Result<Stored, StoreError> {
    let definition = definition.map(|definition| definition.value.as_slice());
    definition::read(&record.value, definition).map_err(|cause| {
        StoreError::Unreadable(format!("{} in the store: {cause}", names::run_key(run)))
    })
}

fn definition_of(record: &RunRecord) -> Result<Option<Vec<u8>>, StoreError> {
    record.definition().map_err(|cause| StoreError::Refused(cause.to_string()))
}

/// Returns true if the run has ended according to its record. Reads only the status, because a
/// record of a later version may contain unknown values.
pub(super) fn has_ended(record: &Entry) -> bool {
    #[derive(Deserialize)]
    struct Standing {
        status: Status,
    }
    serde_json::from_slice::<Standing>(&record.value).is_ok_and(|it| it.status.is_ended())
}

/// Returns group and name of the pipeline that a start runs.
pub(super) fn names_of(start: &Start) -> (String, String) {
    match &start.target {
        Target::Stored(id) => (id.group().to_owned(), id.name().to_owned()),
        Target::Inline(pipeline) => (pipeline.group.clone(), pipeline.name.clone()),
    }
}

/// Returns the run ID of a start, and whether the sender chose it.
pub(super) fn run_of(start: &Start) -> (RunId, bool) {
    match &start.run_id {
        RunIdSource::Given(run) => (run.clone(), true),
        RunIdSource::Missing => (RunId::from_uuid(uuid::Uuid::now_v7()), false),
    }
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|cause| StoreError::Refused(cause.to_string()))
}
