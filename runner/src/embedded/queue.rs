//! Commands: one durable line per source, and one for what was dead-lettered.
//!
//! How often a message was delivered is written before it is handed out, so that one which takes the
//! process down with it comes to its limit too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use protocol::command::{self, Disposition};
use protocol::id::NodeId;
use protocol::names;
use redb::{ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::DeadLetter;
use super::disk::{Changed, Disk, Fault, lock};
use super::rows::MESSAGES;
use crate::ports::{Consumer, Delivery, Message, Queue, QueueError, Route, Settle, Source};

/// Header of a dead letter, as a broker calls it: why it is dead.
const DEATH_REASON: &str = "x-first-death-reason";
/// Header of a dead letter, as a broker calls it: where it was.
const DEATH_QUEUE: &str = "x-first-death-queue";

/// What every worker of this process shares.
pub(super) struct Broker {
    disk: Arc<Disk>,
    lines: Mutex<HashMap<String, Line>>,
    next_id: AtomicU64,
    arrived: Notify,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// A queue: the numbers of what waits. The messages are on disk.
#[derive(Default)]
struct Line {
    ready: BTreeSet<u64>,
    /// How many handles of its node there are; the shared queues need none.
    handles: usize,
}

/// A message's properties as they are written.
#[derive(Serialize, Deserialize)]
struct Properties {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
}

type MessageTable<'txn> = redb::Table<'txn, (&'static str, u64), super::rows::MessageRow>;

fn insert(
    table: &mut MessageTable<'_>,
    at: (&str, u64),
    message: &Message,
) -> Result<(), redb::Error> {
    let Message { kind, id, headers, body } = message;
    let properties = Properties { kind: kind.clone(), id: id.clone(), headers: headers.clone() };
    let properties = serde_json::to_vec(&properties)
        .map_err(|error| redb::Error::Corrupted(format!("message {at:?}: {error}")))?;
    table.insert(at, (0, properties.as_slice(), body.as_slice()))?;
    Ok(())
}

fn message_of(at: (&str, u64), properties: &[u8], body: &[u8]) -> Result<Message, redb::Error> {
    let Properties { kind, id, headers } = serde_json::from_slice(properties)
        .map_err(|error| redb::Error::Corrupted(format!("message {at:?}: {error}")))?;
    Ok(Message { kind, id, headers, body: body.to_vec() })
}

/// What was found when a message was to be handed out.
enum Found {
    /// It is handed out for so-and-so-many-th time.
    Message(Message, u32),
    /// It has come back too often, and is a dead letter now.
    Dead,
    /// It is not there any more.
    Nothing,
}

impl Broker {
    /// What was not settled waits again; what lay in the own queue of an earlier process is moved to
    /// the shared ones.
    pub(super) async fn open(disk: Arc<Disk>) -> Result<Self, Fault> {
        let (lines, next_id) = disk.write(take_over).await?;
        Ok(Self {
            disk,
            lines: Mutex::new(lines),
            next_id: AtomicU64::new(next_id),
            arrived: Notify::new(),
        })
    }

    pub(super) async fn dead_letters(&self) -> Result<Vec<DeadLetter>, QueueError> {
        let read = self.disk.read(|txn| {
            let table = txn.open_table(MESSAGES)?;
            let mut letters = Vec::new();
            for row in table.range((names::DEAD_LETTER_QUEUE, 0)..)? {
                let (at, row) = row?;
                let (at, (_, properties, body)) = (at.value(), row.value());
                if at.0 != names::DEAD_LETTER_QUEUE {
                    break;
                }
                letters.push(DeadLetter { id: at.1, message: message_of(at, properties, body)? });
            }
            Ok(letters)
        });
        read.await.map_err(|fault| self.error(fault))
    }

    pub(super) async fn remove_dead_letter(&self, id: u64) -> Result<bool, QueueError> {
        self.remove(names::DEAD_LETTER_QUEUE.to_owned(), id).await
    }

    async fn remove(&self, queue: String, id: u64) -> Result<bool, QueueError> {
        let removed = self.disk.write(move |txn| {
            let found = txn.open_table(MESSAGES)?.remove((queue.as_str(), id))?.is_some();
            Ok((found, if found { Changed::Yes } else { Changed::No }))
        });
        removed.await.map_err(|fault| self.error(fault))
    }

    async fn publish(&self, queue: String, message: Message) -> Result<(), QueueError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let to = queue.clone();
        let written = self.disk.write(move |txn| {
            insert(&mut txn.open_table(MESSAGES)?, (&to, id), &message)?;
            Ok(((), Changed::Yes))
        });
        written.await.map_err(|fault| self.error(fault))?;
        self.ready(&queue, id);
        Ok(())
    }

    /// A message waits to be taken.
    fn ready(&self, queue: &str, id: u64) {
        lock(&self.lines).entry(queue.to_owned()).or_default().ready.insert(id);
        self.arrived.notify_waiters();
    }

    /// Counts a delivery of a message, and reads it.
    async fn take(&self, queue: &str, id: u64) -> Result<Found, Fault> {
        let queue = queue.to_owned();
        let dead_id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let taken = self.disk.write(move |txn| {
            let mut table = txn.open_table(MESSAGES)?;
            let at = (queue.as_str(), id);
            let Some((deliveries, properties, message)) = (match table.get(at)? {
                Some(row) => {
                    let (deliveries, properties, body) = row.value();
                    Some((deliveries, properties.to_vec(), message_of(at, properties, body)?))
                }
                None => None,
            }) else {
                return Ok((Found::Nothing, Changed::No));
            };
            if returned_too_often(deliveries) {
                bury(&mut table, at, dead_id, "delivery_limit")?;
                return Ok((Found::Dead, Changed::Yes));
            }
            let row = (deliveries + 1, properties.as_slice(), message.body.as_slice());
            table.insert(at, row)?;
            Ok((Found::Message(message, deliveries + 1), Changed::Yes))
        });
        taken.await
    }

    async fn dead_letter(
        &self,
        queue: &str,
        id: u64,
        reason: &'static str,
    ) -> Result<(), QueueError> {
        let queue = queue.to_owned();
        let dead_id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let moved = self.disk.write(move |txn| {
            bury(&mut txn.open_table(MESSAGES)?, (&queue, id), dead_id, reason)?;
            Ok(((), Changed::Yes))
        });
        moved.await.map_err(|fault| self.error(fault))
    }

    fn error(&self, fault: Fault) -> QueueError {
        let (Fault::Io(cause) | Fault::Unreadable(cause)) = fault;
        QueueError::Unreachable { at: self.disk.name(), cause }
    }
}

/// Whether a message that was delivered so often may not be delivered once more.
fn returned_too_often(deliveries: u32) -> bool {
    i64::from(deliveries) > names::DELIVERY_LIMIT
}

/// Moves a message to the dead letters.
fn bury(
    table: &mut MessageTable<'_>,
    at: (&str, u64),
    dead_id: u64,
    reason: &str,
) -> Result<(), redb::Error> {
    let Some(mut message) = (match table.remove(at)? {
        Some(row) => Some(message_of(at, row.value().1, row.value().2)?),
        None => None,
    }) else {
        return Ok(());
    };
    // The first death is the one that counts, as at a broker.
    message.headers.entry(DEATH_REASON.to_owned()).or_insert_with(|| reason.to_owned());
    message.headers.entry(DEATH_QUEUE.to_owned()).or_insert_with(|| at.0.to_owned());
    insert(table, (names::DEAD_LETTER_QUEUE, dead_id), &message)
}

type TakenOver = (HashMap<String, Line>, u64);

fn take_over(txn: &WriteTransaction) -> Result<(TakenOver, Changed), redb::Error> {
    let mut table = txn.open_table(MESSAGES)?;
    let (mut lines, mut next_id) = (HashMap::<String, Line>::new(), 0);
    let mut orphans = Vec::new();
    for row in table.iter()? {
        let (at, row) = row?;
        let (queue, id) = at.value();
        next_id = next_id.max(id + 1);
        if [names::JOBS_QUEUE, names::CONTROL_QUEUE, names::DEAD_LETTER_QUEUE].contains(&queue) {
            lines.entry(queue.to_owned()).or_default().ready.insert(id);
        } else {
            let (deliveries, properties, body) = row.value();
            let message = message_of((queue, id), properties, body)?;
            orphans.push((queue.to_owned(), id, deliveries, properties.to_vec(), message));
        }
    }
    let changed = if orphans.is_empty() { Changed::No } else { Changed::Yes };
    for (queue, id, deliveries, properties, message) in orphans {
        let start = message.kind.as_deref() == Some(command::START);
        let to = if start { names::JOBS_QUEUE } else { names::CONTROL_QUEUE };
        table.remove((queue.as_str(), id))?;
        table.insert((to, id), (deliveries, properties.as_slice(), message.body.as_slice()))?;
        lines.entry(to.to_owned()).or_default().ready.insert(id);
    }
    Ok(((lines, next_id), changed))
}

/// The queue as one node sees it.
pub(super) struct NodeQueue {
    broker: Arc<Broker>,
    own: String,
}

impl NodeQueue {
    pub(super) fn new(broker: Arc<Broker>, node: &NodeId) -> Self {
        let own = names::node_queue(node);
        lock(&broker.lines).entry(own.clone()).or_default().handles += 1;
        Self { broker, own }
    }
}

impl Drop for NodeQueue {
    fn drop(&mut self) {
        if let Some(line) = lock(&self.broker.lines).get_mut(&self.own) {
            line.handles -= 1;
        }
    }
}

#[async_trait]
impl Queue for NodeQueue {
    async fn open(&self, source: Source) -> Result<Box<dyn Consumer>, QueueError> {
        let queue = match source {
            Source::Jobs => names::JOBS_QUEUE.to_owned(),
            Source::Control => names::CONTROL_QUEUE.to_owned(),
            Source::Node => self.own.clone(),
        };
        let subscription = Subscription {
            broker: Arc::clone(&self.broker),
            queue,
            state: Mutex::new(State { out: None, open: true }),
            settled: Notify::new(),
        };
        Ok(Box::new(Reader { subscription: Arc::new(subscription), closed: false }))
    }

    async fn publish(&self, route: Route, message: Message) -> Result<(), QueueError> {
        let queue = match &route {
            Route::Jobs => names::JOBS_QUEUE.to_owned(),
            Route::Control => names::CONTROL_QUEUE.to_owned(),
            Route::DeadLetter => names::DEAD_LETTER_QUEUE.to_owned(),
            Route::Node(node) => {
                let queue = names::node_queue(node);
                let there =
                    lock(&self.broker.lines).get(&queue).is_some_and(|line| line.handles > 0);
                if !there {
                    return Err(QueueError::Unroutable { route: queue });
                }
                queue
            }
        };
        self.broker.publish(queue, message).await
    }
}

/// A subscription, as its reader and its delivery share it.
struct Subscription {
    broker: Arc<Broker>,
    queue: String,
    state: Mutex<State>,
    settled: Notify,
}

struct State {
    /// The delivery that is out.
    out: Option<u64>,
    /// Whether its reader is still there.
    open: bool,
}

struct Reader {
    subscription: Arc<Subscription>,
    closed: bool,
}

/// A message that was taken from its line and not handed out yet.
struct Reserved<'a> {
    subscription: &'a Subscription,
    id: u64,
    kept: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.subscription.broker.ready(&self.subscription.queue, self.id);
        }
    }
}

