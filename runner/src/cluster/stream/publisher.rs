//! Publishes buffered events in order, with many unconfirmed at a time.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures::future::Either;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use protocol::names;
use tracing::warn;

use super::buffer::Waiting;
use super::shared::Shared;
use crate::cluster::amqp::{Fault, Link, topology};
use crate::cluster::retry::reconnect_pauses;

/// The number of events in one batch.
const BATCH: usize = 128;
/// The maximum number and total size of unconfirmed events.
const WINDOW: usize = 2048;
const WINDOW_BYTES: usize = 3 * 1024 * 1024;
const DELIVERY_MODE: u8 = 2;

/// Runs until the adapter ends.
pub(super) async fn publish(shared: Arc<Shared>, link: Link, stream: String) {
    let mut pauses = reconnect_pauses();
    let mut told = String::new();
    // `live` only fails once this worker has closed the link.
    while let Ok(live) = link.live().await {
        let mut progress = false;
        let fault = match live.confirming_channel().await {
            Ok(channel) => {
                // Confirms of the previous channel are lost, so its events are sent again.
                shared.change(super::buffer::Buffer::nothing_is_sent);
                flow(&shared, &channel, &stream, &mut progress).await
            }
            Err(fault) => fault,
        };
        shared.change(super::buffer::Buffer::nothing_is_sent);
        if progress {
            pauses.reset();
            told.clear();
        }
        if live.is_open() {
            shared.note_rejection(fault.cause());
            // Once for each reason. `supervise` reports a lost connection.
            if told != fault.cause() {
                told = fault.cause().to_owned();
                warn!(
                    broker = link.at(),
                    stream,
                    cause = told,
                    "events are not taken, and sent again"
                );
            }
            if matches!(fault, Fault::Missing(_)) {
                // If this fails, the next attempt gets here again.
                drop(link.declare_again(&live).await);
            }
            pauses.wait().await;
        }
    }
}

/// Publishes over one channel until it fails.
async fn flow(shared: &Shared, channel: &Channel, stream: &str, progress: &mut bool) -> Fault {
    let mut owed: VecDeque<PublisherConfirm> = VecDeque::new();
    let key = match topology::short(stream) {
        Ok(key) => key,
        Err(fault) => return fault,
    };
    loop {
        let batch = shared.take(BATCH, WINDOW, WINDOW_BYTES);
        if !batch.is_empty() {
            match send(channel, &key, &batch).await {
                Ok(confirms) => owed.extend(confirms),
                Err(fault) => return fault,
            }
        }
        let more = shared.has_unsent() && owed.len() < WINDOW;
        let confirmed = tokio::select! {
            biased;
            confirmed = next_confirms(&mut owed), if !owed.is_empty() => confirmed,
            () = std::future::ready(()), if more && !batch.is_empty() => continue,
            () = shared.work() => continue,
        };
        let (count, fault) = confirmed;
        if count > 0 {
            *progress = true;
            shared.confirm(count);
        }
        if let Some(fault) = fault {
            return fault;
        }
    }
}

/// Sends a batch in order.
async fn send(
    channel: &Channel,
    key: &ShortString,
    batch: &[Waiting],
) -> Result<Vec<PublisherConfirm>, Fault> {
    let mut sending = Vec::with_capacity(batch.len());
    for waiting in batch {
        // Mandatory, because a message to a deleted stream would otherwise be confirmed and lost.
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let properties = properties(waiting);
        let mut publishing = Box::pin(channel.basic_publish(
            ShortString::default(),
            key.clone(),
            options,
            &waiting.body,
            properties,
        ));
        // The first poll enqueues the message. Awaiting each one would cost a round trip to the
        // connection's thread per event.
        sending.push(match futures::poll!(publishing.as_mut()) {
            Poll::Ready(sent) => Either::Left(sent),
            Poll::Pending => Either::Right(publishing),
        });
    }
    let mut confirms = Vec::with_capacity(sending.len());
    for sent in sending {
        confirms.push(match sent {
            Either::Left(sent) => sent?,
            Either::Right(publishing) => publishing.await?,
        });
    }
    Ok(confirms)
}

fn properties(waiting: &Waiting) -> BasicProperties {
    let properties = BasicProperties::default()
        .with_content_type(names::CONTENT_TYPE.into())
        .with_delivery_mode(DELIVERY_MODE);
    let Some(run) = &waiting.run else { return properties };
    let mut headers = FieldTable::default();
    let value = AMQPValue::LongString(LongString::from(run.as_str()));
    headers.insert(names::HEADER_STREAM_FILTER.into(), value);
    properties.with_headers(headers)
}

/// Waits for the oldest confirm and takes those that are ready behind it. Returns their number and
/// the fault that follows them, if any.
async fn next_confirms(owed: &mut VecDeque<PublisherConfirm>) -> (usize, Option<Fault>) {
    std::future::poll_fn(|context| {
        let mut count = 0;
        while let Some(oldest) = owed.front_mut() {
            let Poll::Ready(confirmed) = Pin::new(oldest).poll(context) else { break };
            owed.pop_front();
            match confirmed.map_err(Fault::from).and_then(|confirmation| arrived(&confirmation)) {
                Ok(()) => count += 1,
                Err(fault) => return Poll::Ready((count, Some(fault))),
            }
        }
        if count > 0 { Poll::Ready((count, None)) } else { Poll::Pending }
    })
    .await
}

fn arrived(confirmation: &Confirmation) -> Result<(), Fault> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        // lapin attributes a returned message to any of those confirmed together. If the stream is
        // gone, every message is returned. The first one found here is therefore not later than the
        // first that was returned.
        Confirmation::Ack(Some(_)) => Err(Fault::Missing("the stream is not there".to_owned())),
        Confirmation::Nack(_) | Confirmation::NotRequested => {
            Err(Fault::Unreachable("the broker did not take an event".to_owned()))
        }
    }
}
