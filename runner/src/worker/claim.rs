//! Claims new runs: reads the state of a run, and claims it in one transaction.

use std::sync::Arc;

use protocol::command::{MAX_START_BYTES, RunIdSource, Start, Target};
use protocol::definition::{self, Stored};
use protocol::dialect;
use protocol::id::{Epoch, PipelineId, RunId};
use protocol::names;
use protocol::pipeline::{Output, Pipeline, Step};
use protocol::run::{Cause, Open, OwnerEntry, RunRecord, Status, StepRecord, StoredPipeline};
use serde::Deserialize;

use super::Shared;
use super::lease::Held;
use super::ledger::owner_value;
use super::parent::{NotAfter, ParentEntries, after_parent, is_trusted_parent};
use super::retry::Retry;
use crate::ports::{Claim, Entry, Expect, StoreError, Txn, TxnReply};
use crate::rules::quota::{self, Fit};
use crate::rules::run::StopWhy;
use crate::rules::template;

/// The decision about a start, made before its run is claimed.
pub(super) enum Verdict {
    /// Run it.
    Run,
    /// Run it after these steps, which a parent run committed.
    GoOn(Vec<StepRecord>),
    /// Record it as failed without running any step.
    Refuse(Cause, String),
    /// A stop was recorded before the start arrived.
    Stop(StopWhy),
}

/// The outcome of a start.
pub(super) enum Taken {
    /// The run is claimed.
    Claimed(Box<Claimed>),
    /// The run ID was seen before.
    Known,
    /// This worker cannot run it now: it waits, and is published again.
    NotNow(NotNow),
    /// The lease was lost meanwhile: it goes back to the queue.
    LeaseLost,
    /// The worker ends while the store refuses writes: the start returns to the queue unclaimed.
    WorkerEnds,
    /// The store will never accept the run. Holds the message.
    Impossible(String),
}

/// Why this worker cannot run a start now.
pub(super) struct NotNow {
    /// The sentence.
    pub(super) why: String,
    /// The engine whose images it needs, if another worker has to run it.
    pub(super) engine: Option<String>,
}

/// A run that is ours.
pub(super) struct Claimed {
    pub(super) claim: Claim,
    pub(super) record: RunRecord,
    pub(super) modified: i64,
    pub(super) verdict: Verdict,
    pub(super) logger_url: Option<String>,
}

/// The state read from the store before a start is claimed, all at one revision.
#[derive(Default)]
struct Look {
    seen: bool,
    stop: Option<Entry>,
    pipeline: Option<Entry>,
    logger: Option<Entry>,
    owner: Option<Entry>,
    record: Option<Entry>,
    definition: Option<Entry>,
    parent: Option<Entry>,
    parent_definition: Option<Entry>,
}

impl Look {
    /// Creates a transaction that reads this state.
    fn read(run: &RunId, start: &Start) -> Txn {
        Self::with(Txn::new(), run, start).read(names::definition_key(run))
    }

    /// Adds this state to the reads of a claim. The definition can be large, and is read only if
    /// the claim fails.
    fn claim(txn: Txn, run: &RunId, start: &Start) -> Txn {
        Self::with(txn, run, start).read_otherwise(names::definition_key(run))
    }

    fn with(txn: Txn, run: &RunId, start: &Start) -> Txn {
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
        if let Some(parent) = &start.parent {
            txn = txn
                .read(names::run_key(&parent.run_id))
                .read(names::definition_key(&parent.run_id));
        }
        txn
    }

