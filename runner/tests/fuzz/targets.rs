//! Functions that process untrusted bytes. They must return for any input, in bounded time and
//! memory. The fuzzer calls them (`just fuzz`), and a test replays its findings.

use std::sync::Arc;

use bytes::Bytes;
use protocol::command;
use protocol::dialect::{self, Dialect};
use protocol::event::LogStream;
use protocol::shell;
use runner::exec::demux::{Demux, Piece};
use runner::rules::dollar::{Job, KnownValues};
use runner::rules::mask::{Mask, Masker};
use runner::rules::template;

/// A function that accepts any bytes.
pub(crate) type Target = fn(&[u8]);

/// All targets by name.
pub(crate) const TARGETS: [(&str, Target); 7] = [
    ("dialects", dialects),
    ("commands", commands),
    ("words", words),
    ("demux", demux),
    ("go_template", go_template),
    ("dollar", dollar),
    ("mask", mask),
];

/// Splits off the first byte, which selects a variant.
fn chosen(bytes: &[u8]) -> (usize, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (usize::from(*first), rest))
}

/// Converts any bytes to text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Files of every dialect. A parsed pipeline must be printable and traversable.
pub(crate) fn dialects(bytes: &[u8]) {
    let (first, rest) = chosen(bytes);
    let ways = [
        (None, "any.yaml"),
        (Some(Dialect::Bob), "a.json"),
        (Some(Dialect::Prunner), "pipelines.yml"),
        (Some(Dialect::Job), "jobs.yml"),
        (Some(Dialect::CiLines), "ci-job-queue"),
    ];
    let (dialect, file) = ways[first % ways.len()];
    let parsed = dialect::parse_as(dialect, Some(file), rest);
    for pipeline in &parsed.pipelines {
        drop(pipeline.graph());
        drop(pipeline.unsupported());
        let shown = serde_json::to_vec(&pipeline.masked());
        assert!(shown.is_ok(), "a parsed pipeline must be printable");
    }
}

/// Messages of every kind.
pub(crate) fn commands(bytes: &[u8]) {
    let (first, rest) = chosen(bytes);
    let kinds = [command::START, command::STOP, command::PAUSE, command::UNPAUSE, "other"];
    drop(command::decode(Some(kinds[first % kinds.len()]), Some("an id"), rest));
}

/// Shell words. Splitting, joining and splitting again gives the same words.
pub(crate) fn words(bytes: &[u8]) {
    let words = shell::split(&text(bytes));
    assert_eq!(shell::split(&shell::join(&words)), words);
}

/// Container output. The result is the same at once, in pieces of any size, and frame by frame.
pub(crate) fn demux(bytes: &[u8]) {
    let (first, bytes) = chosen(bytes);
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    let at_once = Demux::default().feed(bytes, &mut whole).is_ok();
    let mut demux = Demux::default();
    let in_pieces = bytes.chunks(first + 1).all(|piece| demux.feed(piece, &mut pieces).is_ok());
    assert_eq!((at_once, streams(&whole)), (in_pieces, streams(&pieces)));
    let (mut rest, mut framed, mut demux) =
        (Bytes::copy_from_slice(bytes), Vec::new(), Demux::default());
    while !rest.is_empty() {
        match demux.split(&mut rest) {
            Ok(Some((piece, _))) => framed.push(piece),
            Ok(None) => {}
            Err(_) => break,
        }
    }
    assert_eq!(streams(&framed), streams(&whole));
    let mut raw = Vec::new();
    assert!(Demux::of(true).feed(bytes, &mut raw).is_ok());
    assert_eq!(streams(&raw).0, bytes, "a terminal's output has no frames");
}

/// The bytes on standard output and on standard error.
fn streams(pieces: &[Piece]) -> (Vec<u8>, Vec<u8>) {
    let bytes_of = |stream: LogStream| {
        let of_stream = pieces.iter().filter(|piece| piece.stream == stream);
        of_stream.flat_map(|piece| piece.bytes.clone()).collect()
    };
    (bytes_of(LogStream::Stdout), bytes_of(LogStream::Stderr))
}

/// Programs with Go templates.
pub(crate) fn go_template(bytes: &[u8]) {
    let values =
        serde_json::json!({ "a": "{{ .b }} 'x", "b": "", "c": [1, "x", null, { "d": [] }] });
    let values = values.as_object().cloned().unwrap_or_default();
    drop(template::render_go(&[text(bytes)], &values, "r-1"));
}

/// Programs with references to earlier jobs.
pub(crate) fn dollar(bytes: &[u8]) {
    let result =
        serde_json::json!({ "data": { "rows": [[1, "x"], { "a": null }], "t": "${a.data}" } });
    let jobs = [
        Job { name: "a", id: "b", result: Some(&result) },
        Job { name: "c", id: "d", result: None },
    ];
    let text = text(bytes);
    if let Ok(filled) = KnownValues::before(jobs).fill(&text)
        && !text.contains("${")
    {
        assert_eq!(filled, text);
    }
}

/// Output with a secret. The secret is masked however the output is split.
pub(crate) fn mask(bytes: &[u8]) {
    let (first, rest) = chosen(bytes);
    let (secret, said) = rest.split_at(rest.len().min(first % 40));
    let Ok(mask) = Mask::new([secret].into_iter()) else { return };
    let mask = Arc::new(mask);
    let mut whole = Masker::new(Arc::clone(&mask));
    let mut expected = whole.push(said);
    expected.extend(whole.finish());
    let mut pieces = Masker::new(mask);
    let mut out: Vec<u8> =
        said.chunks(first % 7 + 1).flat_map(|piece| pieces.push(piece)).collect();
    out.extend(pieces.finish());
    assert_eq!(out, expected, "the result depends on the pieces");
    // Surrounding blanks are not part of a secret.
    let secret = secret.trim_ascii();
    // The mask can itself be part of a secret that contains its character.
    let is_plain = secret.len() >= 3 && !secret.contains(&b'*');
    let is_there = out.windows(secret.len().max(1)).any(|window| window == secret);
    assert!(!(is_plain && is_there), "secret {:?} was published", text(secret));
}
