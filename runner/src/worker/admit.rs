//! Gives a new run a place of its pipeline, or lets it wait for one.

use protocol::command::Start;
use protocol::id::{PipelineId, RunId};
use protocol::names;
use protocol::pipeline::Pipeline;
use protocol::run::{Cause, Open, RunRecord, StopEntry};

use super::places::Places;
use super::records::{RunTxn as _, json};
use super::shared::Shared;
use super::verdict::Verdict;
use crate::ports::{StoreError, Txn};
use crate::rules::admission::Admitted;

/// Whether a new run has a place.
pub(super) struct Admission {
    /// What happens to the run. A run that can neither run nor wait is refused.
    pub(super) verdict: Verdict,
    /// The wait list with the run, if its pipeline has one.
    pub(super) places: Option<Places>,
    /// `None` if the run has a place, or needs none.
    pub(super) waits: Option<Waiting>,
}

/// A new run that waits.
pub(super) struct Waiting {
    pipeline: PipelineId,
    /// The waiting run that it replaces, with the stop that is recorded for that run.
    replaces: Option<(RunId, Vec<u8>)>,
}

impl Waiting {
    /// Adds the run to a transaction: its record without an owner, and the stop of a run that it
    /// replaces, which any worker ends then.
    pub(super) fn enter(
        &self,
        txn: Txn,
        run: &RunId,
        record: &RunRecord,
    ) -> Result<Txn, StoreError> {
        let open = Open { waiting_in: Some(names::pipeline_key(&self.pipeline)) };
        // The first owner makes it the first attempt.
        let record = RunRecord { node: None, attempt: 0, ..record.clone() };
        let txn = txn.put_record(run, json(&record)?).put_open(run, json(&open)?);
        Ok(match &self.replaces {
            Some((old, stop)) => {
                txn.put_stop(old, stop.clone()).put_open(old, json(&Open::default())?)
            }
            None => txn,
        })
    }
}

/// Admits a new run under the policy of its pipeline. Reads nothing if the pipeline has none, or if the
/// run is not to be driven.
pub(super) async fn admit(
    shared: &Shared,
    run: &RunId,
    start: &Start,
    pipeline: Option<&Pipeline>,
    verdict: Verdict,
) -> Result<Admission, StoreError> {
    let runs = matches!(verdict, Verdict::Run | Verdict::Resume(_));
    // A worker without rescue has a single run, with no others to wait for.
    let policy = pipeline.filter(|_| runs && shared.options.rescue).and_then(|pipeline| {
        let id = pipeline.id().ok()?;
        Some((id, pipeline.admission.as_ref()?))
    });
    let Some((pipeline, policy)) = policy else {
        return Ok(Admission { verdict, places: None, waits: None });
    };
    let mut places = Places::read(&*shared.ports.store, &pipeline).await?;
    let now = shared.ports.host.now();
    let partition = start.partition.as_deref().unwrap_or_default();
    Ok(match places.offer(policy, run, partition, now) {
        Ok(Admitted::Starts) => Admission { verdict, places: Some(places), waits: None },
        // Its definition has more places than the last one, so it has been promoted at once.
        Ok(Admitted::Waits { .. }) if places.promoted().contains(run) => {
            Admission { verdict, places: Some(places.without_promotion(run)), waits: None }
        }
        Ok(Admitted::Waits { replaces }) => {
            let replaces = match replaces {
                Some(old) => {
                    let stop = StopEntry {
                        reason: None,
                        replaced_by: Some(run.clone()),
                        by: shared.options.node.clone(),
                        at: now.into(),
                    };
                    Some((old, json(&stop)?))
                }
                None => None,
            };
            let waits = Some(Waiting { pipeline, replaces });
            Admission { verdict, places: Some(places), waits }
        }
        Err(refusal) => Admission {
            verdict: Verdict::Refuse(Cause::Rejected, refusal.to_string()),
            places: None,
            waits: None,
        },
    })
}
