//! The summaries of all runs, ordered by time, with filters and pages.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use protocol::id::{PipelineId, RunId};
use protocol::names;
use protocol::run::Status;
use protocol::time::Millis;
use tracing::warn;

use super::mirror::Rows;
use super::summary::{CompactRun, RunSummary, SharedTexts};
use crate::ports::Entry;

/// The position of a run in the list: its time, then its id.
type Place = (Millis, RunId);

/// The summaries of all runs.
#[derive(Default)]
pub(super) struct RunRows {
    by_time: BTreeMap<Place, Arc<CompactRun>>,
    by_run: HashMap<RunId, Arc<CompactRun>>,
    /// Runs whose records cannot be read. A later version may have written them.
    unreadable: HashSet<RunId>,
    texts: SharedTexts,
}

/// Selects runs. The default selects all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunQuery {
    /// Only runs of pipelines in this group.
    pub group: Option<String>,
    /// Only runs of this pipeline.
    pub pipeline: Option<PipelineId>,
    /// Only runs with one of these statuses, unless it is empty.
    pub statuses: Vec<Status>,
    /// Only runs that were accepted at this time or later.
    pub since: Option<Millis>,
    /// Only runs that were accepted before this time.
    pub until: Option<Millis>,
    /// Only runs with this text, in any case, in their id, pipeline or message.
    pub text: Option<String>,
}

/// The last run of a page. The next page begins after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(Place);

/// A text is not a cursor of this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("use the `next` of an earlier page unchanged, or leave the cursor out")]
pub struct BadCursor;

/// A page of runs, newest first.
#[derive(Debug, Clone)]
pub struct RunPage {
    /// The runs.
    pub runs: Vec<RunSummary>,
    /// Where the next page begins. `None` on the last page.
    pub next: Option<Cursor>,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Millis(at), run) = &self.0;
        f.write_str(&URL_SAFE_NO_PAD.encode(format!("{at} {run}")))
    }
}

impl FromStr for Cursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let read = || {
            let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
            let (at, run) = text.split_once(' ')?;
            Some(Self((Millis(at.parse().ok()?), run.parse().ok()?)))
        };
        read().ok_or(BadCursor)
    }
}

impl Rows for RunRows {
    fn put(&mut self, entry: &Entry) {
        let Some(run) = run_of(&entry.key) else { return };
        let known = self.by_run.get(&run);
        if known.is_some_and(|known| known.revision >= entry.mod_revision) {
            return;
        }
        match CompactRun::read(&entry.value, entry.mod_revision, &mut self.texts) {
            Ok(read) => {
                self.remove(&run);
                let read = Arc::new(read);
                self.by_time.insert((read.scheduled, run.clone()), Arc::clone(&read));
                self.by_run.insert(run, read);
            }
            Err(cause) => {
                let is_new = !self.unreadable.contains(&run);
                self.remove(&run);
                if is_new {
                    warn!(run.id = %run, %cause, "the record of run {run} cannot be read");
                }
                self.unreadable.insert(run);
            }
        }
    }

    fn delete(&mut self, key: &str, revision: i64) {
        let Some(run) = run_of(key) else { return };
        self.unreadable.remove(&run);
        if self.by_run.get(&run).is_some_and(|known| known.revision < revision) {
            self.remove(&run);
            self.texts.shrink(self.by_run.len());
        }
    }
}

impl RunRows {
    fn remove(&mut self, run: &RunId) {
        self.unreadable.remove(run);
        if let Some(known) = self.by_run.remove(run) {
            self.by_time.remove(&(known.scheduled, run.clone()));
        }
    }

    pub(super) fn get(&self, run: &RunId) -> Option<RunSummary> {
        self.by_run.get(run).map(|run| run.shown())
    }

    pub(super) fn len(&self) -> usize {
        self.by_run.len()
    }

    /// A page of the runs that match, newest first, after the cursor.
    pub(super) fn page(&self, query: &RunQuery, after: Option<&Cursor>, most: usize) -> RunPage {
        let text = query.text.as_ref().map(|text| text.to_lowercase());
        let matching = self.before(query, after).filter(|run| query.matches(run, text.as_deref()));
        // One more run shows whether there is a next page.
        let mut found: Vec<&Arc<CompactRun>> = matching.take(most.saturating_add(1)).collect();
        let has_more = found.len() > most;
        found.truncate(most);
        let last = found.last().filter(|_| has_more);
        let next = last.map(|last| Cursor((last.scheduled, last.run.clone())));
        RunPage { runs: found.into_iter().map(|run| run.shown()).collect(), next }
    }

    /// The runs within the times of the query and after the cursor, newest first.
    fn before<'a>(
        &'a self,
        query: &RunQuery,
        after: Option<&Cursor>,
    ) -> impl Iterator<Item = &'a Arc<CompactRun>> {
        let since = query.since;
        let until = query.until;
        let newest = match after {
            Some(Cursor(place)) => Bound::Excluded(place.clone()),
            None => Bound::Unbounded,
        };
        self.by_time
            .range((Bound::Unbounded, newest))
            .rev()
            .map(|(_, run)| run)
            .skip_while(move |run| until.is_some_and(|until| run.scheduled >= until))
            .take_while(move |run| since.is_none_or(|since| run.scheduled >= since))
    }
}

