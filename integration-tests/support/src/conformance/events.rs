//! Conformance tests for the [`Events`] port.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::join_all;
use protocol::event::{Event, LogStream, Reason};
use protocol::id::{Epoch, RunId};
use protocol::time::Millis;

use super::{never, soon};
use runner::ports::{EventStream, Events, Host, Position, Published, Ticket};

/// An event stream under test. Other clients may use the stream at the same time.
pub struct EventsSubject {
    /// Included in every run ID. Unique to this call; letters and digits only.
    pub prefix: String,
    /// The stream.
    pub events: Arc<dyn Events>,
    /// The same stream through another node's adapter. May be the same value.
    pub other: Arc<dyn Events>,
    /// The clock.
    pub host: Arc<dyn Host>,
}

impl std::fmt::Debug for EventsSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventsSubject").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Asserts the contract of [`Events`].
pub async fn events(subject: EventsSubject) {
    let subject = &subject;
    Box::pin(events_stand_in_the_order_of_their_tickets(subject)).await;
    Box::pin(a_reader_begins_where_it_says(subject)).await;
    Box::pin(a_reader_follows(subject)).await;
    Box::pin(big_events_come_whole(subject)).await;
    Box::pin(emitters_beside_each_other_keep_their_order(subject)).await;
    Box::pin(what_is_discarded_holds_nobody_up(subject)).await;
}

impl EventsSubject {
    fn run(&self, name: &str) -> RunId {
        format!("r-{}-{name}", self.prefix).parse().expect("a prefix of letters and digits")
    }

    fn event(&self, run: &RunId, epoch: i64, seq: u64, text: &str) -> Event {
        let reason =
            Reason::Log { stream: LogStream::Stdout, offset: seq, partial: false, encoding: None };
        let mut event = Event::new(self.host.now(), reason, text.to_owned());
        event.run_id = Some(run.clone());
        event.epoch = Some(Epoch(epoch));
        event.seq = Some(seq);
        event
    }

    async fn emit(&self, event: Event) -> Ticket {
        soon("an emit", self.events.emit(event)).await.expect("an event is taken over")
    }

    async fn confirmed(&self, ticket: Ticket) {
        soon("a confirm", self.events.confirmed(ticket)).await.expect("an event is confirmed");
    }

    /// Emits events of a run with these sequence numbers and waits for the last confirm.
    async fn fill(&self, run: &RunId, seqs: std::ops::Range<u64>) -> Vec<Event> {
        let (mut sent, mut last) = (Vec::new(), Ticket::default());
        for seq in seqs {
            let event = self.event(run, 7, seq, &format!("line {seq}"));
            last = self.emit(event.clone()).await;
            sent.push(event);
        }
        self.confirmed(last).await;
        sent
    }

    async fn follow(&self, from: Position) -> EventStream {
        soon("a reader", self.other.follow(from)).await.expect("the stream can be read")
    }
}

/// Reads the next `count` events of a run, skipping those of other runs.
async fn read(stream: &mut EventStream, run: &RunId, count: usize) -> Vec<(u64, Event)> {
    let mut found: Vec<(u64, Event)> = Vec::new();
    let mut last = None;
    while found.len() < count {
        let published: Published = soon("the next event", stream.next())
            .await
            .expect("the stream continues")
            .expect("an event");
        assert!(last < Some(published.offset), "offsets grow");
        last = Some(published.offset);
        if let Some(event) = published.event().filter(|event| event.run_id.as_ref() == Some(run)) {
            assert_eq!(published.body, event.to_json(), "the bytes are the event's");
            // Delivery is at least once: skip repeats, identified by epoch and sequence number.
            if !found.iter().any(|(_, old)| (old.epoch, old.seq) == (event.epoch, event.seq)) {
                found.push((published.offset, event));
            }
        }
    }
    found
}

fn events_of(found: &[(u64, Event)]) -> Vec<Event> {
    found.iter().map(|(_, event)| event.clone()).collect()
}

async fn events_stand_in_the_order_of_their_tickets(subject: &EventsSubject) {
    let run = subject.run("order");
    let (mut sent, mut last) = (Vec::new(), None);
    for seq in 0..500 {
        let event = subject.event(&run, 3, seq, &format!("  line {seq} \"ä\" \u{1}"));
        let ticket = subject.emit(event.clone()).await;
        assert!(Some(ticket) > last, "tickets grow");
        last = Some(ticket);
        sent.push(event);
    }
    subject.confirmed(last.unwrap()).await;
    subject.confirmed(Ticket::default()).await;
    let mut stream = subject.follow(Position::First).await;
    let found = read(&mut stream, &run, sent.len()).await;
    assert_eq!(events_of(&found), sent);
    let end = subject.other.end().await.expect("the end can be asked for").expect("there is one");
    assert!(end >= found.last().unwrap().0, "what is confirmed is not behind the end");
}

