//! Reads runs, and stops them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use protocol::id::{PipelineId, RunId};
use protocol::pipeline::mask_stored_run;
use protocol::run::{Status, StepRecord};
use protocol::time::{Millis, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::http::api::Api;
use crate::http::extract::{JsonBody, PathOf, QueryOf, faults};
use crate::http::problem::{Fault, Problem};
use crate::http::projection::{Cursor, RunQuery, RunSummary};

/// Runs on a page, unless the query sets it.
const LIMIT: usize = 100;
/// Runs on a page at most.
const MAX_LIMIT: usize = 1000;

/// The filters of a list of runs. An empty value counts as absent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Only runs of this pipeline: `group/name`.
    pipeline: Option<String>,
    /// Only runs of pipelines in this group.
    group: Option<String>,
    /// Only runs with one of these statuses, separated by commas.
    #[schemars(with = "Option<Vec<Status>>")]
    status: Option<String>,
    /// Only runs that were accepted at this time or later.
    #[schemars(with = "Option<Timestamp>")]
    since: Option<String>,
    /// Only runs that were accepted before this time.
    #[schemars(with = "Option<Timestamp>")]
    until: Option<String>,
    /// Only runs with this text, in any case, in their id, pipeline or message.
    text: Option<String>,
    /// Runs on a page, from 1 to 1000. Default 100.
    #[schemars(with = "Option<u16>", range(min = 1, max = 1000))]
    limit: Option<String>,
    /// The `next` of the page before.
    cursor: Option<String>,
}

/// A page of runs, newest first.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct RunList {
    /// The runs.
    runs: Vec<RunSummary>,
    /// The `cursor` of the next page. Missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// The query in its parsed form.
#[derive(Debug, PartialEq, Eq)]
struct ParsedList {
    query: RunQuery,
    limit: usize,
    cursor: Option<Cursor>,
}

impl ListQuery {
    /// Parses every parameter, and reports all faults together.
    fn parse(self) -> Result<ParsedList, Problem> {
        let mut found = Vec::new();
        let mut fault = |field: &str, detail: String| found.push(Fault::of(field, detail));
        let given = |value: Option<String>| value.filter(|value| !value.is_empty());
        let mut query =
            RunQuery { group: given(self.group), text: given(self.text), ..RunQuery::default() };
        if let Some(path) = given(self.pipeline) {
            match PipelineId::from_path(&path) {
                Ok(id) => query.pipeline = Some(id),
                Err(bad) => fault("pipeline", bad.to_string()),
            }
        }
        for word in given(self.status).iter().flat_map(|words| words.split(',')) {
            match status(word) {
                Ok(status) => query.statuses.push(status),
                Err(detail) => fault("status", detail),
            }
        }
        for (field, value, place) in
            [("since", self.since, &mut query.since), ("until", self.until, &mut query.until)]
        {
            match given(value).map(|text| time(field, &text)).transpose() {
                Ok(at) => *place = at,
                Err(detail) => fault(field, detail),
            }
        }
        let limit = given(self.limit).map_or(Ok(LIMIT), |text| limit(&text));
        let limit = limit.unwrap_or_else(|detail| {
            fault("limit", detail);
            LIMIT
        });
        let cursor = given(self.cursor).map(|text| text.parse::<Cursor>()).transpose();
        let cursor = cursor.unwrap_or_else(|bad| {
            fault("cursor", format!("the cursor is not valid: {bad}"));
            None
        });
        if found.is_empty() {
            return Ok(ParsedList { query, limit, cursor });
        }
        Err(faults(StatusCode::BAD_REQUEST, "the query is not valid", found).with_code("bad-query"))
    }
}

/// A status as the wire contract spells it.
fn status(word: &str) -> Result<Status, String> {
    Status::deserialize(Value::from(word)).map_err(|_unknown| {
        format!(
            "status {word:?} must be one of pending, initializing, initialized, running, passed, \
             failed, stopped"
        )
    })
}

