//! Reads the events of one run by the rules of docs/wire.md section 4: it drops duplicates, takes
//! state only from the highest epoch, and reports gaps. Pure: events in, items out.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use protocol::event::{Event, LogStream, Reason};
use protocol::id::{Epoch, RunId, StepName};
use protocol::run::{Cause, Status};

/// An item of a run's log.
#[derive(Debug, Clone, PartialEq)]
pub enum LogItem {
    /// A change of state.
    State(Box<Event>),
    /// Text of a step or of the runner.
    Text(Box<Text>),
    /// Something that was published and is missing.
    Missing(Missing),
}

/// Bytes of one stream, including the newline if there was one.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// The stream.
    pub stream: LogStream,
    /// The bytes, exactly as the step wrote them.
    pub bytes: Vec<u8>,
    /// The event that carried them.
    pub event: Event,
}

/// A gap in a run's events. Every byte of a step is in a numbered event, so a missing number is the
/// only kind of gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// Events of one epoch. Both bounds are inclusive.
    Events {
        /// The epoch.
        epoch: Epoch,
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// A text whose base64 is invalid.
    Unreadable {
        /// The epoch of its event.
        epoch: Epoch,
        /// Its number.
        seq: u64,
    },
    /// The event that ends the run.
    Ending,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events { epoch, from, to } if from == to => {
                write!(f, "event {from} of epoch {epoch}")
            }
            Self::Events { epoch, from, to } => write!(f, "events {from} to {to} of epoch {epoch}"),
            Self::Unreadable { epoch, seq } => {
                write!(f, "the text of event {seq} of epoch {epoch}, which cannot be decoded")
            }
            Self::Ending => f.write_str("the event that ends the run"),
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// `passed`, `failed` or `stopped`.
    pub status: Status,
    /// The cause, if the run did not pass.
    pub cause: Option<Cause>,
}

impl Ending {
    /// The end of the run that an event reports. `None` if it reports none.
    #[must_use]
    pub fn of(reason: &Reason) -> Option<Self> {
        if let Reason::PipelineFailed { cause, .. } = reason {
            return Some(Self { status: Status::Failed, cause: Some(*cause) });
        }
        if let Reason::PipelineStopped { cause } = reason {
            return Some(Self { status: Status::Stopped, cause: Some(*cause) });
        }
        reason.is_ending().then_some(Self { status: Status::Passed, cause: None })
    }
}

/// Folds the events of one run into items.
#[derive(Debug)]
pub struct Reader {
    run: RunId,
    seen: BTreeMap<Epoch, NumberSet>,
    /// The last number of each earlier epoch, as reported by its successor.
    promised: BTreeMap<Epoch, u64>,
    /// The epoch in which each step was last started. Text of an earlier epoch belongs to an
    /// attempt that does not count.
    begun: HashMap<StepName, Epoch>,
    ending: Option<Ending>,
}

impl Reader {
    /// Creates a reader for a run.
    #[must_use]
    pub fn new(run: RunId) -> Self {
        Self {
            run,
            seen: BTreeMap::new(),
            promised: BTreeMap::new(),
            begun: HashMap::new(),
            ending: None,
        }
    }

