//! The embedded adapters keep their ports' contracts across restarts and kills.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test may panic, and a child prints its acknowledged writes"
)]

mod restart;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::id::NodeId;
use runner::embedded::{Embedded, Options};
use runner::host::Linux;
use test_support::conformance::{EventsSubject, QueueSubject, StoreSubject, events, queue, store};

fn options(dir: Option<&Path>) -> Options {
    Options {
        dir: dir.map(Path::to_path_buf),
        event_retention: Duration::from_secs(3600),
        host: Arc::new(Linux::default()),
    }
}

async fn open(dir: Option<&Path>) -> Embedded {
    Embedded::open(options(dir)).await.unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::from_stored(&format!("bob/runner-{name}"))
}

async fn store_suite(embedded: Embedded) {
    let subject = StoreSubject {
        prefix: "suite/".into(),
        store: embedded.store(),
        other: embedded.store(),
        compact: Some(Box::new(move |revision| {
            embedded.compact(revision);
            Box::pin(async {})
        })),
    };
    store(subject).await;
}

async fn queue_suite(embedded: Embedded) {
    let subject = QueueSubject {
        prefix: "suite".into(),
        node: node("here"),
        queue: embedded.queue(&node("here")),
        other: embedded.queue(&node("there")),
        take_dead_letters: Box::new(move || {
            let embedded = embedded.clone();
            Box::pin(async move {
                let mut taken = Vec::new();
                for letter in embedded.dead_letters().await.unwrap() {
                    assert!(embedded.remove_dead_letter(letter.id).await.unwrap());
                    taken.push(letter.message);
                }
                taken
            })
        }),
    };
    queue(subject).await;
}

async fn events_suite(embedded: Embedded) {
    let subject = EventsSubject {
        prefix: "suite".into(),
        events: embedded.events(),
        other: embedded.events(),
        host: Arc::new(Linux::default()),
    };
    events(subject).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_store_passes_the_conformance_suite() {
    let dir = tempfile::tempdir().unwrap();
    store_suite(open(Some(dir.path())).await).await;
}

#[tokio::test]
async fn the_memory_store_passes_the_conformance_suite_on_one_thread() {
    store_suite(open(None).await).await;
}

#[tokio::test(start_paused = true)]
async fn the_store_passes_the_conformance_suite_while_time_is_paused() {
    store_suite(open(None).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_queue_passes_the_conformance_suite() {
    let dir = tempfile::tempdir().unwrap();
    queue_suite(open(Some(dir.path())).await).await;
}

#[tokio::test]
async fn the_memory_queue_passes_the_conformance_suite_on_one_thread() {
    queue_suite(open(None).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_stream_passes_the_conformance_suite() {
    let dir = tempfile::tempdir().unwrap();
    events_suite(open(Some(dir.path())).await).await;
}

#[tokio::test]
async fn the_memory_stream_passes_the_conformance_suite_on_one_thread() {
    events_suite(open(None).await).await;
}
