//! Extractors that answer each fault of a request with a problem.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use protocol::id::PipelineId;
use serde::de::DeserializeOwned;

use super::access::Principal;
use super::problem::{Fault, Problem};

/// The query string. Unknown keys are a fault if the type denies unknown fields.
#[derive(Debug)]
pub struct QueryOf<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let bad = |rejection: axum::extract::rejection::QueryRejection| {
            let detail = format!("the query cannot be read: {}", cause_of(&rejection));
            Problem::bad_request(detail).with_code("bad-query")
        };
        Query::try_from_uri(&parts.uri).map(|Query(query)| Self(query)).map_err(bad)
    }
}

/// The innermost cause of an error, which names the fault without axum's introduction.
fn cause_of(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

/// The parameters of the path.
#[derive(Debug)]
pub struct PathOf<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for PathOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(parameters)) => Ok(Self(parameters)),
            Err(rejection) => {
                let detail = format!("the path cannot be read: {}", cause_of(&rejection));
                Err(Problem::bad_request(detail).with_code("bad-path"))
            }
        }
    }
}

/// The pipeline that `{group}/{name}` of the path names.
#[derive(Debug)]
pub(super) struct PipelineOf(pub(super) PipelineId);

impl<S: Send + Sync> FromRequestParts<S> for PipelineOf {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let PathOf((group, name)) =
            PathOf::<(String, String)>::from_request_parts(parts, state).await?;
        let id = PipelineId::new(&group, &name);
        id.map(Self).map_err(|bad| Problem::bad_request(bad.to_string()).with_code("bad-path"))
    }
}

/// The `sub` of the sender's token, if it has one.
#[derive(Debug)]
pub struct Subject(pub Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for Subject {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let principal = parts.extensions.get::<Principal>();
        let subject = principal.map(|principal| principal.subject.clone());
        Ok(Self(subject.filter(|subject| !subject.is_empty())))
    }
}

/// The bytes of a JSON body. An empty body counts as `{}`.
#[derive(Debug)]
pub(super) struct JsonBytes(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for JsonBytes {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let is_json = is_json(request.headers());
        let bytes = body_of(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(Bytes::from_static(b"{}")));
        }
        if !is_json {
            let detail = "the body must be JSON, with `content-type: application/json`";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        Ok(Self(bytes))
    }
}

/// A decoded JSON body. An empty body counts as `{}`.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let JsonBytes(bytes) = JsonBytes::from_request(request, state).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|cause| {
            let detail = format!("the body cannot be read: {cause}");
            Problem::bad_request(detail).with_code("bad-body")
        })
    }
}

/// Reads the whole body, up to the limit of the server.
///
/// # Errors
/// A problem if it is too large, or ends early.
pub(super) async fn body_of<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|rejection| {
        let status = rejection.status();
        let detail = match status {
            StatusCode::PAYLOAD_TOO_LARGE => {
                "the body is larger than this server accepts".to_owned()
            }
            _ => format!("the body cannot be read: {}", cause_of(&rejection)),
        };
        Problem::new(status, detail)
    })
}

/// Whether the body is said to be JSON.
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media_type.is_some_and(|text| {
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence == "application/json"
            || (essence.starts_with("application/") && essence.ends_with("+json"))
    })
}

/// One problem for several faults of a request.
#[must_use]
pub(super) fn faults(status: StatusCode, what: &str, faults: Vec<Fault>) -> Problem {
    let said: Vec<&str> = faults.iter().map(|fault| fault.detail.as_str()).collect();
    let detail = format!("{what}: {}", said.join("; "));
    Problem::new(status, detail).with_errors(faults)
}