impl RunQuery {
    /// Whether a run within the times of the query matches. `text` is in lower case.
    fn matches(&self, run: &CompactRun, text: Option<&str>) -> bool {
        let has = |part: &str, text: &str| part.to_lowercase().contains(text);
        let of_pipeline = |id: &PipelineId| *id.group() == *run.group && *id.name() == *run.name;
        self.group.as_ref().is_none_or(|group| **group == *run.group)
            && self.pipeline.as_ref().is_none_or(of_pipeline)
            && (self.statuses.is_empty() || self.statuses.contains(&run.status))
            && text.is_none_or(|text| {
                has(run.run.as_str(), text)
                    || has(&format!("{}/{}", run.group, run.name), text)
                    || run.message.as_ref().is_some_and(|message| has(message, text))
            })
    }
}

fn run_of(key: &str) -> Option<RunId> {
    key.strip_prefix(names::RUNS)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::summary::StepCounts;
    use super::*;

    fn entry(run: &str, name: &str, status: &str, second: u32, revision: i64) -> Entry {
        let value = format!(
            r#"{{"group":"dev","name":"{name}","run-id":"{run}","status":"{status}","attempt":1,
                "scheduled-at":"2026-01-01T00:00:{second:02}.000Z","later":{{"any":[1]}},
                "message":"Exit code 3","cause":"of-a-later-version",
                "steps":[{{"name":"a","status":"passed"}},{{"name":"b","status":"failed"}},
                         {{"name":"c","status":"of-a-later-version"}}]}}"#
        );
        Entry {
            key: format!("{}{run}", names::RUNS),
            value: value.into_bytes(),
            create_revision: 1,
            mod_revision: revision,
        }
    }

    fn rows() -> RunRows {
        let mut rows = RunRows::default();
        for (number, (run, name, status)) in
            [("r-1", "x", "passed"), ("r-2", "y", "failed"), ("r-3", "x", "running")]
                .into_iter()
                .enumerate()
        {
            rows.put(&entry(run, name, status, u32::try_from(number).unwrap(), 5));
        }
        rows
    }

    fn ids(page: &RunPage) -> Vec<&str> {
        page.runs.iter().map(|run| run.run_id.as_str()).collect()
    }

    fn at(second: i64) -> Millis {
        Millis(1_767_225_600_000 + second * 1000)
    }

    #[test]
    fn pages_are_newest_first_and_follow_each_other_by_their_cursors() {
        let rows = rows();
        let all = RunQuery::default();
        let first = rows.page(&all, None, 2);
        assert_eq!(ids(&first), ["r-3", "r-2"]);
        let cursor: Cursor = first.next.unwrap().to_string().parse().unwrap();
        let second = rows.page(&all, Some(&cursor), 2);
        assert_eq!(ids(&second), ["r-1"]);
        assert_eq!(second.next, None);
        assert_eq!(rows.page(&all, None, 3).next, None, "an exact page has no successor");
        for bad in ["", "x", "MQ", "!!"] {
            assert_eq!(bad.parse::<Cursor>(), Err(BadCursor), "{bad:?} was taken");
        }
    }

    #[test]
    fn filters_select_by_pipeline_status_time_and_text() {
        let rows = rows();
        let found = |query: RunQuery| {
            let page = rows.page(&query, None, 10);
            ids(&page).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let any = RunQuery::default;
        let pipeline = Some(PipelineId::new("dev", "x").unwrap());
        assert_eq!(found(RunQuery { pipeline, ..any() }), ["r-3", "r-1"]);
        assert_eq!(found(RunQuery { group: Some("ops".into()), ..any() }), [""; 0]);
        let statuses = vec![Status::Failed, Status::Passed];
        assert_eq!(found(RunQuery { statuses, ..any() }), ["r-2", "r-1"]);
        assert_eq!(found(RunQuery { since: Some(at(1)), ..any() }), ["r-3", "r-2"]);
        assert_eq!(found(RunQuery { until: Some(at(1)), ..any() }), ["r-1"]);
        assert_eq!(found(RunQuery { text: Some("DEV/Y".into()), ..any() }), ["r-2"]);
        assert_eq!(found(RunQuery { text: Some("exit CODE".into()), ..any() }).len(), 3);
    }

    #[test]
    fn a_change_replaces_the_summary_and_an_older_one_does_not() {
        let mut rows = rows();
        rows.put(&entry("r-3", "x", "passed", 2, 7));
        rows.put(&entry("r-3", "x", "running", 2, 6));
        let run = "r-3".parse().unwrap();
        assert_eq!(rows.get(&run).unwrap().status, Status::Passed);
        rows.delete("bob.pipeline.run/r-3", 6);
        assert!(rows.get(&run).is_some(), "it was created again after that deletion");
        rows.delete("bob.pipeline.run/r-3", 8);
        assert!(rows.get(&run).is_none());
        assert_eq!((rows.by_time.len(), rows.len()), (2, 2));
    }

    #[test]
    fn a_record_of_a_later_version_is_summarized_as_far_as_it_is_known() {
        let run = rows().get(&"r-2".parse().unwrap()).unwrap();
        assert_eq!(run.cause, None);
        assert_eq!(run.failed_step.as_deref(), Some("b"));
        let StepCounts { running, passed, failed, stopped } = run.steps;
        assert_eq!((running, passed, failed, stopped), (0, 1, 1, 0));
    }

    #[test]
    fn texts_that_runs_have_in_common_are_kept_once() {
        let rows = rows();
        let groups: Vec<&Arc<str>> = rows.by_run.values().map(|run| &run.group).collect();
        assert!(groups.iter().all(|group| Arc::ptr_eq(group, groups[0])));
        assert!(size_of::<CompactRun>() <= 320, "{}", size_of::<CompactRun>());
    }
}
