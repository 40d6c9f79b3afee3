//! The table of routes.

use axum::http::StatusCode;
use protocol::event::Event;
use protocol::run::{RunRecord, StoredPipeline};

use super::about::{self, Health, Version};
use super::events::{self, EVENT_HEADERS, EventQuery};
use super::logs;
use super::nodes::{self, NodeList};
use super::pipelines::{self, AppliedPipeline, Pausing, PipelineList, PipelineQuery};
use super::runs::{self, FailedSteps, ListQuery, RunList, StopBody, Stopping};
use super::services;
use super::start::{self, RerunBody, START_HEADERS, Started};
use crate::http::access::Scope;
use crate::http::route::{Form, Route};

const OK: StatusCode = StatusCode::OK;

/// All routes of this module, with the scope that each needs.
#[must_use]
pub fn routes() -> Vec<Route> {
    let mut routes = run_routes();
    routes.extend(logs::routes());
    routes.extend(pipeline_routes());
    routes.extend(services::routes());
    routes.extend(fleet_routes());
    routes
}

fn run_routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/runs", Scope::Read, runs::list)
            .named("listRuns", "Lists runs, newest first")
            .query::<ListQuery>()
            .answer(OK, "A page of runs", Form::json::<RunList>())
            .problems(&[400]),
        Route::post("/api/v1/runs", Scope::Run, start::start)
            .named("startRun", "Starts a run of a stored pipeline or of a definition")
            .headers(START_HEADERS)
            .body(Form::Start)
            .answer(StatusCode::ACCEPTED, "The start was sent", Form::json::<Started>())
            .problems(&[400, 404, 409, 413, 415, 422]),
        Route::get("/api/v1/runs/{run}", Scope::Read, runs::show)
            .named("showRun", "Shows the record and the definition of a run, with secrets masked")
            .answer(OK, "The record", Form::json::<RunRecord>())
            .problems(&[400, 404]),
        Route::get("/api/v1/runs/{run}/failed-steps", Scope::Read, runs::failed_steps)
            .named("listFailedSteps", "Lists the steps of a run that failed")
            .answer(OK, "The steps", Form::json::<FailedSteps>())
            .problems(&[400, 404]),
        Route::post("/api/v1/runs/{run}/stop", Scope::Run, runs::stop)
            .named("stopRun", "Stops a run")
            .body(Form::json::<StopBody>())
            .answer(StatusCode::ACCEPTED, "The stop was sent", Form::json::<Stopping>())
            .problems(&[400, 409, 413, 415]),
        Route::post("/api/v1/runs/{run}/rerun", Scope::Run, start::rerun)
            .named("rerunRun", "Starts a new run from a committed step of an ended run")
            .headers(START_HEADERS)
            .body(Form::json::<RerunBody>())
            .answer(StatusCode::ACCEPTED, "The start was sent", Form::json::<Started>())
            .problems(&[400, 404, 409, 413, 415, 422]),
    ]
}

fn pipeline_routes() -> Vec<Route> {
    let one = "/api/v1/pipelines/{group}/{name}";
    vec![
        Route::get("/api/v1/pipelines", Scope::Read, pipelines::list)
            .named("listPipelines", "Lists the stored pipelines")
            .query::<PipelineQuery>()
            .answer(OK, "The pipelines, sorted by group and name", Form::json::<PipelineList>())
            .problems(&[400]),
        Route::get(one, Scope::Read, pipelines::show)
            .named("showPipeline", "Shows the definition of a pipeline, with secrets masked")
            .answer(OK, "The definition", Form::json::<StoredPipeline>())
            .problems(&[400, 404]),
        Route::put(one, Scope::Admin, pipelines::put)
            .named("putPipeline", "Stores a pipeline. A paused pipeline stays paused")
            .body(Form::Pipeline)
            .answer(StatusCode::CREATED, "Stored", Form::json::<AppliedPipeline>())
            .answer(OK, "Changed, or unchanged", Form::json::<AppliedPipeline>())
            .problems(&[400, 409, 413, 422]),
        Route::delete(one, Scope::Admin, pipelines::delete)
            .named("deletePipeline", "Deletes a pipeline. Records of its ended runs stay")
            .empty(StatusCode::NO_CONTENT, "Deleted")
            .problems(&[400, 404, 409]),
        Route::post("/api/v1/pipelines/{group}/{name}/pause", Scope::Admin, pipelines::pause)
            .named("pausePipeline", "Stops accepting new runs of a pipeline")
            .answer(StatusCode::ACCEPTED, "The pause was sent", Form::json::<Pausing>())
            .problems(&[400, 404]),
        Route::post("/api/v1/pipelines/{group}/{name}/unpause", Scope::Admin, pipelines::unpause)
            .named("unpausePipeline", "Accepts new runs of a pipeline again")
            .answer(StatusCode::ACCEPTED, "The unpause was sent", Form::json::<Pausing>())
            .problems(&[400, 404]),
    ]
}

fn fleet_routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/nodes", Scope::Read, nodes::list)
            .named("listNodes", "Lists the running workers")
            .answer(OK, "The nodes, the oldest first", Form::json::<NodeList>()),
        Route::get("/api/v1/events", Scope::Read, events::follow)
            .named("followEvents", "Follows the event stream")
            .query::<EventQuery>()
            .headers(EVENT_HEADERS)
            .answer(OK, "Events, with their position as id", Form::events::<Event>())
            .problems(&[400]),
        Route::get("/api/v1/version", Scope::Read, about::version)
            .named("showVersion", "Shows the version of this node")
            .answer(OK, "The version", Form::json::<Version>()),
        Route::get("/api/v1/openapi.json", Scope::Read, about::openapi)
            .named("showOpenapi", "Describes this API as OpenAPI 3.1")
            .answer(OK, "The document", Form::json::<serde_json::Value>()),
        Route::get("/healthz", Scope::Read, about::healthz)
            .open()
            .named("checkHealth", "Answers as long as the server runs")
            .answer(OK, "The server runs", Form::json::<Health>()),
        Route::get("/readyz", Scope::Read, about::readyz)
            .open()
            .named("checkReadiness", "Whether this node can answer for the whole fleet")
            .answer(OK, "It can", Form::json::<Health>()),
    ]
}
