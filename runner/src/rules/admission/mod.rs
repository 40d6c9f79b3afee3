//! Decides which runs of a pipeline start, which wait, and which are replaced or refused.
//!
//! The state is the pipeline's [`WaitList`]. Each function changes the list in memory and returns
//! what follows from the change; the caller writes the list in the transaction that also changes
//! the runs.

use protocol::id::RunId;
use protocol::pipeline::{Admission, Strategy};
use protocol::time::Millis;
use protocol::wait_list::{MAX_WAITING, WaitList, WaitingRun};
use thiserror::Error;

/// What happens to a new run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admitted {
    /// It has a place, and can be claimed.
    Starts,
    /// It waits.
    Waits {
        /// The waiting run that it replaces, which ends as `stopped`.
        replaces: Option<RunId>,
    },
}

/// Why a run is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// All places are taken, and the pipeline has no wait list.
    #[error(
        "all places of the pipeline are taken (runs in progress: {running}), and `admission.limit` 0 \
         lets no run wait: start it again when a run has ended"
    )]
    MayNotWait {
        /// Number of runs that hold a place.
        running: usize,
    },
    /// The wait list is full.
    #[error(
        "the wait list of the pipeline is full (waiting runs: {waiting}): start it again later, or \
         raise the limit in `admission`"
    )]
    Full {
        /// Number of waiting runs.
        waiting: usize,
    },
}

/// Adds a new run to the list, under the policy of its definition.
///
/// The caller promotes the runs that are due first (see [`promote`]), so that no run overtakes
/// another one.
///
/// # Errors
/// [`Refusal`] if the run can neither start nor wait. The list is unchanged.
pub fn offer(
    list: &mut WaitList,
    policy: &Admission,
    run: &RunId,
    partition: &str,
    now: Millis,
) -> Result<Admitted, Refusal> {
    let due = due_of(policy, now);
    let is_first = !list.waiting.iter().any(|waiting| is_due(waiting, now));
    if due.is_none() && is_first && has_place(policy.concurrency, list.running.len()) {
        list.concurrency = policy.concurrency;
        list.running.push(run.clone());
        return Ok(Admitted::Starts);
    }
    let new = WaitingRun { run_id: run.clone(), due, partition: partition.to_owned() };
    let replaces = wait(list, policy, new)?;
    list.concurrency = policy.concurrency;
    Ok(Admitted::Waits { replaces })
}

/// Appends a run to the waiting ones, or lets it replace one of them. Returns the replaced run.
fn wait(
    list: &mut WaitList,
    policy: &Admission,
    new: WaitingRun,
) -> Result<Option<RunId>, Refusal> {
    if policy.limit == Some(0) {
        return Err(Refusal::MayNotWait { running: list.running.len() });
    }
    let (limit, partition) = match policy.strategy {
        Strategy::Append | Strategy::Replace => (policy.limit, None),
        Strategy::PartitionedReplace => (policy.partition_limit, Some(new.partition.as_str())),
    };
    let counts = |waiting: &WaitingRun| partition.is_none_or(|name| waiting.partition == name);
    let count = list.waiting.iter().filter(|waiting| counts(waiting)).count();
    let is_full = limit.is_some_and(|limit| count >= as_count(limit));
    let last = list.waiting.iter().rposition(counts);
    let replaced = match (policy.strategy, last) {
        (Strategy::Replace | Strategy::PartitionedReplace, Some(last)) if is_full => {
            Some(list.waiting.remove(last).run_id)
        }
        _ if is_full || list.waiting.len() >= MAX_WAITING => {
            return Err(Refusal::Full { waiting: count });
        }
        _ => None,
    };
    list.waiting.push(new);
    Ok(replaced)
}

/// Gives the free places to the waiting runs that are due, in the order of the list. Returns the
/// runs that can be claimed now.
///
/// A run that is not due yet does not block the ones after it.
pub fn promote(list: &mut WaitList, now: Millis) -> Vec<RunId> {
    let mut promoted = Vec::new();
    let WaitList { concurrency, running, waiting } = list;
    waiting.retain(|run| {
        let starts = is_due(run, now) && has_place(*concurrency, running.len());
        if starts {
            running.push(run.run_id.clone());
            promoted.push(run.run_id.clone());
        }
        !starts
    });
    promoted
}

/// Removes a run that has ended, or that was stopped while it waited. Returns true if the list
/// contained it.
pub fn remove(list: &mut WaitList, run: &RunId) -> bool {
    let before = list.running.len() + list.waiting.len();
    list.running.retain(|running| running != run);
    list.waiting.retain(|waiting| waiting.run_id != *run);
    before != list.running.len() + list.waiting.len()
}

/// Returns when [`promote`] can next give a place to a run: at once if a run is due, at the earliest
/// due time if all wait for theirs. `None` if no place is free or no run waits.
#[must_use]
pub fn next_promotion(list: &WaitList) -> Option<Millis> {
    if !has_place(list.concurrency, list.running.len()) {
        return None;
    }
    list.waiting.iter().map(|waiting| waiting.due.unwrap_or(Millis(0))).min()
}

fn due_of(policy: &Admission, now: Millis) -> Option<Millis> {
    let delay = policy.start_delay?.as_duration();
    let delay = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    (delay > 0).then(|| Millis(now.0.saturating_add(delay)))
}

fn is_due(run: &WaitingRun, now: Millis) -> bool {
    run.due.is_none_or(|due| due <= now)
}

fn has_place(concurrency: Option<u32>, running: usize) -> bool {
    concurrency.is_none_or(|places| running < as_count(places))
}

fn as_count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
