//! Takes runs: looks at what is known of one, and claims it in one transaction.

use std::sync::Arc;

use protocol::command::{RunIdSource, Start, Target};
use protocol::dialect;
use protocol::id::{Epoch, PipelineId, RunId};
use protocol::names;
use protocol::pipeline::Pipeline;
use protocol::run::{Cause, Open, RunRecord, Status, StoredPipeline};

use super::Shared;
use super::lease::Held;
use super::ledger::owner_value;
use crate::ports::{Claim, Entry, Expect, StoreError, Txn, TxnReply};
use crate::rules::quota::{self, Fit};
use crate::rules::run::StopWhy;

/// What a look at a start shows.
pub(super) enum Verdict {
    /// It is to be run.
    Run,
    /// It is to be recorded as failed, without anything being run.
    Refuse(Cause, String),
    /// It was stopped before it came.
    Stop(StopWhy),
}

/// What becomes of a start.
pub(super) enum Taken {
    /// It is claimed.
    Claimed(Box<Claimed>),
    /// Its run id was seen before.
    Known,
    /// There is no memory for it now: the sentence.
    NoMemory(String),
    /// The lease was lost meanwhile: it goes back to the queue.
    LeaseLost,
    /// The store will never take it: the sentence.
    Impossible(String),
}

/// A run that is ours.
pub(super) struct Claimed {
    pub(super) claim: Claim,
    pub(super) record: RunRecord,
    pub(super) modified: i64,
    pub(super) verdict: Verdict,
    pub(super) logger_url: Option<String>,
}

/// What is known of a start before it is claimed, all of one revision.
#[derive(Default)]
struct Look {
    seen: bool,
    stop: Option<Entry>,
    pipeline: Option<Entry>,
    logger: Option<Entry>,
    owner: Option<Entry>,
    record: Option<Entry>,
}

impl Look {
    /// Reads, after what `txn` changes, all that concerns a start.
    fn read(txn: Txn, run: &RunId, start: &Start) -> Txn {
        let mut txn = txn
            .read(names::seen_key(run))
            .read(names::stop_key(run))
            .read(names::owner_key(run))
            .read(names::run_key(run));
        if let Some(id) = pipeline_id(start) {
            txn = txn.read(names::pipeline_key(&id));
        }
        if let Some(logger) = &start.logger {
            txn = txn.read(format!("{}{logger}", names::LOGGERS));
        }
        txn
    }

    /// What [`Look::read`] has read.
    fn of(reply: &TxnReply, start: &Start) -> Self {
        let stored = pipeline_id(start).is_some();
        let logger_at = if stored { 5 } else { 4 };
        Self {
            seen: reply.entry(0).is_some(),
            stop: reply.entry(1).cloned(),
            owner: reply.entry(2).cloned(),
            record: reply.entry(3).cloned(),
            pipeline: if stored { reply.entry(4).cloned() } else { None },
            logger: reply.entry(logger_at).cloned(),
        }
    }
}

/// What came of one try.
enum Tried {
    Taken(Taken),
    /// What was known was not, or not any more, true; this is.
    Changed(Box<Look>),
}

/// Looks at a start and claims its run, as long as the lease stands.
///
/// An answer that was lost is asked for again under the same demands, so that at most one try lands.
pub(super) async fn take(shared: &Arc<Shared>, held: &Held, run: &RunId, start: &Start) -> Taken {
    let mut wait = std::time::Duration::from_millis(50);
    let mut known = guess(shared, start);
    loop {
        let tried = tokio::select! {
            biased;
            () = held.lost.cancelled() => return Taken::LeaseLost,
            tried = try_take(shared, held, run, start, known.take()) => tried,
        };
        match tried {
            Ok(Tried::Taken(taken)) => return taken,
            Ok(Tried::Changed(look)) => known = Some(*look),
            Err(cause) if cause.retryable() => {
                tracing::warn!(run.id = %run, %cause, "a claim waits");
                tokio::select! {
                    () = held.lost.cancelled() => return Taken::LeaseLost,
                    () = tokio::time::sleep(wait) => {}
                }
                wait = (wait * 2).min(std::time::Duration::from_secs(1));
            }
            Err(cause) => return Taken::Impossible(cause.to_string()),
        }
    }
}

/// Most starts that bring their pipeline are new, and nothing stands in the store that concerns them:
/// such a one is claimed without a look. The claim demands that it is so, and shows what is there
/// where it is not.
fn guess(shared: &Shared, start: &Start) -> Option<Look> {
    let nothing = Look::default();
    let brings_all = matches!(start.target, Target::Inline(_)) && start.logger.is_none();
    (brings_all && matches!(judge(shared, start, &nothing), Ok((_, Verdict::Run))))
        .then_some(nothing)
}

