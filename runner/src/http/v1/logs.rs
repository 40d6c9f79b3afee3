//! The logs of runs: ranges of lines, the last lines, search, following, and download.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::sse::{Event as SentEvent, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use protocol::event::LogStream;
use protocol::id::{RunId, StepName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::http::access::Scope;
use crate::http::api::Api;
use crate::http::extract::{PathOf, QueryOf, faults};
use crate::http::logs::{Batch, Cursor, End, Filter, Limits, Line, Window, tail, window};
use crate::http::problem::{Fault, Problem};
use crate::http::route::{Form, RequestHeader, Route};

/// Lines of an answer, unless the query sets it.
const LIMIT: usize = 1000;
/// Lines of an answer at most.
const MAX_LIMIT: usize = 10_000;
/// Characters of a text that is searched at most.
const MAX_TEXT: usize = 1000;
/// The interval between comments that keep a silent connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a client waits before it connects again.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// The name of the event after the last line.
const END: &str = "end";

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The headers of a request that follows a log.
const FOLLOW_HEADERS: &[RequestHeader] = &[RequestHeader {
    name: "Last-Event-ID",
    about: "The number of the last line that the client received, from any node. The lines after \
            it follow. It takes precedence over `from` and `tail`.",
}];

/// The routes of this module.
pub(super) fn routes() -> Vec<Route> {
    let ok = StatusCode::OK;
    vec![
        Route::get("/api/v1/runs/{run}/logs", Scope::Read, read)
            .named("readLog", "Reads lines of a run's log: a range, or the last ones")
            .query::<LogQuery>()
            .answer(ok, "The lines", Form::json::<LogPage>())
            .problems(&[400, 404]),
        Route::get("/api/v1/runs/{run}/logs/search", Scope::Read, search)
            .named("searchLog", "Searches a run's log for a text")
            .query::<SearchQuery>()
            .answer(ok, "The lines with the text", Form::json::<LogPage>())
            .problems(&[400, 404]),
        Route::get("/api/v1/runs/{run}/logs/follow", Scope::Read, follow)
            .named("followLog", "Follows a run's log. The event `end` follows the last line")
            .query::<FollowQuery>()
            .headers(FOLLOW_HEADERS)
            .answer(ok, "Lines, with their number as id", Form::events::<Line>())
            .problems(&[400, 404]),
        Route::get("/api/v1/runs/{run}/logs/download", Scope::Read, download)
            .named("downloadLog", "Downloads a run's log as text")
            .query::<DownloadQuery>()
            .answer(ok, "The output, byte for byte", Form::Text("text/plain"))
            .problems(&[400, 404]),
    ]
}

/// Selects the lines to read. An empty value counts as absent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    /// The first line. Default 1.
    #[schemars(with = "Option<u64>", range(min = 1))]
    from: Option<String>,
    /// The last lines, in this number, instead of a range.
    #[schemars(with = "Option<u16>", range(min = 1, max = 10_000))]
    tail: Option<String>,
    /// Lines at most, from 1 to 10000. Default 1000. Long lines can reduce it.
    #[schemars(with = "Option<u16>", range(min = 1, max = 10_000))]
    limit: Option<String>,
    /// Only lines of this step.
    #[schemars(with = "Option<StepName>")]
    step: Option<String>,
    /// Only lines of this stream.
    #[schemars(with = "Option<LogStream>")]
    stream: Option<String>,
}

/// The parameters of a search. An empty value counts as absent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchQuery {
    /// The text, of at most 1000 characters. ASCII letters match in any case if it has no capital.
    text: Option<String>,
    /// The first line to search. Default 1.
    #[schemars(with = "Option<u64>", range(min = 1))]
    from: Option<String>,
    /// Lines at most, from 1 to 10000. Default 1000.
    #[schemars(with = "Option<u16>", range(min = 1, max = 10_000))]
    limit: Option<String>,
    /// Only lines of this step.
    #[schemars(with = "Option<StepName>")]
    step: Option<String>,
    /// Only lines of this stream.
    #[schemars(with = "Option<LogStream>")]
    stream: Option<String>,
}

/// Selects the lines to follow. An empty value counts as absent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FollowQuery {
    /// The first line. Default 1.
    #[schemars(with = "Option<u64>", range(min = 1))]
    from: Option<String>,
    /// Begin with the last lines, in this number.
    #[schemars(with = "Option<u16>", range(min = 1, max = 10_000))]
    tail: Option<String>,
    /// Only lines of this step.
    #[schemars(with = "Option<StepName>")]
    step: Option<String>,
    /// Only lines of this stream.
    #[schemars(with = "Option<LogStream>")]
    stream: Option<String>,
}

