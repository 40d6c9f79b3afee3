//! Mounts the table of routes. Every fault is answered with a problem.

use std::any::Any;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, http::HeaderValue, http::header};
use bytes::Bytes;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::error;

use super::access::{Principal, Scope, check_scope};
use super::api::Api;
use super::openapi;
use super::problem::Problem;
use super::route::Route;
use super::v1::{self, about::Document};

/// All routes of a node.
#[must_use]
pub fn routes() -> Vec<Route> {
    v1::routes()
}

/// Mounts the routes. Requests need a [`Principal`] in their extensions, except for routes that are
/// open to everyone.
pub fn router(api: Api, routes: Vec<Route>) -> Router {
    let document = openapi::document(&routes);
    let document = Document(Bytes::from(document.to_string()));
    let mut router = Router::new();
    for Route { path, scope, handler, .. } in routes {
        let handler = match scope {
            Some(scope) => {
                handler.route_layer(middleware::from_fn_with_state(scope, require_scope))
            }
            None => handler,
        };
        router = router.route(path, handler);
    }
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(Extension(document))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(api)
}

async fn require_scope(
    State(needed): State<Scope>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let Some(principal) = request.extensions().get::<Principal>() else {
        // Without the layer that authenticates, nobody has any right.
        let detail = "this request is not authenticated";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, detail)
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
    };
    check_scope(principal, needed)?;
    Ok(next.run(request).await)
}

async fn unknown_path(uri: Uri) -> Problem {
    let detail =
        format!("there is nothing at {}; /api/v1/openapi.json lists what there is", uri.path());
    Problem::not_found(detail).with_code("unknown-path")
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{method} is not possible at {}; see the header `Allow`", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).with_code("wrong-method")
}

/// The answer to a request whose handler panicked. The server continues.
#[expect(clippy::needless_pass_by_value, reason = "the layer passes it by value")]
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    error!(panic = text, "a request of the HTTP API was not answered because of a bug");
    let detail = "this request met a bug; the log of this node has the details";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).with_code("bug").into_response()
}
