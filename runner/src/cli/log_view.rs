//! Selects the lines of a log that a user asked for, and adds times to them. Pure.

use std::collections::{HashSet, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use protocol::event::{Encoding, LogStream, Reason};
use protocol::id::StepName;
use protocol::time::{Millis, Timestamp};

use super::output::Style;
use super::view::{Piece, PlainView, json_line};
use crate::client::{LogItem, Text};

/// The lines of a log to print.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// Leaves out output that was published before this time.
    pub(super) since: Option<Millis>,
    /// The number of last lines to print of the existing output. `None`: all.
    pub(super) tail: Option<usize>,
    /// Only lines of this step count as the last ones.
    pub(super) step: Option<StepName>,
}

/// Formats a log.
#[derive(Debug)]
pub(super) struct LogView {
    plain: PlainView,
    style: Style,
    since: Option<Millis>,
    /// Collects the last lines until the log is caught up.
    last: Option<LastLines>,
    stamps: Option<Stamps>,
}

impl LogView {
    /// Prints everything, without times.
    pub(super) fn whole(plain: PlainView, style: Style) -> Self {
        Self { plain, style, since: None, last: None, stamps: None }
    }

    /// Prints a selection.
    pub(super) fn selected(self, selection: Selection) -> Self {
        let Selection { since, tail, step } = selection;
        Self { since, last: tail.map(|count| LastLines::new(count, step)), ..self }
    }

    /// Begins each line with its time.
    pub(super) fn with_times(self) -> Self {
        let stamps = Stamps { together: self.style.together, ..Stamps::default() };
        Self { stamps: Some(stamps), ..self }
    }

    /// Takes the next item. Returns the pieces to print now.
    pub(super) fn on(&mut self, item: LogItem) -> Vec<Piece> {
        let is_early = self.since.is_some_and(|since| time_of(&item).is_some_and(|at| at < since));
        if is_early {
            return Vec::new();
        }
        match &mut self.last {
            Some(last) => {
                last.push(item);
                Vec::new()
            }
            None => self.pieces(&item),
        }
    }

    /// Notes that the existing output is read. Returns the pieces to print now.
    pub(super) fn caught_up(&mut self) -> Vec<Piece> {
        let last = self.last.take().into_iter().flat_map(|last| last.items);
        last.flat_map(|(item, _)| self.pieces(&item)).collect()
    }

    /// Formats a message that belongs to no event.
    pub(super) fn note(&mut self, line: &str) -> Piece {
        self.plain.note(line)
    }

    fn pieces(&mut self, item: &LogItem) -> Vec<Piece> {
        if self.style.json {
            return vec![json_line(item)];
        }
        let pieces = self.plain.on(item);
        match (&mut self.stamps, time_of(item)) {
            (Some(stamps), Some(at)) => {
                pieces.into_iter().map(|piece| stamps.stamp(at, piece)).collect()
            }
            (Some(_), None) | (None, _) => pieces,
        }
    }
}

fn time_of(item: &LogItem) -> Option<Millis> {
    match item {
        LogItem::State(event) => Some(event.at),
        LogItem::Text(text) => Some(text.event.at),
        LogItem::Missing(_) => None,
    }
}

/// Keeps the last lines of a log, with the other items from the first of them on.
#[derive(Debug)]
struct LastLines {
    count: usize,
    step: Option<StepName>,
    /// Each item, and whether it begins a line.
    items: VecDeque<(LogItem, bool)>,
    /// The number of items that begin a line.
    lines: usize,
    /// The steps and streams whose last line is unfinished.
    open: HashSet<(Option<StepName>, LogStream)>,
    is_cut: bool,
}

impl LastLines {
    fn new(count: usize, step: Option<StepName>) -> Self {
        let (items, open) = (VecDeque::new(), HashSet::new());
        // Nothing precedes no lines.
        Self { count, step, items, lines: 0, open, is_cut: count == 0 }
    }

