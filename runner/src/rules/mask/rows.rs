//! Finds base64 that is broken into rows of any length.
//!
//! Rows are joined and then searched. The row in which a secret starts must contain at least
//! [`FIRST`] of its letters, unless they are the whole row. Otherwise the last letter of almost
//! every output line would be withheld until the next line. Fewer letters are not masked. The
//! search therefore also includes each secret without its first letters.

use std::ops::Range;

use memchr::{memchr, memchr_iter};

use super::words::WordSet;

/// The minimum number of letters at the end of a row that count as the start of a secret.
pub(super) const FIRST: usize = 4;
/// The maximum number of bytes between two rows: `\r\n`, or an empty line.
const BREAK: usize = 2;
/// Separates texts that are not joined. Not a base64 letter.
const BETWEEN: u8 = 0;

fn is_break(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn is_of_rows(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=')
        || is_break(byte)
}

/// Base64 rows without their line breaks.
struct JoinedRows {
    text: Vec<u8>,
    /// The original position of each letter.
    from: Vec<usize>,
}

impl JoinedRows {
    fn new(bytes: &[u8], rows: Range<usize>) -> Self {
        let mut joined = Self { text: Vec::new(), from: Vec::new() };
        let mut breaks = 0;
        for at in rows {
            let Some(byte) = bytes.get(at).copied() else { break };
            if is_break(byte) {
                breaks += 1;
                if breaks == BREAK + 1 {
                    joined.push(BETWEEN, at);
                }
            } else {
                breaks = 0;
                joined.push(byte, at);
            }
        }
        joined
    }

    fn push(&mut self, byte: u8, at: usize) {
        self.text.push(byte);
        self.from.push(at);
    }
}

/// The unreleased bytes of a stream. More may follow.
#[derive(Clone, Copy)]
pub(super) struct UnreleasedBytes<'a> {
    pub(super) bytes: &'a [u8],
    /// Whether the bytes start at the beginning of a line.
    pub(super) begins_line: bool,
}

impl UnreleasedBytes<'_> {
    fn begins_line(&self, at: usize) -> bool {
        at.checked_sub(1)
            .and_then(|before| self.bytes.get(before))
            .map_or(self.begins_line, |byte| *byte == b'\n')
    }

    /// Returns whether a word at `at` may continue in the next row. `None`: the row is incomplete.
    fn may_go_on(&self, at: usize) -> Option<bool> {
        let rest = self.bytes.get(at..).unwrap_or_default();
        let row = rest.get(..memchr(b'\n', rest)?).unwrap_or_default();
        let letters = row.iter().filter(|byte| !is_break(**byte)).count();
        Some(letters >= FIRST || self.begins_line(at))
    }

    /// Returns the ranges that consist of several rows.
    fn rows(&self) -> impl Iterator<Item = Range<usize>> {
        let bytes = self.bytes;
        let mut from = 0;
        memchr_iter(b'\n', bytes).filter_map(move |newline| {
            // `None`: this line break belongs to the previous range.
            let before = bytes.get(from..newline)?;
            let begin =
                before.iter().rposition(|byte| !is_of_rows(*byte)).map_or(from, |at| from + at + 1);
            let after = bytes.get(newline..)?;
            let end = after
                .iter()
                .position(|byte| !is_of_rows(*byte))
                .map_or(bytes.len(), |at| newline + at);
            from = end;
            Some(begin..end)
        })
    }

    /// Returns the ranges of words that are broken into rows.
    pub(super) fn find(&self, words: &WordSet) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        if words.is_empty() {
            return found;
        }
        for rows in self.rows().filter(|rows| rows.len() > words.shortest()) {
            let JoinedRows { text, from } = JoinedRows::new(self.bytes, rows);
            let places = words.find(&text).filter_map(|(start, end)| {
                let (start, last) = (*from.get(start)?, *from.get(end.checked_sub(1)?)?);
                let rows = self.bytes.get(start..=last)?;
                let is_broken = memchr(b'\n', rows).is_some();
                (is_broken && self.may_go_on(start) == Some(true)).then_some((start, last + 1))
            });
            found.extend(places);
        }
        found
    }

    /// Returns the start of the longest suffix that may be the start of such a word.
    pub(super) fn beginning(&self, words: &WordSet) -> usize {
        let len = self.bytes.len();
        // Each letter may be followed by a line break.
        let most = words.longest().saturating_mul(BREAK + 1);
        let first = len.saturating_sub(most);
        let end = self.bytes.get(first..).unwrap_or_default();
        let begin =
            end.iter().rposition(|byte| !is_of_rows(*byte)).map_or(first, |at| first + at + 1);
        let JoinedRows { text, from } = JoinedRows::new(self.bytes, begin..len);
        let last = text.len().saturating_sub(words.longest().saturating_sub(1));
        let begins = |at: &usize| {
            let rest = text.get(*at..).unwrap_or_default();
            let place = from.get(*at).copied().unwrap_or_default();
            words.any_begins_with(rest) && self.may_go_on(place).unwrap_or(true)
        };
        (last..text.len()).find(begins).and_then(|at| from.get(at).copied()).unwrap_or(len)
    }
}
