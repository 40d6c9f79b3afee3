//! Answers requests about a log: a range of lines, the last lines, and search. Every answer is
//! bounded in lines, bytes and time, and says where to continue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;
use protocol::event::LogStream;
use protocol::id::StepName;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use super::block::End;
use super::cursor::{Batch, Cursor};
use super::line::Line;
use crate::client::Error;

/// The maximum size of the lines of an answer.
const MAX_ANSWER: usize = 4 << 20;
/// The maximum size of the lines that are read for an answer.
const MAX_SCAN: usize = 64 << 20;
/// The maximum time to read for an answer.
const MAX_TIME: Duration = Duration::from_secs(20);

/// Selects lines.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only lines of this step.
    pub step: Option<StepName>,
    /// Only lines of this stream.
    pub stream: Option<LogStream>,
    /// Only lines that contain this text. ASCII letters match in both cases if it has no capital.
    pub text: Option<String>,
}

impl Filter {
    /// Whether a line matches.
    #[must_use]
    pub fn matches(&self, line: &Line) -> bool {
        self.step.as_ref().is_none_or(|step| line.step.as_ref() == Some(step))
            && self.stream.is_none_or(|stream| line.stream == stream)
            && self.text.as_ref().is_none_or(|text| contains(&line.bytes(), text))
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    let has_capital = text.bytes().any(|byte| byte.is_ascii_uppercase());
    if has_capital {
        return memmem::find(bytes, text.as_bytes()).is_some();
    }
    memmem::find(&bytes.to_ascii_lowercase(), text.as_bytes()).is_some()
}

/// Limits of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The maximum number of lines.
    pub lines: usize,
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// The lines that match.
    pub lines: Vec<Line>,
    /// The line at which to continue.
    pub next: u64,
    /// Whether nothing follows at present.
    pub is_complete: bool,
    /// Set if the log has ended and nothing follows.
    pub end: Option<Arc<End>>,
}

/// What may still be read for an answer.
struct Budget {
    lines: usize,
    answer: usize,
    scan: usize,
    until: Instant,
}

impl Budget {
    fn new(limits: Limits) -> Self {
        let until = Instant::now() + MAX_TIME;
        Self { lines: limits.lines, answer: MAX_ANSWER, scan: MAX_SCAN, until }
    }

    fn note_read(&mut self, line: &Line) {
        self.scan = self.scan.saturating_sub(line.size());
    }

    fn note_match(&mut self, line: &Line) {
        self.lines = self.lines.saturating_sub(1);
        self.answer = self.answer.saturating_sub(line.size());
    }

    fn is_spent(&self) -> bool {
        self.lines == 0 || self.answer == 0 || self.scan == 0
    }
}

/// Returns matching lines from the cursor's position on, until a limit is reached or nothing
/// follows at present.
///
/// # Errors
/// Errors of the services.
pub async fn window(cursor: &mut Cursor, filter: &Filter, limits: Limits) -> Result<Window, Error> {
    let mut budget = Budget::new(limits);
    let mut window =
        Window { lines: Vec::new(), next: cursor.position(), is_complete: false, end: None };
    loop {
        // Without an answer in time, the request ends with what there is.
        let Ok(batch) = timeout_at(budget.until, cursor.next()).await else { return Ok(window) };
        match batch? {
            Batch::Lines(lines) => {
                for line in lines {
                    if budget.is_spent() {
                        return Ok(window);
                    }
                    window.next = line.line + 1;
                    budget.note_read(&line);
                    if filter.matches(&line) {
                        budget.note_match(&line);
                        window.lines.push(line);
                    }
                }
                if budget.is_spent() {
                    return Ok(window);
                }
            }
            Batch::CaughtUp => {
                window.is_complete = true;
                return Ok(window);
            }
            Batch::End(end) => {
                (window.is_complete, window.end) = (true, Some(end));
                return Ok(window);
            }
        }
    }
}

/// Returns the last matching lines of what the log has at present. Fewer if a limit of bytes or time
/// is reached first.
///
/// # Errors
/// Errors of the services.
pub async fn tail(cursor: &mut Cursor, filter: &Filter, limits: Limits) -> Result<Window, Error> {
    let mut budget = Budget::new(limits);
    let current = timeout_at(budget.until, cursor.current_file()).await;
    match current.ok().flatten() {
        Some((log, count)) => {
            let end = log.end();
            let mut lines = VecDeque::new();
            let mut before = count + 1;
            while before > 1 && !budget.is_spent() && Instant::now() < budget.until {
                let (reading, first) = (Arc::clone(&log), log.block_start(before - 1));
                let read = spawn_blocking(move || reading.read(first)).await;
                // A file that cannot be read is read from its source by the next request.
                let Ok(Ok(block)) = read else { break };
                for line in block.into_iter().rev().filter(|line| line.line < before) {
                    budget.note_read(&line);
                    if filter.matches(&line) && !budget.is_spent() {
                        budget.note_match(&line);
                        lines.push_front(line);
                    }
                }
                before = first;
            }
            Ok(Window { lines: lines.into(), next: count + 1, is_complete: true, end })
        }
        None => last_of(cursor, filter, budget).await,
    }
}

/// Reads a log forward, and keeps the last matching lines.
async fn last_of(cursor: &mut Cursor, filter: &Filter, budget: Budget) -> Result<Window, Error> {
    let (mut lines, mut size) = (VecDeque::new(), 0);
    let mut window =
        Window { lines: Vec::new(), next: cursor.position(), is_complete: false, end: None };
    loop {
        let Ok(batch) = timeout_at(budget.until, cursor.next()).await else { break };
        match batch? {
            Batch::Lines(batch) => {
                for line in batch {
                    window.next = line.line + 1;
                    if filter.matches(&line) {
                        size += line.size();
                        lines.push_back(line);
                    }
                    while lines.len() > budget.lines || size > budget.answer {
                        size -= lines.pop_front().map_or(size, |line: Line| line.size());
                    }
                }
            }
            Batch::CaughtUp => {
                window.is_complete = true;
                break;
            }
            Batch::End(end) => {
                (window.is_complete, window.end) = (true, Some(end));
                break;
            }
        }
    }
    window.lines = lines.into();
    Ok(window)
}