/// Selects the lines to download. An empty value counts as absent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DownloadQuery {
    /// Only lines of this step.
    #[schemars(with = "Option<StepName>")]
    step: Option<String>,
    /// Only lines of this stream.
    #[schemars(with = "Option<LogStream>")]
    stream: Option<String>,
}

/// Lines of a run's log.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct LogPage {
    /// The lines, in order.
    lines: Vec<Line>,
    /// The `from` of the next page.
    next: u64,
    /// Whether the log has nothing after this page at present.
    complete: bool,
    /// The end of the log, if it has ended and nothing follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<End>,
}

impl From<Window> for LogPage {
    fn from(window: Window) -> Self {
        let Window { lines, next, is_complete: complete, end } = window;
        Self { lines, next, complete, end: end.map(Arc::unwrap_or_clone) }
    }
}

/// Parses parameters, and collects all faults.
#[derive(Default)]
struct Parameters(Vec<Fault>);

impl Parameters {
    /// A whole number from 1 to `most`.
    fn number(&mut self, field: &str, text: Option<String>, most: u64) -> Option<u64> {
        let text = text.filter(|text| !text.is_empty())?;
        let number = text.parse().ok().filter(|number| (1..=most).contains(number));
        if number.is_none() {
            let detail = format!("{field} {text:?} must be a whole number from 1 to {most}");
            self.0.push(Fault::of(field, detail));
        }
        number
    }

    fn count(&mut self, field: &str, text: Option<String>) -> Option<usize> {
        let number = self.number(field, text, MAX_LIMIT as u64)?;
        usize::try_from(number).ok()
    }

    fn line(&mut self, text: Option<String>) -> Option<u64> {
        self.number("from", text, i64::MAX.unsigned_abs())
    }

    fn filter(&mut self, step: Option<String>, stream: Option<String>) -> Filter {
        let step = step.filter(|step| !step.is_empty()).and_then(|step| {
            let parsed = step.parse::<StepName>();
            parsed.map_err(|bad| self.0.push(Fault::of("step", bad.to_string()))).ok()
        });
        let stream = stream.filter(|stream| !stream.is_empty()).and_then(|stream| {
            let known = match stream.as_str() {
                "stdout" => Some(LogStream::Stdout),
                "stderr" => Some(LogStream::Stderr),
                "bob" => Some(LogStream::Bob),
                _ => None,
            };
            if known.is_none() {
                let detail = format!("stream {stream:?} must be stdout, stderr or bob");
                self.0.push(Fault::of("stream", detail));
            }
            known
        });
        Filter { step, stream, text: None }
    }

    fn text(&mut self, text: Option<String>) -> Option<String> {
        let text = text.filter(|text| !text.is_empty());
        let detail = match &text {
            None => "text must be given: what to search for".to_owned(),
            Some(text) if text.chars().count() > MAX_TEXT => {
                format!("text must have at most {MAX_TEXT} characters")
            }
            Some(_) => return text,
        };
        self.0.push(Fault::of("text", detail));
        None
    }

    fn exclusive(&mut self, both: bool) {
        if both {
            self.0.push(Fault::of("tail", "`from` and `tail` exclude each other"));
        }
    }

    fn done(self) -> Result<(), Problem> {
        if self.0.is_empty() {
            return Ok(());
        }
        let what = "the query is not valid";
        Err(faults(StatusCode::BAD_REQUEST, what, self.0).with_code("bad-query"))
    }
}

async fn read(
    State(api): State<Api>,
    PathOf(run): PathOf<RunId>,
    QueryOf(query): QueryOf<LogQuery>,
) -> Result<Json<LogPage>, Problem> {
    let mut parameters = Parameters::default();
    parameters.exclusive(query.from.is_some() && query.tail.is_some());
    let (from, last) = (parameters.line(query.from), parameters.count("tail", query.tail));
    let limit = parameters.count("limit", query.limit).unwrap_or(LIMIT);
    let filter = parameters.filter(query.step, query.stream);
    parameters.done()?;
    let mut cursor = api.logs.read(&run, from.unwrap_or(1)).await?;
    let found = match last {
        Some(lines) => tail(&mut cursor, &filter, Limits { lines }).await?,
        None => window(&mut cursor, &filter, Limits { lines: limit }).await?,
    };
    Ok(Json(found.into()))
}

async fn search(
    State(api): State<Api>,
    PathOf(run): PathOf<RunId>,
    QueryOf(query): QueryOf<SearchQuery>,
) -> Result<Json<LogPage>, Problem> {
    let mut parameters = Parameters::default();
    let from = parameters.line(query.from).unwrap_or(1);
    let lines = parameters.count("limit", query.limit).unwrap_or(LIMIT);
    let text = parameters.text(query.text);
    let filter = Filter { text, ..parameters.filter(query.step, query.stream) };
    parameters.done()?;
    let mut cursor = api.logs.read(&run, from).await?;
    Ok(Json(window(&mut cursor, &filter, Limits { lines }).await?.into()))
}