    /// How the run ended. `None` until its ending event was read.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Whether any event of the run was read.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        !self.seen.is_empty()
    }

    /// Takes the next event of the stream, of any run.
    pub fn on(&mut self, event: Event) -> Option<LogItem> {
        if event.run_id.as_ref() != Some(&self.run) {
            return None;
        }
        // Events of rejected or ignored commands have no number, but are still shown.
        let (Some(epoch), Some(seq)) = (event.epoch, event.seq) else {
            return Some(LogItem::State(Box::new(event)));
        };
        let highest = self.seen.keys().next_back().copied().unwrap_or(epoch);
        if !self.seen.entry(epoch).or_default().insert(seq) {
            return None;
        }
        if let Reason::Log { stream, partial, .. } = event.reason {
            return self.text(event, (epoch, seq), stream, partial);
        }
        // The ending is recorded once, so its epoch does not matter.
        if let Some(ending) = Ending::of(&event.reason) {
            self.ending = Some(ending);
        } else if epoch < highest {
            return None;
        }
        self.note(&event, epoch);
        Some(LogItem::State(Box::new(event)))
    }

    fn note(&mut self, event: &Event, epoch: Epoch) {
        if let Reason::PipelineRunResumed { previous_epoch, previous_seq, repeats, .. } =
            &event.reason
        {
            if let Some(seq) = previous_seq {
                self.promised.insert(*previous_epoch, *seq);
            }
            for step in repeats {
                self.begun.insert(step.clone(), epoch);
            }
        }
        if let (Reason::StepStarted { .. }, Some(step)) = (&event.reason, &event.step) {
            self.begun.insert(step.clone(), epoch);
        }
    }

    fn text(
        &self,
        event: Event,
        (epoch, seq): (Epoch, u64),
        stream: LogStream,
        partial: bool,
    ) -> Option<LogItem> {
        let begun = event.step.as_ref().and_then(|step| self.begun.get(step));
        if begun.is_some_and(|begun| *begun > epoch) {
            return None;
        }
        let Some(mut bytes) = event.log_bytes() else {
            return Some(LogItem::Missing(Missing::Unreadable { epoch, seq }));
        };
        if !partial {
            bytes.push(b'\n');
        }
        Some(LogItem::Text(Box::new(Text { stream, bytes, event })))
    }

    /// The gaps in the events read so far, as far as they can be known.
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        for (epoch, seen) in &self.seen {
            for (from, to) in seen.gaps(self.promised.get(epoch).copied()) {
                missing.push(Missing::Events { epoch: *epoch, from, to });
            }
        }
        let unseen = self.promised.iter().filter(|(epoch, _)| !self.seen.contains_key(epoch));
        missing.extend(unseen.map(|(epoch, to)| Missing::Events {
            epoch: *epoch,
            from: 0,
            to: *to,
        }));
        missing
    }
}

/// A set of mostly ascending numbers: sorted inclusive ranges that do not touch.
#[derive(Debug, Default)]
struct NumberSet {
    ranges: Vec<(u64, u64)>,
}

impl NumberSet {
    /// Adds a number. Returns whether it is new.
    fn insert(&mut self, number: u64) -> bool {
        let after = self.ranges.partition_point(|(_, to)| *to < number);
        if self.ranges.get(after).is_some_and(|(from, _)| *from <= number) {
            return false;
        }
        let joins_next = self.ranges.get(after).is_some_and(|(from, _)| from - 1 == number);
        let before = after.checked_sub(1).filter(|i| self.ranges[*i].1 + 1 == number);
        match (before, joins_next) {
            (Some(before), true) => {
                self.ranges[before].1 = self.ranges[after].1;
                self.ranges.remove(after);
            }
            (Some(before), false) => self.ranges[before].1 = number,
            (None, true) => self.ranges[after].0 = number,
            (None, false) => self.ranges.insert(after, (number, number)),
        }
        true
    }

