//! Continues a step's output from the engine's own copy of it.
//!
//! The copy is limited in size, so its beginning can be missing. If it still begins with the first
//! bytes received, the number of bytes to skip is known. Otherwise the reader searches for the last
//! bytes received and continues after them.

use memchr::memmem::Finder;
use protocol::event::LogStream;

use super::demux::Piece;

/// The notice for output that the copy lost before it was read.
pub(super) const GAP: &str = "some of the step's output is missing here: the container engine keeps only the end of it, and was unreachable for too long";

/// The number of bytes remembered from each end of the output.
const KEPT: usize = 1024;

/// The received bytes of one stream.
#[derive(Debug, Clone, Default)]
struct ReceivedStream {
    total: u64,
    first: Vec<u8>,
    last: Vec<u8>,
}

impl ReceivedStream {
    fn add(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let free = KEPT.saturating_sub(self.first.len()).min(bytes.len());
        self.first.extend_from_slice(bytes.get(..free).unwrap_or_default());
        let new = bytes.get(bytes.len().saturating_sub(KEPT)..).unwrap_or_default();
        let over = (self.last.len() + new.len()).saturating_sub(KEPT);
        self.last.drain(..over);
        self.last.extend_from_slice(new);
    }
}

/// The received bytes of both streams of a step.
#[derive(Debug, Clone, Default)]
pub(super) struct ReceivedOutput {
    stdout: ReceivedStream,
    stderr: ReceivedStream,
}

impl ReceivedOutput {
    /// Adds a received piece.
    pub(super) fn add(&mut self, piece: &Piece) {
        match piece.stream {
            LogStream::Stderr => self.stderr.add(&piece.bytes),
            LogStream::Stdout | LogStream::Bob => self.stdout.add(&piece.bytes),
        }
    }

    /// Starts reading the copy.
    pub(super) fn read(&self, ways: SkipModes) -> CopyPass {
        let of = |mark: &ReceivedStream, way| StreamPass {
            mark: mark.clone(),
            way,
            at: 0,
            window: Vec::new(),
            lies: CopyRelation::Complete,
        };
        CopyPass { stdout: of(&self.stdout, ways.stdout), stderr: of(&self.stderr, ways.stderr) }
    }
}

/// How to skip the bytes already received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum SkipMode {
    /// By count: the copy is complete.
    #[default]
    Count,
    /// By searching for the last received bytes: the copy has lost its beginning.
    Search,
    /// Skip nothing: the copy does not contain them.
    Nothing,
}

/// The way to skip for each stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SkipModes {
    stdout: SkipMode,
    stderr: SkipMode,
}

impl SkipModes {
    /// Whether output is missing between the received bytes and the copy.
    pub(super) fn has_gap(self) -> bool {
        self.stdout == SkipMode::Nothing || self.stderr == SkipMode::Nothing
    }
}

/// How the copy of a stream relates to the received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CopyRelation {
    Complete,
    /// It has lost its beginning.
    Moved,
    /// It contains the last received bytes.
    Found,
}

/// One pass over the copy of one stream.
struct StreamPass {
    mark: ReceivedStream,
    way: SkipMode,
    /// The number of bytes read so far.
    at: u64,
    window: Vec<u8>,
    lies: CopyRelation,
}

impl StreamPass {
    fn take(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let before = self.at;
        self.at += bytes.len() as u64;
        match self.way {
            SkipMode::Nothing => bytes,
            SkipMode::Search => self.search(bytes),
            SkipMode::Count => {
                self.compare(before, &bytes);
                if self.lies == CopyRelation::Moved {
                    Vec::new()
                } else {
                    self.behind(before, bytes)
                }
            }
        }
    }

    /// The bytes that were not received before.
    fn behind(&self, before: u64, mut bytes: Vec<u8>) -> Vec<u8> {
        let over = self.mark.total.saturating_sub(before);
        let over = usize::try_from(over).unwrap_or(usize::MAX).min(bytes.len());
        bytes.drain(..over);
        bytes
    }

    fn compare(&mut self, before: u64, bytes: &[u8]) {
        let at = usize::try_from(before).unwrap_or(usize::MAX);
        let expected = self.mark.first.get(at..).unwrap_or_default();
        if expected.iter().zip(bytes).any(|(expected, byte)| expected != byte) {
            self.lies = CopyRelation::Moved;
        }
    }

    fn search(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        if self.lies == CopyRelation::Found {
            return bytes;
        }
        self.window.extend(bytes);
        let last = &self.mark.last;
        if let Some(at) = Finder::new(last).find(&self.window) {
            self.lies = CopyRelation::Found;
            let mut window = std::mem::take(&mut self.window);
            window.drain(..at + last.len());
            return window;
        }
        let over = self.window.len().saturating_sub(last.len());
        self.window.drain(..over);
        Vec::new()
    }

