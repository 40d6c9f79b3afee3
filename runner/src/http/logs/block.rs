//! The format of a log file: one JSON line per log line, compressed in blocks. Pure.
//!
//! Each block is a gzip member of its own, so `zcat` and `zgrep` read the whole file. The header of
//! a member has an extra field (RFC 1952, 2.3.1.1) with the block's size and its line numbers. A
//! reader finds a line by skipping from header to header. The last block has the [`End`] of the log.
//! A file without it is incomplete.

use std::io::{self, Read as _, Write as _};

use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use protocol::id::RunId;
use protocol::run::{Cause, Status};
use protocol::time::Millis;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::line::Line;

/// The size of uncompressed lines at which a block is complete.
pub(super) const BLOCK: usize = 128 * 1024;
/// The maximum size of a block's JSON. A block exceeds [`BLOCK`] by at most one line, of which each
/// byte takes at most six bytes as JSON.
const MAX_JSON: u64 = 4 << 20;
/// The size of a block's header.
pub(super) const HEADER: usize = 12 + FIELD + VALUES;
/// The size of the identifier and length of the extra field.
const FIELD: usize = 4;
/// The size of its values.
const VALUES: usize = 16;
/// The identifier of the extra field.
const ID: [u8; 2] = *b"BR";

/// The header of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The size of the block in bytes, including the header.
    pub(super) size: u32,
    /// The number of lines. 0 in the block with the end.
    pub(super) count: u32,
    /// The number of the first line.
    pub(super) first: u64,
}

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct End {
    /// The run.
    pub run_id: RunId,
    /// The number of lines.
    pub lines: u64,
    /// How the run ended. Missing if the event that ends it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// The cause, if the run did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The time of the last event that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Millis>,
    /// The missing parts of the log, one phrase each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// A sentence, if the stream's retention is the reason for the missing parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl End {
    /// The end of a log of which nothing but its lines is known.
    pub(super) fn of(run_id: RunId, lines: u64) -> Self {
        Self { run_id, lines, status: None, cause: None, at: None, missing: Vec::new(), note: None }
    }
}

#[derive(Serialize, Deserialize)]
struct EndLine {
    end: End,
}

/// A JSON line of a log file.
#[derive(Debug)]
pub(super) enum Entry {
    /// A line of the log.
    Line(Line),
    /// The end of the log.
    End(End),
}

/// Decodes a JSON line of a log file.
pub(super) fn entry(json: &[u8]) -> io::Result<Entry> {
    if json.starts_with(br#"{"end":"#) {
        return Ok(Entry::End(serde_json::from_slice::<EndLine>(json)?.end));
    }
    Ok(Entry::Line(serde_json::from_slice(json)?))
}

/// Compresses lines with consecutive numbers. There is at least one.
pub(super) fn encode(lines: &[Line]) -> io::Result<(Vec<u8>, Header)> {
    let first = lines.first().map(|line| line.line).unwrap_or_default();
    let count = u32::try_from(lines.len()).map_err(io::Error::other)?;
    compress(lines, first, count)
}

/// Compresses the end of a log.
pub(super) fn encode_end(end: &End) -> io::Result<(Vec<u8>, Header)> {
    compress(&[EndLine { end: end.clone() }], end.lines + 1, 0)
}

fn compress<T: Serialize>(lines: &[T], first: u64, count: u32) -> io::Result<(Vec<u8>, Header)> {
    let mut extra = Vec::with_capacity(FIELD + VALUES);
    extra.extend(ID);
    extra.extend([VALUES as u8, 0]);
    // The size is only known at the end.
    extra.extend(0_u32.to_le_bytes());
    extra.extend(count.to_le_bytes());
    extra.extend(first.to_le_bytes());
    let mut gzip = GzBuilder::new().extra(extra).write(Vec::new(), Compression::fast());
    for line in lines {
        serde_json::to_writer(&mut gzip, line)?;
        gzip.write_all(b"\n")?;
    }
    let mut block = gzip.finish()?;
    let size = u32::try_from(block.len()).map_err(io::Error::other)?;
    block[12 + FIELD..12 + FIELD + 4].copy_from_slice(&size.to_le_bytes());
    Ok((block, Header { size, count, first }))
}

/// Decodes a header. `None` if the bytes are not the start of a block.
pub(super) fn header(bytes: &[u8; HEADER]) -> Option<Header> {
    let [magic @ .., _mtime3, _mtime2, _mtime1, _mtime0, _level, _system] =
        bytes.first_chunk::<10>()?;
    let extra = bytes.get(12..)?;
    let is_block = *magic == [0x1F, 0x8B, 8, 4]
        && bytes.get(10..12)? == [(FIELD + VALUES) as u8, 0]
        && extra.get(..FIELD)? == [ID[0], ID[1], VALUES as u8, 0];
    let values = extra.get(FIELD..)?;
    let size = u32::from_le_bytes(*values.first_chunk()?);
    let count = u32::from_le_bytes(*values.get(4..)?.first_chunk()?);
    let first = u64::from_le_bytes(*values.get(8..)?.first_chunk()?);
    (is_block && size as usize > HEADER).then_some(Header { size, count, first })
}

/// Decompresses a block of lines.
pub(super) fn decode(block: &[u8]) -> io::Result<Vec<Line>> {
    let json = decompress(block)?;
    let lines = json.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(io::Error::from)).collect()
}

/// Decompresses the block with the end.
pub(super) fn decode_end(block: &[u8]) -> io::Result<End> {
    Ok(serde_json::from_slice::<EndLine>(&decompress(block)?)?.end)
}

fn decompress(block: &[u8]) -> io::Result<Vec<u8>> {
    let mut json = Vec::new();
    GzDecoder::new(block).take(MAX_JSON).read_to_end(&mut json)?;
    Ok(json)
}
