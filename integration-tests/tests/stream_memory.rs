//! The memory use of the event publisher. A separate binary, because memory is measured per
//! process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use protocol::event::{Event, LogStream, Reason};
use protocol::id::Epoch;
use protocol::time::Millis;
use runner::cluster::AmqpEvents;
use runner::ports::{Events as _, Ticket};
use test_support::services::{BROKER, Services};

const EVENT_BYTES: usize = 64 * 1024;
const EVENTS: u64 = (1 << 30) / EVENT_BYTES as u64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_of_events_passes_through_in_little_memory() {
    let Some(services) = Services::from_env(BROKER) else { return };
    let vhost = services.vhost().await;
    let limit =
        r#"{"pattern":".*","definition":{"max-length-bytes":50000000},"apply-to":"queues"}"#;
    let path = format!("policies/{}/small", vhost.name);
    vhost.management.send(reqwest::Method::PUT, &path, Some(limit)).await;
    let events = AmqpEvents::connect(&services.amqp(&vhost)).await.unwrap();
    let text = "x".repeat(EVENT_BYTES);
    let mut last = Ticket::default();
    for seq in 0..EVENTS {
        let reason =
            Reason::Log { stream: LogStream::Stdout, offset: 0, partial: false, encoding: None };
        let mut event = Event::new(Millis(1), reason, text.clone());
        event.run_id = Some("r-gibibyte".parse().unwrap());
        (event.epoch, event.seq) = (Some(Epoch(7)), Some(seq));
        last = events.emit(event).await.unwrap();
    }
    events.confirmed(last).await.unwrap();
    let resident = resident_at_most();
    assert!(resident < 100 << 20, "{resident} bytes were resident");
}

/// The peak resident memory of this process.
fn resident_at_most() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
