//! Reads the stream across reconnects.

use std::time::Duration;

use futures::future::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use protocol::time::Millis;
use tracing::debug;

use crate::cluster::amqp::{Fault, Link, topology};
use crate::cluster::retry::reconnect_pauses;
use crate::ports::{EventStream, EventsError, Pauses, Position, Published};

/// The maximum number of unacknowledged messages.
const AHEAD: u16 = 256;
/// Messages are acknowledged at the latest after this many.
const ACK_EVERY: usize = 64;
/// The timeout of a request to the broker.
const DEADLINE: Duration = Duration::from_secs(15);
/// The timeout of the first message, for a stream with and without messages according to the
/// broker.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
const NO_MESSAGE: Duration = Duration::from_secs(1);

/// A position in the stream, as AMQP expresses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    First,
    /// The last chunk, with up to a few hundred messages.
    LastChunk,
    Since(Millis),
    Offset(u64),
}

impl Start {
    fn argument(self) -> AMQPValue {
        match self {
            Self::First => AMQPValue::LongString("first".into()),
            Self::LastChunk => AMQPValue::LongString("last".into()),
            Self::Since(Millis(at)) => {
                AMQPValue::Timestamp(u64::try_from(at / 1000).unwrap_or_default())
            }
            Self::Offset(offset) => {
                AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX))
            }
        }
    }
}

/// A subscription on one channel.
struct ChannelSubscription {
    consumer: lapin::Consumer,
    channel: Channel,
    /// The delivery tag of the newest unacknowledged message, and their number.
    unacked: Option<u64>,
    count: usize,
}

impl ChannelSubscription {
    async fn open(link: &Link, name: &str, from: Start) -> Result<Self, Fault> {
        let live = link.live().await?;
        let channel = live.channel().await?;
        match Self::consume(channel, name, from).await {
            // The refusal has closed the channel.
            Err(Fault::Missing(_)) => {
                link.declare_again(&live).await?;
                Self::consume(live.channel().await?, name, from).await
            }
            other => other,
        }
    }

    async fn consume(channel: Channel, name: &str, from: Start) -> Result<Self, Fault> {
        // A stream can only be consumed with a prefetch limit.
        channel.basic_qos(AHEAD, BasicQosOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), from.argument());
        let (name, tag) = (topology::short(name)?, ShortString::default());
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(name, tag, options, arguments).await?;
        Ok(Self { consumer, channel, unacked: None, count: 0 })
    }

    /// Returns the next message. If none is ready, first acknowledges the previous ones: the broker
    /// closes a channel with messages that remain unacknowledged for long.
    async fn next(&mut self) -> Result<Delivery, Fault> {
        if self.count >= ACK_EVERY {
            self.ack().await?;
        }
        let ready = self.consumer.next().now_or_never();
        let came = match ready {
            Some(came) => came,
            None => {
                self.ack().await?;
                self.consumer.next().await
            }
        };
        let delivery =
            came.ok_or_else(|| Fault::Unreachable("the stream was deleted".to_owned()))??;
        self.unacked = Some(delivery.delivery_tag);
        self.count += 1;
        Ok(delivery)
    }

    async fn ack(&mut self) -> Result<(), Fault> {
        if let Some(tag) = self.unacked.take() {
            self.count = 0;
            self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
        }
        Ok(())
    }

    /// Waits until the broker has processed all requests on this channel.
    async fn settle(&mut self) -> Result<(), Fault> {
        self.ack().await?;
        Ok(self.channel.basic_qos(AHEAD, BasicQosOptions::default()).await?)
    }
}

/// Returns the offset of a message.
fn offset(delivery: &Delivery) -> Option<u64> {
    let headers = delivery.properties.headers().as_ref()?;
    let AMQPValue::LongLongInt(offset) = headers.inner().get("x-stream-offset")? else {
        return None;
    };
    u64::try_from(*offset).ok()
}