    fn push(&mut self, item: LogItem) {
        match item {
            LogItem::Text(text) => {
                if self.step.is_some() && self.step != text.event.step {
                    return;
                }
                for line in split(*text) {
                    let key = (line.event.step.clone(), line.stream);
                    let is_whole = line.bytes.ends_with(b"\n");
                    let begins =
                        if is_whole { !self.open.remove(&key) } else { self.open.insert(key) };
                    self.lines += usize::from(begins);
                    self.items.push_back((LogItem::Text(Box::new(line)), begins));
                    self.cut();
                }
            }
            LogItem::State(_) | LogItem::Missing(_) => {
                self.items.push_back((item, false));
                self.cut();
            }
        }
    }

    /// Removes lines that are not among the last ones, and what precedes the first that is.
    fn cut(&mut self) {
        self.is_cut |= self.lines > self.count;
        while let Some((_, begins)) = self.items.front()
            && (self.lines > self.count || (self.is_cut && !begins))
        {
            self.lines -= usize::from(*begins);
            self.items.pop_front();
        }
    }
}

/// Splits a text into its lines. Each gets an event of its own.
fn split(text: Text) -> Vec<Text> {
    let Text { stream, bytes, mut event } = text;
    let Reason::Log { mut offset, encoding, .. } = event.reason else {
        return vec![Text { stream, bytes, event }];
    };
    event.message.clear();
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').map(|bytes| {
        let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let message = match encoding {
            None => String::from_utf8_lossy(line).into_owned(),
            Some(Encoding::Base64) => STANDARD.encode(line),
        };
        let partial = line.len() == bytes.len();
        let mut event = event.clone();
        event.message = message;
        event.reason = Reason::Log { stream, offset, partial, encoding };
        offset += bytes.len() as u64;
        Text { stream, bytes: bytes.to_vec(), event }
    });
    lines.collect()
}

/// Writes a time at the start of each line.
#[derive(Debug, Default)]
struct Stamps {
    /// Standard output and standard error are the same terminal, pipe or file.
    together: bool,
    /// Whether the last line on standard output is unfinished, and the one on standard error.
    open: [bool; 2],
}

