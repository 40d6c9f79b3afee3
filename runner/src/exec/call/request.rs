//! One request of a step, until it is known what came of it or that it never will be.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::event::LogStream;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::Times;
use super::address::{add_query, below, origin};
use super::answer::{Answer, MOST, chain, whole};
use super::pace::Turns;
use super::tls::{Clients, Follow, Trust};
use crate::egress::refusal;
use crate::ports::{Gate, LogSink, StopLevel, StopSignal};

/// How often a request is sent at most.
const TRIES: u32 = 4;
/// The longest time that a service may ask us to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How a service is reached.
pub(super) struct Access {
    /// Its address, below which its paths are.
    pub(super) service: Url,
    pub(super) trust: Trust,
    pub(super) follow: Follow,
    /// What every request bears.
    pub(super) headers: HeaderMap,
    /// What is never shown.
    pub(super) hidden: Vec<String>,
    /// How often it may be asked, where that is known.
    pub(super) turns: Option<Turns>,
    /// How long an answer may take, where the step says so.
    pub(super) within: Option<Duration>,
}

impl Access {
    pub(super) fn new(service: Url, trust: Trust) -> Self {
        Self {
            service,
            trust,
            follow: Follow::Nowhere,
            headers: HeaderMap::new(),
            hidden: Vec::new(),
            turns: None,
            within: None,
        }
    }

    /// Adds a header whose value, or a part of it, is a secret. `None`: no header can have it.
    pub(super) fn with_secret(
        mut self,
        header: reqwest::header::HeaderName,
        value: &str,
        secret: &str,
    ) -> Option<Self> {
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        self.headers.insert(header, value);
        self.hidden.push(secret.to_owned());
        Some(self)
    }
}

/// When a request is sent once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Never.
    Never,
    /// Where the service says that it was too much at once, and so did nothing.
    TooMany,
    /// There, and where it failed in a way that may pass.
    Always,
}

/// What a request brings.
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
    /// The most bytes of its answer.
    pub(super) most: usize,
    /// It is one look of many, and has no line of its own.
    pub(super) quiet: bool,
}

impl Request {
    pub(super) fn new(method: Method, url: Url, body: Body, repeat: Repeat) -> Self {
        Self { method, url, body, repeat, most: MOST, quiet: false }
    }

    /// As output shows it.
    fn shown(&self) -> String {
        format!("{} {}", self.method, self.url.path())
    }
}

/// Why a call ends before its end.
#[derive(Debug)]
pub(super) enum Halt {
    /// It failed: the sentence, what was found out all the same, and the exit code.
    Failed { why: String, data: Value, code: i32 },
    /// It was asked to end: what was under way.
    Stopped(String),
    /// The run may be somebody else's by now, before or after something was sent.
    NotOurs { sent: bool },
}

impl Halt {
    pub(super) fn failed(why: impl Into<String>) -> Self {
        Self::Failed { why: why.into(), data: Value::Null, code: 1 }
    }
}

/// What came of sending a request once.
enum Sent {
    Answer(Answer, Option<Duration>),
    /// There is no answer, and why; whether the request may have been taken.
    Lost {
        why: String,
        taken: bool,
    },
    /// Nothing was sent: the address is closed to what a step names.
    Refused(String),
    /// The answer has more bytes than are kept.
    TooLong,
}

