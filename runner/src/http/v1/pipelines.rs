//! Stored pipelines.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use protocol::diagnostic::Diagnostic;
use protocol::dialect::{self, Dialect};
use protocol::id::PipelineId;
use protocol::pipeline::{Pipeline, mask_stored_definition};
use protocol::run::StoredPipeline;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::start::check_pipeline;
use crate::client::{Applied, Error};
use crate::http::api::Api;
use crate::http::extract::{PipelineOf, QueryOf, body_of, faults};
use crate::http::problem::{Fault, Problem};

/// How long an answer to a change waits until lists of this node show it. Other nodes can lag a
/// little longer.
pub(super) const SHOWN_WITHIN: Duration = Duration::from_secs(1);

/// The filters of a list of pipelines.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PipelineQuery {
    /// Only pipelines of this group.
    group: Option<String>,
}

/// The stored pipelines, sorted by group and name.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PipelineList {
    /// The pipelines.
    pipelines: Vec<PipelineSummary>,
}

/// A pipeline in a list.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PipelineSummary {
    /// The group.
    group: String,
    /// The name.
    name: String,
    /// Whether it accepts no runs.
    paused: bool,
    /// The base image of its steps, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    /// The number of its steps.
    steps: usize,
    /// The file from which a worker loaded it. Such a pipeline cannot be changed here.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

impl PipelineSummary {
    fn of(stored: &StoredPipeline) -> Self {
        let text = |key: &str| stored.pipeline.get(key).and_then(Value::as_str).map(str::to_owned);
        let steps = stored.pipeline.get("steps").and_then(Value::as_array);
        Self {
            group: text("group").unwrap_or_default(),
            name: text("name").unwrap_or_default(),
            paused: stored.paused,
            image: text("image"),
            steps: steps.map_or(0, Vec::len),
            file: stored.file.clone(),
        }
    }
}

/// The result of storing a pipeline.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AppliedPipeline {
    /// The group.
    group: String,
    /// The name.
    name: String,
    /// `created`, `changed` or `unchanged`.
    result: &'static str,
}

/// A pause or unpause was sent.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Pausing {
    /// The group.
    group: String,
    /// The name.
    name: String,
    /// Whether the pipeline is to accept no runs.
    paused: bool,
}

pub(super) async fn list(
    State(api): State<Api>,
    QueryOf(PipelineQuery { group }): QueryOf<PipelineQuery>,
) -> Result<Json<PipelineList>, Problem> {
    let group = group.filter(|group| !group.is_empty());
    let stored = api.projection.pipelines()?;
    let all = stored.iter().map(|stored| PipelineSummary::of(stored));
    let pipelines =
        all.filter(|one| group.as_ref().is_none_or(|group| *group == one.group)).collect();
    Ok(Json(PipelineList { pipelines }))
}

pub(super) async fn show(
    State(api): State<Api>,
    PipelineOf(id): PipelineOf,
) -> Result<Json<StoredPipeline>, Problem> {
    let stored = api.client.pipeline(&id).await?;
    let mut stored = stored.ok_or(Error::UnknownPipeline(id))?;
    mask_stored_definition(&mut stored.pipeline);
    Ok(Json(stored))
}

pub(super) async fn put(
    State(api): State<Api>,
    PipelineOf(id): PipelineOf,
    request: Request,
) -> Result<Response, Problem> {
    let body = body_of(request, &()).await?;
    let pipeline = parse(&id, &body)?;
    check_pipeline(&api, &pipeline, "")?;
    let applied = api.client.apply_pipeline(&id, &pipeline).await?;
    if let Ok(Value::Object(definition)) = serde_json::to_value(&pipeline) {
        let is_shown = |stored: Option<&StoredPipeline>| {
            stored.is_some_and(|stored| stored.pipeline == definition)
        };
        tokio::time::timeout(SHOWN_WITHIN, api.projection.pipeline_until(&id, is_shown)).await.ok();
    }
    let status = match applied {
        Applied::Created => StatusCode::CREATED,
        Applied::Changed | Applied::Unchanged => StatusCode::OK,
    };
    let (group, name) = parts(&id);
    Ok((status, Json(AppliedPipeline { group, name, result: applied.as_str() })).into_response())
}

fn parts(id: &PipelineId) -> (String, String) {
    (id.group().to_owned(), id.name().to_owned())
}

/// Parses a definition in JSON or YAML. Its group and name must be those of the path.
fn parse(id: &PipelineId, body: &[u8]) -> Result<Pipeline, Problem> {
    let unprocessable = |found: Vec<Fault>| {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        faults(status, "the pipeline is not valid", found).with_code("bad-pipeline")
    };
    let parsed = dialect::parse_as(Some(Dialect::Bob), None, body);
    let refusals = parsed.diagnostics.into_iter().filter(|fault| fault.class.is_refusal());
    let found: Vec<Fault> = refusals.map(fault_of).collect();
    let mut pipelines = parsed.pipelines.into_iter();
    let Some(pipeline) = pipelines.next().filter(|_| found.is_empty()) else {
        return Err(unprocessable(found));
    };
    let mut found = Vec::new();
    for (field, given, wanted) in
        [("group", &pipeline.group, id.group()), ("name", &pipeline.name, id.name())]
    {
        if given != wanted {
            let detail = format!("{field} {given:?} must be {wanted:?}, as in the path");
            found.push(Fault::of(field, detail));
        }
    }
    if found.is_empty() { Ok(pipeline) } else { Err(unprocessable(found)) }
}

fn fault_of(fault: Diagnostic) -> Fault {
    let detail = fault.to_string();
    Fault { field: Some(fault.path).filter(|path| !path.is_empty()), detail }
}

pub(super) async fn delete(
    State(api): State<Api>,
    PipelineOf(id): PipelineOf,
) -> Result<StatusCode, Problem> {
    if !api.client.delete_pipeline(&id).await? {
        return Err(Error::UnknownPipeline(id).into());
    }
    let is_absent = |stored: Option<&StoredPipeline>| stored.is_none();
    tokio::time::timeout(SHOWN_WITHIN, api.projection.pipeline_until(&id, is_absent)).await.ok();
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn pause(
    State(api): State<Api>,
    PipelineOf(id): PipelineOf,
) -> Result<(StatusCode, Json<Pausing>), Problem> {
    send_pause(&api, &id, true).await
}

pub(super) async fn unpause(
    State(api): State<Api>,
    PipelineOf(id): PipelineOf,
) -> Result<(StatusCode, Json<Pausing>), Problem> {
    send_pause(&api, &id, false).await
}

async fn send_pause(
    api: &Api,
    id: &PipelineId,
    paused: bool,
) -> Result<(StatusCode, Json<Pausing>), Problem> {
    api.client.pause(id, paused).await?;
    let (group, name) = parts(id);
    Ok((StatusCode::ACCEPTED, Json(Pausing { group, name, paused })))
}
