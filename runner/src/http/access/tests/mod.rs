//! Access as a whole, with keys that are generated for each test.

mod guard;
mod jwks;
mod keys;
mod listen;
mod tokens;

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Extension;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::json;
use tower::ServiceExt as _;

use self::keys::{in_seconds, of_secret};
use super::*;
use crate::http::Problem;
use crate::ports::Secret;

const SECRET: &str = "a shared secret of a test";

/// A size above which bodies are too large.
const BODY_LIMIT: usize = 1000;

fn secret() -> Secret {
    Secret::new(SECRET.as_bytes())
}

fn options(tokens: TokenOptions) -> AccessOptions {
    AccessOptions {
        tokens,
        address: "localhost:9009".into(),
        hosts: Vec::new(),
        rate: None,
        max_body_bytes: BODY_LIMIT,
        request_time: Duration::from_secs(30),
        public_paths: &["/healthz"],
    }
}

fn with_secret() -> TokenOptions {
    TokenOptions { secret: Some(secret()), ..TokenOptions::default() }
}

/// The header of a token with a scope.
fn bearer(scope: &str) -> String {
    let claims = json!({ "sub": "ada", "scope": scope, "exp": in_seconds(60) });
    format!("Bearer {}", of_secret(SECRET.as_bytes(), &claims))
}

async fn protected(options: AccessOptions) -> Router {
    Access::open(options).await.unwrap().protect(router())
}

/// A router with a route for each kind of handler that access has to do with.
fn router() -> Router {
    Router::new()
        .route("/healthz", get(async || "up"))
        .route("/who", get(async |Extension(who): Extension<Principal>| who.subject))
        .route("/echo", post(async |body: Bytes| body))
        .route("/run", post(start))
        .route("/never", get(std::future::pending::<()>))
}

async fn start(Extension(who): Extension<Principal>) -> Result<(), Problem> {
    check_scope(&who, Scope::Run)
}

/// A request from a program on this machine.
fn request(method: &str, path: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(path).header("host", "localhost:9009")
}

async fn answer(router: &Router, request: Request<Body>) -> Response {
    router.clone().oneshot(request).await.unwrap()
}

async fn status(router: &Router, request: Request<Body>) -> StatusCode {
    answer(router, request).await.status()
}

async fn text(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}
