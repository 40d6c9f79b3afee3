//! One stream of a host. It carries the step's bytes, and the host's own reports after a mark.

use std::sync::Arc;

use bytes::BytesMut;
use protocol::event::LogStream;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::ports::LogSink;

/// The maximum number of bytes in one read.
const PIECE: usize = 64 * 1024;
/// How many bytes of the host's output before it is ready are kept.
const KEPT: usize = 4 * 1024;
/// The maximum length of a report after a mark, in bytes, with its newline.
const REPORT: usize = 64;

/// The end of a step, as its host reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReportedEnd {
    /// It exited with this code.
    Ended(i32),
    /// The program does not exist.
    Missing,
    /// The directory does not exist.
    NoDir,
    /// The host cannot run it so that a signal reaches all its processes.
    NoGroup,
    /// Its shell ended early with this code.
    Broke(i32),
}

impl ReportedEnd {
    fn read(line: &[u8]) -> Option<Self> {
        let (how, code) = std::str::from_utf8(line).ok()?.trim().split_once(' ')?;
        let code = code.parse().ok()?;
        match how {
            "end" => Some(Self::Ended(code)),
            "missing" => Some(Self::Missing),
            "nodir" => Some(Self::NoDir),
            "nogroup" => Some(Self::NoGroup),
            "broke" => Some(Self::Broke(code)),
            _ => None,
        }
    }
}

