//! Decides which ended runs are past their retention.
//!
//! Runs that have not ended are never candidates. A run belongs together with its outputs, its kept
//! images and the archive of its log: all of them follow its record.

use std::cmp::Reverse;
use std::time::Duration;

use protocol::id::RunId;
use protocol::time::Millis;

/// The retention of runs whose pipelines do not set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How long a run is kept after its end.
    pub period: Duration,
    /// How many ended runs of one pipeline are kept. `None` means no limit.
    pub count: Option<u32>,
}

/// An ended run, as far as its retention depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedRun {
    /// The run.
    pub run: RunId,
    /// When it was accepted.
    pub scheduled_at: Millis,
    /// When it ended.
    pub ended_at: Millis,
    /// The `retention` of its definition.
    pub period: Option<Duration>,
    /// The `retention-count` of its definition.
    pub count: Option<u32>,
}

/// The definition whose `retention-count` applies to all runs of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountSource {
    /// The stored pipeline, with its `retention-count`. A message that claims its name cannot
    /// change its limit.
    Stored(Option<u32>),
    /// The newest run, because no pipeline is stored under the name.
    NewestRun,
}

/// Returns the runs of one pipeline that are past their retention, the newest first.
///
/// A run is kept for the `retention` of its own definition. If there are more ended runs than the
/// limit, those that were accepted first are removed. Either rule suffices.
#[must_use]
pub fn expired(
    mut runs: Vec<EndedRun>,
    source: CountSource,
    default: &Retention,
    now: Millis,
) -> Vec<RunId> {
    runs.sort_by(|one, other| newest_first(one).cmp(&newest_first(other)));
    let count = match source {
        CountSource::Stored(count) => count,
        CountSource::NewestRun => runs.first().and_then(|newest| newest.count),
    };
    let limit = count.or(default.count).map_or(usize::MAX, |count| count as usize);
    let is_expired = |(position, run): &(usize, EndedRun)| {
        *position >= limit || is_past(run.ended_at, run.period.unwrap_or(default.period), now)
    };
    runs.into_iter().enumerate().filter(is_expired).map(|(_, run)| run.run).collect()
}

fn newest_first(run: &EndedRun) -> Reverse<(Millis, &RunId)> {
    Reverse((run.scheduled_at, &run.run))
}

