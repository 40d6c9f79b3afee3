//! Claims new runs: reads the state of a run, and claims it in one transaction.

use std::sync::Arc;

use protocol::command::{RunIdSource, Start, Target};
use protocol::id::{Epoch, RunId};
use protocol::names;
use protocol::pipeline::Pipeline;
use protocol::run::{Open, RunRecord, Status};

use super::admit::{Admission, admit};
use super::claimant::Claimant;
use super::lease::HeldLease;
use super::look::{Look, logger_url, pipeline_id};
use super::records::{Ownership, RunKey, RunTxn as _, json};
use super::retry::Retry;
use super::shared::Shared;
use super::verdict::{Judgement, NotNow, Refusal, Verdict, is_trusted, judge};
use crate::ports::{Claim, Expect, StoreError, Txn};

/// The outcome of a start.
pub(super) enum ClaimOutcome {
    /// The run is claimed.
    Claimed(Box<Ownership>, Verdict),
    /// The run waits for a place of its pipeline. It has no owner until it gets one.
    Waits,
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
    claimant: Claimant<'_>,
    run: &RunId,
    start: &Start,
    refusal: Option<&Refusal>,
) -> ClaimOutcome {
    let Claimant { shared, held, heartbeat } = claimant;
    let mut retry = Retry::of_store(&*shared.ports.host, heartbeat);
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
    let runs = |judgement| matches!(judgement, Judgement::Claim(_, Verdict::Run));
    (brings_all && runs(judge(shared, start, None, &nothing))).then_some(nothing)
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
        None => Look::of(&shared.ports.store.txn(Look::read(run, start)).await?, run, start),
    };
    if look.run.is_owned_under(&shared.options.node, held.lease)
        && let Some(owned) = look.run.ownership(run, logger_url(look.logger.as_ref()))?
    {
        // A claim of this worker whose reply was lost. No drive exists for it, because this call
        // holds the run's only place in the roster.
        return Ok(ClaimAttempt::Taken(adopt(owned, &look)));
    }
    if look.run.seen.is_some() || look.run.record.is_some() {
        return Ok(ClaimAttempt::Taken(ClaimOutcome::Known));
    }
    let (pipeline, verdict) = match judge(shared, start, refusal, &look) {
        Judgement::Claim(pipeline, verdict) => (pipeline, verdict),
        Judgement::Leave(not_now) => return Ok(ClaimAttempt::Taken(ClaimOutcome::NotNow(not_now))),
    };
    let Admission { verdict, places, waits } =
        admit(shared, run, start, pipeline.as_ref(), verdict).await?;
    let trusted = is_trusted(start, pipeline.as_ref(), &look);
    let record = RunRecord { trusted, ..record_of(shared, run, start, pipeline, &verdict) };
    let seen = shared.seen.current(&*shared.ports.store, &*shared.ports.host).await?;
    let txn = Txn::new()
        .require_absent(run, RunKey::Record)
        .require_absent(run, RunKey::Seen)
        .put_seen(run, seen);
    let mut txn = match &waits {
        None => txn
            .create_owner(run, &shared.options.node, held.lease)
            .put_record(run, json(&record)?)
            .put_open(run, json(&Open::default())?),
        Some(waiting) => waiting.enter(txn.require_absent(run, RunKey::Owner), run, &record)?,
    };
    if let Some(places) = &places {
        txn = places.write(txn)?;
    }
    if let Some(definition) = definition_of(&record)? {
        txn = txn.put_definition(run, definition);
    }
    let txn = under_same_conditions(txn, run, start, &look, &verdict);
    let reply = shared.ports.store.txn(Look::claim(txn, run, start)).await?;
    if !reply.committed {
        return Ok(ClaimAttempt::Changed(Box::new(Look::of(&reply, run, start))));
    }
    if waits.is_some() {
        return Ok(ClaimAttempt::Taken(ClaimOutcome::Waits));
    }
    let claim =
        Claim { run: run.clone(), epoch: Epoch(reply.revision), node: shared.options.node.clone() };
    let logger_url = logger_url(look.logger.as_ref());
    let modified = reply.revision;
    let owned = Ownership { claim, record, modified, logger_url };
    Ok(ClaimAttempt::Taken(ClaimOutcome::Claimed(Box::new(owned), verdict)))
}

/// Adds the conditions that the verdict depends on: no stop, and the same stored pipeline.
fn under_same_conditions(
    mut txn: Txn,
    run: &RunId,
    start: &Start,
    look: &Look,
    verdict: &Verdict,
) -> Txn {
    if !matches!(verdict, Verdict::Stop(_)) {
        txn = txn.require_absent(run, RunKey::Stop);
    }
    let Some(id) = pipeline_id(start) else { return txn };
    let stored = look.pipeline.as_ref();
    let unchanged = stored.map_or(Expect::Absent, |entry| Expect::ModifiedAt(entry.mod_revision));
    txn.when(names::pipeline_key(&id), unchanged)
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
        attempts: indexmap::IndexMap::new(),
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

/// Takes up a claim of this worker whose reply was lost.
fn adopt(owned: Ownership, look: &Look) -> ClaimOutcome {
    let record = &owned.record;
    if record.epoch.is_some() || record.status != Status::Pending {
        // The run has ended, or was started under this claim, which is being released.
        return ClaimOutcome::Known;
    }
    let verdict = match look.stop_why() {
        Some(stop) => Verdict::Stop(stop),
        None => match record.cause {
            Some(cause) => Verdict::Refuse(cause, record.message.clone().unwrap_or_default()),
            None if record.steps.is_empty() => Verdict::Run,
            None => Verdict::Resume(record.steps.clone()),
        },
    };
    ClaimOutcome::Claimed(Box::new(owned), verdict)
}

fn definition_of(record: &RunRecord) -> Result<Option<Vec<u8>>, StoreError> {
    record.definition().map_err(|cause| StoreError::Refused(cause.to_string()))
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
