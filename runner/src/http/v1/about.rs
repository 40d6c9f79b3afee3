//! The server itself: its health, its version, and the description of its API.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;

use crate::http::api::Api;
use crate::http::problem::Problem;

/// The `OpenAPI` document, in the extensions of each request.
#[derive(Debug, Clone)]
pub(in crate::http) struct Document(pub(in crate::http) Bytes);

/// The health of this node.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Health {
    /// `ok`, or `draining` if the node takes no new work because it ends.
    status: &'static str,
}

/// The version of this node.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Version {
    /// The version of the program.
    version: &'static str,
    /// The commit that it was built from.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'static str>,
    /// The version of the wire contract.
    protocol: u32,
}

pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

pub(super) async fn readyz(State(api): State<Api>) -> Result<Json<Health>, Problem> {
    if api.draining.is_cancelled() {
        let detail = "this node takes no new requests because it ends; ask another node";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).with_code("draining"));
    }
    match api.projection.problem() {
        None => Ok(Json(Health { status: "ok" })),
        // The reason can name addresses, which not everyone may see.
        Some(_) => {
            let detail = "this node does not know the current state of the fleet";
            Err(Problem::unavailable(detail).with_code("behind"))
        }
    }
}

pub(super) async fn version(State(api): State<Api>) -> Json<Version> {
    let crate::http::api::Build { version, commit } = api.build;
    Json(Version { version, commit, protocol: protocol::schema::VERSION })
}

pub(super) async fn openapi(Extension(Document(document)): Extension<Document>) -> Response {
    let media_type = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, media_type)], document).into_response()
}
