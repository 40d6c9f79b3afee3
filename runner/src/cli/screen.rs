//! The live view on a terminal: step output scrolls above a list of steps with their status and
//! time. Pure: takes items and times, returns bytes for the terminal.

use protocol::event::{LogStream, Reason};
use protocol::id::StepName;
use protocol::pipeline::Pipeline;

use super::output::{TextStyle, brief, one_line, span};
use super::sanitize::{cut, sanitize};
use super::view::{StepEnd, event_line};
use crate::client::{Ending, LogItem, Text};
use protocol::run::Status;

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

/// Maximum number of steps in the list.
const MAX_STEPS: usize = 12;
/// Length at which an unfinished line is displayed as if it had ended, in bytes.
const MAX_PENDING: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running { since: i64 },
    Passed { took: i64 },
    Failed { took: i64 },
    Stopped { took: i64 },
}

/// Maximum length of a stored command. The screen cuts it to its current width.
const LONGEST_COMMAND: usize = 500;

#[derive(Debug)]
struct Line {
    name: StepName,
    command: String,
    state: State,
}

/// The state of the live view.
#[derive(Debug)]
pub(super) struct Screen {
    title: String,
    steps: Vec<Line>,
    colour: bool,
    size: Size,
    began: i64,
    /// Output not yet terminated by a newline, per stream.
    pending: [Vec<u8>; 2],
    /// The step that wrote `pending`.
    speaking: Option<StepName>,
    /// Number of lines currently below the output.
    drawn: usize,
    stopping: bool,
    /// How the run ended, and when.
    ending: Option<(Ending, i64)>,
}

impl Screen {
    pub(super) fn new(pipeline: &Pipeline, colour: bool, size: Size, now: i64) -> Self {
        let line = |step: &protocol::pipeline::Step| Line {
            name: step.name.clone(),
            command: brief(&step.display(), LONGEST_COMMAND),
            state: State::Waiting,
        };
        Self {
            title: one_line(&format!("{}/{}", pipeline.group, pipeline.name)),
            steps: pipeline.steps.iter().map(line).collect(),
            colour,
            size,
            began: now,
            pending: [Vec::new(), Vec::new()],
            speaking: None,
            drawn: 0,
            stopping: false,
            ending: None,
        }
    }

    /// Processes an item.
    pub(super) fn on(&mut self, item: &LogItem, now: i64) -> Vec<u8> {
        let mut above = String::new();
        match item {
            LogItem::Text(text) => self.text(text, &mut above),
            LogItem::Missing(missing) => {
                let line = TextStyle::Yellow.paint(&format!("missing: {missing}"), self.colour);
                above.push_str(&format!("{line}\n"));
            }
            LogItem::State(event) => self.state(event, now, &mut above),
        }
        self.redrawn(&above, now)
    }

    /// Prints a message above the list of steps.
    pub(super) fn print(&mut self, text: &str, now: i64) -> Vec<u8> {
        let line = TextStyle::Yellow.paint(&one_line(text), self.colour);
        self.redrawn(&format!("{line}\n"), now)
    }

    /// Redraws the list with the current time and terminal size.
    pub(super) fn tick(&mut self, size: Size, now: i64) -> Vec<u8> {
        self.size = size;
        self.redrawn("", now)
    }

    fn state(&mut self, event: &protocol::event::Event, now: i64, above: &mut String) {
        let step = event.step.as_ref();
        self.stopping |= event.reason == Reason::PipelineStopping;
        if let Reason::StepStarted { .. } = &event.reason {
            self.set(step, State::Running { since: now });
            return;
        }
        if let Reason::StepCompleted { exit_code, duration_ms, .. } = &event.reason {
            self.flush(above);
            let took = i64::try_from(*duration_ms).unwrap_or(i64::MAX);
            let state = match StepEnd::of(event, *exit_code, self.stopping) {
                StepEnd::Passed => State::Passed { took },
                StepEnd::Stopped => State::Stopped { took },
                StepEnd::Failed => State::Failed { took },
            };
            self.set(step, state);
            return;
        }
        if let Some(ending) = Ending::of(&event.reason) {
            self.flush(above);
            self.ending = Some((ending, now));
        }
        // The list does not show these events, so print them above it.
        let is_shown =
            matches!(event.reason, Reason::PipelineStopping | Reason::PipelineSuccessful);
        if let Some((line, ink)) = event_line(event, self.stopping).filter(|_| !is_shown) {
            above.push_str(&format!("{}\n", ink.paint(&one_line(&line), self.colour)));
        }
    }

    fn set(&mut self, step: Option<&StepName>, state: State) {
        if let Some(line) = self.steps.iter_mut().find(|line| Some(&line.name) == step) {
            line.state = state;
        }
    }

    fn text(&mut self, text: &Text, above: &mut String) {
        if self.speaking != text.event.step {
            self.flush(above);
            self.speaking.clone_from(&text.event.step);
        }
        let stream = usize::from(text.stream == LogStream::Stderr);
        self.pending[stream].extend_from_slice(&text.bytes);
        let pending = &mut self.pending[stream];
        let whole = pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let end = if pending.len() - whole > MAX_PENDING { pending.len() } else { whole };
        let ready: Vec<u8> = pending.drain(..end).collect();
        self.lines(&ready, stream, above);
    }

