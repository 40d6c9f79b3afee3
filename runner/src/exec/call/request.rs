//! Sends one request of a step, with retries, until its outcome is known or can never be known.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::event::LogStream;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::access::Access;
use super::address::{add_query, below, origin};
use super::answer::{Answer, MOST, reason, shortened, whole};
use super::options::Times;
use super::tls::Clients;
use crate::egress::refusal;
use crate::ports::{Gate, LogSink, Pauses, StopLevel, StopSignal};

/// The maximum number of attempts for one request.
const TRIES: u32 = 4;
/// The longest pause before a retry, even if `Retry-After` asks for more.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// When a request may be retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Never.
    Never,
    /// Only after a "too many requests" response, since the service then did nothing.
    TooMany,
    /// After a "too many requests" response and after any transient failure.
    Always,
}

/// The body of a request.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Nothing,
    Text(String),
    Json(Value),
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) body: Body,
    pub(super) repeat: Repeat,
    /// The maximum size of the response body, in bytes.
    pub(super) most: usize,
    /// Whether to omit the request's line in the output, as for repeated polls.
    pub(super) quiet: bool,
}

impl Request {
    pub(super) fn new(method: Method, url: Url, body: Body, repeat: Repeat) -> Self {
        Self { method, url, body, repeat, most: MOST, quiet: false }
    }

    /// The request as output shows it.
    fn shown(&self) -> String {
        format!("{} {}", self.method, self.url.path())
    }
}

/// Why a call ended early.
#[derive(Debug)]
pub(super) enum Halt {
    /// The call failed. `data` is the result as far as it is known.
    Failed { why: String, data: Value, code: i32 },
    /// The step was stopped. The text names the activity that was in progress.
    Stopped(String),
    /// Another worker might own the run. `sent`: whether a request was already sent.
    NotOurs { sent: bool },
}

impl Halt {
    pub(super) fn failed(why: impl Into<String>) -> Self {
        Self::Failed { why: why.into(), data: Value::Null, code: 1 }
    }
}

/// The outcome of sending a request once.
enum SendOutcome {
    Answer(Answer, Option<Duration>),
    /// No response arrived. `taken`: whether the service might have received the request.
    Lost {
        why: String,
        taken: bool,
    },
    /// Nothing was sent: the step must not connect to this address.
    Refused(String),
    /// The response is larger than the limit.
    TooLong,
}

/// A step's call: sends requests, waits and writes the step's output.
pub(super) struct Call {
    clients: Clients,
    access: Access,
    times: Times,
    gate: Gate,
    out: Arc<dyn LogSink>,
    stop: StopSignal,
    sent: bool,
}

impl Call {
    pub(super) fn new(
        clients: Clients,
        access: Access,
        times: Times,
        (gate, out, stop): (Gate, Arc<dyn LogSink>, StopSignal),
    ) -> Self {
        Self { clients, access, times, gate, out, stop, sent: false }
    }

    pub(super) fn times(&self) -> &Times {
        &self.times
    }

    /// The URL of a path of the service, with query parameters.
    pub(super) fn url(&self, parts: &[String], query: &Map<String, Value>) -> Result<Url, Halt> {
        let mut url = below(&self.access.service, parts);
        add_query(&mut url, query).map_err(Halt::failed)?;
        Ok(url)
    }

    /// Sends a request, with retries if allowed, and returns the response whatever its status.
    pub(super) async fn send(&mut self, request: &Request) -> Result<Answer, Halt> {
        let mut pauses = Pauses::doubling(self.times.again, LONGEST_WAIT);
        let mut tries = 1;
        loop {
            let sent = self.once(request).await?;
            let usual = pauses.take_next();
            let wait = Self::again(request, &sent, tries, usual);
            let Some(wait) = wait else {
                return self.settled(request, sent);
            };
            let why = match &sent {
                SendOutcome::Answer(answer, _) => format!("status {}", answer.status.as_u16()),
                SendOutcome::Lost { why, .. } | SendOutcome::Refused(why) => why.clone(),
                SendOutcome::TooLong => "its answer is too long".to_owned(),
            };
            let line = format!("{}: {why}; it is sent again", request.shown());
            self.complain(&line).await;
            self.rest(wait, &format!("{} was to be sent again", request.shown())).await?;
            tries += 1;
        }
    }

