//! Splits the output of a step into the texts of `Log` events: whole lines if possible, and every
//! byte at its offset (docs/wire.md section 4).

use std::time::Duration;

/// The maximum number of raw bytes in one event.
pub const MAX_BYTES: usize = 64 * 1024;
/// The maximum delay before a complete line is published.
pub const LINE_WAIT: Duration = Duration::from_millis(200);
/// The maximum delay before an incomplete line is published in part.
pub const PARTIAL_WAIT: Duration = Duration::from_secs(1);

/// The bytes that output takes in events as JSON. A newline counts as one, and text that is published
/// as base64 counts as if it were not.
#[must_use]
pub fn published_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().copied().map(published_byte).sum()
}

/// Returns the longest prefix that takes at most `most` bytes in events.
#[must_use]
pub fn prefix_within(bytes: &[u8], most: u64) -> &[u8] {
    let mut used = 0;
    let end = bytes.iter().position(|byte| {
        used += published_byte(*byte);
        used > most
    });
    end.and_then(|end| bytes.get(..end)).unwrap_or(bytes)
}

fn published_byte(byte: u8) -> u64 {
    match byte {
        b'\n' => 1,
        b'"' | b'\\' | b'\t' | b'\r' | 0x08 | 0x0C => 2,
        // Written as `\u0000`.
        ..0x20 => 6,
        _ => 1,
    }
}

/// A text from one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The offset of the first byte in the stream.
    pub offset: u64,
    /// The bytes, without the trailing newline.
    pub bytes: Vec<u8>,
    /// Whether the text does not end with a newline.
    pub partial: bool,
}

/// The unpublished output of one stream. Times may be from any monotonic clock.
#[derive(Debug, Default)]
pub struct Lines {
    waiting: Vec<u8>,
    /// Bytes before this index have been searched for a newline.
    searched: usize,
    /// The length of the complete lines in `waiting`, including the last newline.
    whole: usize,
    offset: u64,
    whole_since: Option<Duration>,
    part_since: Option<Duration>,
}

impl Lines {
    /// Returns the number of bytes received from the stream, published or not.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.offset + self.waiting.len() as u64
    }

    /// Adds bytes, and returns the texts to publish now.
    #[must_use]
    pub fn push(&mut self, now: Duration, bytes: &[u8]) -> Vec<Piece> {
        let mut ready = Vec::new();
        // Process slices, so that a large write needs no more memory than a small one.
        for slice in bytes.chunks(MAX_BYTES) {
            self.waiting.extend_from_slice(slice);
            self.search();
            while self.waiting.len() > MAX_BYTES {
                let (window, rest) = self.waiting.split_at(MAX_BYTES);
                let end = match window.iter().rposition(|byte| *byte == b'\n') {
                    Some(newline) => newline + 1,
                    // The line has exactly the size of an event, and its newline follows.
                    None if rest.first() == Some(&b'\n') => MAX_BYTES + 1,
                    None => char_boundary(&self.waiting, MAX_BYTES),
                };
                ready.push(self.cut(end));
            }
        }
        self.note_times(now);
        ready
    }

    /// Returns the texts whose delay has passed.
    #[must_use]
    pub fn due(&mut self, now: Duration) -> Vec<Piece> {
        let mut ready = Vec::new();
        let is_due = |since: Option<Duration>, wait| since.is_some_and(|since| now >= since + wait);
        if is_due(self.whole_since, LINE_WAIT) && self.whole > 0 {
            ready.push(self.cut(self.whole));
        }
        if is_due(self.part_since, PARTIAL_WAIT) && self.whole == 0 {
            let end = char_boundary(&self.waiting, self.waiting.len());
            if end > 0 {
                ready.push(self.cut(end));
            }
        }
        self.note_times(now);
        ready
    }

    /// Returns the time at which `due` has texts to return.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let whole = self.whole_since.map(|since| since + LINE_WAIT);
        // An incomplete line is not published before the complete lines in front of it.
        whole.or_else(|| self.part_since.map(|since| since + PARTIAL_WAIT))
    }

    /// Returns all remaining output at the end of the stream.
    #[must_use]
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut ready = Vec::new();
        if self.whole > 0 {
            ready.push(self.cut(self.whole));
        }
        if !self.waiting.is_empty() {
            ready.push(self.cut(self.waiting.len()));
        }
        (self.whole_since, self.part_since) = (None, None);
        ready
    }

    fn search(&mut self) {
        let fresh = self.waiting.get(self.searched..).unwrap_or_default();
        if let Some(newline) = fresh.iter().rposition(|byte| *byte == b'\n') {
            self.whole = self.searched + newline + 1;
            // The incomplete line is now complete. If another one follows, it has just begun.
            self.part_since = None;
        }
        self.searched = self.waiting.len();
    }

    fn cut(&mut self, end: usize) -> Piece {
        let mut bytes: Vec<u8> = self.waiting.drain(..end).collect();
        let offset = self.offset;
        self.offset += end as u64;
        self.whole = self.whole.saturating_sub(end);
        self.searched = self.searched.saturating_sub(end);
        if self.whole == 0 {
            self.whole_since = None;
        }
        if self.waiting.is_empty() {
            self.part_since = None;
        }
        let partial = bytes.last() != Some(&b'\n');
        if !partial {
            bytes.pop();
        }
        Piece { offset, bytes, partial }
    }

    fn note_times(&mut self, now: Duration) {
        if self.whole > 0 {
            self.whole_since.get_or_insert(now);
        }
        if self.waiting.len() > self.whole {
            self.part_since.get_or_insert(now);
        } else {
            self.part_since = None;
        }
    }
}