    /// Terminates the unfinished lines.
    fn flush(&mut self, above: &mut String) {
        for stream in 0..self.pending.len() {
            let rest = std::mem::take(&mut self.pending[stream]);
            self.lines(&rest, stream, above);
        }
    }

    fn lines(&self, bytes: &[u8], stream: usize, above: &mut String) {
        if bytes.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(bytes);
        for line in text.strip_suffix('\n').unwrap_or(&text).split('\n') {
            above.push_str(&self.prefix(stream));
            above.push_str(&sanitize(line, self.colour));
            above.push('\n');
        }
    }

    fn speaker(&self) -> &str {
        self.speaking.as_ref().map_or("bob", StepName::as_str)
    }

    fn prefix(&self, stream: usize) -> String {
        let ink = if stream == 0 { TextStyle::Dim } else { TextStyle::Yellow };
        format!("{} ", ink.paint(&format!("{} \u{2502}", self.speaker()), self.colour))
    }

    /// Erases the list of steps, writes `above`, and redraws the list.
    fn redrawn(&mut self, above: &str, now: i64) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.drawn > 0 {
            bytes.extend(format!("\u{1b}[{}A\r\u{1b}[J", self.drawn).bytes());
        }
        bytes.extend(above.bytes());
        let below = self.below(now);
        self.drawn = below.len();
        for line in below {
            bytes.extend(line.bytes());
            bytes.push(b'\n');
        }
        bytes
    }

    fn below(&self, now: i64) -> Vec<String> {
        let mut lines = Vec::new();
        for (stream, pending) in
            self.pending.iter().enumerate().filter(|(_, text)| !text.is_empty())
        {
            let text = sanitize(&String::from_utf8_lossy(pending), false);
            let taken = self.speaker().chars().count() + 4;
            let room = self.size.columns.saturating_sub(taken);
            lines.push(format!("{}{}", self.prefix(stream), cut(&text, room)));
        }
        let window = self.window();
        if window.start > 0 {
            lines.push(format!("  ... {} before", window.start));
        }
        lines.extend(self.steps[window.clone()].iter().map(|line| self.step(line, now)));
        if window.end < self.steps.len() {
            lines.push(format!("  ... {} after", self.steps.len() - window.end));
        }
        lines.push(self.summary(now));
        lines
    }

    /// The steps to display: those around the first that has not passed.
    fn window(&self) -> std::ops::Range<usize> {
        let room = self.size.rows.saturating_sub(6).clamp(3, MAX_STEPS);
        if self.steps.len() <= room {
            return 0..self.steps.len();
        }
        let is_done = |line: &Line| matches!(line.state, State::Passed { .. });
        let current = self.steps.iter().position(|line| !is_done(line));
        let current = current.unwrap_or(self.steps.len());
        let start = current.saturating_sub(room / 2).min(self.steps.len() - room);
        start..start + room
    }

    fn step(&self, line: &Line, now: i64) -> String {
        let (mark, ink, time) = match line.state {
            State::Waiting => ("\u{b7}", TextStyle::Dim, String::new()),
            State::Running { since } => ("\u{25b8}", TextStyle::Cyan, span(now - since)),
            State::Passed { took } => ("\u{2713}", TextStyle::Green, span(took)),
            State::Failed { took } => ("\u{2717}", TextStyle::Red, span(took)),
            State::Stopped { took } => ("\u{2717}", TextStyle::Yellow, span(took)),
        };
        let longest = self.steps.iter().map(|step| step.name.as_str().len()).max();
        let names = longest.unwrap_or_default().min(24);
        let name = cut(line.name.as_str(), names);
        let head = format!("{mark} {name:names$} {time:>7}");
        let room = self.size.columns.saturating_sub(head.chars().count() + 3);
        let command = TextStyle::Dim.paint(&cut(&line.command, room), self.colour);
        let head = cut(&head, self.size.columns.saturating_sub(1));
        format!("{}  {command}", ink.paint(&head, self.colour))
    }

    fn summary(&self, now: i64) -> String {
        let done = self.steps.iter().filter(|line| matches!(line.state, State::Passed { .. }));
        let (word, ink) = match self.ending.map(|(ending, _)| ending.status) {
            Some(Status::Passed) => ("passed", TextStyle::Green),
            Some(Status::Stopped) => ("stopped", TextStyle::Yellow),
            Some(_) => ("failed", TextStyle::Red),
            None if self.stopping => ("stopping", TextStyle::Yellow),
            None => ("running", TextStyle::Cyan),
        };
        let until = self.ending.map_or(now, |(_, at)| at);
        let time = span(until - self.began);
        let text = format!("{}/{} steps, {time}", done.count(), self.steps.len());
        let room = self.size.columns.saturating_sub(word.len() + text.len() + 3);
        format!(
            "{} {} {text}",
            TextStyle::Bold.paint(&cut(&self.title, room), self.colour),
            ink.paint(word, self.colour)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{at, broken, completed, failed, items, log, started};
    use super::*;

    const SIZE: Size = Size { columns: 60, rows: 24 };

    fn pipeline(steps: usize) -> Pipeline {
        let step = |n: usize| format!("{{\"name\":\"s{n}\",\"cmd\":\"echo {n}\"}}");
        let steps: Vec<String> = (0..steps).map(step).collect();
        let text = format!(
            r#"{{"group":"dev","name":"x","image":"localhost/i","steps":[{}]}}"#,
            steps.join(",")
        );
        protocol::dialect::parse(None, text.as_bytes()).pipelines.remove(0)
    }

    /// Emulates a terminal, for the sequences that `Screen` uses.
    fn shown(bytes: &[u8]) -> String {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let mut lines: Vec<String> = vec![String::new()];
        let mut rest = text.as_str();
        while let Some(c) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("\u{1b}[") {
                let end = after.find(|c: char| c.is_ascii_alphabetic()).unwrap();
                let (number, kind) = (&after[..end], &after[end..=end]);
                match kind {
                    "A" => {
                        let up: usize = number.parse().unwrap();
                        lines.truncate(lines.len() - up);
                        *lines.last_mut().unwrap() = String::new();
                    }
                    "J" | "m" => {}
                    other => panic!("{other} is none of ours"),
                }
                rest = &after[end + 1..];
                continue;
            }
            match c {
                '\n' => lines.push(String::new()),
                '\r' => {}
                c => lines.last_mut().unwrap().push(c),
            }
            rest = &rest[c.len_utf8()..];
        }
        let trimmed: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
        trimmed.join("\n")
    }

    #[test]
    fn output_scrolls_above_the_list_of_steps() {
        let mut screen = Screen::new(&pipeline(3), false, SIZE, 0);
        let mut bytes = screen.tick(SIZE, 0);
        for item in items(vec![
            at(1, None, Reason::ImagePull { image: "busybox".into() }),
            started(10, "s0", "echo 0"),
            log(20, "s0", LogStream::Stdout, "one\ntwo\n"),
            completed(1_010, "s0", 0, 1_000),
            started(1_020, "s1", "echo 1"),
            log(1_030, "s1", LogStream::Stdout, "50%"),
        ]) {
            bytes.extend(screen.on(&item, 1_020));
        }
        bytes.extend(screen.tick(SIZE, 2_520));
        assert_eq!(
            shown(&bytes),
            "image busybox\n\
             s0 │ one\n\
             s0 │ two\n\
             s1 │ 50%\n\
             ✓ s0    1.0s  echo 0\n\
             ▸ s1    1.5s  echo 1\n\
             · s2          echo 2\n\
             dev/x running 1/3 steps, 2.5s\n"
        );
    }

    #[test]
    fn the_final_screen_shows_the_steps_and_the_result() {
        let mut screen = Screen::new(&pipeline(2), false, SIZE, 0);
        let mut bytes = Vec::new();
        for item in items(vec![
            started(10, "s0", "echo 0"),
            log(20, "s0", LogStream::Stderr, "oh no"),
            completed(90, "s0", 3, 80),
            failed(100),
        ]) {
            bytes.extend(screen.on(&item, 100));
        }
        assert_eq!(
            shown(&bytes),
            "s0 │ oh no\n\
             run r-1: what happened\n\
             ✗ s0    80ms  echo 0\n\
             · s1          echo 1\n\
             dev/x failed 0/2 steps, 100ms\n"
        );
    }

    #[test]
    fn a_step_whose_artifact_failed_has_not_passed() {
        let mut screen = Screen::new(&pipeline(1), false, SIZE, 0);
        let mut bytes = Vec::new();
        for item in items(vec![
            started(10, "s0", "echo 0"),
            broken("s0", Some(0), "step s0 of run r-1 failed"),
            failed(310),
        ]) {
            bytes.extend(screen.on(&item, 310));
        }
        assert!(shown(&bytes).contains("\u{2717} s0   257ms"), "{}", shown(&bytes));
    }

    #[test]
    fn many_steps_are_shown_as_a_window_around_the_running_one() {
        let mut screen = Screen::new(&pipeline(200), false, Size { columns: 20, rows: 10 }, 0);
        let mut events = Vec::new();
        for step in 0..100 {
            events.push(completed(1, &format!("s{step}"), 0, 1));
        }
        events.push(started(2, "s100", "echo 100"));
        let mut bytes = Vec::new();
        for item in items(events) {
            bytes.extend(screen.on(&item, 3));
        }
        let text = shown(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 7, "{text}");
        assert_eq!(lines[0], "  ... 98 before");
        assert!(lines[3].starts_with("▸ s100"), "{text}");
        assert_eq!(lines[5], "  ... 98 after");
        assert!(lines.iter().all(|line| line.chars().count() < 40), "{text}");
    }
}