    /// Like [`Self::send`], but an unsuccessful status is a failure.
    pub(super) async fn good(&mut self, request: &Request) -> Result<Answer, Halt> {
        let answer = self.send(request).await?;
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(self.rejected(&answer, request, None))
        }
    }

    /// The pause before the request is retried: the one that the service asks for, else `usual`.
    /// `None` if it is not retried.
    fn again(
        request: &Request,
        sent: &SendOutcome,
        tries: u32,
        usual: Duration,
    ) -> Option<Duration> {
        let passes = match sent {
            SendOutcome::Answer(answer, _) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                request.repeat != Repeat::Never
            }
            SendOutcome::Answer(answer, _) => {
                let may_pass = [502, 503, 504].contains(&answer.status.as_u16());
                may_pass && request.repeat == Repeat::Always
            }
            SendOutcome::Lost { .. } => request.repeat == Repeat::Always,
            SendOutcome::TooLong | SendOutcome::Refused(_) => false,
        };
        let asked = match sent {
            SendOutcome::Answer(_, asked) => *asked,
            SendOutcome::Lost { .. } | SendOutcome::Refused(_) | SendOutcome::TooLong => None,
        };
        (passes && tries < TRIES).then(|| asked.unwrap_or(usual).min(LONGEST_WAIT))
    }

    fn settled(&self, request: &Request, sent: SendOutcome) -> Result<Answer, Halt> {
        let (shown, at) = (request.shown(), origin(&request.url));
        let reads = request.method.is_safe();
        match sent {
            SendOutcome::Answer(answer, _) => Ok(answer),
            SendOutcome::Lost { why, taken: false } => {
                Err(Halt::failed(format!("{shown} was not sent: cannot reach {at}: {why}")))
            }
            SendOutcome::Refused(why) => Err(Halt::failed(format!("{shown} was not sent: {why}"))),
            SendOutcome::Lost { why, taken: true } if reads => {
                Err(Halt::failed(format!("{shown} has no answer from {at}: {why}")))
            }
            SendOutcome::Lost { why, taken: true } => Err(Halt::failed(format!(
                "{shown} has no answer from {at}: {why}; whether it took effect is not known"
            ))),
            SendOutcome::TooLong => Err(Halt::failed(format!(
                "the answer of {shown} has more than {} bytes, the most that is kept",
                request.most
            ))),
        }
    }

    async fn once(&mut self, request: &Request) -> Result<SendOutcome, Halt> {
        if let Some(turns) = &self.access.turns {
            let turn = turns.take();
            self.until(turn, &format!("{} was not sent", request.shown())).await?;
        }
        if self.stop.level() > StopLevel::Run {
            return Err(Halt::Stopped(format!("{} was not sent", request.shown())));
        }
        if !self.gate.is_owned() {
            return Err(Halt::NotOurs { sent: self.sent });
        }
        self.sent = true;
        let within = self.access.within.unwrap_or(self.times.answer);
        let sent = tokio::select! {
            biased;
            _ = self.stop.above(StopLevel::Run) => None,
            sent = exchange(&self.clients, &self.access, request, within) => Some(sent),
        };
        let Some(sent) = sent else {
            let what = if request.method.is_safe() {
                format!("{} was under way", request.shown())
            } else {
                format!("{} was under way; whether it took effect is not known", request.shown())
            };
            return Err(Halt::Stopped(what));
        };
        if let (SendOutcome::Answer(answer, _), false) = (&sent, request.quiet) {
            self.tell(&format!("{}: {}", request.shown(), answer.status.as_u16())).await;
        }
        Ok(sent)
    }

    /// Sleeps unless the step is stopped. `what` names the activity in progress.
    pub(super) async fn rest(&mut self, pause: Duration, what: &str) -> Result<(), Halt> {
        self.until(Instant::now() + pause, what).await
    }

    async fn until(&mut self, then: Instant, what: &str) -> Result<(), Halt> {
        tokio::select! {
            biased;
            _ = self.stop.above(StopLevel::Run) => Err(Halt::Stopped(what.to_owned())),
            () = tokio::time::sleep_until(then) => Ok(()),
        }
    }

    /// Turns an unsuccessful response into a failure, with a hint for the user.
    pub(super) fn rejected(&self, answer: &Answer, request: &Request, hint: Option<&str>) -> Halt {
        let (method, path, status) = (&request.method, request.url.path(), answer.status.as_u16());
        let mut why = format!("{method} {path} was refused with status {status}");
        if let Some(there) = &answer.elsewhere {
            why = format!("{method} {path} is sent on to {there} (status {status})");
        }
        // Mask before shortening: a truncated secret would not be recognized.
        let said = shortened(self.hide(&answer.said()));
        if !said.is_empty() {
            why = format!("{why}: {said}");
        }
        if let Some(hint) = hint {
            why = format!("{why}; {hint}");
        }
        Halt::Failed { why, data: answer.data(), code: 1 }
    }

    /// Masks secrets in a text.
    pub(super) fn hide(&self, text: &str) -> String {
        // Masking very short values would garble the output and hide nothing.
        let hidden = self.access.hidden.iter().filter(|secret| secret.len() >= 4);
        hidden.fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }

    /// Masks secrets in a JSON value.
    pub(super) fn hide_in(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.hide(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.hide_in(item)),
            Value::Object(map) => map.values_mut().for_each(|value| self.hide_in(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Writes a line to the step's standard output.
    pub(super) async fn tell(&mut self, line: &str) {
        self.write(LogStream::Stdout, &format!("{line}\n")).await;
    }

    /// Writes a line to the step's standard error.
    pub(super) async fn complain(&mut self, line: &str) {
        self.write(LogStream::Stderr, &format!("{line}\n")).await;
    }

    /// Writes text to the step's output, masked.
    pub(super) async fn write(&mut self, stream: LogStream, text: &str) {
        if !text.is_empty() {
            self.out.write(stream, Bytes::from(self.hide(text))).await;
        }
    }
}

/// Sends a request, follows the allowed redirects, and reads the complete response.
async fn exchange(
    clients: &Clients,
    access: &Access,
    request: &Request,
    within: Duration,
) -> SendOutcome {
    let until = Instant::now() + within;
    let mut url = request.url.clone();
    let mut followed = 0;
    loop {
        let client = match clients.to(&url).await {
            Ok(client) => client,
            Err(why) => return SendOutcome::Refused(why),
        };
        let ready = ready(&client, access, request, url);
        let ready = ready.timeout(until.saturating_duration_since(Instant::now()));
        let response = match ready.send().await {
            Ok(response) => response,
            Err(error) => return lost(&error),
        };
        if let Some(next) = clients.next(&response, followed) {
            url = next;
            followed += 1;
            continue;
        }
        let asked = retry_after(&response);
        return match whole(response, request.most).await {
            Ok(Some(answer)) => SendOutcome::Answer(answer, asked),
            Ok(None) => SendOutcome::TooLong,
            Err(error) => lost(&error),
        };
    }
}

fn ready(client: &Client, access: &Access, request: &Request, url: Url) -> RequestBuilder {
    let ready = client.request(request.method.clone(), url).headers(access.headers.clone());
    match &request.body {
        Body::Nothing => ready,
        Body::Text(text) => ready.body(text.clone()),
        Body::Json(value) if access.headers.contains_key(CONTENT_TYPE) => {
            ready.body(value.to_string())
        }
        Body::Json(value) => ready.json(value),
    }
}

/// The outcome of a request that failed without a response.
fn lost(error: &reqwest::Error) -> SendOutcome {
    if let Some(refused) = refusal(error) {
        return SendOutcome::Refused(refused.to_string());
    }
    let taken = !error.is_connect() && !error.is_builder();
    SendOutcome::Lost { why: reason(error), taken }
}

/// The seconds in `Retry-After`. A date is ignored because clocks differ.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}