/// A time as RFC 3339.
pub(super) fn time(field: &str, text: &str) -> Result<Millis, String> {
    let parsed: Result<jiff::Timestamp, _> = text.parse();
    let at = parsed
        .map_err(|_bad| format!("{field} {text:?} must be a time such as 2026-01-31T12:00:00Z"))?;
    Ok(Millis(at.as_millisecond()))
}

fn limit(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_LIMIT).contains(number));
    number.ok_or_else(|| format!("limit {text:?} must be a whole number from 1 to {MAX_LIMIT}"))
}

pub(super) async fn list(
    State(api): State<Api>,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<RunList>, Problem> {
    let ParsedList { query, limit, cursor } = query.parse()?;
    let page = api.projection.runs(&query, cursor.as_ref(), limit)?;
    Ok(Json(RunList { runs: page.runs, next: page.next.map(|next| next.to_string()) }))
}

pub(super) async fn show(
    State(api): State<Api>,
    PathOf(run): PathOf<RunId>,
) -> Result<Json<Value>, Problem> {
    Ok(Json(masked_record(&api, &run).await?))
}

/// The record and its definition as stored, with secrets masked.
async fn masked_record(api: &Api, run: &RunId) -> Result<Value, Problem> {
    let mut stored = api.client.run(run).await?.stored;
    mask_stored_run(&mut stored);
    Ok(stored)
}

/// The steps of a run that failed.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct FailedSteps {
    /// The run.
    run_id: RunId,
    /// The steps that failed, in the order in which they were started. A failure that the pipeline
    /// allows is among them.
    #[schemars(with = "Vec<StepRecord>")]
    steps: Vec<Value>,
}

pub(super) async fn failed_steps(
    State(api): State<Api>,
    PathOf(run): PathOf<RunId>,
) -> Result<Json<FailedSteps>, Problem> {
    let mut record = masked_record(&api, &run).await?;
    let steps = match record.get_mut("steps").map(Value::take) {
        Some(Value::Array(steps)) => steps,
        Some(_) | None => Vec::new(),
    };
    let is_failed = |step: &Value| step.get("status").and_then(Value::as_str) == Some("failed");
    Ok(Json(FailedSteps { run_id: run, steps: steps.into_iter().filter(is_failed).collect() }))
}

/// How to stop a run.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StopBody {
    /// The reason, for people.
    reason: Option<String>,
}

/// A stop was sent.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Stopping {
    /// The run.
    run_id: RunId,
    /// Whether the run is known. If it is not, the stop is remembered for 24 h, so that a start
    /// that is still queued ends as `stopped`.
    known: bool,
}

pub(super) async fn stop(
    State(api): State<Api>,
    PathOf(run): PathOf<RunId>,
    JsonBody(StopBody { reason }): JsonBody<StopBody>,
) -> Result<(StatusCode, Json<Stopping>), Problem> {
    let known = api.client.stop(&run, reason.as_deref()).await?;
    Ok((StatusCode::ACCEPTED, Json(Stopping { run_id: run, known })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_query_is_reported() {
        let query = ListQuery {
            pipeline: Some("x".into()),
            status: Some("passed,done".into()),
            since: Some("yesterday".into()),
            limit: Some("0".into()),
            cursor: Some("?".into()),
            ..ListQuery::default()
        };
        let problem = query.parse().unwrap_err();
        for field in ["GROUP/NAME", "\"done\"", "\"yesterday\"", "from 1 to 1000", "cursor"] {
            assert!(problem.detail().contains(field), "{field}: {}", problem.detail());
        }
    }

    #[test]
    fn empty_parameters_count_as_absent() {
        let empty = || Some(String::new());
        let query = ListQuery {
            pipeline: empty(),
            group: empty(),
            status: empty(),
            since: empty(),
            until: empty(),
            text: empty(),
            limit: empty(),
            cursor: empty(),
        };
        let all = ParsedList { query: RunQuery::default(), limit: LIMIT, cursor: None };
        assert_eq!(query.parse().unwrap(), all);
    }
}