/// Returns the largest index up to `end` that is not inside a UTF-8 character. Invalid UTF-8 may be
/// split anywhere, because it is published as base64.
fn char_boundary(bytes: &[u8], end: usize) -> usize {
    for back in 1..=3.min(end) {
        let Some(byte) = bytes.get(end - back) else { return end };
        let length = match byte {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            0x80..=0xBF => continue,
            _ => return end,
        };
        return if length > back { end - back } else { end };
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(pieces: &[Piece]) -> Vec<(u64, String, bool)> {
        pieces
            .iter()
            .map(|p| (p.offset, String::from_utf8_lossy(&p.bytes).into_owned(), p.partial))
            .collect()
    }

    fn joined(pieces: &[Piece]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in pieces {
            assert_eq!(piece.offset, bytes.len() as u64, "a gap before {piece:?}");
            bytes.extend_from_slice(&piece.bytes);
            if !piece.partial {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    const AT: Duration = Duration::from_secs(100);

    #[test]
    fn lines_are_batched_for_a_short_time() {
        let mut lines = Lines::default();
        assert!(lines.push(AT, b"one\ntwo\nth").is_empty());
        assert!(lines.due(AT + LINE_WAIT - Duration::from_millis(1)).is_empty());
        assert_eq!(lines.deadline(), Some(AT + LINE_WAIT));
        assert_eq!(text(&lines.due(AT + LINE_WAIT)), [(0, "one\ntwo".into(), false)]);
        assert_eq!(lines.deadline(), Some(AT + PARTIAL_WAIT));
        assert_eq!(text(&lines.due(AT + PARTIAL_WAIT)), [(8, "th".into(), true)]);
        assert!(lines.push(AT + PARTIAL_WAIT, b"ree\n").is_empty());
        assert_eq!(text(&lines.finish()), [(10, "ree".into(), false)]);
        assert_eq!(lines.total(), 14);
    }

    #[test]
    fn a_late_newline_ends_an_unfinished_line_with_an_empty_text() {
        let mut lines = Lines::default();
        assert!(lines.push(AT, b"x").is_empty());
        assert_eq!(lines.due(AT + PARTIAL_WAIT).len(), 1);
        assert!(lines.push(AT, b"\n").is_empty());
        assert_eq!(text(&lines.finish()), [(1, String::new(), false)]);
    }

    #[test]
    fn a_stream_is_due_only_if_it_has_output() {
        let mut lines = Lines::default();
        let (mut now, mut pieces) = (AT, Vec::new());
        for _ in 0..500 {
            now += Duration::from_millis(20);
            while lines.deadline().is_some_and(|at| at <= now) {
                let due = lines.due(now);
                assert!(!due.is_empty(), "a deadline with nothing to publish");
                pieces.extend(due);
            }
            pieces.extend(lines.push(now, b"rest\nnext\nbegin"));
        }
        assert!(pieces.iter().all(|piece| !piece.partial), "no line was older than 20 ms");
    }

    #[test]
    fn a_line_longer_than_an_event_is_split_between_characters() {
        let mut lines = Lines::default();
        let long = "ä".repeat(MAX_BYTES);
        let mut pieces = lines.push(AT, format!("x{long}\n").as_bytes());
        pieces.extend(lines.finish());
        assert!(pieces.iter().all(|p| p.bytes.len() <= MAX_BYTES));
        assert!(pieces.iter().all(|p| std::str::from_utf8(&p.bytes).is_ok()));
        assert_eq!(joined(&pieces), format!("x{long}\n").into_bytes());
    }

    #[test]
    fn a_line_of_exactly_the_size_of_an_event_is_one_event() {
        let mut lines = Lines::default();
        let mut bytes = vec![b'a'; MAX_BYTES];
        bytes.push(b'\n');
        let mut pieces = lines.push(AT, &bytes);
        pieces.extend(lines.finish());
        assert_eq!(pieces.len(), 1);
        assert!(!pieces[0].partial);
    }

    #[test]
    fn bytes_are_counted_in_their_published_form() {
        for byte in 0..=0x7F_u8 {
            let json = serde_json::to_string(&char::from(byte)).unwrap();
            let expected = if byte == b'\n' { 1 } else { json.len() as u64 - 2 };
            assert_eq!(published_bytes(&[byte]), expected, "{byte:#x}");
        }
        assert_eq!(published_bytes("aü\n\0".as_bytes()), 10);
        let text = b"ab\x01\x02cd";
        for (most, end) in [(0, 0), (2, 2), (7, 2), (8, 3), (14, 4), (15, 5), (16, 6), (100, 6)] {
            assert_eq!(prefix_within(text, most), &text[..end], "{most}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_is_published_once_and_in_order_for_any_chunking(
            chunks in prop::collection::vec((0u64..1500, prop::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'a'), any::<u8>()], 0..300), 1usize..600), 0..20)
        ) {
            let mut lines = Lines::default();
            let (mut now, mut all, mut pieces) = (AT, Vec::new(), Vec::new());
            for (wait, chunk, times) in chunks {
                now += Duration::from_millis(wait);
                pieces.extend(lines.due(now));
                let chunk = chunk.repeat(times);
                all.extend_from_slice(&chunk);
                pieces.extend(lines.push(now, &chunk));
            }
            prop_assert_eq!(lines.total(), all.len() as u64);
            pieces.extend(lines.finish());
            prop_assert!(pieces.iter().all(|p| p.bytes.len() <= MAX_BYTES));
            prop_assert_eq!(joined(&pieces), all);
        }
    }
}
