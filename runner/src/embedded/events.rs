//! The event stream: a bounded buffer, then packs of events in the file. Commits are shared with
//! all other pending work.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use parking_lot::Mutex;
use protocol::event::Event;
use protocol::id::{Epoch, RunId};
use protocol::time::Millis;
use redb::{ReadTransaction, ReadableTable, WriteTransaction};
use tokio::sync::watch;

use super::disk::{Changed, Disk, Fault, WriteWork};
use super::rows::{EVENT_TIMES, EVENTS};
use crate::ports::{EventStream, Events, EventsError, Host, Position, Published, Ticket};

/// The maximum size of buffered events. Limits how far a step can run ahead of the disk.
const BUFFER_BYTES: usize = 2 << 20;
/// The maximum size of events in one commit. Limits how long a transaction waits for output.
const COMMIT_BYTES: usize = 1 << 20;
/// The maximum size of a pack. redb rounds a long value up to a power of two of pages.
const PACK_BYTES: usize = 500_000;
/// The resolution of the time index, and the interval between removals of old events.
const TICK_MILLIS: i64 = 1000;
/// The maximum number of old packs removed in one commit.
const REMOVED_AT_ONCE: usize = 1024;
/// The delay after a disk error.
const RETRY: Duration = Duration::from_secs(1);

/// The event stream.
pub(super) struct FileEvents {
    disk: Arc<Disk>,
    shared: Arc<Shared>,
}

/// The state in memory.
struct Shared {
    host: Arc<dyn Host>,
    retention_millis: i64,
    buffer: Mutex<Buffer>,
    /// Every ticket below this one is on disk or was discarded.
    done: watch::Sender<u64>,
    /// The offset of the next event written to disk.
    end: watch::Sender<u64>,
}

#[derive(Default)]
struct Buffer {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    next_ticket: u64,
    /// The number of events, from the first, in the current transaction.
    in_flight: usize,
    /// Whether a flush is submitted.
    flushing: bool,
    /// The latest row of the time index.
    latest_tick: i64,
}

struct Waiting {
    ticket: u64,
    of: Option<(RunId, Epoch)>,
    body: Bytes,
}

impl std::fmt::Debug for FileEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileEvents").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl FileEvents {
    /// Opens the stream, and continues at the end of the file.
    pub(super) async fn open(
        disk: Arc<Disk>,
        host: Arc<dyn Host>,
        retention: Duration,
    ) -> Result<Self, Fault> {
        let (end, latest_tick) = disk
            .read(|txn| {
                let end = match txn.open_table(EVENTS)?.last()? {
                    Some((first, pack)) => first.value() + count(pack.value()),
                    None => 0,
                };
                let tick = txn.open_table(EVENT_TIMES)?.last()?.map(|(at, _)| at.value());
                Ok((end, tick.unwrap_or(i64::MIN)))
            })
            .await?;
        let buffer = Buffer { next_ticket: 1, latest_tick, ..Buffer::default() };
        let shared = Shared {
            host,
            retention_millis: i64::try_from(retention.as_millis()).unwrap_or(i64::MAX),
            buffer: Mutex::new(buffer),
            done: watch::Sender::new(1),
            end: watch::Sender::new(end),
        };
        Ok(Self { disk, shared: Arc::new(shared) })
    }

    fn flush(&self) {
        flush(&self.disk, &self.shared);
    }

    fn error(&self, fault: Fault) -> EventsError {
        let (Fault::Io(cause) | Fault::Unreadable(cause)) = fault;
        EventsError::Unreachable { at: self.disk.name(), cause }
    }
}

/// Submits a flush of the buffered events, unless there is one already.
fn flush(disk: &Arc<Disk>, shared: &Arc<Shared>) {
    {
        let mut buffer = shared.buffer.lock();
        if buffer.flushing || buffer.waiting.is_empty() {
            return;
        }
        buffer.flushing = true;
    }
    let flush = Flush { disk: Arc::clone(disk), shared: Arc::clone(shared), end: 0, tick: None };
    disk.submit(Box::new(flush));
}

#[async_trait]
impl Events for FileEvents {
    async fn emit(&self, event: Event) -> Result<Ticket, EventsError> {
        let body = Bytes::from(event.to_json());
        let of = event.run_id.zip(event.epoch).filter(|_| !event.reason.is_ending());
        let mut done = self.shared.done.subscribe();
        loop {
            done.mark_unchanged();
            {
                let mut buffer = self.shared.buffer.lock();
                if buffer.waiting.is_empty() || buffer.bytes + body.len() <= BUFFER_BYTES {
                    let ticket = buffer.next_ticket;
                    buffer.next_ticket += 1;
                    buffer.bytes += body.len();
                    buffer.waiting.push_back(Waiting { ticket, of, body });
                    drop(buffer);
                    self.flush();
                    return Ok(Ticket(ticket));
                }
            }
            self.progress(&mut done).await;
        }
    }