    /// How to read the copy again if this pass did not find where to continue.
    fn next(&self) -> Option<SkipMode> {
        match (self.way, self.lies) {
            (SkipMode::Count, CopyRelation::Moved) => Some(SkipMode::Search),
            (SkipMode::Search, CopyRelation::Complete | CopyRelation::Moved) => {
                Some(SkipMode::Nothing)
            }
            (SkipMode::Count | SkipMode::Search | SkipMode::Nothing, _) => None,
        }
    }
}

/// One pass over the copy of both streams.
pub(super) struct CopyPass {
    stdout: StreamPass,
    stderr: StreamPass,
}

impl CopyPass {
    /// Takes the next piece of the copy and returns the bytes that were not received before.
    pub(super) fn take(&mut self, piece: Piece) -> Option<Piece> {
        let place = match piece.stream {
            LogStream::Stderr => &mut self.stderr,
            LogStream::Stdout | LogStream::Bob => &mut self.stdout,
        };
        let bytes = place.take(piece.bytes);
        (!bytes.is_empty()).then_some(Piece { bytes, ..piece })
    }

    /// How to read the copy again if this pass did not find where to continue. Call it only after
    /// reading the copy to its end.
    pub(super) fn again(&self) -> Option<SkipModes> {
        let (stdout, stderr) = (self.stdout.next(), self.stderr.next());
        if stdout.is_none() && stderr.is_none() {
            return None;
        }
        // The other stream is read to its end: skip all of it in the next pass.
        let way = |next: Option<SkipMode>, place: &StreamPass| match (next, place.way) {
            (Some(way), _) => way,
            (None, SkipMode::Count) => SkipMode::Count,
            (None, SkipMode::Search | SkipMode::Nothing) => SkipMode::Search,
        };
        Some(SkipModes { stdout: way(stdout, &self.stdout), stderr: way(stderr, &self.stderr) })
    }

    /// Whether a complete copy has fewer bytes than were received.
    pub(super) fn is_short(&self) -> bool {
        let is_short = |place: &StreamPass| {
            place.way == SkipMode::Count
                && place.lies == CopyRelation::Complete
                && place.at < place.mark.total
        };
        is_short(&self.stdout) || is_short(&self.stderr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(bytes: &[u8]) -> Piece {
        Piece { stream: LogStream::Stdout, bytes: bytes.to_vec() }
    }

    /// The bytes read from a copy, and whether output is missing before them.
    fn rest(seen: &ReceivedOutput, copy: &[u8], cut: usize) -> (Vec<u8>, bool) {
        let (mut seen, mut ways, mut out) = (seen.clone(), SkipModes::default(), Vec::new());
        loop {
            let mut reading = seen.read(ways);
            for part in copy.chunks(cut) {
                if let Some(new) = reading.take(piece(part)) {
                    out.extend_from_slice(&new.bytes);
                    seen.add(&new);
                }
            }
            match reading.again() {
                Some(next) => ways = next,
                None => return (out, ways.has_gap()),
            }
        }
    }

    fn numbers(count: usize) -> Vec<u8> {
        (0..count).flat_map(|n| format!("line {n}\n").into_bytes()).collect()
    }

    #[test]
    fn a_copy_without_its_beginning_is_read_from_the_last_received_bytes() {
        let all = numbers(2_000);
        for (taken, begins) in [(500, 1), (500, 400), (9_000, 7_000), (9_000, 8_500)] {
            let mut seen = ReceivedOutput::default();
            for part in all[..taken].chunks(700) {
                seen.add(&piece(part));
            }
            for cut in [1, 100, 5_000] {
                let found = rest(&seen, &all[begins..], cut);
                // The search works only if the copy has all remembered bytes.
                if taken - begins >= KEPT.min(taken) {
                    assert_eq!(found, (all[taken..].to_vec(), false), "{taken} {begins} {cut}");
                } else {
                    assert_eq!(found, (all[begins..].to_vec(), true), "{taken} {begins} {cut}");
                }
            }
        }
    }

    #[test]
    fn missing_output_before_a_copy_is_reported() {
        let all = numbers(2_000);
        let mut seen = ReceivedOutput::default();
        seen.add(&piece(&all[..3_000]));
        assert_eq!(rest(&seen, &all[6_000..], 512), (all[6_000..].to_vec(), true));
    }

    #[test]
    fn a_complete_copy_that_ends_early_adds_nothing() {
        let all = numbers(500);
        let mut seen = ReceivedOutput::default();
        seen.add(&piece(&all[..3_000]));
        let mut reading = seen.read(SkipModes::default());
        assert_eq!(reading.take(piece(&all[..2_500])), None);
        assert!(reading.is_short() && reading.again().is_none());
    }

    proptest! {
        #[test]
        fn exactly_the_received_bytes_are_skipped(
            text in prop::collection::vec(any::<u8>(), 0..3000),
            taken in 0_usize..3000,
            cut in 1_usize..200,
        ) {
            let taken = taken.min(text.len());
            let mut seen = ReceivedOutput::default();
            for part in text[..taken].chunks(cut) {
                seen.add(&piece(part));
            }
            prop_assert_eq!(rest(&seen, &text, cut), (text[taken..].to_vec(), false));
        }
    }
}
