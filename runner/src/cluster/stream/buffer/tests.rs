use super::*;

fn run(name: &str) -> RunId {
    format!("r-{name}").parse().unwrap()
}

fn push(buffer: &mut Buffer, name: &str, epoch: i64, size: usize) -> Option<u64> {
    let body = Bytes::from(vec![b'x'; size]);
    buffer.push(Some(run(name)), Some(Epoch(epoch)), &body)
}

fn tickets(waiting: &[Waiting]) -> Vec<u64> {
    waiting.iter().map(|waiting| waiting.ticket).collect()
}

/// Adds events until there is no room. Returns the newest ticket.
fn fill(buffer: &mut Buffer) -> u64 {
    let mut last = 0;
    while let Some(ticket) = push(buffer, "a", 1, 100_000) {
        last = ticket;
    }
    last
}

#[test]
fn events_are_confirmed_in_the_order_of_their_tickets() {
    let mut buffer = Buffer::default();
    assert_eq!(buffer.done(), 0);
    for expected in 1..=5 {
        assert_eq!(push(&mut buffer, "a", 1, 10), Some(expected));
    }
    assert_eq!(tickets(&buffer.take(3, 100, 1 << 20)), [1, 2, 3]);
    assert_eq!(tickets(&buffer.take(9, 4, 1 << 20)), [4], "the window holds four");
    buffer.confirm();
    buffer.confirm();
    assert_eq!(buffer.done(), 2);
    assert_eq!(tickets(&buffer.take(9, 100, 1 << 20)), [5]);
}

#[test]
fn after_a_lost_connection_unconfirmed_events_are_resent_in_order() {
    let mut buffer = Buffer::default();
    for _ in 0..6 {
        push(&mut buffer, "a", 1, 10);
    }
    buffer.take(4, 100, 1 << 20);
    buffer.confirm();
    buffer.nothing_is_sent();
    assert_eq!(tickets(&buffer.take(9, 100, 1 << 20)), [2, 3, 4, 5, 6]);
}

#[test]
fn discarded_events_count_as_done_and_are_not_sent() {
    let mut buffer = Buffer::default();
    for name in ["lost", "kept", "lost", "kept"] {
        push(&mut buffer, name, 4, 10);
    }
    push(&mut buffer, "lost", 5, 10);
    buffer.take(1, 100, 1 << 20);
    buffer.discard(&run("lost"), Epoch(4));
    assert_eq!(buffer.done(), 1, "the first is in flight, but has no waiter");
    assert_eq!(tickets(&buffer.take(9, 100, 1 << 20)), [2, 4, 5]);
    buffer.nothing_is_sent();
    assert_eq!(tickets(&buffer.take(9, 100, 1 << 20)), [2, 4, 5], "nor is it sent again");
    assert_eq!(push(&mut buffer, "lost", 4, 10), Some(6), "what comes late is dropped too");
    for _ in 0..3 {
        buffer.confirm();
    }
    assert_eq!(buffer.done(), 6);
}

#[test]
fn events_beyond_the_memory_limit_go_to_disk_and_return_in_order() {
    let mut buffer = Buffer::default();
    let mut last = fill(&mut buffer);
    assert!(buffer.front_bytes <= FRONT_BYTES && buffer.tail_bytes <= TAIL_BYTES);
    let mut disk: VecDeque<Waiting> = VecDeque::new();
    for _ in 0..8 {
        assert!(buffer.wants_spill());
        disk.extend(buffer.take_tail());
        buffer.spilled();
        last = fill(&mut buffer);
    }
    let mut seen = Vec::new();
    while buffer.done() < last {
        let taken = buffer.take(16, 64, 1 << 20);
        seen.extend(tickets(&taken));
        for _ in &taken {
            buffer.confirm();
        }
        if buffer.wants_refill() {
            let read: Vec<Waiting> = disk.drain(..disk.len().min(5)).collect();
            let oldest = disk.front().map(|waiting| waiting.ticket);
            buffer.refill(Refill { read, oldest, lost: 0, unreadable: None });
            buffer.advance();
        }
    }
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
}

#[test]
fn a_batch_that_could_not_be_written_keeps_its_position() {
    let mut buffer = Buffer::default();
    let last = fill(&mut buffer);
    let before = buffer.done();
    let batch = buffer.take_tail();
    assert_eq!(buffer.done(), before);
    buffer.not_spilled(batch);
    let mut seen = Vec::new();
    while buffer.done() < last {
        seen.extend(tickets(&buffer.take(1, 64, 1 << 20)));
        buffer.confirm();
        buffer.advance();
    }
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
}

#[test]
fn an_event_of_any_size_fits_into_an_empty_buffer() {
    let mut buffer = Buffer::default();
    assert!(push(&mut buffer, "a", 1, FRONT_BYTES * 2).is_some());
    assert!(push(&mut buffer, "a", 1, TAIL_BYTES * 2).is_some());
    assert!(push(&mut buffer, "a", 1, 1).is_none());
    assert_eq!(buffer.take(9, 9, 1).len(), 1);
}

#[test]
fn unconfirmed_events_are_counted_in_memory_and_on_disk() {
    let mut buffer = Buffer::default();
    let total = |buffer: &Buffer| {
        let Unconfirmed { on_disk, in_memory } = buffer.unconfirmed();
        (on_disk, in_memory.values().sum::<u64>())
    };
    let last = fill(&mut buffer);
    let batch = buffer.take_tail();
    assert_eq!(total(&buffer), (0, last), "what is being written is not on disk yet");
    buffer.spilled();
    let spilled = batch.len() as u64;
    assert_eq!(total(&buffer), (spilled, last - spilled));
    let in_front = buffer.front.len();
    buffer.take(in_front, in_front, usize::MAX);
    for _ in 0..in_front {
        buffer.confirm();
    }
    let read = batch[..1].to_vec();
    let oldest = batch.get(2).map(|waiting| waiting.ticket);
    let unreadable = batch[1].ticket;
    let refill = Refill { read, oldest, lost: 1, unreadable: Some(unreadable..=unreadable) };
    buffer.refill(refill);
    assert!(buffer.is_unreadable(unreadable));
    assert!(!buffer.is_unreadable(unreadable - 1) && !buffer.is_unreadable(unreadable + 1));
    let waits = last - in_front as u64 - 1;
    assert_eq!(total(&buffer), (spilled - 1, waits + 1 - spilled), "one cannot be read");
}
