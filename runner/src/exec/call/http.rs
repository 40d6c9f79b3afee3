//! The executor `http`: any request a step describes.

use std::ops::RangeInclusive;

use async_trait::async_trait;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde_json::Value;

use super::access::{Access, Follow, Trust};
use super::address;
use super::api::Api;
use super::options::Options;
use super::request::{Body, Call, Halt, Repeat, Request};
use super::with::StepArguments;
use crate::ports::ExecError;

/// Idempotent methods: a repeated request has no further effect.
const IDEMPOTENT: [Method; 5] =
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE];
/// The methods that follow redirects. Others would lose their body or change their effect.
const SENT_ON: [Method; 2] = [Method::GET, Method::HEAD];
/// A header whose name contains one of these holds a secret.
const SECRET: [&str; 7] = ["auth", "cookie", "token", "key", "secret", "password", "signature"];

/// The executor `http`.
pub(super) struct Http;

/// A request and the statuses that count as success.
pub(super) struct HttpRequest {
    request: Request,
    expected: Vec<RangeInclusive<u16>>,
}

#[async_trait]
impl Api for Http {
    type Request = HttpRequest;

    fn read(
        &self,
        with: StepArguments<'_>,
        _options: &Options,
    ) -> Result<(HttpRequest, Access), ExecError> {
        let url = address::base(with.must("url")?);
        let url = url.map_err(|why| with.bad(&format!("`url` {why}")))?;
        let method = with.text("method")?.unwrap_or("GET").to_ascii_uppercase();
        let method = Method::from_bytes(method.as_bytes())
            .ok()
            .filter(|method| *method != Method::CONNECT)
            .ok_or_else(|| with.bad("`method` is not a method, such as GET or POST"))?;
        let body = body(with)?;
        let (headers, hidden) = headers(with)?;
        let follow = with.switch("follow")?.unwrap_or(false);
        if follow && !SENT_ON.contains(&method) {
            return Err(with.bad("`follow` is for the methods GET and HEAD"));
        }
        let may_repeat = with.switch("idempotent")?.unwrap_or_else(|| IDEMPOTENT.contains(&method));
        let repeat = if may_repeat { Repeat::Always } else { Repeat::Never };
        let bare = headers.is_empty() && matches!(body, Body::Nothing);
        let access = Access {
            // Headers and bodies for one server must not be sent to another.
            follow: match (follow, bare) {
                (false, _) => Follow::Nowhere,
                (true, false) => Follow::SameServer,
                (true, true) => Follow::Anywhere,
            },
            headers,
            hidden,
            within: with.span("timeout")?,
            ..Access::new(Url::clone(&url), Trust::read(with)?)
        };
        let request = Request::new(method, url, body, repeat);
        Ok((HttpRequest { request, expected: expected(with)? }, access))
    }

    async fn act(&self, asked: HttpRequest, call: &mut Call) -> Result<Value, Halt> {
        let HttpRequest { request, expected } = asked;
        let answer = call.send(&request).await?;
        if expected.iter().any(|range| range.contains(&answer.status.as_u16())) {
            return Ok(answer.data());
        }
        if answer.status.is_success() {
            let (shown, status) = (request.url.path(), answer.status.as_u16());
            let why = format!("{} {shown}: status {status} is not expected", request.method);
            return Err(Halt::Failed { why, data: answer.data(), code: 1 });
        }
        Err(call.rejected(&answer, &request, None))
    }
}

fn body(with: StepArguments<'_>) -> Result<Body, ExecError> {
    match (with.text("body")?, with.get("json")) {
        (None, None) => Ok(Body::Nothing),
        (Some(text), None) => Ok(Body::Text(text.to_owned())),
        (None, Some(value)) => Ok(Body::Json(value.clone())),
        (Some(_), Some(_)) => Err(with.bad("`body` and `json` exclude each other")),
    }
}

/// The headers, and their values that must be masked.
fn headers(with: StepArguments<'_>) -> Result<(HeaderMap, Vec<String>), ExecError> {
    let (mut headers, mut hidden) = (HeaderMap::new(), Vec::new());
    for (name, value) in with.map("headers")?.into_iter().flatten() {
        let bad = |what: &str| with.bad(&format!("header {name:?} {what}"));
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => return Err(bad("is not a string")),
        };
        let Ok(key) = HeaderName::from_bytes(name.as_bytes()) else {
            return Err(bad("is not the name of a header"));
        };
        let Ok(mut value) = HeaderValue::from_str(&text) else {
            return Err(bad("has a character that a header cannot have"));
        };
        if SECRET.iter().any(|word| key.as_str().contains(word)) {
            value.set_sensitive(true);
            // The secret without its scheme, since a service can echo it that way.
            hidden.extend(text.rsplit_once(' ').map(|(_, secret)| secret.to_owned()));
            hidden.insert(0, text);
        }
        headers.insert(key, value);
    }
    Ok((headers, hidden))
}

/// The statuses that count as success.
fn expected(with: StepArguments<'_>) -> Result<Vec<RangeInclusive<u16>>, ExecError> {
    let items = match with.get("expect") {
        None => return Ok(vec![200..=299]),
        Some(Value::Array(items)) => items.clone(),
        Some(one) => vec![one.clone()],
    };
    let ranges: Option<Vec<_>> = items.iter().map(range).collect();
    ranges.filter(|ranges| !ranges.is_empty()).ok_or_else(|| {
        with.bad("`expect` is neither a status nor a range of them, such as 204 or 200-299")
    })
}

fn range(value: &Value) -> Option<RangeInclusive<u16>> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    let status = |text: &str| text.trim().parse().ok().filter(|code| (100..=599).contains(code));
    let (first, last): (u16, u16) = (status(first)?, status(last)?);
    (first <= last).then_some(first..=last)
}