async fn try_take(
    shared: &Arc<Shared>,
    held: &Held,
    run: &RunId,
    start: &Start,
    known: Option<Look>,
) -> Result<Tried, StoreError> {
    let look = match known {
        Some(look) => look,
        None => {
            let txn = Look::read(Txn::new(), run, start);
            Look::of(&shared.ports.store.txn(txn).await?, start)
        }
    };
    if let (Some(owner), Some(record)) = (&look.owner, &look.record)
        && owner.value == owner_value(&shared.options.node)
    {
        // A claim of ours whose answer was lost. It is driven by nobody: the roster has one place
        // for a run, and we hold it.
        return adopt(shared, run, owner, record, &look).map(Tried::Taken);
    }
    if look.seen || look.record.is_some() {
        return Ok(Tried::Taken(Taken::Known));
    }
    let (pipeline, verdict) = match judge(shared, start, &look) {
        Ok(judged) => judged,
        Err(no_memory) => return Ok(Tried::Taken(Taken::NoMemory(no_memory))),
    };
    let (group, name) = match &start.target {
        Target::Stored(id) => (id.group().to_owned(), id.name().to_owned()),
        Target::Inline(pipeline) => (pipeline.group.clone(), pipeline.name.clone()),
    };
    let record = RunRecord {
        group,
        name,
        run_id: run.clone(),
        status: Status::Pending,
        cause: None,
        message: None,
        logger: start.logger.clone(),
        vars: start.vars.clone(),
        pipeline,
        node: Some(shared.options.node.clone()),
        epoch: None,
        attempt: 1,
        losses: 0,
        released: None,
        scheduled_at: shared.ports.host.now().into(),
        initiated_at: None,
        initialized_at: None,
        started_at: None,
        completed_at: None,
        steps: Vec::new(),
        ending_event: None,
    };
    let seen = shared.seen.current(&shared.ports).await?;
    let mut txn = Txn::new()
        .when(names::owner_key(run), Expect::Absent)
        .when(names::run_key(run), Expect::Absent)
        .when(names::seen_key(run), Expect::Absent)
        .put_leased(names::owner_key(run), owner_value(&shared.options.node), held.lease)
        .put(names::run_key(run), json(&record)?)
        .put(names::open_key(run), json(&Open::default())?)
        .put_leased(names::seen_key(run), Vec::new(), seen);
    if !matches!(verdict, Verdict::Stop(_)) {
        txn = txn.when(names::stop_key(run), Expect::Absent);
    }
    if let Some(id) = pipeline_id(start) {
        txn = txn.when(
            names::pipeline_key(&id),
            look.pipeline.as_ref().map_or(Expect::Absent, |e| Expect::ModifiedAt(e.mod_revision)),
        );
    }
    let reply = shared.ports.store.txn(Look::read(txn, run, start)).await?;
    if !reply.committed {
        return Ok(Tried::Changed(Box::new(Look::of(&reply, start))));
    }
    let claim =
        Claim { run: run.clone(), epoch: Epoch(reply.revision), node: shared.options.node.clone() };
    let logger_url = logger_url(look.logger.as_ref());
    let modified = reply.revision;
    let claimed = Claimed { claim, record, modified, verdict, logger_url };
    Ok(Tried::Taken(Taken::Claimed(Box::new(claimed))))
}

fn adopt(
    shared: &Shared,
    run: &RunId,
    owner: &Entry,
    record: &Entry,
    look: &Look,
) -> Result<Taken, StoreError> {
    let parsed: RunRecord = serde_json::from_slice(&record.value).map_err(|cause| {
        StoreError::Unreadable(format!("{} in the store: {cause}", names::run_key(run)))
    })?;
    let claim = Claim {
        run: run.clone(),
        epoch: Epoch(owner.create_revision),
        node: shared.options.node.clone(),
    };
    Ok(Taken::Claimed(Box::new(Claimed {
        claim,
        record: parsed,
        modified: record.mod_revision,
        verdict: stop_of(look).map_or(Verdict::Run, Verdict::Stop),
        logger_url: logger_url(look.logger.as_ref()),
    })))
}

