//! Resources, artifacts and logs with a real HTTP server: correct, slow, misbehaving and absent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic, and runs its own server"
)]

mod logger;
mod reach;
mod server;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use protocol::id::Epoch;
use protocol::pipeline::Vars;
use runner::egress::Policy;
use runner::ports::{ByteStream, Origin, Transfer, TransferError};
use runner::transfer::{Http, Options, Timeouts};
use server::{Request, Server, nobody};
use tokio::sync::{Notify, mpsc};

const MIB: u64 = 1 << 20;
/// The maximum size of the buffers of sockets and pipes on both sides.
const IN_FLIGHT: u64 = 48 * MIB;

fn http() -> Http {
    http_with(Duration::from_secs(60))
}

fn http_with(idle: Duration) -> Http {
    let options =
        Options { policy: Policy::unrestricted(), spill_dir: std::env::temp_dir(), spill_bytes: 0 };
    Http::with_timeouts(
        options,
        Timeouts { connect: Duration::from_secs(10), idle, progress_bytes: 1 },
    )
    .unwrap()
}

fn vars(pairs: &[(&str, &str)]) -> Vars {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn origin() -> Origin {
    Origin { run: "r-1".parse().unwrap(), epoch: Epoch(42), attempt: 3 }
}

const PATH: [&str; 4] = ["dev", "build it", "r-1", "out/put"];

/// The header of a tar with one file of this size.
fn head(name: &str, size: u64) -> Vec<u8> {
    let mut header = tokio_tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn small_tar(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut tar = head(name, bytes.len() as u64);
    tar.extend_from_slice(bytes);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

async fn whole(stream: ByteStream) -> io::Result<Vec<u8>> {
    stream.map_ok(|bytes| bytes.to_vec()).try_concat().await
}

/// A server that answers every request the same way, and reports request lines.
async fn same_answer(status: u16, body: Vec<u8>) -> (Server, mpsc::UnboundedReceiver<String>) {
    let (seen, lines) = mpsc::unbounded_channel();
    let server = Server::start(move |mut request| {
        let (seen, body) = (seen.clone(), body.clone());
        async move {
            let sent = request.whole().await.len();
            seen.send(format!("{} {sent}", request.line)).unwrap();
            request.answer(status, &body).await;
        }
    })
    .await;
    (server, lines)
}

#[tokio::test]
async fn an_external_resource_is_requested_with_its_parameters_and_mounted() {
    let (server, mut lines) = same_answer(200, small_tar("./a", b"hello")).await;
    let params = vars(&[("repo", "https://h/x?y=1&z"), ("branch", "a b+ü")]);
    let tar = http().external_resource(&server.url(), &params, "src").await.unwrap();
    let tar = whole(tar).await.unwrap();
    assert!(tar.starts_with(b"src/a\0"));
    assert_eq!(
        lines.recv().await.unwrap(),
        "GET /bob_resource?repo=https%3A%2F%2Fh%2Fx%3Fy%3D1%26z&branch=a%20b%2B%C3%BC 0"
    );
    drop(http().external_resource(&server.url(), &Vars::new(), "src").await.unwrap());
    assert_eq!(lines.recv().await.unwrap(), "GET /bob_resource 0");
}

#[tokio::test]
async fn a_body_that_is_not_a_plain_tar_is_reported_with_its_type() {
    for (body, wanted) in [
        (&b"<!doctype html>"[..], r#"it is not a tar archive: it begins with "<!doctype html>""#),
        (&[b'x'; 2000][..], r#"it begins with "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx""#),
        (b"\x1f\x8b\x08\x00rest", "it is not a tar archive but gzip"),
    ] {
        let (server, _lines) = same_answer(200, body.to_vec()).await;
        let tar = http().external_resource(&server.url(), &Vars::new(), "src").await.unwrap();
        let error = whole(tar).await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[tokio::test]
async fn an_encoded_body_is_rejected_with_the_name_of_the_header() {
    let server = Server::start(|mut request| async move {
        request.whole().await;
        let head = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n";
        request.send(&[head.as_bytes(), b"\x1f\x8b"].concat()).await;
    })
    .await;
    let asked = http().external_resource(&server.url(), &Vars::new(), "src").await;
    let error = asked.err().unwrap().to_string();
    assert!(error.contains("the resource provider at"), "{error}");
    assert!(error.contains("`content-encoding: gzip`"), "{error}");
}

#[tokio::test]
async fn an_internal_resource_is_the_artifact_of_an_earlier_run() {
    let (server, mut lines) = same_answer(200, small_tar("a", b"x")).await;
    let params = vars(&[("group", "dev"), ("name", "build it"), ("run_id", "r-7")]);
    let url = format!("{}/base/", server.url());
    let tar = http().internal_resource(&url, &params, "out").await.unwrap();
    assert!(whole(tar).await.unwrap().starts_with(b"out/a\0"));
    assert_eq!(lines.recv().await.unwrap(), "GET /base/bob_artifact/dev/build%20it/r-7/out 0");

    let error = http().internal_resource(&url, &vars(&[("group", "dev")]), "out").await;
    assert!(matches!(error.err().unwrap(), TransferError::BadParams(_)));
}

#[tokio::test]
async fn a_rejection_of_a_service_is_quoted_without_the_password() {
    let body = format!("<h1>\n no such repo </h1> {}", "x".repeat(5000));
    let (server, _lines) = same_answer(404, body.into_bytes()).await;
    let url = format!("http://me:secret@{}/at", server.at);
    let asked = http().external_resource(&url, &vars(&[("token", "secret")]), "src").await;
    let error = asked.err().unwrap();
    let text = error.to_string();
    let start = format!(
        "the resource provider at http://***@{}/at answered 404: <h1> no such repo </h1> xxx",
        server.at
    );
    assert!(text.starts_with(&start) && text.len() < 500, "{text}");
    let sent = http().upload_artifact(&url, PATH, stream::empty().boxed(), &origin()).await;
    let text = sent.unwrap_err().to_string();
    assert!(text.contains("the artifact store") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn an_unreachable_or_silent_service_is_named() {
    let url = format!("http://me:secret@{}", nobody().await);
    let error = http().external_resource(&url, &Vars::new(), "src").await.err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, TransferError::Unreachable { .. }), "{text}");
    assert!(text.contains("refused") && !text.contains("secret"), "{text}");

    let server = Server::start(|request| async move {
        std::future::pending::<()>().await;
        drop(request);
    })
    .await;
    let slow = http_with(Duration::from_millis(200));
    let error = slow.external_resource(&server.url(), &Vars::new(), "src").await.err().unwrap();
    assert!(error.to_string().contains("no answer for"), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_or_stalls_in_the_middle_is_an_error() {
    for how in ["length", "chunked", "stall"] {
        let server = Server::start(move |mut request: Request| async move {
            let framing = if how == "chunked" {
                "transfer-encoding: chunked\r\n\r\n2000\r\n"
            } else {
                "content-length: 99999\r\n\r\n"
            };
            request.send(format!("HTTP/1.1 200 OK\r\n{framing}").as_bytes()).await;
            request.send(&head("a", 50_000)).await;
            request.send(&[7; 700]).await;
            if how == "stall" {
                std::future::pending::<()>().await;
            }
        })
        .await;
        let http = http_with(Duration::from_millis(300));
        let mut tar = http.external_resource(&server.url(), &Vars::new(), "src").await.unwrap();
        let mut got = 0;
        let error = loop {
            match tar.next().await.expect("an error before the end") {
                Ok(bytes) => got += bytes.len(),
                Err(error) => break error.to_string(),
            }
        };
        assert_eq!(got, 512 + 700, "{how}: the received bytes are passed on");
        assert!(error.contains("the resource provider at http://"), "{how}: {error}");
        assert!(tar.next().await.is_none(), "{how}: the stream ends after an error");
    }
}

#[tokio::test]
async fn a_hostile_archive_is_refused_with_the_name_of_the_entry() {
    let mut tar = small_tar("good", b"x");
    tar.truncate(1024);
    tar.extend(small_tar("../../root/.ssh/authorized_keys", b"evil"));
    let (server, _lines) = same_answer(200, tar).await;
    let tar = http().external_resource(&server.url(), &Vars::new(), "src").await.unwrap();
    let error = whole(tar).await.unwrap_err().to_string();
    assert!(error.contains("\"../../root/.ssh/authorized_keys\""), "{error}");
}

/// Waits until no task of this thread can make progress. While the clock is paused, a sleep ends
/// once the runtime is idle.
async fn idle() {
    tokio::time::pause();
    tokio::time::sleep(Duration::from_millis(1)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_large_resource_is_read_no_faster_than_it_is_consumed() {
    const SIZE: u64 = 1024 * MIB;
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let server = Server::start(move |mut request: Request| {
        let sent = Arc::clone(&counter);
        async move {
            let length = 512 + SIZE + 1024;
            let line = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            request.send(line.as_bytes()).await;
            request.send(&head("big", SIZE)).await;
            let piece = vec![7; 1 << 20];
            for _ in 0..SIZE / MIB {
                assert!(request.send(&piece).await);
                sent.fetch_add(MIB, Ordering::Relaxed);
            }
            request.send(&[0; 1024]).await;
        }
    })
    .await;
    let mut tar = http().external_resource(&server.url(), &Vars::new(), "src").await.unwrap();
    let first = tar.next().await.unwrap().unwrap();
    idle().await;
    let ahead = sent.load(Ordering::Relaxed);
    assert!(ahead < IN_FLIGHT, "{ahead} bytes were read that nobody requested");
    let mut got = first.len() as u64;
    while let Some(bytes) = tar.next().await {
        let bytes = bytes.unwrap();
        assert!(bytes.len() as u64 <= 4 * MIB);
        got += bytes.len() as u64;
    }
    assert_eq!(got, 512 + SIZE + 1024);
}

/// A stream of `size` bytes. Counts the bytes that were requested.
fn counted(size: u64, asked: Arc<AtomicU64>) -> ByteStream {
    let piece = Bytes::from(vec![7; 1 << 20]);
    stream::iter(0..size / MIB)
        .map(move |_| {
            asked.fetch_add(MIB, Ordering::Relaxed);
            Ok(piece.clone())
        })
        .boxed()
}

#[tokio::test]
async fn an_artifact_of_2_gib_is_read_no_faster_than_the_store_accepts_it() {
    const SIZE: u64 = 2048 * MIB;
    let (arrived, go, taken) =
        (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(AtomicU64::new(0)));
    let (told, gate, counter) = (Arc::clone(&arrived), Arc::clone(&go), Arc::clone(&taken));
    let (seen, mut heads) = mpsc::unbounded_channel();
    let server = Server::start(move |mut request: Request| {
        let (told, gate, taken) = (Arc::clone(&told), Arc::clone(&gate), Arc::clone(&counter));
        let seen = seen.clone();
        async move {
            let names = ["bob-run", "bob-epoch", "bob-attempt", "transfer-encoding"];
            let values = names.map(|name| request.header(name).unwrap_or_default().to_owned());
            seen.send((request.line.clone(), values)).unwrap();
            told.notify_one();
            gate.notified().await;
            while let Some(bytes) = request.chunk().await {
                taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            request.answer(200, b"Ok").await;
        }
    })
    .await;
    let requested = Arc::new(AtomicU64::new(0));
    let tar = counted(SIZE, Arc::clone(&requested));
    let (http, origin) = (http(), origin());
    let url = server.url();
    let upload = http.upload_artifact(&url, PATH, tar, &origin);
    let watch = async {
        arrived.notified().await;
        idle().await;
        let ahead = requested.load(Ordering::Relaxed);
        assert!(ahead < IN_FLIGHT, "{ahead} bytes were read that the store did not accept");
        go.notify_one();
    };
    let (sent, ()) = tokio::join!(upload, watch);
    sent.unwrap();
    assert_eq!(taken.load(Ordering::Relaxed), SIZE);
    let (line, values) = heads.recv().await.unwrap();
    assert_eq!(line, "POST /bob_artifact/dev/build%20it/r-1/out%2Fput");
    assert_eq!(values, ["r-1", "42", "3", "chunked"]);
}

#[tokio::test]
async fn a_truncated_artifact_is_not_accepted_as_complete() {
    let (seen, mut bodies) = mpsc::unbounded_channel();
    let begun = Arc::new(Notify::new());
    let tell = Arc::clone(&begun);
    let server = Server::start(move |mut request: Request| {
        let (seen, tell) = (seen.clone(), Arc::clone(&tell));
        async move {
            let whole = loop {
                match request.try_chunk().await {
                    Ok(Some(_)) => tell.notify_one(),
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            seen.send(whole).unwrap();
        }
    })
    .await;
    let broken = async move {
        begun.notified().await;
        Err(io::Error::other("the engine is gone"))
    };
    let tar = stream::iter([Ok(Bytes::from_static(b"some"))]).chain(stream::once(broken));
    let error = http().upload_artifact(&server.url(), PATH, tar.boxed(), &origin()).await;
    let error = error.unwrap_err();
    assert!(matches!(error, TransferError::Input(_)), "{error}");
    assert!(error.to_string().contains("the engine is gone"), "{error}");
    assert!(!bodies.recv().await.unwrap(), "the store sees that it is not whole");
}

#[tokio::test]
async fn an_upload_to_a_stalled_store_is_aborted() {
    let server = Server::start(|request| async move {
        std::future::pending::<()>().await;
        drop(request);
    })
    .await;
    let http = http_with(Duration::from_millis(300));
    let asked = Arc::new(AtomicU64::new(0));
    for size in [0, 1024 * MIB] {
        let tar = counted(size, Arc::clone(&asked));
        let error = http.upload_artifact(&server.url(), PATH, tar, &origin()).await.unwrap_err();
        assert!(error.to_string().contains("took nothing for"), "{error}");
    }
}

/// F18: each byte is progress, but a resource of one mebibyte would take twelve days.
#[tokio::test]
async fn a_download_that_arrives_byte_by_byte_is_aborted() {
    let server = Server::start(|mut request: Request| async move {
        request.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1048576\r\n\r\n").await;
        // The provider is this slow. The test does not wait for it.
        while request.send(b"x").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let options =
        Options { policy: Policy::unrestricted(), spill_dir: std::env::temp_dir(), spill_bytes: 0 };
    let idle = Duration::from_millis(500);
    let timeouts = Timeouts { connect: Duration::from_secs(10), idle, progress_bytes: MIB / 2 };
    let http = Http::with_timeouts(options, timeouts).unwrap();
    let tar = http.external_resource(&server.url(), &vars(&[]), "m").await.unwrap();
    let error = whole(tar).await.unwrap_err().to_string();
    assert!(error.contains("the resource provider") && error.contains("it sent only"), "{error}");
}

/// A server that redirects every request, and the requests it received.
async fn redirecting(status: u16, to: &'static str) -> (Server, mpsc::UnboundedReceiver<String>) {
    let (seen, lines) = mpsc::unbounded_channel();
    let server = Server::start(move |mut request: Request| {
        let seen = seen.clone();
        async move {
            drop(request.whole().await);
            seen.send(request.line.clone()).unwrap();
            let head = format!(
                "HTTP/1.1 {status} Moved\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            request.send(head.as_bytes()).await;
        }
    })
    .await;
    (server, lines)
}

#[tokio::test]
async fn an_artifact_upload_does_not_follow_a_redirect_and_names_its_target() {
    for status in [301, 302, 303, 307, 308] {
        let (server, mut lines) =
            redirecting(status, "https://user:secret@moved.example/store?token=secret").await;
        let tar = stream::iter([Ok(Bytes::from_static(b"some"))]).boxed();
        let error = http().upload_artifact(&server.url(), PATH, tar, &origin()).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, TransferError::Refused { status: said, .. } if said == status));
        assert!(text.contains("https://***@moved.example/store,"), "{text}");
        assert!(!text.contains("secret"), "{text}");
        assert!(lines.recv().await.unwrap().starts_with("POST "));
        assert!(lines.try_recv().is_err(), "{status} was followed");
    }
}

#[tokio::test]
async fn an_invalid_address_is_refused_before_anything_is_read() {
    let asked = Arc::new(AtomicU64::new(0));
    let tar = counted(MIB, Arc::clone(&asked));
    let error = http().upload_artifact("ftp://u:secret@h", PATH, tar, &origin()).await;
    let error = error.unwrap_err();
    assert!(matches!(error, TransferError::BadUrl { .. }));
    assert!(!error.to_string().contains("secret"), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    assert!(http().logger("nonsense", &"r-1".parse().unwrap()).is_err());
    assert!(http().external_resource("http://h", &Vars::new(), "../up").await.is_err());
}
