//! The beginning of a step's output, in which an engine's init or runtime reports that it could not
//! execute the command. The engine itself takes such a report for the command's own output.
//!
//! Output that may become such a report is held back until it is clear what it is. A report becomes
//! the error of the step and never a part of its log.

use serde::Deserialize;

use super::demux::Piece;
use super::unexecutable::{self, Head};

/// How such reports begin: tini, catatonit, crun, runc.
const BEGINNINGS: [&str; 4] =
    ["[FATAL tini (", "ERROR (catatonit:", "{\"msg\":\"exec container process ", "exec /"];
/// The maximum length of a report, in bytes.
const MOST_BYTES: usize = 512;

/// A command that was never executed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotExecuted {
    /// The kernel's error.
    said: String,
    /// The exit code that a shell would give: 127 if the program is missing, else 126.
    pub(super) code: i32,
}

impl NotExecuted {
    /// A sentence for people. `head` is the beginning of the program's file.
    pub(super) fn cause(&self, program: &str, head: &Head) -> String {
        if self.said.to_ascii_lowercase().starts_with("argument list too long") {
            return "its command and variables together are longer than the kernel takes: use `script`, which may be longer, or a file".to_owned();
        }
        format!("{} (in its image)", unexecutable::cause(program, &self.said, head))
    }
}

/// The first output of a step, held while it can still turn out to be a report.
#[derive(Debug)]
pub(super) struct Beginning {
    held: Vec<Piece>,
    text: Vec<u8>,
    is_open: bool,
}

impl Default for Beginning {
    fn default() -> Self {
        Self { held: Vec::new(), text: Vec::new(), is_open: true }
    }
}

impl Beginning {
    /// Takes the next piece of output and returns the pieces to pass on now, in order.
    pub(super) fn take(&mut self, piece: Piece) -> Vec<Piece> {
        if !self.is_open {
            return vec![piece];
        }
        self.text.extend_from_slice(&piece.bytes);
        self.held.push(piece);
        if may_become_report(&self.text) { Vec::new() } else { self.rest() }
    }

    /// Returns the pieces still held back. Later pieces are passed on at once.
    pub(super) fn rest(&mut self) -> Vec<Piece> {
        self.is_open = false;
        self.text = Vec::new();
        std::mem::take(&mut self.held)
    }

    /// Why the command was never executed, if this was all of its output.
    pub(super) fn not_executed(&self, exit_code: i32) -> Option<NotExecuted> {
        if exit_code == 0 || !self.is_open {
            return None;
        }
        let line = std::str::from_utf8(&self.text).ok()?.strip_suffix('\n')?;
        let said = reported(line.trim_end_matches('\r'))?;
        let code = if said.to_ascii_lowercase().starts_with("no such file") { 127 } else { 126 };
        Some(NotExecuted { said, code })
    }
}

fn may_become_report(text: &[u8]) -> bool {
    let first_line = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    text.len() <= MOST_BYTES
        && first_line + 1 >= text.len()
        && BEGINNINGS.iter().map(|begins| begins.as_bytes()).any(|begins| {
            let common = begins.len().min(text.len());
            begins[..common] == text[..common]
        })
}

/// A log entry of crun, which logs to the step's standard error.
#[derive(Deserialize)]
struct Logged {
    msg: String,
}

/// The kernel's error message in a report.
fn reported(line: &str) -> Option<String> {
    if line.starts_with("[FATAL tini (") {
        return Some(line.split_once(" exec ")?.1.rsplit_once(" failed: ")?.1.to_owned());
    }
    if line.starts_with("ERROR (catatonit:") {
        return Some(line.split_once("failed to exec pid1: ")?.1.to_owned());
    }
    if line.starts_with('{') {
        let Logged { msg } = serde_json::from_str(line).ok()?;
        return Some(msg.strip_prefix("exec container process ")?.rsplit_once(": ")?.1.to_owned());
    }
    // A program can print a line that begins the same way.
    let cause = line.strip_prefix("exec /")?.rsplit_once(": ")?.1;
    (cause == "argument list too long").then(|| cause.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::event::LogStream;

    const CRUN: &str = "{\"msg\":\"exec container process `/run/podman-init`: Argument list too long\",\"level\":\"error\",\"time\":\"2026-11-29T20:04:14.897382Z\"}\n";
    const CATATONIT: &str = "ERROR (catatonit:2): failed to exec pid1: No such file or directory\n";
    const TINI: &str = "[FATAL tini (7)] exec nosuch failed: No such file or directory\n";
    const RUNC: &str = "exec /sbin/docker-init: argument list too long\n";

    fn piece(text: &str) -> Piece {
        Piece { stream: LogStream::Stderr, bytes: text.as_bytes().to_vec() }
    }

    /// Returns the report and the output that result from these pieces.
    fn of(code: i32, pieces: &[&str]) -> (Option<NotExecuted>, String) {
        let mut beginning = Beginning::default();
        let passed: Vec<Piece> =
            pieces.iter().flat_map(|text| beginning.take(piece(text))).collect();
        let passed = passed.into_iter().flat_map(|piece| piece.bytes).collect();
        (beginning.not_executed(code), String::from_utf8(passed).unwrap())
    }

    #[test]
    fn a_report_in_any_pieces_is_an_error_and_not_output() {
        for (report, code) in [(CRUN, 126), (CATATONIT, 127), (TINI, 127), (RUNC, 126)] {
            for size in [1, 7, report.len()] {
                let pieces: Vec<&str> = report
                    .as_bytes()
                    .chunks(size)
                    .map(|chunk| std::str::from_utf8(chunk).unwrap())
                    .collect();
                let (found, passed) = of(1, &pieces);
                assert_eq!((found.unwrap().code, passed.as_str()), (code, ""), "{report}");
            }
        }
        let denied = "ERROR (catatonit:7): failed to exec pid1: Permission denied\n";
        assert_eq!(of(1, &[denied]).0.unwrap().code, 126);
        let cause = |report| of(1, &[report]).0.unwrap().cause("tool", &Head::Missing);
        assert!(cause(CRUN).contains("longer than the kernel takes"));
        assert_eq!(cause(CATATONIT), "`tool` does not exist (in its image)");
    }

    #[test]
    fn anything_else_is_passed_on_as_it_came() {
        for pieces in [
            &["failed to exec pid1: No such file\n"][..],
            &[TINI, "more\n"],
            &["before\n", CATATONIT],
            &["e", "x", "it\n"],
            &["[", "1]\n"],
        ] {
            assert_eq!(of(1, pieces), (None, pieces.concat()));
        }
        // A command that succeeds has written this line itself.
        let mut beginning = Beginning::default();
        assert!(beginning.take(piece(TINI)).is_empty());
        assert_eq!(beginning.not_executed(0), None);
        assert_eq!(beginning.rest(), [piece(TINI)]);
        assert_eq!(beginning.take(piece("e")), [piece("e")]);
    }

    #[test]
    fn a_program_that_only_begins_like_a_report_is_held_back_no_longer_than_a_line() {
        let (found, passed) = of(2, &["exec /bin/tool: done\n"]);
        assert_eq!((found, passed.as_str()), (None, ""));
        let long = format!("exec /{}", "x".repeat(MOST_BYTES));
        assert_eq!(of(2, &[&long]).1, long);
    }
}