impl Subscription {
    /// Takes the first message from its line, where there is one.
    fn reserve(&self) -> Option<Reserved<'_>> {
        let id = lock(&self.broker.lines).get_mut(&self.queue)?.ready.pop_first()?;
        Some(Reserved { subscription: self, id, kept: false })
    }

    /// The next message, as soon as nothing is out and one waits.
    async fn next(self: &Arc<Self>) -> Result<Delivery, Fault> {
        loop {
            // Ask to be told before looking, so that nothing comes in between.
            let (arrived, settled) = (self.broker.arrived.notified(), self.settled.notified());
            tokio::pin!(arrived, settled);
            arrived.as_mut().enable();
            settled.as_mut().enable();
            if lock(&self.state).out.is_some() {
                settled.await;
                continue;
            }
            let Some(mut reserved) = self.reserve() else {
                arrived.await;
                continue;
            };
            let (id, found) = (reserved.id, self.broker.take(&self.queue, reserved.id).await?);
            match found {
                Found::Message(message, deliveries) => {
                    reserved.kept = true;
                    lock(&self.state).out = Some(id);
                    let subscription = Arc::clone(self);
                    let settler = Settler { subscription, id, deliveries, progress: Progress::Out };
                    return Ok(Delivery::new(message, deliveries > 1, Box::new(settler)));
                }
                Found::Dead | Found::Nothing => reserved.kept = true,
            }
        }
    }

    /// The delivery that is out is not; `false` where it was not this one.
    fn give_up(&self, id: u64) -> bool {
        let mut state = lock(&self.state);
        let ours = state.out == Some(id);
        if ours {
            state.out = None;
            self.settled.notify_waiters();
        }
        ours
    }
}