    /// The missing numbers from 0 to the last number or to `promised`.
    fn gaps(&self, promised: Option<u64>) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut next = 0;
        for (from, to) in &self.ranges {
            if *from > next {
                gaps.push((next, from - 1));
            }
            next = to.saturating_add(1);
        }
        if let Some(promised) = promised.filter(|promised| *promised >= next) {
            gaps.push((next, promised));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use protocol::event::Encoding;
    use protocol::id::NodeId;
    use protocol::time::Millis;

    use super::*;

    fn event(epoch: i64, seq: u64, reason: Reason) -> Event {
        let mut event = Event::new(Millis(1), reason, String::new());
        event.run_id = Some("r-1".parse().unwrap());
        event.epoch = Some(Epoch(epoch));
        event.seq = Some(seq);
        event
    }

    fn log(epoch: i64, seq: u64, text: &str, partial: bool) -> Event {
        let reason = Reason::Log { stream: LogStream::Stdout, offset: 0, partial, encoding: None };
        let message = text.to_owned();
        Event { message, step: Some(step("a")), ..event(epoch, seq, reason) }
    }

    fn base64(mut event: Event) -> Event {
        if let Reason::Log { encoding, .. } = &mut event.reason {
            *encoding = Some(Encoding::Base64);
        }
        event
    }

    fn step(name: &str) -> StepName {
        name.parse().unwrap()
    }

    fn started(epoch: i64, seq: u64) -> Event {
        let reason = Reason::StepStarted { command: "x".into(), executor: "podman".into() };
        Event { step: Some(step("a")), ..event(epoch, seq, reason) }
    }

    fn resumed(epoch: i64, previous: (i64, u64), repeats: &[&str]) -> Event {
        let reason = Reason::PipelineRunResumed {
            from_step: step("a"),
            previous_node: NodeId::from_stored("bob/runner-1"),
            previous_epoch: Epoch(previous.0),
            previous_seq: Some(previous.1),
            cause: "lost".into(),
            repeats: repeats.iter().map(|name| step(name)).collect(),
        };
        event(epoch, 0, reason)
    }

    fn read(events: Vec<Event>) -> (Reader, Vec<LogItem>) {
        let mut reader = Reader::new("r-1".parse().unwrap());
        let items = events.into_iter().filter_map(|event| reader.on(event)).collect();
        (reader, items)
    }

    fn bytes(items: &[LogItem]) -> Vec<u8> {
        let text = |item: &LogItem| match item {
            LogItem::Text(text) => text.bytes.clone(),
            LogItem::State(_) | LogItem::Missing(_) => Vec::new(),
        };
        items.iter().flat_map(text).collect()
    }

    #[test]
    fn output_is_read_as_the_step_wrote_it() {
        let (reader, items) = read(vec![
            log(5, 0, "  one\ntwo", false),
            log(5, 1, "thr", true),
            log(5, 2, "ee", false),
            base64(log(5, 3, "/wA=", true)),
            log(5, 4, "", false),
            log(5, 5, "end", true),
        ]);
        assert_eq!(bytes(&items), b"  one\ntwo\nthree\n\xff\0\nend");
        assert!(reader.missing().is_empty());
        assert_eq!(reader.ending(), None);
    }

    #[test]
    fn repeated_events_are_dropped_even_out_of_order() {
        let (reader, items) = read(vec![
            log(5, 0, "a", false),
            log(5, 2, "c", false),
            log(5, 0, "a", false),
            log(5, 1, "b", false),
            log(5, 1, "b", false),
            log(5, 2, "c", false),
        ]);
        assert_eq!(bytes(&items), b"a\nc\nb\n");
        assert!(reader.missing().is_empty());
    }

    #[test]
    fn state_is_only_taken_from_the_highest_epoch() {
        let (_, items) = read(vec![
            event(5, 0, Reason::StartPipelineRun),
            resumed(9, (5, 3), &["a"]),
            event(5, 1, Reason::PipelineRunning),
            event(9, 1, Reason::PipelineRunning),
        ]);
        let epoch = |item: &LogItem| match item {
            LogItem::State(event) => event.epoch.map(|epoch| epoch.0),
            LogItem::Text(_) | LogItem::Missing(_) => None,
        };
        assert_eq!(items.iter().filter_map(epoch).collect::<Vec<_>>(), [5, 9, 9]);
    }

    #[test]
    fn late_output_is_shown_unless_its_step_runs_again() {
        let late = || log(5, 2, "late", false);
        let (_, kept) = read(vec![started(5, 1), resumed(9, (5, 2), &["b"]), late()]);
        assert_eq!(bytes(&kept), b"late\n");
        let (_, dropped) = read(vec![started(5, 1), resumed(9, (5, 2), &["a"]), late()]);
        assert_eq!(bytes(&dropped), b"");
        let (_, begun) = read(vec![started(5, 1), started(9, 1), late()]);
        assert_eq!(bytes(&begun), b"");
    }

    #[test]
    fn missing_parts_of_a_log_are_named() {
        let (reader, _) = read(vec![
            event(5, 2, Reason::StartPipelineRun),
            log(5, 5, "x", false),
            resumed(9, (5, 8), &[]),
            event(9, 2, Reason::PipelineSuccessful),
        ]);
        let missing: Vec<String> = reader.missing().iter().map(ToString::to_string).collect();
        assert_eq!(
            missing,
            [
                "events 0 to 1 of epoch 5",
                "events 3 to 4 of epoch 5",
                "events 6 to 8 of epoch 5",
                "event 1 of epoch 9",
            ]
        );
        assert_eq!(reader.ending(), Some(Ending { status: Status::Passed, cause: None }));
        let (unseen, _) = read(vec![resumed(9, (5, 0), &[])]);
        assert_eq!(unseen.missing()[0].to_string(), "event 0 of epoch 5");
    }

    #[test]
    fn events_of_other_runs_and_rejected_commands_are_ignored() {
        let mut other = log(5, 9, "other", false);
        other.run_id = Some("r-2".parse().unwrap());
        let mut ignored = event(0, 0, Reason::CommandIgnored);
        (ignored.epoch, ignored.seq) = (None, None);
        let (reader, items) = read(vec![other, ignored.clone(), ignored]);
        assert_eq!(items.len(), 2);
        assert!(!reader.has_begun());
    }

    #[test]
    fn output_that_cannot_be_decoded_is_reported() {
        let (_, items) = read(vec![base64(log(5, 0, "?", false))]);
        let [LogItem::Missing(missing)] = &items[..] else { panic!("{items:?}") };
        assert!(missing.to_string().contains("event 0 of epoch 5"));
    }
}
