//! Conformance tests for the [`OutputStore`] port.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use protocol::id::Epoch;
use sha2::{Digest as _, Sha256};

use runner::ports::{ByteStream, Origin, OutputLocation, OutputStore, Stored, TransferError};

/// An output store, and access to it that bypasses the port.
#[async_trait]
pub trait OutputStoreSubject: Send + Sync {
    /// The store, which is empty when the suite starts.
    fn store(&self) -> Arc<dyn OutputStore>;

    /// Returns the file at a place, as any reader would see it.
    async fn read(&self, place: &OutputLocation) -> Option<Vec<u8>>;

    /// Returns the number of visible files, including incomplete ones if the store can show them.
    async fn count(&self) -> usize;
}

/// Larger than one upload part of any store, and not a multiple of a part.
const LARGE: usize = (20 << 20) + 12345;
/// Size of the chunks in which a file arrives.
const PIECE: usize = 100_000;

/// Runs the suite.
pub async fn outputs(subject: &dyn OutputStoreSubject) {
    what_is_put_is_there_whole_with_its_size_and_checksum(subject).await;
    a_file_is_read_back_as_it_was_put(subject).await;
    a_file_put_again_is_replaced(subject).await;
    no_two_places_are_one(subject).await;
    what_breaks_off_is_not_seen_and_what_was_there_stays(subject).await;
    a_put_that_nobody_waits_for_leaves_nothing_that_is_seen(subject).await;
}

fn origin() -> Origin {
    Origin { run: "r-1".parse().unwrap(), epoch: Epoch(7), attempt: 1 }
}

fn at(step: &str, path: &str) -> OutputLocation {
    let under = ["dev/x", "build it", "r-1", step].map(str::to_owned);
    OutputLocation::new(&under, path).unwrap()
}

fn pieces(bytes: &[u8]) -> Vec<io::Result<Bytes>> {
    bytes.chunks(PIECE).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect()
}

fn large(seed: u8) -> Vec<u8> {
    // The pattern differs between parts, so that a misplaced or repeated part is detected.
    (0..LARGE).map(|at| seed.wrapping_add((at / 4093) as u8).wrapping_add(at as u8)).collect()
}

async fn put(
    subject: &dyn OutputStoreSubject,
    place: &OutputLocation,
    size: usize,
    bytes: ByteStream,
) -> Result<Stored, TransferError> {
    subject.store().put(place, size as u64, bytes, &origin()).await
}

async fn put_whole(
    subject: &dyn OutputStoreSubject,
    place: &OutputLocation,
    bytes: &[u8],
) -> Stored {
    let stream = stream::iter(pieces(bytes)).boxed();
    put(subject, place, bytes.len(), stream).await.expect("a file is kept")
}

async fn what_is_put_is_there_whole_with_its_size_and_checksum(subject: &dyn OutputStoreSubject) {
    for (path, bytes) in
        [("hello.txt", b"hello".to_vec()), ("empty", Vec::new()), ("a/b/large.bin", large(1))]
    {
        let stored = put_whole(subject, &at("build", path), &bytes).await;
        let hash = hex::encode(Sha256::digest(&bytes));
        assert_eq!(stored, Stored { size: bytes.len() as u64, sha256: hash }, "{path}");
        let read = subject.read(&at("build", path)).await;
        assert!(read.as_ref() == Some(&bytes), "{path} is there as it was put");
    }
    assert_eq!(subject.count().await, 3);
}

async fn a_file_is_read_back_as_it_was_put(subject: &dyn OutputStoreSubject) {
    let (store, bytes) = (subject.store(), large(1));
    let read = store.get(&at("build", "a/b/large.bin")).await.expect("a file is opened");
    let read: Vec<Bytes> = read.expect("the file exists").try_collect().await.unwrap();
    assert!(read.concat() == bytes, "the file is read as it was put");
    assert!(store.get(&at("build", "a/b/none")).await.expect("the store answers").is_none());
    assert!(store.get(&at("none", "hello.txt")).await.expect("the store answers").is_none());
}

async fn a_file_put_again_is_replaced(subject: &dyn OutputStoreSubject) {
    let place = at("build", "hello.txt");
    let before = subject.count().await;
    for bytes in [b"hello".as_slice(), b"another one"] {
        put_whole(subject, &place, bytes).await;
        assert_eq!(subject.read(&place).await.as_deref(), Some(bytes));
    }
    assert_eq!(subject.count().await, before, "there is still one of it");
}

async fn no_two_places_are_one(subject: &dyn OutputStoreSubject) {
    let places = [
        at("one", "a b/ü.txt"),
        at("one", "a%20b/ü.txt"),
        at("one%", "x"),
        at("one%25", "x"),
        at("..", "y"),
        at("%2E%2E", "y"),
        at("a", "b/c"),
        at("a/b", "c"),
        at("odd", "[1]{2}*?#&+~'\"\\;=@|<>"),
        at("odd", "line\nbreak"),
    ];
    for (number, place) in places.iter().enumerate() {
        put_whole(subject, place, number.to_string().as_bytes()).await;
    }
    for (number, place) in places.iter().enumerate() {
        let read = subject.read(place).await;
        assert_eq!(read, Some(number.to_string().into_bytes()), "{place:?}");
    }
}

async fn what_breaks_off_is_not_seen_and_what_was_there_stays(subject: &dyn OutputStoreSubject) {
    let before = subject.count().await;
    for size in [1000, LARGE] {
        let bytes = vec![5; size];
        let mut broken = pieces(&bytes[..size - 10]);
        broken.push(Err(io::Error::other("the engine is gone")));
        let long = pieces(&[bytes.as_slice(), b"more"].concat());
        for (chunks, why) in [
            (broken, "the engine is gone"),
            (pieces(&bytes[..size - 1]), "bytes came"),
            (long, "more than"),
        ] {
            let place = at("broken", "new");
            let error = put(subject, &place, size, stream::iter(chunks).boxed()).await.unwrap_err();
            assert!(matches!(error, TransferError::Input(_)), "{error}");
            let error = error.to_string();
            assert!(error.contains(why) && error.contains("new"), "{error}");
            assert_eq!(subject.read(&place).await, None, "{size}: {why}");
        }
    }
    assert_eq!(subject.count().await, before, "nothing of it is left");
    let place = at("build", "hello.txt");
    let chunks = stream::iter([Ok(Bytes::from_static(b"ha")), Err(io::Error::other("gone"))]);
    put(subject, &place, 5, chunks.boxed()).await.unwrap_err();
    assert_eq!(subject.read(&place).await.as_deref(), Some(b"another one".as_slice()));
}

async fn a_put_that_nobody_waits_for_leaves_nothing_that_is_seen(subject: &dyn OutputStoreSubject) {
    let before = subject.count().await;
    let place = at("dropped", "x");
    let (told, mut taken) = tokio::sync::mpsc::unbounded_channel();
    let bytes = stream::iter(pieces(&large(9)[..LARGE - PIECE]))
        .chain(stream::once(async move {
            told.send(()).unwrap();
            std::future::pending().await
        }))
        .boxed();
    tokio::select! {
        done = put(subject, &place, LARGE, bytes) => panic!("it ended with {done:?}"),
        _ = taken.recv() => {}
    }
    assert_eq!(subject.read(&place).await, None);
    assert_eq!(subject.count().await, before);
}
