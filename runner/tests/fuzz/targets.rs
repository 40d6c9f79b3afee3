//! Fuzz targets: functions that process untrusted bytes. For any input, they must return without a
//! panic, in bounded time and memory. The fuzzer calls them (`just fuzz`), and a test replays its
//! findings.

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

/// A fuzz target. It accepts any bytes.
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

/// Splits off the first byte, which selects a variant of the test.
fn split_selector(bytes: &[u8]) -> (usize, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (usize::from(*first), rest))
}

/// Converts any bytes to text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Pipeline files of every dialect. A parsed pipeline must be traversable and serializable.
pub(crate) fn dialects(bytes: &[u8]) {
    let (selector, rest) = split_selector(bytes);
    let variants = [
        (None, "any.yaml"),
        (Some(Dialect::Bob), "a.json"),
        (Some(Dialect::Prunner), "pipelines.yml"),
        (Some(Dialect::Job), "jobs.yml"),
        (Some(Dialect::CiLines), "ci-job-queue"),
    ];
    let (dialect, file) = variants[selector % variants.len()];
    let parsed = dialect::parse_as(dialect, Some(file), rest);
    for pipeline in &parsed.pipelines {
        drop(pipeline.graph());
        drop(pipeline.unsupported());
        let json = serde_json::to_vec(&pipeline.masked());
        assert!(json.is_ok(), "a parsed pipeline must be serializable");
    }
}

/// Command messages of every kind.
pub(crate) fn commands(bytes: &[u8]) {
    let (selector, rest) = split_selector(bytes);
    let kinds = [command::START, command::STOP, command::PAUSE, command::UNPAUSE, "other"];
    drop(command::decode(Some(kinds[selector % kinds.len()]), Some("an id"), rest));
}

/// Shell words. Joining the words of a text and splitting the result must give the same words.
pub(crate) fn words(bytes: &[u8]) {
    let words = shell::split(&text(bytes));
    assert_eq!(shell::split(&shell::join(&words)), words);
}

/// Container output. It must be demultiplexed in the same way whether it is fed at once, in pieces
/// of any size, or frame by frame.
pub(crate) fn demux(bytes: &[u8]) {
    let (selector, bytes) = split_selector(bytes);
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    let at_once = Demux::default().feed(bytes, &mut whole).is_ok();
    let mut demux = Demux::default();
    let in_pieces = bytes.chunks(selector + 1).all(|piece| demux.feed(piece, &mut pieces).is_ok());
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
    assert_eq!(streams(&raw).0, bytes, "the output of a terminal is passed on unchanged");
}

/// Returns the bytes on standard output and those on standard error.
fn streams(pieces: &[Piece]) -> (Vec<u8>, Vec<u8>) {
    let bytes_of = |stream: LogStream| {
        let matching = pieces.iter().filter(|piece| piece.stream == stream);
        matching.flat_map(|piece| piece.bytes.clone()).collect()
    };
    (bytes_of(LogStream::Stdout), bytes_of(LogStream::Stderr))
}

/// Go templates in scripts, rendered with values of every JSON type.
pub(crate) fn go_template(bytes: &[u8]) {
    let values =
        serde_json::json!({ "a": "{{ .b }} 'x", "b": "", "c": [1, "x", null, { "d": [] }] });
    let values = values.as_object().cloned().unwrap_or_default();
    drop(template::render_go(&[text(bytes)], &values, "r-1"));
}

/// References to earlier jobs. A text without `${` must stay unchanged.
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

/// Masked output. A secret must be masked however the output is split into pieces.
pub(crate) fn mask(bytes: &[u8]) {
    let (selector, rest) = split_selector(bytes);
    let (secret, output) = rest.split_at(rest.len().min(selector % 40));
    let Ok(mask) = Mask::new([secret].into_iter()) else { return };
    let mask = Arc::new(mask);
    let mut masker = Masker::new(Arc::clone(&mask));
    let mut expected = masker.push(output);
    expected.extend(masker.finish());
    let mut masker = Masker::new(mask);
    let mut masked: Vec<u8> =
        output.chunks(selector % 7 + 1).flat_map(|piece| masker.push(piece)).collect();
    masked.extend(masker.finish());
    assert_eq!(masked, expected, "the result depends on the pieces");
    // Surrounding whitespace is not part of a secret.
    let secret = secret.trim_ascii();
    // Secrets shorter than 3 bytes are not masked. A secret that contains `*` can appear again where
    // the mask `***` meets the text around it.
    let is_checked = secret.len() >= 3 && !secret.contains(&b'*');
    let is_published = masked.windows(secret.len().max(1)).any(|window| window == secret);
    assert!(!(is_checked && is_published), "secret {:?} was published", text(secret));
}
