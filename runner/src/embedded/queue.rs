//! Command queues: one durable queue for each source, and one for dead letters.
//!
//! The number of deliveries is written before a message is delivered. A message that kills the
//! process therefore reaches its delivery limit too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use protocol::command;
use protocol::id::RunId;
use protocol::names;
use redb::{ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::disk::{Changed, Disk, Fault};
use super::rows::MESSAGES;
use crate::ports::{Message, QueueError};

/// Header of a dead letter with the reason, named as in RabbitMQ.
const DEATH_REASON: &str = "x-first-death-reason";
/// The reason if a message was delivered too often, named as in RabbitMQ.
pub(super) const DELIVERY_LIMIT: &str = "delivery_limit";
/// Header of a dead letter with its original queue, named as in RabbitMQ.
const DEATH_QUEUE: &str = "x-first-death-queue";

/// The queues shared by all workers of this process.
pub(super) struct Broker {
    disk: Arc<Disk>,
    lines: Mutex<HashMap<String, Line>>,
    next_id: AtomicU64,
    /// Notified when a message arrives.
    pub(super) arrived: Notify,
    /// The number of messages that exceeded the delivery limit since the queues were opened.
    exhausted: watch::Sender<u64>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// The IDs of the waiting messages of a queue. The messages are on disk.
#[derive(Default)]
struct Line {
    ready: BTreeSet<u64>,
    /// The number of handles of its node. Unused for the shared queues.
    handles: usize,
}

/// The stored properties of a message.
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

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its ID in the queue.
    pub id: u64,
    /// The original message, with the headers `x-first-death-reason` and `x-first-death-queue`.
    pub message: Message,
}

/// The outcome of taking a message.
pub(super) enum TakeOutcome {
    /// The message, and how often it has been delivered.
    Message(Message, u32),
    /// The delivery limit was exceeded, and the message is a dead letter now.
    Dead,
    /// The message does not exist.
    Nothing,
}

impl Broker {
    /// Opens the queues. Unsettled messages are available again. Messages in an earlier process's
    /// own queue are moved to the shared queues.
    pub(super) async fn open(disk: Arc<Disk>) -> Result<Self, Fault> {
        let (lines, next_id) = disk.write(take_over).await?;
        Ok(Self {
            disk,
            lines: Mutex::new(lines),
            next_id: AtomicU64::new(next_id),
            arrived: Notify::new(),
            exhausted: watch::Sender::default(),
        })
    }

    /// Waits until a start of a run has exceeded the delivery limit.
    pub(super) async fn start_exhausted(&self, run: &RunId) {
        let mut exhausted = self.exhausted.subscribe();
        exhausted.mark_changed();
        // `self` holds the sender, so this cannot fail.
        while exhausted.changed().await.is_ok() {
            if *exhausted.borrow_and_update() == 0 {
                continue;
            }
            let letters = self.dead_letters().await.unwrap_or_default();
            let is_start = |letter: &DeadLetter| {
                let DeadLetter { message, .. } = letter;
                message.kind.as_deref() == Some(command::START)
                    && message.id.as_deref() == Some(run.as_str())
                    && message.headers.get(DEATH_REASON).is_some_and(|why| why == DELIVERY_LIMIT)
            };
            if letters.iter().any(is_start) {
                return;
            }
        }
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

    /// Removes a message. Returns false if it does not exist.
    pub(super) async fn remove(&self, queue: String, id: u64) -> Result<bool, QueueError> {
        let removed = self.disk.write(move |txn| {
            let found = txn.open_table(MESSAGES)?.remove((queue.as_str(), id))?.is_some();
            Ok((found, if found { Changed::Yes } else { Changed::No }))
        });
        removed.await.map_err(|fault| self.error(fault))
    }

    /// Counts a handle of a node on its own queue.
    pub(super) fn attach(&self, own: &str) {
        self.lines.lock().entry(own.to_owned()).or_default().handles += 1;
    }

    /// Removes a handle of a node from its own queue.
    pub(super) fn detach(&self, own: &str) {
        if let Some(line) = self.lines.lock().get_mut(own) {
            line.handles -= 1;
        }
    }

    /// Whether a node has a handle on its own queue.
    pub(super) fn is_attached(&self, own: &str) -> bool {
        self.lines.lock().get(own).is_some_and(|line| line.handles > 0)
    }

    pub(super) async fn publish(&self, queue: String, message: Message) -> Result<(), QueueError> {
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

    /// Takes the first waiting message of a queue.
    pub(super) fn first(&self, queue: &str) -> Option<u64> {
        self.lines.lock().get_mut(queue)?.ready.pop_first()
    }

    /// Makes a message available.
    pub(super) fn ready(&self, queue: &str, id: u64) {
        self.lines.lock().entry(queue.to_owned()).or_default().ready.insert(id);
        self.arrived.notify_waiters();
    }

    /// Counts a delivery of a message and reads it.
    pub(super) async fn take(&self, queue: &str, id: u64) -> Result<TakeOutcome, Fault> {
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
                return Ok((TakeOutcome::Nothing, Changed::No));
            };
            if returned_too_often(deliveries) {
                move_to_dead_letters(&mut table, at, dead_id, DELIVERY_LIMIT)?;
                return Ok((TakeOutcome::Dead, Changed::Yes));
            }
            let row = (deliveries + 1, properties.as_slice(), message.body.as_slice());
            table.insert(at, row)?;
            Ok((TakeOutcome::Message(message, deliveries + 1), Changed::Yes))
        });
        let taken = taken.await?;
        if matches!(taken, TakeOutcome::Dead) {
            self.exhausted.send_modify(|count| *count += 1);
        }
        Ok(taken)
    }

    /// Moves a message to the dead letters.
    pub(super) async fn dead_letter(
        &self,
        queue: &str,
        id: u64,
        reason: &'static str,
    ) -> Result<(), QueueError> {
        let queue = queue.to_owned();
        let dead_id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let moved = self.disk.write(move |txn| {
            move_to_dead_letters(&mut txn.open_table(MESSAGES)?, (&queue, id), dead_id, reason)?;
            Ok(((), Changed::Yes))
        });
        moved.await.map_err(|fault| self.error(fault))?;
        if reason == DELIVERY_LIMIT {
            self.exhausted.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Converts a fault.
    pub(super) fn error(&self, fault: Fault) -> QueueError {
        let (Fault::Io(cause) | Fault::Unreadable(cause)) = fault;
        QueueError::Unreachable { at: self.disk.name(), cause }
    }
}

/// Returns true if a message with this many deliveries has exceeded the limit.
pub(super) fn returned_too_often(deliveries: u32) -> bool {
    i64::from(deliveries) > names::DELIVERY_LIMIT
}

/// Moves a message to the dead letters.
fn move_to_dead_letters(
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
    // The headers describe the first death, as in RabbitMQ.
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