    /// Parses the reply to [`Look::read`] or [`Look::claim`].
    fn of(reply: &TxnReply, start: &Start) -> Self {
        let stored = pipeline_id(start).is_some();
        let logger_at = if stored { 5 } else { 4 };
        let parent_at = logger_at + usize::from(start.logger.is_some());
        let definition_at = parent_at + 2 * usize::from(start.parent.is_some());
        Self {
            seen: reply.entry(0).is_some(),
            stop: reply.entry(1).cloned(),
            owner: reply.entry(2).cloned(),
            record: reply.entry(3).cloned(),
            definition: reply.entry(definition_at).cloned(),
            pipeline: if stored { reply.entry(4).cloned() } else { None },
            logger: start.logger.as_ref().and_then(|_| reply.entry(logger_at).cloned()),
            parent: start.parent.as_ref().and_then(|_| reply.entry(parent_at).cloned()),
            parent_definition: start
                .parent
                .as_ref()
                .and_then(|_| reply.entry(parent_at + 1).cloned()),
        }
    }
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

/// Why a start is recorded as failed without being run.
pub(super) type Refusal = (Cause, String);

/// What came of one try.
enum Tried {
    Taken(Taken),
    /// The state was stale. Holds the current state.
    Changed(Box<Look>),
}

/// Reads the state of a start and claims its run, as long as the lease is valid.
///
/// An answer that was lost is asked for again under the same demands, so that at most one try lands.
///
/// `refusal`: the run is recorded as failed for this reason, unless another one comes first.
pub(super) async fn take(
    shared: &Arc<Shared>,
    held: &Held,
    run: &RunId,
    start: &Start,
    refusal: Option<&Refusal>,
) -> Taken {
    let mut retry = Retry::of_store(&*shared.ports.host);
    let mut known = guess(shared, start);
    let (mut changed, mut refused) = (false, false);
    loop {
        let tried = tokio::select! {
            biased;
            () = held.lost.cancelled() => return Taken::LeaseLost,
            tried = try_take(shared, held, run, (start, refusal), known.take()) => tried,
        };
        match tried {
            Ok(Tried::Taken(taken)) => return taken,
            // The optimistic read was stale: retry with the current state.
            Ok(Tried::Changed(look)) if !changed => {
                changed = true;
                known = Some(*look);
                continue;
            }
            Ok(Tried::Changed(look)) => known = Some(*look),
            Err(cause) if cause.is_of_the_request() => return Taken::Impossible(cause.to_string()),
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
            return Taken::LeaseLost;
        }
        if refused && shared.draining.is_cancelled() {
            return Taken::WorkerEnds;
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
    held: &Held,
    run: &RunId,
    (start, refusal): (&Start, Option<&Refusal>),
    known: Option<Look>,
) -> Result<Tried, StoreError> {
    let look = match known {
        Some(look) => look,
        None => Look::of(&shared.ports.store.txn(Look::read(run, start)).await?, start),
    };
    if let (Some(owner), Some(record)) = (&look.owner, &look.record)
        && owner.value == owner_value(&shared.options.node, held.lease)
    {
        // A claim of this worker whose reply was lost. No drive exists for it, because this call
        // holds the run's only place in the roster.
        return adopt(run, owner, record, &look).map(Tried::Taken);
    }
    if look.seen || look.record.is_some() {
        return Ok(Tried::Taken(Taken::Known));
    }
    let (pipeline, verdict) = match judge(shared, start, refusal, &look) {
        Ok(judged) => judged,
        Err(not_now) => return Ok(Tried::Taken(Taken::NotNow(not_now))),
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
        return Ok(Tried::Changed(Box::new(Look::of(&reply, start))));
    }
    let claim =
        Claim { run: run.clone(), epoch: Epoch(reply.revision), node: shared.options.node.clone() };
    let logger_url = logger_url(look.logger.as_ref());
    let modified = reply.revision;
    let claimed = Claimed { claim, record, modified, verdict, logger_url };
    Ok(Tried::Taken(Taken::Claimed(Box::new(claimed))))
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
        Verdict::Run | Verdict::GoOn(_) | Verdict::Stop(_) => (None, None),
    };
    let steps = match verdict {
        Verdict::GoOn(steps) => steps.clone(),
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

fn adopt(run: &RunId, owner: &Entry, record: &Entry, look: &Look) -> Result<Taken, StoreError> {
    let (claim, parsed, modified) = adopted(run, owner, (record, look.definition.as_ref()))?;
    if parsed.status.is_ended() {
        return Ok(Taken::Known);
    }
    if parsed.epoch.is_some() || parsed.status != Status::Pending {
        // The run was started under this claim, which is being released.
        return Ok(Taken::Known);
    }
    let verdict = match stop_of(look) {
        Some(stop) => Verdict::Stop(stop),
        None => match parsed.cause {
            Some(cause) => Verdict::Refuse(cause, parsed.message.clone().unwrap_or_default()),
            None if parsed.steps.is_empty() => Verdict::Run,
            None => Verdict::GoOn(parsed.steps.clone()),
        },
    };
    Ok(Taken::Claimed(Box::new(Claimed {
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

/// Decides what happens to a start, and returns the definition to record. Returns an error if there
/// is not enough memory now.
fn judge(
    shared: &Shared,
    start: &Start,
    refusal: Option<&Refusal>,
    look: &Look,
) -> Result<(Option<Pipeline>, Verdict), NotNow> {
    let refuse = |pipeline, cause, why| Ok((pipeline, Verdict::Refuse(cause, why)));
    let stored = look.pipeline.as_ref().map(|entry| stored_pipeline(&entry.value));
    if let Some(stop) = stop_of(look) {
        let pipeline = match (&start.target, stored) {
            (Target::Inline(pipeline), _) => Some((**pipeline).clone()),
            (Target::Stored(_), stored) => {
                stored.and_then(Result::ok).map(|(pipeline, _)| pipeline)
            }
        };
        let pipeline = pipeline.map(|pipeline| match literal_secrets(shared, &pipeline) {
            Some(_) => pipeline.without_literal_secrets(),
            None => pipeline,
        });
        return Ok((pipeline, Verdict::Stop(stop)));
    }
    let paused = matches!(&stored, Some(Ok((_, true))));
    let size = look.pipeline.as_ref().map_or(0, |entry| entry.value.len());
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
    if matches!(start.target, Target::Stored(_)) && size + size_of_vars(start) > MAX_START_BYTES {
        let why = format!("its definition and variables are more than {MAX_START_BYTES} bytes");
        return refuse(None, Cause::Rejected, why);
    }
    if let Some(why) = literal_secrets(shared, &pipeline) {
        // The record must not contain the secret.
        return refuse(Some(pipeline.without_literal_secrets()), Cause::Rejected, why);
    }
    if paused {
        let why = format!("pipeline {}/{} is paused", pipeline.group, pipeline.name);
        return refuse(Some(pipeline), Cause::Paused, why);
    }
    if let Some(logger) = &start.logger
        && logger_url(look.logger.as_ref()).is_none()
    {
        let why = match &look.logger {
            None => format!("logger {logger} is not registered"),
            Some(entry) => format!("{} in the store cannot be read; register it again", entry.key),
        };
        return refuse(Some(pipeline), Cause::UnknownLogger, why);
    }
    let among_runs = pipeline.unsupported_among_runs().into_iter();
    // A worker without rescue has a single run, with no others to wait for.
    let among_runs = among_runs.filter(|_| shared.options.rescue);
    if let Some(unsupported) = pipeline.unsupported().into_iter().chain(among_runs).next() {
        return refuse(Some(pipeline), Cause::Rejected, unsupported.what);
    }
    if let Some(why) = not_here(shared, start, &pipeline) {
        return refuse(Some(pipeline), Cause::Rejected, why);
    }
    if let Some((cause, why)) = refusal {
        return refuse(Some(pipeline), *cause, why.clone());
    }
    match quota::fit(&pipeline, shared.ports.host.memory()) {
        Fit::Now => match after_parent(shared, start, &parent_of(look), &pipeline) {
            Ok(steps) if steps.is_empty() => Ok((Some(pipeline), Verdict::Run)),
            Ok(steps) => Ok((Some(pipeline), Verdict::GoOn(steps))),
            Err(NotAfter::Here { engine, why }) => Err(NotNow { why, engine: Some(engine) }),
            Err(NotAfter::Ever(why)) => refuse(Some(pipeline), Cause::Rejected, why),
        },
        Fit::Later { asked, free } => {
            let why = format!("{asked} bytes of memory are requested, and {free} are free");
            Err(NotNow { why, engine: None })
        }
        Fit::Never { asked, total } => {
            let why = format!("{asked} bytes of memory are requested, and this worker has {total}");
            refuse(Some(pipeline), Cause::Rejected, why)
        }
    }
}

fn parent_of(look: &Look) -> ParentEntries<'_> {
    ParentEntries { record: look.parent.as_ref(), definition: look.parent_definition.as_ref() }
}

/// Whether a run executes a stored definition as it is. Only operators can store one, whereas a message
/// can claim any group and name, and set any variable. A rerun is as trustworthy as its parent, whose
/// definition and variables it must have.
fn is_trusted(start: &Start, pipeline: Option<&Pipeline>, look: &Look) -> bool {
    let declares =
        |pipeline: &Pipeline| start.vars.keys().all(|name| pipeline.vars.contains_key(name));
    match (&start.target, &start.parent) {
        (Target::Stored(_), _) => pipeline.is_some_and(declares),
        (Target::Inline(_), None) => false,
        (Target::Inline(_), Some(parent)) => {
            is_trusted_parent(&parent.run_id, start, &parent_of(look), pipeline)
        }
    }
}

/// Returns why a definition with secrets in clear text is rejected.
fn literal_secrets(shared: &Shared, pipeline: &Pipeline) -> Option<String> {
    if shared.options.literal_secrets {
        return None;
    }
    let paths = pipeline.literal_secrets();
    let (first, more) = paths.split_first()?;
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    Some(format!(
        "{first}{more} of pipeline {}/{} is a secret in clear text: write {{secret-name: NAME}} in its place and keep the secret where the workers look for it (BOB_SECRETS_DIR), or set BOB_LITERAL_SECRETS=allow on the workers",
        pipeline.group, pipeline.name
    ))
}

/// Returns a requirement of the run that this worker or its host does not meet.
fn not_here(shared: &Shared, start: &Start, pipeline: &Pipeline) -> Option<String> {
    if let Some(executor) = shared.lacks(pipeline) {
        let name = executor.as_str();
        return Some(format!(
            "this worker has no executor {name}: BOB_EXECUTORS names those that it has"
        ));
    }
    if let Some(why) = shared.rejects(pipeline) {
        return Some(why);
    }
    let has_files = |step: &&Step| step.outputs.iter().any(Output::is_of_files);
    if shared.ports.outputs.is_none()
        && let Some(step) = pipeline.steps.iter().find(has_files)
    {
        return Some(format!(
            "step {} has outputs, and this worker keeps none: BOB_OUTPUTS says where",
            step.name
        ));
    }
    if let Some(why) = template::reserved(pipeline, &start.vars, &start.params) {
        return Some(why);
    }
    if start.partition.is_some() {
        return Some("`partition` is not supported by this version".to_owned());
    }
    let limits = pipeline.quotas.as_ref().and_then(|quotas| quotas.limits.as_ref())?;
    let why = shared.no_limits(pipeline)?;
    let is_limited = limits.cpu.is_some() || limits.mem.is_some();
    is_limited.then(|| format!("`quotas.limits` cannot be enforced on this host: {why}"))
}

/// Returns group and name of the pipeline that a start runs.
pub(super) fn names_of(start: &Start) -> (String, String) {
    match &start.target {
        Target::Stored(id) => (id.group().to_owned(), id.name().to_owned()),
        Target::Inline(pipeline) => (pipeline.group.clone(), pipeline.name.clone()),
    }
}

/// Returns the size of a start's variables and parameters as JSON, in bytes.
pub(super) fn size_of_vars(start: &Start) -> usize {
    serde_json::to_vec(&(&start.vars, &start.params)).map_or(0, |json| json.len())
}

/// Parses a stored pipeline. Returns the definition, and whether it is paused.
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

pub(super) fn logger_url(entry: Option<&Entry>) -> Option<String> {
    let registered: protocol::run::Registered = serde_json::from_slice(&entry?.value).ok()?;
    Some(registered.url)
}

fn pipeline_id(start: &Start) -> Option<PipelineId> {
    match &start.target {
        Target::Stored(id) => Some(id.clone()),
        Target::Inline(pipeline) => pipeline.id().ok(),
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