/// A step's call: sends requests, waits, and tells what it does.
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

    /// The address of a path of the service, with parameters.
    pub(super) fn url(&self, parts: &[String], query: &Map<String, Value>) -> Result<Url, Halt> {
        let mut url = below(&self.access.service, parts);
        add_query(&mut url, query).map_err(Halt::failed)?;
        Ok(url)
    }

    /// Sends a request, again where it may be, and takes its answer, whatever that says.
    pub(super) async fn send(&mut self, request: &Request) -> Result<Answer, Halt> {
        let mut tries = 1;
        loop {
            let sent = self.once(request).await?;
            let wait = self.again(request, &sent, tries);
            let Some(wait) = wait else {
                return self.settled(request, sent);
            };
            let why = match &sent {
                Sent::Answer(answer, _) => format!("status {}", answer.status.as_u16()),
                Sent::Lost { why, .. } | Sent::Refused(why) => why.clone(),
                Sent::TooLong => "its answer is too long".to_owned(),
            };
            let line = format!("{}: {why}; it is sent again", request.shown());
            self.complain(&line).await;
            self.rest(wait, &format!("{} was to be sent again", request.shown())).await?;
            tries += 1;
        }
    }

    /// The same; an answer that does not say yes is a failure.
    pub(super) async fn good(&mut self, request: &Request) -> Result<Answer, Halt> {
        let answer = self.send(request).await?;
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(answer.refused(request, self, None))
        }
    }

    /// How long to wait before it is sent again, where it is.
    fn again(&self, request: &Request, sent: &Sent, tries: u32) -> Option<Duration> {
        let passes = match sent {
            Sent::Answer(answer, _) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                request.repeat != Repeat::Never
            }
            Sent::Answer(answer, _) => {
                let may_pass = [502, 503, 504].contains(&answer.status.as_u16());
                may_pass && request.repeat == Repeat::Always
            }
            Sent::Lost { .. } => request.repeat == Repeat::Always,
            Sent::TooLong | Sent::Refused(_) => false,
        };
        let asked = match sent {
            Sent::Answer(_, asked) => *asked,
            Sent::Lost { .. } | Sent::Refused(_) | Sent::TooLong => None,
        };
        let usual = self.times.again * 2_u32.saturating_pow(tries - 1);
        (passes && tries < TRIES).then(|| asked.unwrap_or(usual).min(LONGEST_WAIT))
    }

    fn settled(&self, request: &Request, sent: Sent) -> Result<Answer, Halt> {
        let (shown, at) = (request.shown(), origin(&request.url));
        let reads = request.method.is_safe();
        match sent {
            Sent::Answer(answer, _) => Ok(answer),
            Sent::Lost { why, taken: false } => {
                Err(Halt::failed(format!("{shown} was not sent: cannot reach {at}: {why}")))
            }
            Sent::Refused(why) => Err(Halt::failed(format!("{shown} was not sent: {why}"))),
            Sent::Lost { why, taken: true } if reads => {
                Err(Halt::failed(format!("{shown} has no answer from {at}: {why}")))
            }
            Sent::Lost { why, taken: true } => Err(Halt::failed(format!(
                "{shown} has no answer from {at}: {why}; whether it took effect is not known"
            ))),
            Sent::TooLong => Err(Halt::failed(format!(
                "the answer of {shown} has more than {} bytes, the most that is kept",
                request.most
            ))),
        }
    }

    async fn once(&mut self, request: &Request) -> Result<Sent, Halt> {
        if let Some(turns) = &self.access.turns {
            let turn = turns.take();
            self.until(turn, &format!("{} was not sent", request.shown())).await?;
        }
        if self.stop.level() > StopLevel::Run {
            return Err(Halt::Stopped(format!("{} was not sent", request.shown())));
        }
        if !self.gate.stands() {
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
        if let (Sent::Answer(answer, _), false) = (&sent, request.quiet) {
            self.tell(&format!("{}: {}", request.shown(), answer.status.as_u16())).await;
        }
        Ok(sent)
    }

    /// Waits, unless the step is asked to end: `what` says what it had begun.
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

    /// A text without what is never shown.
    pub(super) fn hide(&self, text: &str) -> String {
        // Of a few characters too much would go, and nothing be hidden.
        let hidden = self.access.hidden.iter().filter(|secret| secret.len() >= 4);
        hidden.fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }

    /// A value without it.
    pub(super) fn hide_in(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.hide(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.hide_in(item)),
            Value::Object(map) => map.values_mut().for_each(|value| self.hide_in(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// A line of the step's output.
    pub(super) async fn tell(&mut self, line: &str) {
        self.write(LogStream::Stdout, &format!("{line}\n")).await;
    }

    /// A line about something that went wrong.
    pub(super) async fn complain(&mut self, line: &str) {
        self.write(LogStream::Stderr, &format!("{line}\n")).await;
    }

    /// Output, as it is.
    pub(super) async fn write(&mut self, stream: LogStream, text: &str) {
        if !text.is_empty() {
            self.out.write(stream, Bytes::from(self.hide(text))).await;
        }
    }
}

/// Sends a request, follows the redirects that it may follow, and takes the whole answer.
async fn exchange(clients: &Clients, access: &Access, request: &Request, within: Duration) -> Sent {
    let until = Instant::now() + within;
    let mut url = request.url.clone();
    let mut followed = 0;
    loop {
        let client = match clients.to(&url).await {
            Ok(client) => client,
            Err(why) => return Sent::Refused(why),
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
            Ok(Some(answer)) => Sent::Answer(answer, asked),
            Ok(None) => Sent::TooLong,
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

/// The outcome of a request that has no answer.
fn lost(error: &reqwest::Error) -> Sent {
    if let Some(refused) = refusal(error) {
        return Sent::Refused(refused.to_string());
    }
    let taken = !error.is_connect() && !error.is_builder();
    Sent::Lost { why: chain(error), taken }
}

/// How long a service asks to be left alone. A date is left to our own pace: clocks differ.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}
