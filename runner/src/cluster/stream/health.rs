//! Tracks whether the broker accepts events.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Confirmation};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::shared::Shared;
use crate::cluster::amqp::{Fault, Link};

/// The interval between checks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A broker that confirms nothing for this time, although events were sent, does not accept events.
const SILENT: Duration = Duration::from_secs(3);
/// The interval between probes of an idle publisher. Shorter while there is trouble.
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBE_AGAIN: Duration = Duration::from_secs(1);
/// The timeout of a probe's confirm.
const PROBE_WITHIN: Duration = Duration::from_secs(5);
/// No queue has this name, so a probe is confirmed without being stored.
const NOWHERE: &str = "bob.probe";

/// Why no event can be published at present.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<String>>);

impl Health {
    pub(super) fn problem(&self) -> Option<String> {
        self.0.lock().clone()
    }

    fn set(&self, trouble: Option<String>) {
        *self.0.lock() = trouble;
    }

    /// Checks that the broker confirms a message.
    pub(super) async fn probe(&self, link: &Link) {
        let probed = probe(link, "").await;
        self.set(probed.err().map(|fault| sentence(link, fault.cause())));
    }
}

fn sentence(link: &Link, cause: &str) -> String {
    format!("events cannot be published at {}: {cause}", link.at())
}

/// Publishes an empty message that no queue receives, and waits for the broker's confirm.
pub(in crate::cluster) async fn probe(link: &Link, exchange: &str) -> Result<(), Fault> {
    let publishing = async {
        let channel = link.live().await?.confirming_channel().await?;
        let (exchange, key) = (ShortString::from(exchange), ShortString::from(NOWHERE));
        // A broker with an alarm takes the first message of a connection, and only then blocks it.
        for _ in 0..2 {
            let (options, properties) =
                (BasicPublishOptions::default(), BasicProperties::default());
            let (exchange, key) = (exchange.clone(), key.clone());
            let sent = channel.basic_publish(exchange, key, options, &[], properties).await?;
            match sent.await? {
                Confirmation::Ack(_) => {}
                Confirmation::Nack(_) | Confirmation::NotRequested => {
                    return Err(Fault::Unreachable("the broker did not take a message".to_owned()));
                }
            }
        }
        link.fault().map_or(Ok(()), Err)
    };
    match timeout(PROBE_WITHIN, publishing).await {
        Ok(probed) => probed,
        Err(_elapsed) => {
            let late = format!("it did not confirm a message within {} s", PROBE_WITHIN.as_secs());
            Err(link.fault().unwrap_or(Fault::Unreachable(late)))
        }
    }
}

/// Keeps the status current while the adapter exists.
pub(super) async fn watch(shared: Arc<Shared>, link: Link, health: Arc<Health>) {
    let mut probed = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(fault) = link.fault() {
            health.set(Some(sentence(&link, fault.cause())));
            probed = Instant::now() - PROBE_EVERY;
            continue;
        }
        // Without events to publish, only a probe can show that the broker accepts events again.
        let refusal = shared
            .refusal()
            .filter(|_| shared.has_unsent() || shared.since_last_confirm().is_some());
        if let Some(refusal) = refusal {
            health.set(Some(sentence(&link, &refusal)));
            continue;
        }
        match shared.since_last_confirm() {
            Some(silence) if silence >= SILENT => {
                let cause = format!("it has confirmed nothing for {} s", silence.as_secs());
                health.set(Some(sentence(&link, &cause)));
            }
            // Confirms are pending.
            Some(_) => {}
            None => {
                let every = if health.problem().is_some() { PROBE_AGAIN } else { PROBE_EVERY };
                if probed.elapsed() >= every {
                    health.probe(&link).await;
                    probed = Instant::now();
                }
            }
        }
    }
}