impl Stamps {
    fn stamp(&mut self, at: Millis, piece: Piece) -> Piece {
        let (bytes, is_error) = match piece {
            Piece::Out(bytes) => (bytes, false),
            Piece::Err(bytes) => (bytes, true),
        };
        let open = &mut self.open[usize::from(is_error && !self.together)];
        let mut stamped = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !*open {
                stamped.extend(format!("{} ", Timestamp(at)).bytes());
            }
            stamped.extend(part);
            *open = !part.ends_with(b"\n");
        }
        if is_error { Piece::Err(stamped) } else { Piece::Out(stamped) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::StepErrors;
    use super::super::view::tests::{at, completed, items, log, started};
    use super::*;

    const STYLE: Style =
        Style { json: false, colour: false, colour_err: false, terminal: false, together: true };

    fn view() -> LogView {
        LogView::whole(PlainView::new(StepErrors::WithOutput, None, STYLE), STYLE)
    }

    fn last(count: usize) -> LogView {
        view().selected(Selection { tail: Some(count), ..Selection::default() })
    }

    fn text(pieces: Vec<Piece>) -> String {
        let bytes = pieces.into_iter().flat_map(|piece| match piece {
            Piece::Out(bytes) | Piece::Err(bytes) => bytes,
        });
        String::from_utf8(bytes.collect()).unwrap()
    }

    fn run() -> Vec<LogItem> {
        items(vec![
            started(10, "a", "make"),
            log(20, "a", LogStream::Stdout, "one\ntwo\n"),
            log(30, "a", LogStream::Stderr, "care"),
            log(40, "a", LogStream::Stderr, "ful\n"),
            log(50, "a", LogStream::Stdout, "three\n"),
            completed(60, "a", 0, 50),
        ])
    }

    fn printed(mut view: LogView) -> String {
        let mut pieces: Vec<Piece> = run().into_iter().flat_map(|item| view.on(item)).collect();
        assert!(pieces.is_empty(), "the last lines are printed once the log is caught up");
        pieces.extend(view.caught_up());
        text(pieces)
    }

    #[test]
    fn the_last_lines_are_printed_with_the_events_after_the_first_of_them() {
        let end = "[bob] step a passed after 50ms\n";
        assert_eq!(printed(last(1)), format!("three\n{end}"));
        // A line in two parts counts as one.
        assert_eq!(printed(last(2)), format!("careful\nthree\n{end}"));
        assert_eq!(printed(last(3)), format!("two\ncareful\nthree\n{end}"));
        assert_eq!(
            printed(last(4)),
            format!("[bob] step a: make\none\ntwo\ncareful\nthree\n{end}")
        );
        assert_eq!(printed(last(0)), "");
    }

    #[test]
    fn everything_new_is_printed_once_the_log_is_caught_up() {
        let mut view = last(0);
        let mut run = run().into_iter();
        assert!(view.on(run.next().unwrap()).is_empty());
        assert!(view.caught_up().is_empty());
        assert_eq!(text(view.on(run.next().unwrap())), "one\ntwo\n");
        assert!(view.caught_up().is_empty());
    }

    #[test]
    fn only_lines_of_the_step_count() {
        let step = Some("a".parse().unwrap());
        let selection = Selection { tail: Some(1), step, since: None };
        let mut view = view().selected(selection);
        let run = items(vec![
            log(10, "a", LogStream::Stdout, "one\ntwo\n"),
            log(20, "b", LogStream::Stdout, "other\n"),
        ]);
        assert!(run.into_iter().all(|item| view.on(item).is_empty()));
        assert_eq!(text(view.caught_up()), "two\n");
    }

    #[test]
    fn earlier_output_is_left_out() {
        let since = Some(Millis(40));
        let mut view = view().selected(Selection { since, ..Selection::default() });
        let pieces = run().into_iter().flat_map(|item| view.on(item)).collect();
        assert_eq!(text(pieces), "ful\nthree\n[bob] step a passed after 50ms\n");
    }

    #[test]
    fn each_line_begins_with_the_time_of_its_first_part() {
        let mut view = view().with_times();
        let mut pieces: Vec<Piece> = run().into_iter().flat_map(|item| view.on(item)).collect();
        let open = items(vec![
            log(70, "a", LogStream::Stdout, "no newline"),
            at(80, None, Reason::PipelineSuccessful),
        ]);
        pieces.extend(open.into_iter().flat_map(|item| view.on(item)));
        assert_eq!(
            text(pieces),
            "1970-01-01T00:00:00.010Z [bob] step a: make\n\
             1970-01-01T00:00:00.020Z one\n\
             1970-01-01T00:00:00.020Z two\n\
             1970-01-01T00:00:00.030Z careful\n\
             1970-01-01T00:00:00.050Z three\n\
             1970-01-01T00:00:00.060Z [bob] step a passed after 50ms\n\
             1970-01-01T00:00:00.070Z no newline\n\
             1970-01-01T00:00:00.080Z [bob] passed\n"
        );
    }

    #[test]
    fn the_lines_of_an_event_keep_their_offsets_as_json() {
        let style = Style { json: true, ..STYLE };
        let view = LogView::whole(PlainView::new(StepErrors::WithOutput, None, style), style);
        let mut view = view.selected(Selection { tail: Some(1), ..Selection::default() });
        let run = items(vec![log(10, "a", LogStream::Stdout, "one\ntwo\n")]);
        assert!(run.into_iter().all(|item| view.on(item).is_empty()));
        let line: serde_json::Value = serde_json::from_str(&text(view.caught_up())).unwrap();
        assert_eq!((&line["message"], &line["offset"]), (&"two".into(), &4.into()));
    }
}