/// The line after the last one that the client has received.
fn after_last(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(&LAST_EVENT_ID) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(None);
    }
    let last = text.parse::<u64>().ok().and_then(|last| last.checked_add(1));
    last.map(Some).ok_or_else(|| {
        let detail = format!("`Last-Event-ID` {text:?} must be the number of a line");
        Problem::bad_request(detail).with_code("bad-last-event-id")
    })
}

async fn follow(
    State(api): State<Api>,
    PathOf(run): PathOf<RunId>,
    QueryOf(query): QueryOf<FollowQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SentEvent, Infallible>>>, Problem> {
    let mut parameters = Parameters::default();
    parameters.exclusive(query.from.is_some() && query.tail.is_some());
    let (from, last) = (parameters.line(query.from), parameters.count("tail", query.tail));
    let filter = parameters.filter(query.step, query.stream);
    parameters.done()?;
    let resumed = after_last(&headers)?;
    let mut cursor = api.logs.read(&run, resumed.or(from).unwrap_or(1)).await?;
    let mut first = Vec::new();
    if let (Some(lines), None) = (last, resumed) {
        let found = tail(&mut cursor, &filter, Limits { lines }).await?;
        cursor.skip_to(found.next);
        first.extend(found.lines.iter().map(sent));
    }
    let hello = SentEvent::default().comment("log").retry(RECONNECT_AFTER);
    let lines = stream::unfold(Some(cursor), move |cursor| {
        let filter = filter.clone();
        async move { next_events(cursor?, &filter).await }
    });
    let all = stream::iter([hello]).chain(stream::iter(first)).chain(lines.flat_map(stream::iter));
    Ok(Sse::new(all.map(Ok)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// The next events for a client that follows a log. `None` if the log cannot be read or the node
/// stops: the client then connects again.
async fn next_events(
    mut cursor: Cursor,
    filter: &Filter,
) -> Option<(Vec<SentEvent>, Option<Cursor>)> {
    match cursor.next().await {
        Ok(Batch::Lines(lines)) => {
            let events = lines.iter().filter(|line| filter.matches(line)).map(sent).collect();
            Some((events, Some(cursor)))
        }
        Ok(Batch::CaughtUp) => Some((Vec::new(), Some(cursor))),
        Ok(Batch::End(end)) => {
            let data = serde_json::to_string(&*end).unwrap_or_default();
            Some((vec![SentEvent::default().event(END).data(data)], None))
        }
        Err(cause) => {
            debug!(%cause, "a client's log ends");
            None
        }
    }
}

/// A line as a server-sent event. JSON has no line breaks.
fn sent(line: &Line) -> SentEvent {
    let data = serde_json::to_string(line).unwrap_or_default();
    SentEvent::default().id(line.line.to_string()).data(data)
}

async fn download(
    State(api): State<Api>,
    PathOf(run): PathOf<RunId>,
    QueryOf(query): QueryOf<DownloadQuery>,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::default();
    let filter = parameters.filter(query.step, query.stream);
    parameters.done()?;
    let cursor = api.logs.read(&run, 1).await?;
    let parts = stream::try_unfold(Some(cursor), move |cursor| {
        let filter = filter.clone();
        async move {
            let Some(cursor) = cursor else { return Ok(None) };
            next_text(cursor, &filter).await.map(Some).map_err(io::Error::other)
        }
    });
    // The characters of a run id need no escape.
    let disposition = format!("attachment; filename=\"{run}.log\"");
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
        (header::CONTENT_DISPOSITION, disposition),
    ];
    Ok((headers, Body::from_stream(parts)).into_response())
}

/// The next part of a log as text. The download of a log that has not ended has what there is.
async fn next_text(
    mut cursor: Cursor,
    filter: &Filter,
) -> Result<(Bytes, Option<Cursor>), crate::client::Error> {
    Ok(match cursor.next().await? {
        Batch::Lines(lines) => {
            let mut text = Vec::new();
            for line in lines.iter().filter(|line| filter.matches(line)) {
                text.extend_from_slice(&line.bytes());
                if !line.partial {
                    text.push(b'\n');
                }
            }
            (text.into(), Some(cursor))
        }
        Batch::CaughtUp => (Bytes::new(), None),
        Batch::End(end) => (missing(&end).into(), None),
    })
}

/// Lines that name the missing parts of a log.
fn missing(end: &End) -> String {
    let run = &end.run_id;
    let note = end.note.iter().map(|note| format!("[bob] {note}\n"));
    let missing = end.missing.iter();
    note.chain(missing.map(|part| format!("[bob] the log of run {run} lacks {part}\n"))).collect()
}