async fn a_reader_begins_where_it_says(subject: &EventsSubject) {
    let run = subject.run("begin");
    let before = subject.host.now();
    let early = subject.fill(&run, 0..10).await;
    let mut next = subject.follow(Position::Next).await;
    let late = subject.fill(&run, 10..20).await;
    let all = [early, late.clone()].concat();

    let found = read(&mut next, &run, 10).await;
    assert_eq!(events_of(&found), late, "from now on");
    never("an eleventh", next.next()).await;

    let mut first = subject.follow(Position::First).await;
    let found = read(&mut first, &run, 20).await;
    assert_eq!(events_of(&found), all, "from the first");

    let mut since = subject.follow(Position::Since(before)).await;
    assert_eq!(events_of(&read(&mut since, &run, 20).await), all, "since a time");
    let mut old = subject.follow(Position::Since(Millis(0))).await;
    assert_eq!(events_of(&read(&mut old, &run, 20).await), all, "since before there was any");

    let offset = found[7].0;
    let mut from = subject.follow(Position::Offset(offset)).await;
    assert_eq!(read(&mut from, &run, 13).await, found[7..], "this one and what follows");
}

async fn a_reader_follows(subject: &EventsSubject) {
    let run = subject.run("follow");
    let mut one = subject.follow(Position::Next).await;
    let mut two = subject.follow(Position::Next).await;
    for round in 0..20 {
        let sent = subject.fill(&run, round * 3..round * 3 + 3).await;
        assert_eq!(events_of(&read(&mut one, &run, 3).await), sent);
    }
    assert_eq!(read(&mut two, &run, 60).await.len(), 60, "readers do not take from each other");
}

async fn big_events_come_whole(subject: &EventsSubject) {
    let run = subject.run("big");
    let mut stream = subject.follow(Position::Next).await;
    let (mut sent, mut last) = (Vec::new(), Ticket::default());
    for seq in 0..100 {
        let event = subject.event(&run, 1, seq, &"\u{0}x\n".repeat(22 * 1024));
        last = subject.emit(event.clone()).await;
        sent.push(event);
    }
    let found = read(&mut stream, &run, sent.len()).await;
    assert!(events_of(&found) == sent, "big events come as they were sent");
    subject.confirmed(last).await;
}

async fn emitters_beside_each_other_keep_their_order(subject: &EventsSubject) {
    let mut stream = subject.follow(Position::Next).await;
    let run = subject.run("beside");
    let emitters = (0..8).map(|epoch| {
        let run = &run;
        async move {
            let mut last = Ticket::default();
            for seq in 0..50 {
                last = subject.emit(subject.event(run, epoch, seq, "x")).await;
                tokio::task::yield_now().await;
            }
            subject.confirmed(last).await;
        }
    });
    join_all(emitters).await;
    let found = events_of(&read(&mut stream, &run, 400).await);
    for epoch in 0..8 {
        let seqs: Vec<_> = found
            .iter()
            .filter(|event| event.epoch == Some(Epoch(epoch)))
            .filter_map(|event| event.seq)
            .collect();
        assert_eq!(seqs, (0..50).collect::<Vec<_>>());
    }
}

async fn what_is_discarded_holds_nobody_up(subject: &EventsSubject) {
    let (lost, kept) = (subject.run("lost"), subject.run("kept"));
    let mut stream = subject.follow(Position::Next).await;
    let mut last = Ticket::default();
    for seq in 0..50 {
        subject.emit(subject.event(&lost, 4, seq, "of an owner that lost it")).await;
        subject.emit(subject.event(&lost, 5, seq, "of the next owner")).await;
        last = subject.emit(subject.event(&kept, 4, seq, "of another run")).await;
    }
    subject.events.discard(&lost, Epoch(4));
    subject.confirmed(last).await;
    subject.events.discard(&subject.run("never-seen"), Epoch(4));
    let after = subject.fill(&kept, 50..51).await;

    let found = events_of(&read(&mut stream, &kept, 51).await);
    assert_eq!(found.last(), after.last());
    let mut again = subject.follow(Position::First).await;
    let mut later = Vec::new();
    while later.len() < 50 {
        let (_, event) = read(&mut again, &lost, 1).await.remove(0);
        if event.epoch == Some(Epoch(5)) && !later.contains(&event.seq) {
            later.push(event.seq);
        }
    }
    assert_eq!(later, (0..50).map(Some).collect::<Vec<_>>(), "a later epoch is kept, in order");
}