    async fn confirmed(&self, ticket: Ticket) -> Result<(), EventsError> {
        let mut done = self.shared.done.subscribe();
        while *done.borrow_and_update() <= ticket.0 {
            self.progress(&mut done).await;
        }
        Ok(())
    }

    fn discard(&self, run: &RunId, up_to: Epoch) {
        let mut buffer = self.shared.buffer.lock();
        let in_flight = buffer.in_flight;
        let mut at = 0;
        let mut freed = 0;
        buffer.waiting.retain(|waiting| {
            at += 1;
            let lost = waiting.of.as_ref().is_some_and(|(of, epoch)| of == run && *epoch <= up_to);
            let keep = at <= in_flight || !lost;
            if !keep {
                freed += waiting.body.len();
            }
            keep
        });
        buffer.bytes -= freed;
        self.shared.notify(&buffer);
    }

    async fn follow(&self, from: Position) -> Result<EventStream, EventsError> {
        let end = self.shared.end.subscribe();
        let cursor = match from {
            Position::First => 0,
            Position::Next => *end.borrow(),
            Position::Offset(offset) => offset,
            Position::Since(Millis(at)) => {
                let found = self.disk.read(move |txn| {
                    let times = txn.open_table(EVENT_TIMES)?;
                    Ok(times.range(..=at)?.next_back().transpose()?.map(|(_, first)| first.value()))
                });
                found.await.map_err(|fault| self.error(fault))?.unwrap_or(0)
            }
        };
        let reader = Reader {
            disk: Arc::clone(&self.disk),
            end,
            cursor,
            ready: VecDeque::new(),
            ended: false,
        };
        Ok(stream::unfold(reader, Reader::next).boxed())
    }

    async fn end(&self) -> Result<Option<u64>, EventsError> {
        Ok(self.shared.end.borrow().checked_sub(1))
    }
}

impl FileEvents {
    /// Waits for a commit. After a while, submits another flush in case the last one failed.
    async fn progress(&self, done: &mut watch::Receiver<u64>) {
        // `shared` owns the sender.
        if let Err(late) = tokio::time::timeout(RETRY, done.changed()).await {
            tracing::debug!(%late, "events wait for the disk");
            self.flush();
        }
    }
}

impl Shared {
    /// Notifies waiters of the completed tickets.
    fn notify(&self, buffer: &Buffer) {
        self.done.send_replace(buffer.waiting.front().map_or(buffer.next_ticket, |it| it.ticket));
    }
}

/// Writes buffered events to disk.
struct Flush {
    disk: Arc<Disk>,
    shared: Arc<Shared>,
    end: u64,
    tick: Option<i64>,
}

impl WriteWork for Flush {
    fn apply(&mut self, txn: &WriteTransaction) -> Result<Changed, redb::Error> {
        let (bodies, latest_tick) = {
            let mut buffer = self.shared.buffer.lock();
            let bodies = first_of(&buffer.waiting);
            buffer.in_flight = bodies.len();
            (bodies, buffer.latest_tick)
        };
        if bodies.is_empty() {
            return Ok(Changed::No);
        }
        let first = *self.shared.end.borrow();
        // Keeps the index in order even if the clock is set back.
        let now = self.shared.host.now().0.max(latest_tick);
        self.tick = (latest_tick == i64::MIN || now - latest_tick >= TICK_MILLIS).then_some(now);
        self.end = append(txn, first, &bodies)?;
        if let Some(now) = self.tick {
            txn.open_table(EVENT_TIMES)?.insert(now, first)?;
            forget(txn, now.saturating_sub(self.shared.retention_millis))?;
        }
        Ok(Changed::Yes)
    }

    fn end(self: Box<Self>, outcome: Result<(), Fault>) {
        let again = {
            let mut buffer = self.shared.buffer.lock();
            if let (Ok(()), true) = (&outcome, buffer.in_flight > 0) {
                let sent = buffer.in_flight;
                let freed: usize = buffer.waiting.drain(..sent).map(|it| it.body.len()).sum();
                buffer.bytes -= freed;
                buffer.latest_tick = self.tick.unwrap_or(buffer.latest_tick);
                self.shared.end.send_replace(self.end);
            }
            buffer.in_flight = 0;
            buffer.flushing = false;
            self.shared.notify(&buffer);
            outcome.is_ok()
        };
        match outcome {
            Ok(()) => {}
            Err(Fault::Io(cause) | Fault::Unreadable(cause)) => {
                tracing::warn!(path = self.disk.name(), cause, "cannot write events; trying again");
            }
        }
        // After a failure, waiters submit the next flush. An immediate retry would waste CPU time.
        if again {
            flush(&self.disk, &self.shared);
        }
    }
}

