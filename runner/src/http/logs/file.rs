//! The log of one run in a file: written by one task, read by many. All calls that use the file
//! block.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use protocol::id::RunId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::block::{self, BLOCK, End, HEADER, Header};
use super::line::Line;

/// How far a log is.
#[derive(Debug, Clone, Default)]
pub(super) struct Extent {
    /// The number of lines.
    pub(super) lines: u64,
    /// Whether the lines include everything that was on the stream when reading it began.
    pub(super) is_current: bool,
    /// Set at the end of the log.
    pub(super) end: Option<Arc<End>>,
    /// When this process wrote the end.
    pub(super) ended_at: Option<Instant>,
    /// Whether the file can no longer be read or continued.
    pub(super) is_gone: bool,
}

/// A block in the file.
#[derive(Debug, Clone, Copy)]
struct BlockAt {
    offset: u64,
    header: Header,
}

impl BlockAt {
    fn has(&self, line: u64) -> bool {
        let first = self.header.first;
        (first..first + u64::from(self.header.count)).contains(&line)
    }
}

/// The log of one run.
#[derive(Debug)]
pub(super) struct LogFile {
    run: RunId,
    file: File,
    state: Mutex<State>,
    extent: watch::Sender<Extent>,
}

#[derive(Debug, Default)]
struct State {
    /// Blocks with lines, in order. This is the sparse index from lines to blocks.
    blocks: Vec<BlockAt>,
    /// The size of the file.
    size: u64,
    /// Lines that are not in the file yet.
    pending: Vec<Line>,
    pending_size: usize,
}

impl LogFile {
    /// Creates the log of a run in an empty file.
    pub(super) fn new(run: RunId, file: File) -> Self {
        Self { run, file, state: Mutex::default(), extent: watch::Sender::default() }
    }

    /// Opens a complete log. Returns `None` if the file has no end or belongs to another run.
    pub(super) fn open(run: RunId, file: File) -> io::Result<Option<Self>> {
        let length = file.metadata()?.len();
        let mut state = State::default();
        while state.size < length {
            let mut bytes = [0; HEADER];
            if file.read_exact_at(&mut bytes, state.size).is_err() {
                return Ok(None);
            }
            let Some(header) = block::header(&bytes) else { return Ok(None) };
            let at = BlockAt { offset: state.size, header };
            state.size += u64::from(header.size);
            if state.size > length {
                return Ok(None);
            }
            if header.count > 0 {
                state.blocks.push(at);
                continue;
            }
            let end = block::decode_end(&read_block(&file, at)?)?;
            let is_last = state.size == length;
            if !is_last || end.run_id != run {
                return Ok(None);
            }
            let (lines, end) = (end.lines, Some(Arc::new(end)));
            let extent = Extent { lines, is_current: true, end, ..Extent::default() };
            let (state, extent) = (Mutex::new(state), watch::Sender::new(extent));
            return Ok(Some(Self { run, file, state, extent }));
        }
        Ok(None)
    }

    /// The run.
    pub(super) fn run(&self) -> &RunId {
        &self.run
    }

    /// How far the log is. The receiver is notified of changes.
    pub(super) fn extent(&self) -> watch::Receiver<Extent> {
        self.extent.subscribe()
    }

    /// The end of the log. `None` before it.
    pub(super) fn end(&self) -> Option<Arc<End>> {
        self.extent.borrow().end.clone()
    }

    /// Whether the file can no longer be read or continued.
    pub(super) fn is_gone(&self) -> bool {
        self.extent.borrow().is_gone
    }

    /// The size of the file.
    pub(super) fn size(&self) -> u64 {
        self.state.lock().size
    }

    /// Reads a part of the file.
    pub(super) fn bytes(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }

    /// The size of the lines that are not in the file yet.
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().pending_size
    }

    /// Adds lines. They wait in memory until the next [`Self::flush`]. Returns the size of all
    /// waiting lines.
    pub(super) fn push(&self, lines: Vec<Line>) -> usize {
        let mut state = self.state.lock();
        state.pending_size += lines.iter().map(Line::size).sum::<usize>();
        let added = lines.len() as u64;
        state.pending.extend(lines);
        let size = state.pending_size;
        drop(state);
        self.extent.send_if_modified(|extent| {
            extent.lines += added;
            added > 0
        });
        size
    }

    /// Writes the waiting lines to the file. Returns the new size of the file.
    pub(super) fn flush(&self) -> io::Result<u64> {
        let mut state = self.state.lock();
        let State { blocks, size, pending, pending_size } = &mut *state;
        for lines in in_blocks(pending) {
            let (bytes, header) = block::encode(lines)?;
            self.file.write_all_at(&bytes, *size)?;
            blocks.push(BlockAt { offset: *size, header });
            *size += u64::from(header.size);
        }
        pending.clear();
        *pending_size = 0;
        Ok(*size)
    }

    /// Writes everything and the end. Returns the new size of the file.
    pub(super) fn finish(&self, end: End) -> io::Result<u64> {
        self.flush()?;
        let mut state = self.state.lock();
        let (bytes, header) = block::encode_end(&end)?;
        self.file.write_all_at(&bytes, state.size)?;
        state.size += u64::from(header.size);
        let size = state.size;
        drop(state);
        self.extent.send_modify(|extent| {
            extent.is_current = true;
            extent.end = Some(Arc::new(end));
            extent.ended_at = Some(Instant::now());
        });
        Ok(size)
    }

    /// Notes that the log includes everything that was on the stream when reading it began.
    pub(super) fn note_current(&self) {
        self.extent.send_modify(|extent| extent.is_current = true);
    }

    /// Notes that the file can no longer be read or continued. Readers continue with the stream.
    pub(super) fn note_gone(&self) {
        self.extent.send_modify(|extent| extent.is_gone = true);
    }

    /// Returns the lines from `from` to the end of its block, or none if there is no such line.
    pub(super) fn read(&self, from: u64) -> io::Result<Vec<Line>> {
        let found = {
            let state = self.state.lock();
            let at = state.blocks.partition_point(|block| block.header.first <= from);
            let block = at.checked_sub(1).and_then(|at| state.blocks.get(at)).copied();
            match block.filter(|block| block.has(from)) {
                Some(block) => block,
                None => return Ok(tail_of(&state.pending, from)),
            }
        };
        let lines = block::decode(&read_block(&self.file, found)?)?;
        let first = lines.first().map(|line| line.line);
        if first != Some(found.header.first) || lines.len() != found.header.count as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a block has other lines"));
        }
        Ok(lines.into_iter().skip_while(|line| line.line < from).collect())
    }

    /// The first line of the block that has a line.
    pub(super) fn block_start(&self, line: u64) -> u64 {
        let state = self.state.lock();
        let at = state.blocks.partition_point(|block| block.header.first <= line);
        let block = at.checked_sub(1).and_then(|at| state.blocks.get(at));
        match block.filter(|block| block.has(line)) {
            Some(block) => block.header.first,
            None => state.pending.first().map_or(1, |first| first.line),
        }
    }
}

fn tail_of(pending: &[Line], from: u64) -> Vec<Line> {
    let at = pending.partition_point(|line| line.line < from);
    let is_next = pending.get(at).is_some_and(|line| line.line == from);
    pending.get(at..).filter(|_| is_next).map(<[Line]>::to_vec).unwrap_or_default()
}

/// Splits lines into parts of about the size of a block.
fn in_blocks(lines: &[Line]) -> impl Iterator<Item = &[Line]> {
    let mut rest = lines;
    std::iter::from_fn(move || {
        let mut size = 0;
        let fits = rest.iter().take_while(|line| {
            let has_room = size < BLOCK;
            size += line.size();
            has_room
        });
        let count = fits.count();
        let (block, others) = rest.split_at(count);
        rest = others;
        (!block.is_empty()).then_some(block)
    })
}

fn read_block(file: &File, at: BlockAt) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; at.header.size as usize];
    file.read_exact_at(&mut bytes, at.offset)?;
    Ok(bytes)
}