#[async_trait]
impl Consumer for Reader {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        let next = self.subscription.next().await;
        next.map_err(|fault| self.subscription.broker.error(fault))
    }

    async fn close(mut self: Box<Self>) {
        self.closed = true;
        lock(&self.subscription.state).open = false;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        let out = {
            let mut state = lock(&self.subscription.state);
            state.open = false;
            state.out.take()
        };
        if let Some(id) = out {
            self.subscription.broker.ready(&self.subscription.queue, id);
        }
    }
}

/// Settles the delivery that is out.
struct Settler {
    subscription: Arc<Subscription>,
    id: u64,
    deliveries: u32,
    progress: Progress,
}

/// How far a delivery is settled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nobody has said anything.
    Out,
    /// Somebody has, and may have gone before it was done.
    Begun,
    /// It is settled, or somebody else's.
    Done,
}

#[async_trait]
impl Settle for Settler {
    async fn settle(mut self: Box<Self>, disposition: Disposition) -> Result<(), QueueError> {
        let id = self.id;
        if lock(&self.subscription.state).out != Some(id) {
            self.progress = Progress::Done;
            return Err(QueueError::DeliveryLost);
        }
        self.progress = Progress::Begun;
        let Subscription { broker, queue, .. } = &*self.subscription;
        let outcome = match disposition {
            Disposition::Ack => broker.remove(queue.clone(), id).await.map(drop),
            Disposition::DeadLetter => broker.dead_letter(queue, id, "rejected").await,
            Disposition::Requeue if returned_too_often(self.deliveries) => {
                broker.dead_letter(queue, id, "delivery_limit").await
            }
            Disposition::Requeue => {
                broker.ready(queue, id);
                Ok(())
            }
        };
        let ours = self.subscription.give_up(id);
        if outcome.is_err() && ours {
            broker.ready(queue, id);
        }
        self.progress = Progress::Done;
        outcome
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        let back = match self.progress {
            Progress::Done => false,
            // What was done already is not there when it is taken again.
            Progress::Begun => true,
            // An open subscription keeps it, as a broker would; one that was closed has no other way
            // to give it back.
            Progress::Out => !lock(&self.subscription.state).open,
        };
        if back && self.subscription.give_up(self.id) {
            self.subscription.broker.ready(&self.subscription.queue, self.id);
        }
    }
}
