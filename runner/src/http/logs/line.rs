//! Joins the texts of a run's log into numbered lines. Pure: items in, lines out.
//!
//! The lines depend only on the events and their order in the stream. So every node numbers them
//! alike, and a client can continue on another node.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use protocol::event::{Encoding, LogStream, Reason};
use protocol::id::StepName;
use protocol::time::Millis;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::client::{LogItem, Text};

/// The maximum number of bytes in a line. A longer one is split.
pub(super) const MAX_LINE: usize = 64 * 1024;
/// The maximum size of all unfinished lines of a run.
const MAX_OPEN: usize = 4 * MAX_LINE;

/// A line of a run's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Line {
    /// The number of the line in the log of its run, from 1.
    pub line: u64,
    /// When its first byte was published, in milliseconds since the Unix epoch.
    pub at: Millis,
    /// The step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepName>,
    /// The step's attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// `stdout`, `stderr`, or `bob` for the runner's own lines.
    pub stream: LogStream,
    /// The text without the newline.
    pub text: String,
    /// `base64` if the line is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Whether no newline follows: a part of a line of more than 64 KiB, or the end of output that
    /// does not end with a newline.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

impl Line {
    /// The bytes of the line as the step wrote them, without the newline.
    #[must_use]
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match self.encoding {
            None => Cow::Borrowed(self.text.as_bytes()),
            // A line is only encoded by `Open::line`.
            Some(Encoding::Base64) => Cow::Owned(STANDARD.decode(&self.text).unwrap_or_default()),
        }
    }

    /// An estimate of the line's size in memory and as JSON.
    pub(super) fn size(&self) -> usize {
        const FIELDS: usize = 128;
        FIELDS + self.text.len()
    }
}

/// An unfinished line.
#[derive(Debug)]
struct Open {
    step: Option<StepName>,
    attempt: Option<u32>,
    stream: LogStream,
    at: Millis,
    bytes: Vec<u8>,
}

impl Open {
    fn line(&self, number: u64, bytes: Vec<u8>, partial: bool) -> Line {
        let (text, encoding) = match String::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(binary) => (STANDARD.encode(binary.as_bytes()), Some(Encoding::Base64)),
        };
        let (step, attempt) = (self.step.clone(), self.attempt);
        Line {
            line: number,
            at: self.at,
            step,
            attempt,
            stream: self.stream,
            text,
            encoding,
            partial,
        }
    }
}

/// Joins the texts of one run.
#[derive(Debug, Default)]
pub struct LineJoiner {
    /// The number of complete lines.
    count: u64,
    /// At most one for each step and stream, in the order in which they were last continued.
    open: Vec<Open>,
}

impl LineJoiner {
    /// Takes the next item of the log. Returns the lines that it completes.
    pub fn on(&mut self, item: &LogItem) -> Vec<Line> {
        let mut lines = Vec::new();
        match item {
            LogItem::Text(text) => self.text(text, &mut lines),
            LogItem::State(event) if event.reason.is_ending() => self.end(&mut lines, |_| true),
            LogItem::State(event) if is_boundary(&event.reason) => {
                self.end(&mut lines, |open| open.step == event.step);
            }
            LogItem::State(_) | LogItem::Missing(_) => {}
        }
        lines
    }

    /// Returns the unfinished lines at the end of the log.
    pub fn finish(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        self.end(&mut lines, |_| true);
        lines
    }

    fn text(&mut self, text: &Text, lines: &mut Vec<Line>) {
        let (step, attempt) = (&text.event.step, text.event.attempt);
        self.end(lines, |open| {
            open.step == *step && open.stream == text.stream && open.attempt != attempt
        });
        let is_same = |open: &Open| open.step == *step && open.stream == text.stream;
        let mut open = match self.open.iter().position(is_same) {
            Some(at) => self.open.remove(at),
            None => Open {
                step: step.clone(),
                attempt,
                stream: text.stream,
                at: text.event.at,
                bytes: Vec::new(),
            },
        };
        for part in text.bytes.split_inclusive(|byte| *byte == b'\n') {
            if open.bytes.is_empty() {
                open.at = text.event.at;
            }
            let (part, is_whole) = match part.strip_suffix(b"\n") {
                Some(line) => (line, true),
                None => (part, false),
            };
            open.bytes.extend_from_slice(part);
            while open.bytes.len() > MAX_LINE {
                let rest = open.bytes.split_off(cut(&open.bytes));
                let bytes = std::mem::replace(&mut open.bytes, rest);
                self.push(lines, &open, bytes, true);
            }
            if is_whole {
                let bytes = std::mem::take(&mut open.bytes);
                self.push(lines, &open, bytes, false);
            }
        }
        if !open.bytes.is_empty() {
            self.open.push(open);
        }
        while self.open.iter().map(|open| open.bytes.len()).sum::<usize>() > MAX_OPEN {
            let oldest = self.open.remove(0);
            self.push_rest(lines, oldest);
        }
    }

    fn push(&mut self, lines: &mut Vec<Line>, open: &Open, bytes: Vec<u8>, partial: bool) {
        self.count += 1;
        lines.push(open.line(self.count, bytes, partial));
    }

    fn push_rest(&mut self, lines: &mut Vec<Line>, mut open: Open) {
        let bytes = std::mem::take(&mut open.bytes);
        self.push(lines, &open, bytes, true);
    }

    /// Ends the unfinished lines that match.
    fn end(&mut self, lines: &mut Vec<Line>, matches: impl Fn(&Open) -> bool) {
        let ended: Vec<Open> = self.open.extract_if(.., |open| matches(open)).collect();
        for open in ended {
            self.push_rest(lines, open);
        }
    }
}

/// Whether output of a step before and after the event never shares a line.
fn is_boundary(reason: &Reason) -> bool {
    matches!(reason, Reason::StepStarted { .. } | Reason::StepCompleted { .. })
}

/// Where to split a line that is too long: at the limit, or before the UTF-8 character that crosses
/// it.
fn cut(bytes: &[u8]) -> usize {
    const CONTINUATIONS: usize = 3;
    let is_start = |at: &usize| bytes.get(*at).is_some_and(|byte| byte & 0xC0 != 0x80);
    (MAX_LINE - CONTINUATIONS..=MAX_LINE).rev().find(is_start).unwrap_or(MAX_LINE)
}
