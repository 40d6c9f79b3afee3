//! Entry points for fuzzing the parsers of engine output.

use bytes::Bytes;

use crate::exec::demux::{Demux, Piece};

/// Parses container output at once, in pieces of `size`, and frame by frame.
///
/// # Panics
/// If the three results differ.
pub fn demux(bytes: &[u8], size: usize) {
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    let at_once = Demux::default().feed(bytes, &mut whole).is_ok();
    let mut demux = Demux::default();
    let in_pieces = bytes.chunks(size.max(1)).all(|piece| demux.feed(piece, &mut pieces).is_ok());
    assert_eq!((at_once, joined(&whole)), (in_pieces, joined(&pieces)));
    let (mut rest, mut framed, mut demux) =
        (Bytes::copy_from_slice(bytes), Vec::new(), Demux::default());
    while !rest.is_empty() {
        match demux.split(&mut rest) {
            Ok(Some((piece, _))) => framed.push(piece),
            Ok(None) => {}
            Err(_) => break,
        }
    }
    assert_eq!(joined(&framed), joined(&whole));
    let mut raw = Vec::new();
    assert!(Demux::of(true).feed(bytes, &mut raw).is_ok());
    assert_eq!(joined(&raw).0, bytes, "a terminal's output has no frames");
}

/// The bytes of each stream.
fn joined(pieces: &[Piece]) -> (Vec<u8>, Vec<u8>) {
    let of = |is_error: bool| {
        let of_it =
            |piece: &&Piece| (piece.stream == protocol::event::LogStream::Stderr) == is_error;
        pieces.iter().filter(of_it).flat_map(|piece| piece.bytes.clone()).collect()
    };
    (of(false), of(true))
}