/// A reader that resumes after the last message it has seen.
struct Following {
    link: Link,
    name: String,
    from: Start,
    reading: Option<ChannelSubscription>,
    pauses: Pauses,
    over: bool,
}

pub(super) async fn follow(
    link: Link,
    name: String,
    from: Position,
) -> Result<EventStream, EventsError> {
    let at = link.at().to_owned();
    let opening = async {
        let from = match from {
            Position::First => Start::First,
            Position::Since(at) => Start::Since(at),
            Position::Offset(offset) => Start::Offset(offset),
            // By offset, so that nothing is skipped that is published during a reconnect.
            Position::Next => last_offset(&link, &name)
                .await?
                .map_or(Start::First, |last| Start::Offset(last + 1)),
        };
        let reading = Some(ChannelSubscription::open(&link, &name, from).await?);
        Ok(Following {
            link: link.clone(),
            name,
            from,
            reading,
            pauses: reconnect_pauses(),
            over: false,
        })
    };
    let following = in_time(&link, opening).await.map_err(|fault: Fault| fault.of_stream(&at))?;
    Ok(stream::unfold(following, step).boxed())
}

async fn step(mut following: Following) -> Option<(Result<Published, EventsError>, Following)> {
    while !following.over {
        match following.advance().await {
            Ok(Some(published)) => return Some((Ok(published), following)),
            Ok(None) => {}
            Err(fault) => {
                following.reading = None;
                if matches!(fault, Fault::Denied(_)) {
                    following.over = true;
                    let error = fault.of_stream(following.link.at());
                    return Some((Err(error), following));
                }
                debug!(cause = fault.cause(), from = ?following.from, "the stream is opened again");
                following.pauses.wait().await;
            }
        }
    }
    None
}

impl Following {
    async fn advance(&mut self) -> Result<Option<Published>, Fault> {
        let reading = match &mut self.reading {
            Some(reading) => reading,
            none => {
                let reading = ChannelSubscription::open(&self.link, &self.name, self.from).await?;
                none.insert(reading)
            }
        };
        let delivery = reading.next().await?;
        self.pauses.reset();
        let Some(offset) = offset(&delivery) else { return Ok(None) };
        if matches!(self.from, Start::Offset(wanted) if offset < wanted) {
            return Ok(None);
        }
        self.from = Start::Offset(offset + 1);
        Ok(Some(Published { offset, body: delivery.data }))
    }
}

/// Returns the offset of the last message.
pub(super) async fn end(link: &Link, name: &str) -> Result<Option<u64>, EventsError> {
    let asking = last_offset(link, name);
    in_time(link, asking).await.map_err(|fault| fault.of_stream(link.at()))
}

/// Returns the offset of the last message. The broker reports only the start of the last chunk, so
/// the chunk is read to its end. All committed messages arrive before the reply to a request made
/// after the first message.
async fn last_offset(link: &Link, name: &str) -> Result<Option<u64>, Fault> {
    let mut reading = ChannelSubscription::open(link, name, Start::LastChunk).await?;
    let passive = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
    let stands =
        reading.channel.queue_declare(topology::short(name)?, passive, FieldTable::default());
    let patience = if stands.await?.message_count() > 0 { FIRST_MESSAGE } else { NO_MESSAGE };
    let Ok(first) = tokio::time::timeout(patience, reading.next()).await else { return Ok(None) };
    let mut last = offset(&first?);
    loop {
        reading.settle().await?;
        let before = last;
        while let Some(came) = reading.consumer.next().now_or_never() {
            let delivery =
                came.ok_or_else(|| Fault::Unreachable("the stream was deleted".to_owned()))??;
            last = last.max(offset(&delivery));
            reading.unacked = Some(delivery.delivery_tag);
        }
        if last == before {
            return Ok(last);
        }
    }
}

async fn in_time<T>(link: &Link, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_elapsed| {
        Err(link.fault().unwrap_or_else(|| {
            Fault::Unreachable(format!("it did not answer within {} s", DEADLINE.as_secs()))
        }))
    })
}
