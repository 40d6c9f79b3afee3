//! Outputs of steps, stored in a directory, in a bucket of a real S3 server, and in an artifact
//! store. They are selected from exports of the local executor.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic, and runs its own server"
)]

mod pick;
mod s3;
#[allow(dead_code, reason = "shared with the tests of transfers")]
#[path = "../transfer/server.rs"]
mod server;

use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use protocol::id::Epoch;
use runner::ports::{ByteStream, Origin, OutputLocation, OutputStore};
use runner::transfer::{ArtifactStore, Bucket, Directory, Http, Options};
use s3::{S3, SECRET};
use server::{Request, Server, nobody};
use test_support::conformance::{OutputStoreSubject, outputs};

pub(crate) fn origin() -> Origin {
    Origin { run: "r-1".parse().unwrap(), epoch: Epoch(42), attempt: 3 }
}

fn bytes(text: &'static [u8]) -> ByteStream {
    stream::iter([Ok(Bytes::from_static(text))]).boxed()
}

/// The files below a directory.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

struct InDirectory(tempfile::TempDir);

#[async_trait]
impl OutputStoreSubject for InDirectory {
    fn store(&self) -> Arc<dyn OutputStore> {
        Arc::new(Directory::new(self.0.path().join("made/later")))
    }

    async fn read(&self, place: &OutputLocation) -> Option<Vec<u8>> {
        let encoded = |name: &String| match name.as_str() {
            ".." => "%2E%2E".to_owned(),
            name => name.replace('%', "%25").replace('/', "%2F"),
        };
        let mut path = self.0.path().join("made/later");
        path.extend(place.namespace().iter().map(encoded));
        std::fs::read(path.join(place.path())).ok()
    }

    async fn count(&self) -> usize {
        files(self.0.path()).len()
    }
}

#[tokio::test]
async fn a_directory_passes_the_output_store_conformance_suite() {
    outputs(&InDirectory(tempfile::tempdir().unwrap())).await;
}

struct InBucket(S3);

#[async_trait]
impl OutputStoreSubject for InBucket {
    fn store(&self) -> Arc<dyn OutputStore> {
        Arc::new(self.0.bucket())
    }

    async fn read(&self, place: &OutputLocation) -> Option<Vec<u8>> {
        let mut parts = vec!["team", "bob"];
        parts.extend(place.namespace().iter().map(String::as_str));
        parts.extend(place.path().split('/'));
        self.0.get(&parts).await
    }

    async fn count(&self) -> usize {
        self.0.keys().await.len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_an_s3_server_passes_the_output_store_conformance_suite() {
    outputs(&InBucket(S3::start().await)).await;
}

/// The characters that are encoded in an artifact's name.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The contents of an artifact store, by path.
type StoredArtifacts = Arc<Mutex<HashMap<String, Vec<u8>>>>;

struct InArtifactStore {
    server: Server,
    held: StoredArtifacts,
}

impl InArtifactStore {
    async fn start() -> Self {
        let held = StoredArtifacts::default();
        let taken = Arc::clone(&held);
        let server = Server::start(move |mut request: Request| {
            let held = Arc::clone(&taken);
            async move {
                if let Some(path) = request.line.strip_prefix("GET ") {
                    let found = held.lock().get(path).cloned();
                    let (status, body) = found.map_or((404, Vec::new()), |tar| (200, tar));
                    return request.answer(status, &body).await;
                }
                let mut body = Vec::new();
                loop {
                    match request.try_chunk().await {
                        Ok(Some(chunk)) => body.extend(chunk),
                        Ok(None) => break,
                        // An incomplete upload is dropped.
                        Err(_) => return,
                    }
                }
                assert_eq!(request.header("bob-epoch").map(|epoch| epoch.is_empty()), Some(false));
                let path = request.line.strip_prefix("POST ").unwrap().to_owned();
                held.lock().insert(path, body);
                request.answer(200, b"Ok").await;
            }
        })
        .await;
        Self { server, held }
    }
}

#[async_trait]
impl OutputStoreSubject for InArtifactStore {
    fn store(&self) -> Arc<dyn OutputStore> {
        let options = Options {
            policy: runner::egress::Policy::unrestricted(),
            spill_dir: std::env::temp_dir(),
            spill_bytes: 0,
        };
        let url = self.server.url();
        let registered = Arc::new(move || {
            let url = url.clone();
            futures::FutureExt::boxed(async move { Ok(url) })
        });
        Arc::new(ArtifactStore::new(Http::new(options).unwrap(), "main".into(), registered))
    }

    async fn read(&self, place: &OutputLocation) -> Option<Vec<u8>> {
        let encode = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
        let [group, name, run, step] = place.namespace() else { panic!("a place of a step") };
        let artifact = encode(&format!("{}/{}", encode(step), place.path()));
        let path = [group, name, run, &artifact].map(|part| encode(part)).join("/");
        let tar = self.held.lock().get(&format!("/bob_artifact/{path}"))?.clone();
        let mut archive = tokio_tar::Archive::new(tar.as_slice());
        let mut entries = archive.entries().unwrap();
        let mut entry = entries.next().await.unwrap().unwrap();
        assert_eq!(entry.path_bytes().unwrap(), place.path().as_bytes());
        let mut read = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut entry, &mut read).await.unwrap();
        assert!(entries.next().await.is_none(), "there is one file in it");
        Some(read)
    }

    async fn count(&self) -> usize {
        self.held.lock().len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_store_passes_the_output_store_conformance_suite() {
    outputs(&InArtifactStore::start().await).await;
}

#[tokio::test]
async fn an_artifact_store_refuses_an_output_without_a_run() {
    let subject = InArtifactStore::start().await;
    let place = OutputLocation::new(&["label".into()], "a").unwrap();
    let error = subject.store().put(&place, 1, bytes(b"a"), &origin()).await.unwrap_err();
    assert!(error.to_string().contains("is of no run"), "{error}");
}

#[tokio::test]
async fn stored_files_are_world_readable_and_below_the_given_names() {
    let dir = tempfile::tempdir().unwrap();
    let place = OutputLocation::new(&["job-1".into()], "100% done/result.json").unwrap();
    let store = Directory::new(dir.path().to_owned());
    store.put(&place, 2, bytes(b"{}"), &origin()).await.unwrap();
    let file = dir.path().join("job-1/100% done/result.json");
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&file), 0o644);
    assert_eq!(mode(file.parent().unwrap()), 0o755);
    let mut text = String::new();
    std::fs::File::open(file).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "{}");
}

