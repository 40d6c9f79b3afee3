//! Connections: slow and greedy clients, TLS, and the end of the server.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse as _;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::listen::{KeyOrigin, Limits, ListenError, bind, serve};
use super::*;

const LIMITS: Limits = Limits {
    connections: 10,
    headers: Duration::from_secs(10),
    write: Duration::from_secs(60),
    stop: Duration::from_secs(5),
};

/// A server in the background.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    ended: JoinHandle<()>,
}

impl Running {
    async fn start(router: Router, limits: Limits) -> Self {
        Self::with_certificate(router, limits, None).await
    }

    async fn with_certificate(
        router: Router,
        limits: Limits,
        certificate: Option<Certificate>,
    ) -> Self {
        let listener = bind("127.0.0.1:0", KeyOrigin::Generated, certificate).await.unwrap();
        let (address, stop) = (listener.addresses()[0], CancellationToken::new());
        let serving = serve(listener, router, limits, stop.clone());
        Self { address, stop, ended: TaskTracker::new().spawn(serving) }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and returns everything that the server sends until it closes the connection.
    async fn exchange(&self, sent: &str) -> String {
        let mut stream = self.connect().await;
        // Fails if the server rejects the beginning and closes the connection.
        stream.write_all(sent.as_bytes()).await.ok();
        rest_of(&mut stream).await
    }
}

/// Reads until the server closes the connection, or resets it because it has not read everything.
async fn rest_of(stream: &mut TcpStream) -> String {
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.ok();
    String::from_utf8(received).unwrap()
}

const GET: &str = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_request_is_answered() {
    let server = Running::start(router(), LIMITS).await;
    let answer = server.exchange(GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("up"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_complete_headers_is_closed_in_time() {
    let server = Running::start(router(), LIMITS).await;
    for begun in ["", "G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nhost: localhost\r\nx: "] {
        assert_eq!(server.exchange(begun).await, "", "{begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn headers_that_trickle_in_do_not_extend_the_time() {
    let server = Running::start(router(), LIMITS).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut sent = 0;
    // Fails once the server has closed the connection.
    while stream.write_all(b"a: b\r\n").await.is_ok() {
        sent += 1;
        assert!(sent < 60, "the connection is still open after a minute");
        tokio::time::advance(Duration::from_secs(1)).await;
        // The server's side of the connection runs in this thread.
        for _turn in 0..100 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_closed_if_its_next_request_does_not_come() {
    let server = Running::start(router(), LIMITS).await;
    let answer = server.exchange("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(answer.ends_with("up"), "{answer}");
}

#[tokio::test]
async fn too_many_or_too_large_headers_are_rejected_and_the_server_keeps_running() {
    let server = Running::start(router(), LIMITS).await;
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    let large = format!("x: {}\r\n", "y".repeat(40_000));
    for headers in [many, large] {
        let request = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        let answer = server.exchange(&request).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    let long_path = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(70_000));
    let answer = server.exchange(&long_path).await;
    assert!(answer.starts_with("HTTP/1.1 414") || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert!(server.exchange(GET).await.ends_with("up"));
}

#[tokio::test]
async fn what_is_not_http_is_rejected_and_the_server_keeps_running() {
    let server = Running::start(router(), LIMITS).await;
    for garbage in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        "GET / HTTP/1.1\r\nhost : localhost\r\n\r\n",
    ] {
        let answer = server.exchange(garbage).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{garbage:?}: {answer}");
    }
    assert!(server.exchange(GET).await.ends_with("up"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_of_an_answer_is_disconnected() {
    let dropped = CancellationToken::new();
    let guard = Arc::new(Mutex::new(Some(dropped.clone().drop_guard())));
    let endless = async move || {
        let guard = guard.lock().take();
        let chunks = futures::stream::repeat_with(move || {
            let _alive = &guard;
            Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 10_000]))
        });
        Body::from_stream(chunks).into_response()
    };
    let server = Running::start(Router::new().route("/endless", get(endless)), LIMITS).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    dropped.cancelled().await;
}

#[tokio::test]
async fn further_clients_wait_if_there_are_too_many() {
    #[derive(Default)]
    struct Counts {
        active: usize,
        most: usize,
    }
    let counts = Arc::new(Mutex::new(Counts::default()));
    let (arrived, may_end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let hold = {
        let (counts, arrived, may_end) =
            (Arc::clone(&counts), Arc::clone(&arrived), Arc::clone(&may_end));
        async move || {
            {
                let mut counts = counts.lock();
                counts.active += 1;
                counts.most = counts.most.max(counts.active);
            }
            arrived.add_permits(1);
            may_end.acquire().await.unwrap().forget();
            counts.lock().active -= 1;
        }
    };
    let limits = Limits { connections: 2, ..LIMITS };
    let server = Running::start(Router::new().route("/hold", get(hold)), limits).await;
    let request = "GET /hold HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let clients = futures::future::join_all((0..6).map(|_| server.exchange(request)));
    let release = async {
        for _client in 0..6 {
            arrived.acquire().await.unwrap().forget();
            may_end.add_permits(1);
        }
    };
    let (answers, ()) = tokio::join!(clients, release);
    assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 200")), "{answers:?}");
    assert!(counts.lock().most <= 2, "{} requests at once", counts.lock().most);
}

#[tokio::test]
async fn a_server_that_stops_ends_requests_in_progress_and_accepts_no_others() {
    let (arrived, may_end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let hold = {
        let (arrived, may_end) = (Arc::clone(&arrived), Arc::clone(&may_end));
        async move || {
            arrived.notify_one();
            may_end.notified().await;
            "done"
        }
    };
    let server = Running::start(Router::new().route("/hold", get(hold)), LIMITS).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /hold HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    arrived.notified().await;
    server.stop.cancel();
    may_end.notify_one();
    assert!(rest_of(&mut stream).await.ends_with("done"));
    server.ended.await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_does_not_wait_for_endless_requests() {
    let arrived = Arc::new(Notify::new());
    let never = {
        let arrived = Arc::clone(&arrived);
        async move || {
            arrived.notify_one();
            std::future::pending::<()>().await;
        }
    };
    let limits = Limits { headers: Duration::from_secs(3600), ..LIMITS };
    let server = Running::start(Router::new().route("/never", get(never)), limits).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /never HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    arrived.notified().await;
    server.stop.cancel();
    server.ended.await.unwrap();
    assert_eq!(rest_of(&mut stream).await, "");
}

#[tokio::test]
async fn a_server_whose_keys_are_not_set_listens_on_loopback_only() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let refused = bind(address, KeyOrigin::Generated, None).await.unwrap_err();
        assert!(matches!(refused, ListenError::NoKeys { .. }), "{refused}");
        let message = refused.to_string();
        assert!(message.contains("BOB_HTTP_JWT_SECRET or BOB_HTTP_JWKS"), "{message}");
    }
    assert!(bind("localhost:0", KeyOrigin::Generated, None).await.is_ok());
    assert!(bind("0.0.0.0:0", KeyOrigin::Settings, None).await.is_ok());
}

#[tokio::test]
async fn an_address_in_use_is_reported() {
    let first = bind("127.0.0.1:0", KeyOrigin::Generated, None).await.unwrap();
    let address = first.addresses()[0].to_string();
    let second = bind(&address, KeyOrigin::Generated, None).await.unwrap_err();
    assert!(matches!(second, ListenError::InUse { .. }), "{second}");
    let unknown = bind("no-such-host.invalid:1", KeyOrigin::Generated, None).await.unwrap_err();
    assert!(matches!(unknown, ListenError::Unresolved { .. }), "{unknown}");
}

/// Writes a new certificate for `localhost`, and returns it.
fn certify(dir: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

fn files(dir: &Path) -> CertificateFiles {
    CertificateFiles { cert: dir.join("cert.pem"), key: dir.join("key.pem") }
}

/// Connects with trust in one certificate.
async fn connect_tls(
    server: &Running,
    trusted: &CertificateDer<'static>,
    protocol: &[u8],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, server.connect().await).await
}

#[tokio::test]
async fn a_changed_certificate_applies_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = certify(dir.path());
    let certificate = Certificate::open(files(dir.path())).await.unwrap();
    let server = Running::with_certificate(router(), LIMITS, Some(certificate)).await;
    let mut stream = connect_tls(&server, &first, b"http/1.1").await.unwrap();
    stream.write_all(GET.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok();
    assert!(answer.ends_with("up"), "{answer}");

    let second = certify(dir.path());
    pass_a_second().await;
    assert!(connect_tls(&server, &second, b"http/1.1").await.is_ok());
    assert!(connect_tls(&server, &first, b"http/1.1").await.is_err());

    // In the middle of a replacement, the key does not fit.
    std::fs::write(dir.path().join("key.pem"), rcgen::KeyPair::generate().unwrap().serialize_pem())
        .unwrap();
    pass_a_second().await;
    assert!(connect_tls(&server, &second, b"http/1.1").await.is_ok());
}

/// Lets time pass without waiting.
async fn pass_a_second() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn http_2_is_served_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let trusted = certify(dir.path());
    let certificate = Certificate::open(files(dir.path())).await.unwrap();
    let router = protected(options(with_secret())).await;
    let server = Running::with_certificate(router, LIMITS, Some(certificate)).await;
    let stream = connect_tls(&server, &trusted, b"h2").await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    TaskTracker::new().spawn(connection);
    let request = |host| {
        let uri = format!("https://{host}:9009/who");
        let token = ("authorization", bearer("read"));
        Request::builder().uri(uri).header(token.0, token.1).body(Empty::<Bytes>::new()).unwrap()
    };
    let answer = sender.send_request(request("localhost")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let answer = sender.send_request(request("evil.example")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_tls_handshake_is_closed_in_time() {
    let dir = tempfile::tempdir().unwrap();
    certify(dir.path());
    let certificate = Certificate::open(files(dir.path())).await.unwrap();
    let server = Running::with_certificate(router(), LIMITS, Some(certificate)).await;
    assert_eq!(server.exchange("").await, "");
}

#[tokio::test]
async fn a_certificate_must_be_usable_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Certificate::open(files(dir.path())).await.unwrap_err();
    assert!(matches!(missing, TlsError::Unreadable { .. }), "{missing}");
    certify(dir.path());
    std::fs::write(dir.path().join("key.pem"), "no key").unwrap();
    let not_pem = Certificate::open(files(dir.path())).await.unwrap_err();
    assert!(matches!(not_pem, TlsError::NotPem { what: "private key", .. }), "{not_pem}");
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(dir.path().join("key.pem"), other).unwrap();
    let unusable = Certificate::open(files(dir.path())).await.unwrap_err();
    assert!(matches!(unusable, TlsError::Unusable { .. }), "{unusable}");
}
