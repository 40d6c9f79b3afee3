use futures::StreamExt as _;
use protocol::event::{Event, LogStream, Reason};
use protocol::id::Epoch;
use protocol::time::Millis;

use super::*;

fn event(seq: u64, reason: Reason) -> Event {
    let mut event = Event::new(Millis(1_700_000_000_000), reason, "text".into());
    event.run_id = Some("r-1".parse().unwrap());
    (event.epoch, event.seq) = (Some(Epoch(1)), Some(seq));
    event
}

fn log(seq: u64, step: &str, stream: LogStream, text: &str) -> Event {
    let reason = Reason::Log { stream, offset: 0, partial: false, encoding: None };
    let mut event = event(seq, reason);
    event.message = text.to_owned();
    (event.step, event.attempt) = (Some(step.parse().unwrap()), Some(1));
    event
}

/// A fleet with a run of four lines.
async fn fleet() -> Fleet {
    let fleet = Fleet::open().await;
    fleet.add_run(&record("r-1", "passed", 1)).await;
    let stream = fleet.embedded.events();
    let events = [
        event(0, Reason::PipelineRunScheduled { waiting: false }),
        log(1, "build", LogStream::Stdout, "one\nTwo"),
        log(2, "build", LogStream::Stderr, "careful"),
        log(3, "test", LogStream::Stdout, "two tests"),
        event(4, Reason::PipelineSuccessful),
    ];
    for event in events {
        let ticket = stream.emit(event).await.unwrap();
        stream.confirmed(ticket).await.unwrap();
    }
    fleet
}

fn texts(page: &Value) -> Vec<&str> {
    let lines = page["lines"].as_array().unwrap().iter();
    lines.map(|line| line["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_log_is_read_by_ranges_steps_and_streams() {
    let fleet = fleet().await;
    let page = fleet.get("/api/v1/runs/r-1/logs").await.is(200);
    assert_eq!(texts(&page), ["one", "Two", "careful", "two tests"]);
    assert_eq!((&page["next"], &page["complete"]), (&json!(5), &json!(true)));
    assert_eq!((&page["end"]["status"], &page["end"]["lines"]), (&json!("passed"), &json!(4)));
    let first = json!({
        "line": 1, "at": 1_700_000_000_000_i64, "step": "build", "attempt": 1, "stream": "stdout",
        "text": "one",
    });
    assert_eq!(page["lines"][0], first);

    let page = fleet.get("/api/v1/runs/r-1/logs?from=2&limit=2").await.is(200);
    assert_eq!(texts(&page), ["Two", "careful"]);
    assert_eq!((&page["next"], &page["complete"]), (&json!(4), &json!(false)));
    let page = fleet.get("/api/v1/runs/r-1/logs?tail=1").await.is(200);
    assert_eq!(texts(&page), ["two tests"]);
    let page = fleet.get("/api/v1/runs/r-1/logs?step=build&stream=stdout").await.is(200);
    assert_eq!(texts(&page), ["one", "Two"]);
}

#[tokio::test]
async fn a_log_is_searched_for_a_text() {
    let fleet = fleet().await;
    let page = fleet.get("/api/v1/runs/r-1/logs/search?text=two").await.is(200);
    assert_eq!(texts(&page), ["Two", "two tests"]);
    let page = fleet.get("/api/v1/runs/r-1/logs/search?text=two&limit=1").await.is(200);
    assert_eq!((texts(&page), &page["next"]), (vec!["Two"], &json!(3)));
    let page = fleet.get("/api/v1/runs/r-1/logs/search?text=Two&from=1").await.is(200);
    assert_eq!(texts(&page), ["Two"]);
}

#[tokio::test]
async fn every_fault_of_a_request_for_a_log_is_reported() {
    let fleet = fleet().await;
    let path = "/api/v1/runs/r-1/logs?from=0&limit=10001&stream=stdin&step=/";
    let answered = fleet.get(path).await;
    answered.problem(400);
    let faults = answered.body["errors"].as_array().unwrap().iter();
    let fields: Vec<&str> = faults.map(|fault| fault["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["from", "limit", "step", "stream"]);
    fleet.get("/api/v1/runs/r-1/logs?from=1&tail=1").await.problem(400);
    fleet.get("/api/v1/runs/r-1/logs?lines=1").await.problem(400);
    fleet.get("/api/v1/runs/r-1/logs/search").await.problem(400);
    fleet.get("/api/v1/runs/no-run/logs").await.problem(400);
    for route in ["", "/search?text=x", "/follow", "/download"] {
        let detail = fleet.get(&format!("/api/v1/runs/r-9/logs{route}")).await;
        assert!(detail.problem(404).contains("r-9"));
    }
    let mut request = request(Method::GET, "/api/v1/runs/r-1/logs/follow", None);
    request.headers_mut().insert("last-event-id", "x".parse().unwrap());
    fleet.send(request).await.problem(400);
}

/// The whole response of a stream that ends.
async fn text(fleet: &Fleet, path: &str, last: Option<&str>) -> (HeaderMap, String) {
    let mut request = request(Method::GET, path, None);
    if let Some(last) = last {
        request.headers_mut().insert("last-event-id", last.parse().unwrap());
    }
    let response = fleet.router.clone().oneshot(request).await.unwrap();
    let headers = response.headers().clone();
    let mut body = response.into_body().into_data_stream();
    let mut text = Vec::new();
    while let Some(part) = body.next().await {
        text.extend(part.unwrap());
    }
    (headers, String::from_utf8(text).unwrap())
}

/// The ids of the events, and the names of those that have none.
fn ids(events: &str) -> Vec<&str> {
    let field = |line: &'_ str| -> Option<usize> {
        ["id: ", "event: "].iter().find(|name| line.starts_with(**name)).map(|name| name.len())
    };
    events.lines().filter_map(|line| Some(&line[field(line)?..])).collect()
}

#[tokio::test]
async fn a_followed_log_has_line_numbers_as_ids_and_an_end() {
    let fleet = fleet().await;
    let follow = "/api/v1/runs/r-1/logs/follow";
    let (headers, all) = text(&fleet, follow, None).await;
    assert_eq!(headers[header::CONTENT_TYPE], "text/event-stream");
    assert_eq!(ids(&all), ["1", "2", "3", "4", "end"]);
    assert!(all.contains(r#""text":"careful""#), "{all}");
    let (_, rest) = text(&fleet, &format!("{follow}?tail=3"), Some("3")).await;
    assert_eq!(ids(&rest), ["4", "end"], "the last received line takes precedence");
    let (_, last) = text(&fleet, &format!("{follow}?tail=1"), None).await;
    assert_eq!(ids(&last), ["4", "end"]);
    let (_, step) = text(&fleet, &format!("{follow}?step=test"), None).await;
    assert_eq!(ids(&step), ["4", "end"]);
}

#[tokio::test]
async fn a_log_is_downloaded_as_text() {
    let fleet = fleet().await;
    let (headers, log) = text(&fleet, "/api/v1/runs/r-1/logs/download", None).await;
    assert_eq!(headers[header::CONTENT_DISPOSITION], "attachment; filename=\"r-1.log\"");
    assert_eq!(log, "one\nTwo\ncareful\ntwo tests\n");
    let (_, log) = text(&fleet, "/api/v1/runs/r-1/logs/download?stream=stderr", None).await;
    assert_eq!(log, "careful\n");
}
