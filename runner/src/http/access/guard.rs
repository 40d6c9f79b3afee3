//! What every request passes before its handler: host, origin, authentication, rate, size and time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{AUTHORIZATION, COOKIE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use tracing::debug;

use super::body;
use super::headers;
use super::hosts::{Hosts, check_origin};
use super::jwks::JwksError;
use super::peer::Peer;
use super::rate::{Client, Rate};
use super::scope::{Principal, Scope};
use super::token::{TokenOptions, Tokens};
use crate::http::Problem;

/// The cookie in which prunner's clients send their token.
const COOKIE_NAME: &str = "jwt";

/// Who can use the API, and the limits of their requests.
#[derive(Debug, Clone)]
pub struct AccessOptions {
    /// The keys of tokens.
    pub tokens: TokenOptions,
    /// The address of the server, as `host:port`.
    pub address: String,
    /// Further host names of the server.
    pub hosts: Vec<String>,
    /// Maximum requests of one client per second. `None` means unlimited.
    pub rate: Option<NonZeroU32>,
    /// Maximum size of a request's body, in bytes.
    pub max_body_bytes: usize,
    /// Time for a request and the start of its response. What follows is a stream.
    pub request_time: Duration,
    /// Paths that need no token: those of the health checks. They must not tell anything about runs.
    pub public_paths: &'static [&'static str],
}

/// Guards a router. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Access(Arc<Guard>);

#[derive(Debug)]
struct Guard {
    tokens: Tokens,
    hosts: Hosts,
    rate: Option<Rate>,
    max_body_bytes: usize,
    request_time: Duration,
    public_paths: &'static [&'static str],
}

impl Access {
    /// Reads the keys.
    ///
    /// # Errors
    /// A file of keys that cannot be read or used.
    pub async fn open(options: AccessOptions) -> Result<Self, JwksError> {
        Ok(Self(Arc::new(Guard {
            tokens: Tokens::open(options.tokens).await?,
            hosts: Hosts::new(&options.address, &options.hosts),
            rate: options.rate.map(Rate::new),
            max_body_bytes: options.max_body_bytes,
            request_time: options.request_time,
            public_paths: options.public_paths,
        })))
    }

    /// Wraps a router. Each request that reaches its handlers has a [`Principal`] in its extensions,
    /// except those for public paths.
    pub fn protect(&self, router: Router) -> Router {
        router
            .layer(DefaultBodyLimit::disable())
            .layer(middleware::from_fn_with_state(self.clone(), handle))
    }
}

async fn handle(State(access): State<Access>, request: Request, next: Next) -> Response {
    let guard = &access.0;
    let (answered, received) = guard.answer(request, next);
    let mut response = match tokio::time::timeout(guard.request_time, answered).await {
        Ok(Ok(response)) => response,
        Ok(Err(problem)) => problem.into_response(),
        Err(_elapsed) => guard.late(received.is_complete()).into_response(),
    };
    headers::secure(response.headers_mut());
    response
}

/// Checks that the sender of a request was granted the scope of its route.
///
/// # Errors
/// `403` with the missing scope.
pub fn check_scope(principal: &Principal, needed: Scope) -> Result<(), Problem> {
    if principal.scopes.allow(needed) {
        return Ok(());
    }
    let granted = principal.scopes;
    let detail = format!("this request needs the scope {needed}, and its token grants {granted}");
    let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{needed}\"");
    let problem = Problem::new(StatusCode::FORBIDDEN, detail).with_code("insufficient-scope");
    Err(with_challenge(problem, &challenge))
}

fn with_challenge(problem: Problem, challenge: &str) -> Problem {
    match HeaderValue::from_str(challenge) {
        Ok(value) => problem.with_header(WWW_AUTHENTICATE, value),
        Err(_) => problem,
    }
}