/// What is to become of a start, and the definition that it is recorded with. `Err`: there is no
/// memory for it now.
fn judge(
    shared: &Shared,
    start: &Start,
    look: &Look,
) -> Result<(Option<Pipeline>, Verdict), String> {
    let refuse = |pipeline, cause, why| Ok((pipeline, Verdict::Refuse(cause, why)));
    let stored = look.pipeline.as_ref().map(|entry| stored_pipeline(&entry.value));
    let paused = matches!(&stored, Some(Ok((_, true))));
    let pipeline = match (&start.target, stored) {
        (Target::Inline(pipeline), _) => (**pipeline).clone(),
        (Target::Stored(id), None) => {
            return refuse(None, Cause::UnknownPipeline, format!("no pipeline {id} is stored"));
        }
        (Target::Stored(id), Some(Err(why))) => {
            let why = format!("the stored pipeline {id} is invalid: {why}");
            return refuse(None, Cause::Rejected, why);
        }
        (Target::Stored(_), Some(Ok((pipeline, _)))) => pipeline,
    };
    if let Some(stop) = stop_of(look) {
        return Ok((Some(pipeline), Verdict::Stop(stop)));
    }
    if paused {
        let why = format!("pipeline {}/{} is paused", pipeline.group, pipeline.name);
        return refuse(Some(pipeline), Cause::Paused, why);
    }
    if let (Some(logger), None) = (&start.logger, &look.logger) {
        let why = format!("logger {logger} is not registered");
        return refuse(Some(pipeline), Cause::UnknownLogger, why);
    }
    if let Some(unsupported) = pipeline.unsupported().into_iter().next() {
        return refuse(Some(pipeline), Cause::Rejected, unsupported.what);
    }
    if start.partition.is_some() {
        let why = "`partition` is not supported by this version".to_owned();
        return refuse(Some(pipeline), Cause::Rejected, why);
    }
    let limited = pipeline.quotas.as_ref().and_then(|quotas| quotas.limits.as_ref());
    if let (Some(limits), Some(why)) = (limited, &shared.engine.limits_refused)
        && (limits.cpu.is_some() || limits.mem.is_some())
    {
        let why = format!("`quotas.limits` cannot be enforced on this host: {why}");
        return refuse(Some(pipeline), Cause::Rejected, why);
    }
    match quota::fit(&pipeline, shared.ports.host.memory()) {
        Fit::Now => Ok((Some(pipeline), Verdict::Run)),
        Fit::Later { asked, free } => {
            Err(format!("{asked} bytes of memory are requested, and {free} are free here"))
        }
        Fit::Never { asked, total } => {
            let why = format!("{asked} bytes of memory are requested, and this worker has {total}");
            refuse(Some(pipeline), Cause::Rejected, why)
        }
    }
}

/// Claims a run that is recorded and has no owner: a new epoch, and the next attempt. `None`: it has
/// an owner, or it has changed.
pub(super) async fn claim_orphan(
    shared: &Shared,
    held: &Held,
    run: &RunId,
    record: &Entry,
) -> Result<Option<(Claim, RunRecord, i64)>, StoreError> {
    let mut parsed: RunRecord = serde_json::from_slice(&record.value).map_err(|cause| {
        StoreError::Unreadable(format!("{} in the store: {cause}", names::run_key(run)))
    })?;
    parsed.attempt += 1;
    parsed.node = Some(shared.options.node.clone());
    let txn = Txn::new()
        .when(names::owner_key(run), Expect::Absent)
        .when(names::run_key(run), Expect::ModifiedAt(record.mod_revision))
        .put_leased(names::owner_key(run), owner_value(&shared.options.node), held.lease)
        .put(names::run_key(run), json(&parsed)?);
    let reply = shared.ports.store.txn(txn).await?;
    if !reply.committed {
        return Ok(None);
    }
    let claim =
        Claim { run: run.clone(), epoch: Epoch(reply.revision), node: shared.options.node.clone() };
    Ok(Some((claim, parsed, reply.revision)))
}

/// A pipeline's key: the definition, and whether it is paused.
pub(super) fn stored_pipeline(value: &[u8]) -> Result<(Pipeline, bool), String> {
    let stored: StoredPipeline =
        serde_json::from_slice(value).map_err(|cause| format!("it is unreadable: {cause}"))?;
    dialect::pipeline_from_json(&serde_json::Value::Object(stored.pipeline))
        .map(|pipeline| (pipeline, stored.paused))
        .map_err(|fault| fault.to_string())
}

fn stop_of(look: &Look) -> Option<StopWhy> {
    let entry = look.stop.as_ref()?;
    let reason = serde_json::from_slice::<protocol::run::StopEntry>(&entry.value)
        .ok()
        .and_then(|stop| stop.reason);
    Some(StopWhy::User { reason })
}

fn logger_url(entry: Option<&Entry>) -> Option<String> {
    let registered: protocol::run::Registered = serde_json::from_slice(&entry?.value).ok()?;
    Some(registered.url)
}

fn pipeline_id(start: &Start) -> Option<PipelineId> {
    match &start.target {
        Target::Stored(id) => Some(id.clone()),
        Target::Inline(pipeline) => pipeline.id().ok(),
    }
}

/// The run of a start, and whether the sender named it.
pub(super) fn run_of(start: &Start) -> (RunId, bool) {
    match &start.run_id {
        RunIdSource::Given(run) => (run.clone(), true),
        RunIdSource::Missing => (RunId::from_uuid(uuid::Uuid::now_v7()), false),
    }
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|cause| StoreError::Refused(cause.to_string()))
}
