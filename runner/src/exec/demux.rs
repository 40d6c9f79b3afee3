//! Splits the engine's framed container output into the bytes of its streams. Pure.
//!
//! A frame is one byte for the stream, three zero bytes, a big-endian length of four bytes, and the
//! payload. Stream 1 is standard output, and 2 is standard error.

use bytes::Bytes;
use protocol::event::LogStream;
use thiserror::Error;

/// Bytes that are not a valid frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the engine's output begins a frame with {0:02x?}")]
pub struct BadFrame([u8; 8]);

/// Consecutive bytes of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The stream.
    pub stream: LogStream,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Demultiplexes a connection's bytes, however they are split into reads.
#[derive(Debug, Default)]
pub struct Demux {
    head: [u8; 8],
    have: usize,
    left: usize,
    stream: Option<LogStream>,
    fresh: bool,
    /// The output has no frames: all bytes belong to one stream.
    raw: bool,
}

impl Demux {
    /// A demultiplexer for framed output, or for the raw output of a terminal.
    pub fn of(raw: bool) -> Self {
        Self { raw, ..Self::default() }
    }

    /// Whether the input so far ends with a complete frame.
    pub fn is_whole(&self) -> bool {
        self.left == 0 && self.have == 0
    }

    /// Adds the pieces of `input` to `out`. Adjacent pieces of one stream are merged, so that
    /// output written line by line costs its reader no more than output written in blocks.
    ///
    /// # Errors
    /// [`BadFrame`] if the bytes are not framed output. The pieces before them have been added.
    pub fn feed(&mut self, mut input: &[u8], out: &mut Vec<Piece>) -> Result<(), BadFrame> {
        while !input.is_empty() {
            let step = self.next(input)?;
            if let Some(stream) = step.stream
                && step.payload > 0
            {
                let bytes = &input[..step.payload];
                match out.last_mut() {
                    Some(last) if last.stream == stream => last.bytes.extend_from_slice(bytes),
                    Some(_) | None => out.push(Piece { stream, bytes: bytes.to_vec() }),
                }
            }
            input = &input[step.taken..];
        }
        Ok(())
    }

    /// Takes the next payload bytes of one frame from `input`, and whether they begin a frame.
    /// `None` if `input` held only a part of a header.
    ///
    /// # Errors
    /// [`BadFrame`] if the bytes are not framed output.
    pub fn split(&mut self, input: &mut Bytes) -> Result<Option<(Piece, bool)>, BadFrame> {
        let step = self.next(input)?;
        let bytes = input.split_to(step.taken);
        let Some(stream) = step.stream else { return Ok(None) };
        let piece = Piece { stream, bytes: bytes.to_vec() };
        Ok(Some((piece, std::mem::take(&mut self.fresh))))
    }

    /// Consumes a part of a header or of a payload.
    fn next(&mut self, input: &[u8]) -> Result<Step, BadFrame> {
        if self.raw {
            self.fresh = true;
            let all = input.len();
            return Ok(Step { stream: Some(LogStream::Stdout), payload: all, taken: all });
        }
        if self.left > 0 {
            let payload = self.left.min(input.len());
            self.left -= payload;
            return Ok(Step { stream: self.stream, payload, taken: payload });
        }
        let taken = (8 - self.have).min(input.len());
        self.head[self.have..self.have + taken].copy_from_slice(&input[..taken]);
        self.have += taken;
        if self.have == 8 {
            let [kind, zero @ .., a, b, c, d] = self.head;
            self.stream = Some(match (kind, zero) {
                (1, [0, 0, 0]) => LogStream::Stdout,
                (2, [0, 0, 0]) => LogStream::Stderr,
                _ => return Err(BadFrame(self.head)),
            });
            self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            self.have = 0;
            self.fresh = true;
        }
        Ok(Step { stream: None, payload: 0, taken })
    }
}

struct Step {
    stream: Option<LogStream>,
    payload: usize,
    taken: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![kind, 0, 0, 0];
        out.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        out.extend(bytes);
        out
    }

    fn whole(pieces: &[Piece], stream: LogStream) -> Vec<u8> {
        pieces.iter().filter(|piece| piece.stream == stream).flat_map(|p| p.bytes.clone()).collect()
    }

    #[test]
    fn a_length_that_looks_like_a_newline_or_a_letter_is_a_length() {
        for length in [0_usize, 10, 13, 65, 255, 256, 70_000] {
            let text: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let mut out = Vec::new();
            let mut demux = Demux::default();
            demux.feed(&frame(1, &text), &mut out).unwrap();
            assert_eq!(whole(&out, LogStream::Stdout), text);
            assert!(demux.is_whole());
        }
    }

    #[test]
    fn a_stream_that_there_is_not_is_an_error_and_no_panic() {
        for kind in [0_u8, 3, 10, 255] {
            let mut out = Vec::new();
            assert!(Demux::default().feed(&frame(kind, b"x"), &mut out).is_err());
            assert_eq!(out, []);
        }
        let mut out = Vec::new();
        assert!(Demux::default().feed(&[1, 0, 9, 0, 0, 0, 0, 1, b'x'], &mut out).is_err());
    }

    #[test]
    fn what_ends_within_a_frame_is_not_whole() {
        let all = frame(2, b"abc");
        for end in 1..all.len() {
            let mut demux = Demux::default();
            demux.feed(&all[..end], &mut Vec::new()).unwrap();
            assert!(!demux.is_whole(), "{end} bytes were taken for whole frames");
        }
    }

    #[test]
    fn neighbours_of_a_stream_become_one_piece() {
        let mut out = Vec::new();
        let bytes = [frame(1, b"a\n"), frame(1, b"b\n"), frame(2, b"c"), frame(1, b"d")].concat();
        let mut demux = Demux::default();
        demux.feed(&bytes, &mut out).unwrap();
        let pieces: Vec<_> = out.iter().map(|piece| piece.bytes.as_slice()).collect();
        assert_eq!(pieces, [b"a\nb\n".as_slice(), b"c", b"d"]);

        let (mut bytes, mut demux, mut begun) = (Bytes::from(bytes), Demux::default(), 0);
        while !bytes.is_empty() {
            begun +=
                usize::from(demux.split(&mut bytes).unwrap().is_some_and(|(_, begins)| begins));
        }
        assert_eq!(begun, 4);
    }

    proptest! {
        #[test]
        fn however_the_bytes_are_cut_the_streams_are_the_same(
            frames in prop::collection::vec(
                (1_u8..=2, prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            cuts in prop::collection::vec(1_usize..50, 1..50),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, text)| frame(*kind, text)).collect();
            let (mut demux, mut out, mut at) = (Demux::default(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                if at >= bytes.len() { break; }
                let end = (at + cut).min(bytes.len());
                demux.feed(&bytes[at..end], &mut out).unwrap();
                at = end;
            }
            prop_assert!(demux.is_whole());
            for (kind, stream) in [(1, LogStream::Stdout), (2, LogStream::Stderr)] {
                let expected: Vec<u8> = frames.iter()
                    .filter(|(of, _)| *of == kind).flat_map(|(_, text)| text.clone()).collect();
                prop_assert_eq!(whole(&out, stream), expected);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut out = Vec::new();
            Demux::default().feed(&bytes, &mut out).ok();
            prop_assert!(out.iter().map(|piece| piece.bytes.len()).sum::<usize>() <= bytes.len());
        }
    }
}