impl Guard {
    /// The answer to a request, and whether its body was received by then.
    fn answer(
        &self,
        request: Request,
        next: Next,
    ) -> (impl Future<Output = Result<Response, Problem>> + '_, body::Received) {
        let (parts, received_body) = request.into_parts();
        let (limited, received) = body::limited(received_body, self.max_body_bytes);
        let mut request = Request::from_parts(parts, limited);
        let answered = async move {
            self.check(&mut request).await?;
            Ok(next.run(request).await)
        };
        (answered, received)
    }

    async fn check(&self, request: &mut Request) -> Result<(), Problem> {
        if body::is_too_large(request.headers(), self.max_body_bytes) {
            return Err(self.too_large());
        }
        // The exact path: another spelling of it is another path for the router too.
        if self.public_paths.contains(&request.uri().path()) {
            return self.count(&self.client(request, None));
        }
        let host = self.hosts.check(request.uri(), request.headers())?;
        check_origin(request.method(), &host, request.headers())?;
        let authenticated = self.authenticate(request.headers()).await;
        self.count(&self.client(request, authenticated.as_ref().ok()))?;
        request.extensions_mut().insert(authenticated?);
        Ok(())
    }

    async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, Problem> {
        let token = token_of(headers)?;
        let token = token.ok_or_else(|| {
            let detail =
                "this request needs a token: send the header `Authorization: Bearer TOKEN` \
                 (`bob-runner token` prints one)";
            unauthorized(detail, "Bearer")
        })?;
        self.tokens.verify(token).await.map_err(|rejection| {
            debug!(%rejection, "rejected a token");
            unauthorized(&rejection.to_string(), "Bearer error=\"invalid_token\"")
        })
    }

    /// The client that a request counts for: its user, or its address.
    fn client(&self, request: &Request, principal: Option<&Principal>) -> Client {
        let subject = principal.map(|principal| &principal.subject);
        match subject.filter(|subject| !subject.is_empty()) {
            Some(subject) => Client::Subject(subject.clone()),
            None => Client::at(request.extensions().get::<Peer>().map(|peer| peer.address.ip())),
        }
    }

    fn count(&self, client: &Client) -> Result<(), Problem> {
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.count(client).map_err(|pause| {
            let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
            let detail = format!("too many requests; try again in {seconds} s");
            Problem::new(StatusCode::TOO_MANY_REQUESTS, detail)
                .with_code("rate-limited")
                .with_header(RETRY_AFTER, HeaderValue::from(seconds))
        })
    }

    fn too_large(&self) -> Problem {
        let detail = format!(
            "the body of this request is larger than {} bytes (BOB_HTTP_MAX_BODY_BYTES)",
            self.max_body_bytes
        );
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).with_code("body-too-large")
    }

    fn late(&self, is_received: bool) -> Problem {
        let seconds = self.request_time.as_secs();
        if is_received {
            let detail = format!("the request was not carried out within {seconds} s; try again");
            return Problem::unavailable(detail).with_code("timeout");
        }
        let detail = format!("the body of this request did not arrive within {seconds} s");
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail).with_code("slow-body")
    }
}

fn unauthorized(detail: &str, challenge: &str) -> Problem {
    let problem = Problem::new(StatusCode::UNAUTHORIZED, detail).with_code("unauthorized");
    with_challenge(problem, challenge)
}

/// The token of a request: in the header `Authorization`, or in the cookie of prunner's clients.
fn token_of(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let unusable = |detail| unauthorized(detail, "Bearer error=\"invalid_request\"");
    let mut given = headers.get_all(AUTHORIZATION).iter();
    match (given.next(), given.next()) {
        (None, _) => Ok(cookie(headers)),
        (Some(value), None) => {
            let token = value.to_str().ok().and_then(bearer);
            let unknown = "the header `Authorization` must have the form `Bearer TOKEN`";
            token.map(Some).ok_or_else(|| unusable(unknown))
        }
        (Some(_), Some(_)) => Err(unusable("the header `Authorization` must occur once")),
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';'));
    pairs.find_map(|pair| {
        let (name, token) = pair.trim().split_once('=')?;
        (name == COOKIE_NAME).then_some(token)
    })
}
