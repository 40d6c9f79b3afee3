//! The event stream as server-sent events. The id of an event is its offset in the stream, which is
//! the same on every node, so a client can continue at any of them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName};
use axum::response::sse::{Event as SentEvent, KeepAlive, Sse};
use futures::{Stream, StreamExt as _};
use protocol::event::Event;
use protocol::id::{PipelineId, RunId};
use protocol::time::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use tracing::debug;

use super::runs::time;
use crate::http::api::Api;
use crate::http::extract::QueryOf;
use crate::http::hub::{EventReader, StreamEvent};
use crate::http::problem::{Fault, Problem};
use crate::http::route::RequestHeader;
use crate::ports::Position;

/// The interval between comments that keep a silent connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a client waits before it connects again.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The headers of a request for events.
pub(super) const EVENT_HEADERS: &[RequestHeader] = &[RequestHeader {
    name: "Last-Event-ID",
    about: "The id of the last event that the client received, from any node. The events after it \
            follow. It takes precedence over `from` and `since`.",
}];

/// Which events are sent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EventQuery {
    /// Only events of this run.
    #[schemars(with = "Option<RunId>")]
    run: Option<String>,
    /// Only events of this pipeline and its runs: `group/name`.
    pipeline: Option<String>,
    /// Where to begin, without `Last-Event-ID`: `next`, the default, with the next event, or
    /// `first` with the oldest one of the stream.
    #[schemars(with = "Option<Beginning>")]
    from: Option<String>,
    /// Begin with the events at this time or later. Not together with `from`.
    #[schemars(with = "Option<Timestamp>")]
    since: Option<String>,
}

/// Where a client without `Last-Event-ID` begins.
#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
#[expect(dead_code, reason = "describes a parameter")]
enum Beginning {
    Next,
    First,
}

/// Selects events.
#[derive(Debug, Default, PartialEq, Eq)]
struct Filter {
    run: Option<RunId>,
    pipeline: Option<PipelineId>,
}

impl Filter {
    fn matches(&self, event: &Event) -> bool {
        let of_pipeline = |id: &PipelineId| {
            event.group.as_deref() == Some(id.group()) && event.name.as_deref() == Some(id.name())
        };
        self.run.as_ref().is_none_or(|run| event.run_id.as_ref() == Some(run))
            && self.pipeline.as_ref().is_none_or(of_pipeline)
    }
}

impl EventQuery {
    fn parse(self, headers: &HeaderMap) -> Result<(Filter, Position), Problem> {
        let bad = |field: &str, detail: String| {
            Problem::bad_request(detail.clone())
                .with_code("bad-query")
                .with_errors(vec![Fault::of(field, detail)])
        };
        let given = |value: Option<String>| value.filter(|value| !value.is_empty());
        let run = given(self.run).map(|run| run.parse::<RunId>()).transpose();
        let run = run.map_err(|cause| bad("run", cause.to_string()))?;
        let pipeline = given(self.pipeline).map(|path| PipelineId::from_path(&path)).transpose();
        let pipeline = pipeline.map_err(|cause| bad("pipeline", cause.to_string()))?;
        let position = match (given(self.from).as_deref(), given(self.since)) {
            (None | Some("next"), None) => Position::Next,
            (Some("first"), None) => Position::First,
            (None, Some(text)) => {
                Position::Since(time("since", &text).map_err(|detail| bad("since", detail))?)
            }
            (Some(_), Some(_)) => {
                return Err(bad("from", "`from` and `since` exclude each other".to_owned()));
            }
            (Some(other), None) => {
                return Err(bad("from", format!("from {other:?} must be next or first")));
            }
        };
        let position = after_last(headers)?.unwrap_or(position);
        Ok((Filter { run, pipeline }, position))
    }
}

/// The position after the last event that the client has received.
fn after_last(headers: &HeaderMap) -> Result<Option<Position>, Problem> {
    let Some(value) = headers.get(&LAST_EVENT_ID) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(None);
    }
    // The broker's offsets are signed.
    let last: Option<u64> = text.parse().ok().filter(|last| i64::try_from(*last).is_ok());
    let next = last.map(|last| Position::Offset(last.saturating_add(1)));
    next.map(Some).ok_or_else(|| {
        let detail = format!("`Last-Event-ID` {text:?} must be the id of an event of this stream");
        Problem::bad_request(detail).with_code("bad-last-event-id")
    })
}

pub(super) async fn follow(
    State(api): State<Api>,
    QueryOf(query): QueryOf<EventQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SentEvent, Infallible>>>, Problem> {
    let (filter, position) = query.parse(&headers)?;
    let reader = api.hub.follow(position).await?;
    let hello = SentEvent::default().comment("events").retry(RECONNECT_AFTER);
    let events = all_events(reader).filter_map(move |event| {
        let is_wanted = filter.matches(&event.event);
        let sent = is_wanted
            .then(|| SentEvent::default().id(event.offset.to_string()).data(event.json.as_str()));
        std::future::ready(sent)
    });
    // The stream ends with the server. The client then continues at another node.
    let stop = api.stop.clone().cancelled_owned();
    let all = futures::stream::iter([hello]).chain(events).take_until(stop).map(Ok);
    Ok(Sse::new(all).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// The events until the stream fails. The client then connects again and continues.
fn all_events(reader: EventReader) -> impl Stream<Item = Arc<StreamEvent>> {
    futures::stream::unfold(reader, |mut reader| async move {
        match reader.next().await {
            Ok(event) => event.map(|event| (event, reader)),
            Err(cause) => {
                debug!(%cause, "a client's events end");
                None
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use protocol::time::Millis;

    use super::*;

    fn parsed(query: EventQuery, last: Option<&str>) -> Result<Position, Problem> {
        let last = last.map(|last| (LAST_EVENT_ID, HeaderValue::from_str(last).unwrap()));
        let headers = HeaderMap::from_iter(last);
        query.parse(&headers).map(|(_, position)| position)
    }

    #[test]
    fn a_client_continues_after_its_last_event() {
        let first = || EventQuery { from: Some("first".into()), ..EventQuery::default() };
        assert_eq!(parsed(EventQuery::default(), None).unwrap(), Position::Next);
        assert_eq!(parsed(first(), None).unwrap(), Position::First);
        assert_eq!(parsed(first(), Some("41")).unwrap(), Position::Offset(42));
        let since = Some("1970-01-01T00:00:01Z".into());
        let since = EventQuery { since, ..EventQuery::default() };
        assert_eq!(parsed(since, None).unwrap(), Position::Since(Millis(1000)));
    }

    #[test]
    fn a_position_that_no_stream_has_is_refused() {
        for bad in ["-1", "x", "18446744073709551615"] {
            assert!(parsed(EventQuery::default(), Some(bad)).is_err(), "{bad:?} was taken");
        }
        let from = EventQuery { from: Some("last".into()), ..EventQuery::default() };
        assert!(parsed(from, None).is_err());
    }
}
