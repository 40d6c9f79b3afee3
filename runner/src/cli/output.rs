//! Writes to standard output and standard error: data, messages, colours, tables.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd;

use clap::ValueEnum;
use serde::Serialize;

use super::exit::{Exit, Failure};
use crate::config::Environment;

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Human-readable text
    Text,
    /// JSON for programs: one document, or one object per line for streams of items
    Json,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// Only if the output is a terminal
    Auto,
    /// Even if the output is not a terminal
    Always,
    /// Without any colour
    Never,
}

/// How output is displayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) json: bool,
    /// Use colour on standard output.
    pub(super) colour: bool,
    /// Use colour on standard error.
    pub(super) colour_err: bool,
    /// Standard output is a terminal with cursor control.
    pub(super) terminal: bool,
    /// Standard output and standard error are the same terminal, pipe or file.
    pub(super) together: bool,
}

impl Style {
    pub(super) fn new(output: Output, color: Color, environment: &Environment) -> Self {
        let dumb = environment.get("TERM").is_none_or(|term| term == "dumb");
        let wanted = |on_terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => on_terminal && !dumb && environment.get("NO_COLOR").is_none(),
        };
        let stdout = io::stdout().is_terminal();
        Self {
            json: output == Output::Json,
            colour: wanted(stdout),
            colour_err: wanted(io::stderr().is_terminal()),
            terminal: stdout && !dumb,
            together: is_same(io::stdout(), io::stderr()),
        }
    }
}

fn is_same(one: impl AsFd, other: impl AsFd) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        (Ok(_), Err(_)) | (Err(_), _) => false,
    }
}

/// A colour or weight of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextStyle {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

impl TextStyle {
    /// Formats text in this colour, if colours are enabled.
    pub(super) fn paint(self, text: &str, colour: bool) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "31",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Cyan => "36",
        };
        if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Writes data. If the reader is gone, the command ends silently.
pub(super) fn data(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|cause| unwritten(&cause))
}

/// Writes a line of data.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    data(format!("{text}\n").as_bytes())
}

/// Writes one JSON document, indented for readability.
pub(super) fn document(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|cause| Failure::new(Exit::Failed, format!("cannot write JSON: {cause}")))?;
    line(&text)
}

/// Writes bytes to standard error. Errors are ignored.
pub(super) fn write_stderr(bytes: &[u8]) {
    let mut stderr = io::stderr().lock();
    drop(stderr.write_all(bytes).and_then(|()| stderr.flush()));
}

/// Writes a message to standard error.
pub(super) fn message(text: &str) {
    write_stderr(format!("{text}\n").as_bytes());
}

/// Reports an error that prevents the program from starting.
pub fn complain(text: &str) {
    message(&format!("error: {text}"));
}

/// The failure for an error of standard output.
pub(super) fn unwritten(cause: &io::Error) -> Failure {
    if cause.kind() == io::ErrorKind::BrokenPipe {
        return Failure::already_reported(Exit::Ok);
    }
    Failure::new(Exit::Failed, format!("cannot write to standard output: {cause}"))
}

/// A table with a heading. Each column is as wide as its widest cell.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<(String, TextStyle)>>,
}

impl Table {
    pub(super) fn new(heading: &[&str]) -> Self {
        let row = heading.iter().map(|cell| ((*cell).to_owned(), TextStyle::Bold)).collect();
        Self { rows: vec![row] }
    }

    pub(super) fn row(&mut self, cells: Vec<(String, TextStyle)>) {
        self.rows.push(cells);
    }

    pub(super) fn render(&self, colour: bool) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|(text, _)| text.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            for (column, (cell, ink)) in row.iter().enumerate() {
                let is_last = column + 1 == row.len();
                let pad = if is_last { 0 } else { widths[column] + 2 - cell.chars().count() };
                // Writing to a String cannot fail.
                let _infallible = write!(text, "{}{:pad$}", ink.paint(cell, colour), "");
            }
            text.push('\n');
        }
        text
    }
}

/// Replaces control characters, so that external text stays on one line and cannot move the cursor.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The first non-blank line of a text in at most `width` characters, and the number of further
/// lines: `set -eu … (+12 lines)`.
pub(super) fn brief(text: &str, width: usize) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = one_line(lines.next().unwrap_or_default());
    let more = match lines.count() {
        0 => String::new(),
        1 => " … (+1 line)".to_owned(),
        more => format!(" … (+{more} lines)"),
    };
    let room = width.saturating_sub(more.chars().count());
    if first.chars().count() <= room {
        return format!("{first}{more}");
    }
    let cut: String = first.chars().take(room.saturating_sub(1)).collect();
    if more.is_empty() { format!("{cut}…") } else { format!("{}{more}", cut.trim_end()) }
}

/// Formats a time span for people: `250ms`, `4.2s`, `3m07s`, `5h12m`, `3d4h`.
pub(super) fn span(millis: i64) -> String {
    let millis = millis.max(0);
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis}ms"),
        1..60 => format!("{seconds}.{}s", millis % 1000 / 100),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["RUN", "STATUS"]);
        table.row(vec![("r-ä".into(), TextStyle::Plain), ("passed".into(), TextStyle::Green)]);
        table.row(vec![("r-long".into(), TextStyle::Plain), ("failed".into(), TextStyle::Red)]);
        assert_eq!(table.render(false), "RUN     STATUS\nr-ä     passed\nr-long  failed\n");
        assert!(table.render(true).contains("\u{1b}[32mpassed\u{1b}[0m\n"));
    }

    #[test]
    fn two_handles_can_refer_to_the_same_file() {
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        assert!(is_same(&one, one.try_clone().unwrap()));
        assert!(!is_same(&one, &other));
    }

    #[test]
    fn a_closed_pipe_is_not_an_error_but_a_full_disk_is() {
        assert_eq!(
            unwritten(&io::ErrorKind::BrokenPipe.into()),
            Failure::already_reported(Exit::Ok)
        );
        let full = unwritten(&io::ErrorKind::StorageFull.into());
        assert_eq!(full.exit, Exit::Failed);
        assert!(full.message.unwrap().starts_with("cannot write to standard output: "));
    }

    #[test]
    fn spans_are_shown_briefly() {
        for (millis, text) in [
            (0, "0ms"),
            (-5, "0ms"),
            (999, "999ms"),
            (4_250, "4.2s"),
            (187_000, "3m07s"),
            (18_720_000, "5h12m"),
            (273_600_000, "3d4h"),
        ] {
            assert_eq!(span(millis), text);
        }
    }

    #[test]
    fn a_long_script_is_shown_by_its_first_line() {
        assert_eq!(brief("echo hi", 40), "echo hi");
        assert_eq!(brief("\n  set -eu\n\na\nb\n", 40), "set -eu … (+2 lines)");
        assert_eq!(brief("a\nb", 40), "a … (+1 line)");
        assert_eq!(brief(&"x".repeat(50), 10), "xxxxxxxxx…");
        let script = format!("{}\nb", "x".repeat(500_000));
        assert_eq!(brief(&script, 20), "xxxxxxx … (+1 line)");
        assert_eq!(brief("", 10), "");
        assert_eq!(brief("\u{1b}[2Jx", 10), " [2Jx");
    }

    #[test]
    fn foreign_text_cannot_move_the_cursor() {
        assert_eq!(one_line("a\n\u{1b}[2Jb\r"), "a  [2Jb ");
    }
}