/// A stream read up to a secret mark.
#[derive(Debug)]
pub(super) struct MarkedStream<R> {
    from: R,
    mark: Vec<u8>,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> MarkedStream<R> {
    pub(super) fn new(from: R, mark: &str) -> Self {
        Self { from, mark: mark.as_bytes().to_vec(), buffer: BytesMut::new() }
    }

    /// Waits until the host is ready. Skips what a shell profile prints. `Err`: the stream ended
    /// before that, with these last bytes.
    pub(super) async fn ready(&mut self) -> Result<(), Vec<u8>> {
        let ready = [&self.mark, b" ready\n".as_slice()].concat();
        loop {
            if let Some(at) = position(&self.buffer, &ready) {
                drop(self.buffer.split_to(at + ready.len()));
                return Ok(());
            }
            if !self.more().await {
                return Err(self.buffer.split().to_vec());
            }
            drop(self.buffer.split_to(self.buffer.len().saturating_sub(KEPT + PIECE)));
        }
    }

    /// Passes the step's bytes on, up to the mark. `None`: the stream ended without one.
    pub(super) async fn pass(
        &mut self,
        stream: LogStream,
        out: &Arc<dyn LogSink>,
    ) -> Option<ReportedEnd> {
        loop {
            let at = position(&self.buffer, &self.mark);
            let own = at.unwrap_or_else(|| self.buffer.len() - self.begun());
            if own > 0 {
                out.write(stream, self.buffer.split_to(own).freeze()).await;
            }
            if at.is_some() {
                return self.told().await;
            }
            if !self.more().await {
                if !self.buffer.is_empty() {
                    out.write(stream, self.buffer.split().freeze()).await;
                }
                return None;
            }
        }
    }

    /// Reads the report after a mark. `None`: the stream ended before its newline, or the report is
    /// too long.
    async fn told(&mut self) -> Option<ReportedEnd> {
        loop {
            let report = self.buffer.get(self.mark.len()..)?;
            let report = report.get(..REPORT).unwrap_or(report);
            if let Some(end) = report.iter().position(|byte| *byte == b'\n') {
                return ReportedEnd::read(report.get(..end)?);
            }
            if report.len() == REPORT || !self.more().await {
                return None;
            }
        }
    }

    /// The number of last bytes that can be the beginning of a mark.
    fn begun(&self) -> usize {
        let lengths = (1..self.mark.len()).rev();
        let mut begun = lengths.filter(|length| self.buffer.ends_with(&self.mark[..*length]));
        begun.next().unwrap_or(0)
    }

    /// Reads more bytes. `false` at the end; a broken pipe counts as the end.
    async fn more(&mut self) -> bool {
        self.buffer.reserve(PIECE);
        matches!(self.from.read_buf(&mut self.buffer).await, Ok(1..))
    }
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use async_trait::async_trait;
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Kept(Mutex<Vec<u8>>);

    #[async_trait]
    impl LogSink for Kept {
        async fn write(&self, _stream: LogStream, bytes: Bytes) {
            self.0.lock().extend_from_slice(&bytes);
        }
    }

    const MARK: &str = "aab-aac";

    /// The result of reading these pieces: whether it was ready, the step's bytes, the host's
    /// report.
    fn read(pieces: &[&[u8]]) -> (bool, Vec<u8>, Option<ReportedEnd>) {
        let mut from = marked(pieces);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let kept = Arc::new(Kept::default());
            let out: Arc<dyn LogSink> = Arc::<Kept>::clone(&kept);
            if from.ready().await.is_err() {
                return (false, Vec::new(), None);
            }
            let told = from.pass(LogStream::Stdout, &out).await;
            let bytes = kept.0.lock().clone();
            (true, bytes, told)
        })
    }

    /// A stream that returns one piece per read.
    fn marked(pieces: &[&[u8]]) -> MarkedStream<impl AsyncRead + Unpin> {
        let pieces: Vec<std::io::Result<Bytes>> =
            pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let from = tokio_util::io::StreamReader::new(futures::stream::iter(pieces));
        MarkedStream::new(from, MARK)
    }

    #[test]
    fn what_a_profile_says_is_passed_over_and_what_stands_behind_the_end_too() {
        let (ready, bytes, told) =
            read(&[b"welcome\naab-aa", b"c ready\nout", b"put\naab", b"-aac end 255\nlate"]);
        assert!(ready);
        assert_eq!(
            (bytes.as_slice(), told),
            (b"output\n".as_slice(), Some(ReportedEnd::Ended(255)))
        );
    }

    #[test]
    fn a_stream_that_breaks_off_tells_nothing_and_keeps_nothing_back() {
        let (_, bytes, told) = read(&[b"aab-aac ready\nx aab-a"]);
        assert_eq!((bytes.as_slice(), told), (b"x aab-a".as_slice(), None));
        let (_, _, told) = read(&[b"aab-aac ready\naab-aac end "]);
        assert_eq!(told, None);
        assert!(!read(&[b"aab-aac rea"]).0);
    }

    #[tokio::test]
    async fn an_endless_report_is_given_up_and_not_kept() {
        let host = [MARK.as_bytes(), b" ready\n", MARK.as_bytes()].concat();
        let endless = tokio::io::repeat(b'x').take(16 * 1024 * 1024);
        let mut from = MarkedStream::new(host.as_slice().chain(endless), MARK);
        let out: Arc<dyn LogSink> = Arc::new(Kept::default());
        from.ready().await.unwrap();
        assert_eq!(from.pass(LogStream::Stdout, &out).await, None);
        assert!(from.buffer.len() <= 2 * PIECE, "{} bytes", from.buffer.len());
    }

    proptest! {
        #[test]
        fn the_bytes_of_a_step_are_its_own_however_they_come(
            text in "[abc-]{0,40}",
            cuts in proptest::collection::vec(0_usize..80, 0..8),
        ) {
            prop_assume!(!text.contains(MARK));
            let whole = format!("{MARK} ready\n{text}{MARK} missing 127\n").into_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(whole.len())).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts
                .windows(2)
                .filter(|cut| cut[0] < cut[1])
                .map(|cut| &whole[cut[0]..cut[1]])
                .collect();
            let (ready, bytes, told) = read(&pieces);
            // The text can end in a prefix of the mark. The first complete mark counts.
            let end = position(&[text.as_bytes(), MARK.as_bytes()].concat(), MARK.as_bytes());
            prop_assert!(ready);
            prop_assert_eq!(bytes.len(), end.unwrap());
            if bytes.len() == text.len() {
                prop_assert_eq!(told, Some(ReportedEnd::Missing));
            }
        }
    }
}
