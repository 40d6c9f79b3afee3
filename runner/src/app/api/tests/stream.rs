use axum::body::BodyDataStream;
use futures::StreamExt as _;
use protocol::event::{Event, Reason};
use protocol::time::Millis;

use super::*;

async fn publish(embedded: &Embedded, run: &str) {
    let mut event = Event::new(Millis(1), Reason::PipelineRunning, format!("run {run} runs"));
    event.run_id = Some(run.parse().unwrap());
    event.group = Some("dev".into());
    event.name = Some("x".into());
    let stream = embedded.events();
    let ticket = stream.emit(event).await.unwrap();
    stream.confirmed(ticket).await.unwrap();
}

/// The body of a response. The server follows the stream for it from now on.
async fn open(fleet: &Fleet, path: &str, last: Option<&str>) -> BodyDataStream {
    let mut request = request(Method::GET, path, None);
    if let Some(last) = last {
        request.headers_mut().insert("last-event-id", last.parse().unwrap());
    }
    let response = fleet.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    response.into_body().into_data_stream()
}

/// The ids of the first events of a response, and the runs that they are about.
async fn read(mut body: BodyDataStream, count: usize) -> Vec<(u64, String)> {
    let mut text = String::new();
    while text.matches("\ndata: ").count() < count || !text.ends_with("\n\n") {
        text.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
    }
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
    };
    let parsed = text.split("\n\n").filter_map(|event| {
        let json: Value = serde_json::from_str(&field(event, "data: ")?).unwrap();
        let id = field(event, "id: ")?.parse().unwrap();
        Some((id, json["run-id"].as_str().unwrap().to_owned()))
    });
    parsed.collect()
}

async fn events(fleet: &Fleet, path: &str, last: Option<&str>, count: usize) -> Vec<(u64, String)> {
    read(open(fleet, path, last).await, count).await
}

#[tokio::test]
async fn events_continue_at_another_node_after_the_last_one() {
    let one = Fleet::open().await;
    let two = Fleet::over(one.embedded.clone()).await;
    for run in ["r-1", "r-2", "r-1"] {
        publish(&one.embedded, run).await;
    }
    let all = events(&one, "/api/v1/events?from=first", None, 3).await;
    let runs: Vec<&str> = all.iter().map(|(_, run)| run.as_str()).collect();
    assert_eq!(runs, ["r-1", "r-2", "r-1"]);
    let last = all[0].0.to_string();
    assert_eq!(events(&two, "/api/v1/events", Some(&last), 2).await, all[1..]);
}

#[tokio::test]
async fn clients_that_follow_share_one_reading_and_miss_nothing() {
    let fleet = Fleet::open().await;
    publish(&fleet.embedded, "r-0").await;
    let late = open(&fleet, "/api/v1/events?from=first", None).await;
    let one = open(&fleet, "/api/v1/events", None).await;
    let two = open(&fleet, "/api/v1/events", None).await;
    for run in ["r-1", "r-2", "r-3"] {
        publish(&fleet.embedded, run).await;
    }
    let (late, one, two) = tokio::join!(read(late, 4), read(one, 3), read(two, 3));
    let runs = |events: &[(u64, String)]| -> Vec<String> {
        events.iter().map(|(_, run)| run.clone()).collect()
    };
    assert_eq!(runs(&late), ["r-0", "r-1", "r-2", "r-3"]);
    assert_eq!(runs(&one), ["r-1", "r-2", "r-3"]);
    assert_eq!(one, two);
}

#[tokio::test]
async fn events_are_filtered_by_run_and_pipeline() {
    let fleet = Fleet::open().await;
    for run in ["r-1", "r-2", "r-3"] {
        publish(&fleet.embedded, run).await;
    }
    let of_run = events(&fleet, "/api/v1/events?from=first&run=r-2", None, 1).await;
    assert_eq!(of_run[0].1, "r-2");
    let of_pipeline = "/api/v1/events?from=first&pipeline=dev/x";
    assert_eq!(events(&fleet, of_pipeline, None, 3).await.len(), 3);
    fleet.get("/api/v1/events?run=2").await.problem(400);
    fleet.get("/api/v1/events?from=first&since=2026-01-01T00:00:00Z").await.problem(400);
}

#[tokio::test]
async fn a_stream_of_events_ends_with_the_server() {
    let embedded = embedded().await;
    let (router, stop) = unprotected(services(&embedded), &Projection::new()).await;
    let router = router.layer(Extension(Principal::anyone()));
    let request = request(Method::GET, "/api/v1/events", None);
    let response = router.oneshot(request).await.unwrap();
    let mut body = response.into_body().into_data_stream();
    assert!(body.next().await.is_some(), "it begins with a comment");
    drop(stop);
    assert!(body.next().await.is_none());
}
