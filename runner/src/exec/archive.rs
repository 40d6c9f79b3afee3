//! Archives copied into and out of containers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;

use crate::ports::ByteStream;

/// Passes the bytes through, and ends with an error if they are not a complete archive. The engine
/// answers 200 before it reads. It only logs a later failure and ends its response normally.
pub(super) fn whole_archive(bytes: ByteStream) -> ByteStream {
    let ending = Arc::new(Mutex::new(Ending::default()));
    let seen = Arc::clone(&ending);
    let watched = bytes.inspect_ok(move |chunk| {
        seen.lock().see(chunk);
    });
    let last = futures::stream::once(async move {
        let ending = *ending.lock();
        (!ending.is_of_a_tar()).then(|| {
            let cause = format!("the engine's archive breaks off after {} bytes", ending.len);
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, cause))
        })
    });
    watched.chain(last.filter_map(|error| async { error })).boxed()
}

/// Passes the bytes through, and ends with an error if the next ones take longer than `limit`.
pub(super) fn without_stalls(bytes: ByteStream, limit: Duration) -> ByteStream {
    let pieces = futures::stream::unfold(Some(bytes), move |bytes| async move {
        let mut bytes = bytes?;
        match tokio::time::timeout(limit, bytes.next()).await {
            Ok(piece) => piece.map(|piece| (piece, Some(bytes))),
            Err(_elapsed) => {
                let cause = format!("the engine sent nothing for {} s", limit.as_secs());
                Some((Err(io::Error::new(io::ErrorKind::TimedOut, cause)), None))
            }
        }
    });
    pieces.boxed()
}

/// The facts about the end of an archive that show whether it is complete.
#[derive(Debug, Default, Clone, Copy)]
struct Ending {
    len: u64,
    /// The number of trailing zero bytes.
    zeros: u64,
}

impl Ending {
    const BLOCK: u64 = 512;

    fn see(&mut self, chunk: &[u8]) {
        let zeros = chunk.iter().rev().take_while(|byte| **byte == 0).count() as u64;
        let len = chunk.len() as u64;
        self.len += len;
        self.zeros = if zeros == len { self.zeros + len } else { zeros };
    }

    /// Whether there are entries followed by two zero blocks.
    fn is_of_a_tar(self) -> bool {
        self.len.is_multiple_of(Self::BLOCK)
            && self.zeros >= 2 * Self::BLOCK
            && self.len > self.zeros
    }
}

/// A tar with one world-writable directory.
pub(super) async fn open_directory_tar(name: &str) -> io::Result<Vec<u8>> {
    directories([format!("{name}/")], 0o777).await
}

/// A tar of world-readable files, given as names and contents.
pub(super) async fn texts(files: &[(String, String)]) -> io::Result<Vec<u8>> {
    let mut tar = tokio_tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tokio_tar::Header::new_gnu();
        header.set_mode(0o444);
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, name, text.as_bytes()).await?;
    }
    tar.into_inner().await
}

/// A tar of directories, parents first. Paths end in `/`.
pub(super) async fn directories(
    paths: impl IntoIterator<Item = String>,
    mode: u32,
) -> io::Result<Vec<u8>> {
    let mut tar = tokio_tar::Builder::new(Vec::new());
    for path in paths {
        let mut header = tokio_tar::Header::new_gnu();
        header.set_entry_type(tokio_tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        tar.append_data(&mut header, &path, tokio::io::empty()).await?;
    }
    tar.into_inner().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    async fn read(pieces: Vec<Vec<u8>>) -> io::Result<Vec<u8>> {
        let bytes = futures::stream::iter(pieces.into_iter().map(|piece| Ok(Bytes::from(piece))));
        let read: Vec<Bytes> = whole_archive(bytes.boxed()).try_collect().await?;
        Ok(read.concat())
    }

    #[tokio::test]
    async fn a_whole_archive_comes_as_it_is_in_pieces_of_any_size() {
        let tar = directories(["a/".to_owned(), "a/b/".to_owned()], 0o700).await.unwrap();
        for size in [1, 511, 512, 513, tar.len()] {
            let pieces = tar.chunks(size).map(<[u8]>::to_vec).collect();
            assert_eq!(read(pieces).await.unwrap(), tar, "pieces of {size} bytes");
        }
    }

    #[tokio::test]
    async fn an_archive_that_breaks_off_or_is_empty_is_an_error() {
        let tar = directories(["a/".to_owned(), "a/b/".to_owned()], 0o700).await.unwrap();
        let empty = vec![0; 1024];
        let first = tar.get(..512).unwrap().to_vec();
        let cut = tar.get(..tar.len() - 512).unwrap().to_vec();
        for pieces in [vec![], vec![empty], vec![first], vec![cut]] {
            let said = read(pieces).await.unwrap_err().to_string();
            assert!(said.contains("breaks off after"), "{said}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_archive_that_stalls_is_an_error_and_a_slow_one_is_not() {
        let limit = Duration::from_secs(60);
        let piece = |delay: u64| async move {
            tokio::time::sleep(Duration::from_secs(delay)).await;
            Ok(Bytes::from_static(b"x"))
        };
        let slow = futures::stream::iter([59, 59, 59]).then(piece).boxed();
        let read: Vec<Bytes> = without_stalls(slow, limit).try_collect().await.unwrap();
        assert_eq!(read.len(), 3);
        let stalled = futures::stream::iter([1, 61]).then(piece).boxed();
        let stalled = without_stalls(stalled, limit).try_collect::<Vec<Bytes>>().await;
        assert_eq!(stalled.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