#[tokio::test]
async fn a_symlink_of_a_step_does_not_redirect_writes_of_the_worker() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(other.path(), dir.path().join("mnt")).unwrap();
    let victim = other.path().join("victim");
    std::fs::write(&victim, "before").unwrap();
    std::os::unix::fs::symlink(&victim, dir.path().join("x")).unwrap();
    let store = Directory::new(dir.path().to_owned());
    let through = OutputLocation::new(&[], "mnt/a").unwrap();
    let error = store.put(&through, 1, bytes(b"a"), &origin()).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot keep \"mnt/a\" in /"), "{error}");
    let itself = OutputLocation::new(&[], "x").unwrap();
    store.put(&itself, 1, bytes(b"a"), &origin()).await.unwrap();
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "before");
    assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), b"a");
    assert_eq!(files(other.path()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_denies_access_is_named_without_any_secret() {
    let s3 = S3::start().await;
    let wrong = Bucket::new(&s3.options("not-the-secret")).unwrap();
    let place = OutputLocation::new(&["a".into()], "b").unwrap();
    let error = wrong.put(&place, 1, bytes(b"a"), &origin()).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot keep \"b\" in s3://outputs/team/bob: "), "{error}");
    assert!(!error.contains("not-the-secret") && !error.contains(SECRET), "{error}");
    assert!(!format!("{:?} {wrong:?}", s3.options(SECRET)).contains(SECRET));
    assert_eq!(s3.keys().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_an_aborted_upload_are_discarded() {
    let s3 = S3::start().await;
    let place = OutputLocation::new(&["a".into()], "big").unwrap();
    let some = stream::iter((0..20).map(|_| Ok(Bytes::from(vec![1; 1 << 20]))));
    let error = s3.bucket().put(&place, 30 << 20, some.boxed(), &origin()).await.unwrap_err();
    assert!(error.to_string().contains("20971520 of 31457280 bytes came"), "{error}");
    let left: Vec<PathBuf> = files(s3.root.path())
        .into_iter()
        .filter(|path| path.metadata().unwrap().len() >= 1 << 20)
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_bucket_is_an_error_after_a_few_attempts() {
    let s3 = S3::start().await;
    let mut options = s3.options(SECRET);
    options.endpoint = Some(format!("http://{}", nobody().await));
    let place = OutputLocation::new(&["a".into()], "b").unwrap();
    let bucket = Bucket::new(&options).unwrap();
    let error = bucket.put(&place, 1, bytes(b"a"), &origin()).await.unwrap_err();
    assert!(error.to_string().contains("cannot keep \"b\""), "{error}");
}