/// Returns the first buffered events, up to the size of a commit.
fn first_of(waiting: &VecDeque<Waiting>) -> Vec<Bytes> {
    let mut bytes = 0;
    waiting
        .iter()
        .take_while(|it| {
            let fits = bytes == 0 || bytes + it.body.len() <= COMMIT_BYTES;
            bytes += it.body.len();
            fits
        })
        .map(|it| it.body.clone())
        .collect()
}

/// Writes events in packs, starting at an offset. Returns the offset after them.
fn append(txn: &WriteTransaction, first: u64, bodies: &[Bytes]) -> Result<u64, redb::Error> {
    let mut table = txn.open_table(EVENTS)?;
    let (mut pack, mut start, mut next) = (Vec::new(), first, first);
    for body in bodies {
        if !pack.is_empty() && pack.len() + body.len() > PACK_BYTES {
            table.insert(start, pack.as_slice())?;
            pack.clear();
            start = next;
        }
        // The length of an event is far below 4 GiB: a `Log` event has 64 KiB of text.
        pack.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        pack.extend_from_slice(body);
        next += 1;
    }
    table.insert(start, pack.as_slice())?;
    Ok(next)
}

/// Returns the events in a pack.
fn unpack(mut pack: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = pack.split_first_chunk::<4>()?;
        let (body, rest) =
            rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        pack = rest;
        Some(body)
    })
}

fn count(pack: &[u8]) -> u64 {
    unpack(pack).map(|_| 1).sum()
}

/// Removes events older than a time: whole packs, but not the last one, which holds the offset.
fn forget(txn: &WriteTransaction, before: i64) -> Result<(), redb::Error> {
    let mut times = txn.open_table(EVENT_TIMES)?;
    // The events of a row were written within one tick of its time.
    let young = before.saturating_sub(TICK_MILLIS).saturating_add(1);
    let Some(kept_from) = times.range(young..)?.next().transpose()?.map(|row| row.1.value()) else {
        return Ok(());
    };
    let mut events = txn.open_table(EVENTS)?;
    // A pack ends at the start of the next one.
    let mut old = Vec::new();
    let mut packs = events.iter()?;
    let mut first = packs.next().transpose()?.map(|(first, _)| first.value());
    for next in packs.take(REMOVED_AT_ONCE) {
        let next = next?.0.value();
        if next > kept_from {
            break;
        }
        old.extend(first.replace(next));
    }
    for first in old {
        events.remove(first)?;
    }
    let oldest = events.first()?.map_or(0, |(first, _)| first.value());
    times.retain_in(..young, |_, first| first >= oldest)?;
    Ok(())
}

/// A reader of the stream.
struct Reader {
    disk: Arc<Disk>,
    end: watch::Receiver<u64>,
    cursor: u64,
    ready: VecDeque<Published>,
    ended: bool,
}

impl Reader {
    async fn next(mut self) -> Option<(Result<Published, EventsError>, Self)> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(published) = self.ready.pop_front() {
                self.cursor = published.offset + 1;
                return Some((Ok(published), self));
            }
            let end = *self.end.borrow_and_update();
            if self.cursor >= end {
                // The stream itself has been dropped, so nothing more will come.
                self.end.changed().await.ok()?;
                continue;
            }
            let cursor = self.cursor;
            match self.disk.read(move |txn| pack_at(txn, cursor)).await {
                Ok(ready) if ready.is_empty() => self.cursor = end,
                Ok(ready) => self.ready = ready,
                Err(Fault::Io(cause) | Fault::Unreadable(cause)) => {
                    self.ended = true;
                    let at = self.disk.name();
                    return Some((Err(EventsError::Unreachable { at, cause }), self));
                }
            }
        }
    }
}

/// Returns the events of the pack at an offset, from that offset on, or those of the next pack.
fn pack_at(txn: &ReadTransaction, offset: u64) -> Result<VecDeque<Published>, redb::Error> {
    let table = txn.open_table(EVENTS)?;
    let before = table.range(..=offset)?.next_back().transpose()?;
    let after = table.range(offset.saturating_add(1)..)?.next().transpose()?;
    for (first, pack) in before.into_iter().chain(after) {
        let found: VecDeque<_> = (first.value()..)
            .zip(unpack(pack.value()))
            .filter(|(at, _)| *at >= offset)
            .map(|(offset, body)| Published { offset, body: body.to_vec() })
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(VecDeque::new())
}
