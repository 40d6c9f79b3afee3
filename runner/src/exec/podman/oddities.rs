//! Recorded answers of podman 4.3 to calls during the removal of another run's objects. Nothing
//! triggers them reliably, so the tests replay them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::call::EngineCall;
use super::http::Http;
use super::listing::listed;
use super::pull::{Pulls, Registries};

const GONE: &str = r#"{"cause":"no such container","message":"container 0345b2 does not exist in database: no such container","response":500}"#;

/// Serves these answers, one per connection, and returns the requested paths.
async fn answering(answers: &'static [(u16, &str)]) -> (Arc<Http>, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = Http::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let asked = TaskTracker::new().spawn(async move {
        let mut asked = Vec::new();
        for (status, body) in answers {
            let mut wire = BufReader::new(listener.accept().await.unwrap().0);
            let mut lines = Vec::new();
            while lines.last().is_none_or(|line: &String| !line.trim().is_empty()) {
                let mut line = String::new();
                wire.read_line(&mut line).await.unwrap();
                lines.push(line);
            }
            asked.push(lines[0].split(' ').nth(1).unwrap().to_owned());
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            wire.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    (http, asked)
}

#[tokio::test]
async fn a_pull_that_lost_a_layer_to_a_removal_is_begun_once_more() {
    let (http, asked) = answering(&[
        (200, r#"{"error":"writing blob: adding layer with blob \"sha256:1d\": layer not known"}"#),
        (200, r#"{"images":["a1"],"id":"a1"}"#),
    ])
    .await;
    let image = "127.0.0.1:1/checkpoints/rig@sha256:f6";
    let id = Pulls::default().pull(&http, &Registries::default(), image).await.unwrap();
    assert_eq!((id.as_str(), asked.await.unwrap().len()), ("a1", 2));
}

#[tokio::test]
async fn a_pull_that_fails_for_another_reason_is_not() {
    let (http, asked) = answering(&[(200, r#"{"error":"manifest unknown"}"#)]).await;
    let pulled = Pulls::default().pull(&http, &Registries::default(), "h:1/x").await;
    assert!(pulled.unwrap_err().to_string().contains("no such image"));
    assert_eq!(asked.await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_container_that_goes_while_it_is_looked_at_is_gone() {
    let (http, asked) = answering(&[(500, GONE), (500, GONE), (500, GONE)]).await;
    let mut link = http.link();
    assert!(link.inspect("x", Duration::ZERO).await.unwrap().is_none());
    link.kill("x", "SIGKILL", Duration::ZERO).await.unwrap();
    link.remove("x").await.unwrap();
    assert_eq!(asked.await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_list_in_which_a_container_goes_is_asked_for_once_more() {
    let (http, asked) = answering(&[(500, GONE), (200, r#"[{"Id": "a"}]"#)]).await;
    assert_eq!(listed(&http, EngineCall::get("/containers/json")).await.unwrap().len(), 1);
    assert_eq!(asked.await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_the_engine_does_not_know_is_removed_when_nothing_is_mounted_there_any_more() {
    const BUSY: &str = r#"{"cause":"device or resource busy","message":"removing storage for container \"x\": unlinkat userdata/shm: device or resource busy","response":500}"#;
    let (http, asked) = answering(&[(500, BUSY), (500, BUSY), (200, "[]")]).await;
    http.link().remove_ghost("x").await.unwrap();
    assert_eq!(asked.await.unwrap().len(), 3);
}

#[tokio::test]
async fn an_engine_that_stumbles_over_an_image_that_goes_is_asked_once_more() {
    const NIL: &str = r#"{"cause":"runtime error: invalid memory address or nil pointer dereference","message":"runtime error: invalid memory address or nil pointer dereference","response":500}"#;
    let (http, asked) =
        answering(&[(500, NIL), (404, r#"{"message":"x: image not known"}"#)]).await;
    assert!(http.link().image("x").await.unwrap().is_none());
    assert_eq!(asked.await.unwrap().len(), 2);
}