/// Returns true if a run that ended at this time has been kept for the whole period.
#[must_use]
pub fn is_past(ended_at: Millis, period: Duration, now: Millis) -> bool {
    // The clock of the worker that ended the run can be ahead.
    let age = u64::try_from(now.0.saturating_sub(ended_at.0)).unwrap_or(0);
    Duration::from_millis(age) >= period
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000;
    const WEEK: Retention = Retention { period: Duration::from_secs(7 * 86_400), count: None };

    /// A run that was accepted at this hour and ended one hour later.
    fn run(hour: i64) -> EndedRun {
        EndedRun {
            run: format!("r-{hour}").parse().unwrap(),
            scheduled_at: Millis(hour * HOUR),
            ended_at: Millis((hour + 1) * HOUR),
            period: None,
            count: None,
        }
    }

    fn names(runs: &[RunId]) -> Vec<&str> {
        runs.iter().map(RunId::as_str).collect()
    }

    fn hours(hours: u64) -> Option<Duration> {
        Some(Duration::from_secs(hours * 3600))
    }

    #[test]
    fn a_run_is_kept_for_the_default_period_after_its_end() {
        let at =
            |hour: i64| expired(vec![run(0)], CountSource::NewestRun, &WEEK, Millis(hour * HOUR));
        assert_eq!(at(7 * 24), []);
        assert_eq!(names(&at(7 * 24 + 1)), ["r-0"]);
    }

    #[test]
    fn a_run_is_kept_for_the_period_of_its_own_definition() {
        let short = EndedRun { period: hours(2), ..run(0) };
        let long = EndedRun { period: hours(1000), ..run(1) };
        let at = |hour: i64| {
            let runs = vec![short.clone(), long.clone()];
            expired(runs, CountSource::Stored(None), &WEEK, Millis(hour * HOUR))
        };
        assert_eq!(at(2), []);
        assert_eq!(names(&at(3)), ["r-0"]);
        assert_eq!(names(&at(500)), ["r-0"]);
        assert_eq!(names(&at(1002)), ["r-1", "r-0"]);
    }

    #[test]
    fn the_oldest_runs_above_the_count_are_expired() {
        let runs = || vec![run(1), run(4), run(2), run(3)];
        let now = Millis(5 * HOUR);
        let limited = |source| expired(runs(), source, &WEEK, now);
        assert_eq!(names(&limited(CountSource::Stored(Some(2)))), ["r-2", "r-1"]);
        assert_eq!(limited(CountSource::Stored(Some(4))), []);
        assert_eq!(limited(CountSource::Stored(None)), []);
        let default = Retention { count: Some(3), ..WEEK };
        assert_eq!(names(&expired(runs(), CountSource::Stored(None), &default, now)), ["r-1"]);
        let own = expired(runs(), CountSource::Stored(Some(4)), &default, now);
        assert_eq!(own, [], "the pipeline's own limit replaces the default");
    }

    // Rows: D17
    #[test]
    fn either_the_period_or_the_count_suffices() {
        let runs: Vec<_> = (1..=4).map(|hour| EndedRun { period: hours(3), ..run(hour) }).collect();
        let now = Millis(6 * HOUR);
        let by = |count| expired(runs.clone(), CountSource::Stored(count), &WEEK, now);
        assert_eq!(names(&by(None)), ["r-2", "r-1"]);
        assert_eq!(names(&by(Some(3))), ["r-2", "r-1"]);
        assert_eq!(names(&by(Some(1))), ["r-3", "r-2", "r-1"]);
    }

    #[test]
    fn the_newest_run_sets_the_limit_of_a_pipeline_that_is_not_stored() {
        let old = EndedRun { count: Some(9), ..run(1) };
        let new = EndedRun { count: Some(1), ..run(2) };
        let runs = vec![old, new];
        let now = Millis(3 * HOUR);
        assert_eq!(names(&expired(runs.clone(), CountSource::NewestRun, &WEEK, now)), ["r-1"]);
        assert_eq!(expired(runs, CountSource::Stored(None), &WEEK, now), []);
    }

    #[test]
    fn a_run_whose_end_lies_ahead_of_this_clock_is_kept() {
        assert!(!is_past(Millis(10), Duration::from_millis(1), Millis(5)));
        assert!(is_past(Millis(i64::MIN), Duration::from_secs(1), Millis(i64::MAX)));
    }

    fn runs() -> impl Strategy<Value = Vec<EndedRun>> {
        let one = (0..1000_i64, 1..50_i64, proptest::option::of(1..500_u64));
        proptest::collection::vec(one, 0..40).prop_map(|all| {
            let numbered = all.into_iter().enumerate();
            numbered
                .map(|(number, (scheduled, duration, period))| EndedRun {
                    run: format!("r-{number}").parse().unwrap(),
                    scheduled_at: Millis(scheduled),
                    ended_at: Millis(scheduled + duration),
                    period: period.map(Duration::from_millis),
                    count: None,
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn what_remains_fits_both_limits_and_nothing_else_is_removed(
            runs in runs(),
            count in proptest::option::of(1..20_u32),
            now in 0..1500_i64,
        ) {
            let default = Retention { period: Duration::from_millis(200), count: None };
            let now = Millis(now);
            let removed = expired(runs.clone(), CountSource::Stored(count), &default, now);
            let (gone, kept): (Vec<_>, Vec<_>) =
                runs.iter().partition(|run| removed.contains(&run.run));
            prop_assert_eq!(gone.len(), removed.len());
            let is_old = |run: &EndedRun| {
                is_past(run.ended_at, run.period.unwrap_or(default.period), now)
            };
            prop_assert!(kept.iter().all(|run| !is_old(run)));
            let limit = count.map_or(usize::MAX, |count| count as usize);
            prop_assert!(kept.len() <= limit);
            for run in gone.into_iter().filter(|run| !is_old(run)) {
                let newer = runs.iter().filter(|other| newest_first(other) < newest_first(run));
                prop_assert!(newer.count() >= limit, "{} was removed too early", run.run);
            }
        }

        #[test]
        fn a_second_look_at_the_same_time_removes_nothing_more(
            runs in runs(),
            count in proptest::option::of(1..20_u32),
            now in 0..1500_i64,
        ) {
            let default = Retention { period: Duration::from_millis(200), count };
            let look = |runs: Vec<EndedRun>| {
                expired(runs, CountSource::NewestRun, &default, Millis(now))
            };
            let removed = look(runs.clone());
            let kept: Vec<_> =
                runs.into_iter().filter(|run| !removed.contains(&run.run)).collect();
            prop_assert_eq!(look(kept), Vec::new());
        }
    }
}
