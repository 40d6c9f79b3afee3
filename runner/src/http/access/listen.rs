//! Accepts connections and serves a router over them, within limits.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use futures::future::join_all;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use super::peer::Peer;
use super::tls::{Certificate, HTTP_2};

/// The most headers of a request.
const MAX_HEADERS: usize = 100;

/// The largest headers of a request together, in bytes.
const MAX_HEADER_BYTES: u32 = 32 * 1024;

/// The most requests that one connection of HTTP/2 carries at once.
const MAX_STREAMS: u32 = 100;

/// How often a client of HTTP/2 must show that it is alive.
const PING: Duration = Duration::from_secs(20);

/// The pause after a failure to accept connections, for example because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Limits of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of connections.
    pub connections: usize,
    /// Time for the TLS handshake, and for the headers of a request.
    pub headers: Duration,
    /// Time within which a client must take something of an answer.
    pub write: Duration,
    /// Time for the end of requests in progress when the server stops.
    pub stop: Duration,
}

/// Where the keys of tokens come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOrigin {
    /// From the settings.
    Settings,
    /// The server made a secret itself, which only its user can read.
    Generated,
}

/// Why the server cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The host of the address is unknown.
    #[error("cannot resolve BOB_HTTP_ADDRESS ({address}): {cause}")]
    Unresolved {
        /// The address.
        address: String,
        /// The cause.
        cause: io::Error,
    },
    /// Other machines reach the address, and their users cannot know a generated secret.
    #[error(
        "the HTTP API cannot listen on {address}, which other machines reach, with a secret that only \
         this user can read: set BOB_HTTP_JWT_SECRET or BOB_HTTP_JWKS, or \
         BOB_HTTP_ADDRESS=localhost:9009"
    )]
    NoKeys {
        /// The address.
        address: String,
    },
    /// Another process listens there.
    #[error("cannot listen on {address}: it is in use; set BOB_HTTP_ADDRESS to another address")]
    InUse {
        /// The address.
        address: String,
    },
    /// The address cannot be used.
    #[error("cannot listen on {address} (BOB_HTTP_ADDRESS): {cause}")]
    Unusable {
        /// The address.
        address: String,
        /// The cause.
        cause: io::Error,
    },
}

/// Sockets that accept connections.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<TcpListener>,
    certificate: Option<Arc<Certificate>>,
}

impl Listener {
    /// The addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }
}

/// Listens on all addresses of a host. `localhost` has one of IPv4 and usually one of IPv6.
///
/// # Errors
/// An address that cannot be used, or that other machines reach although no keys are set.
pub async fn bind(
    address: &str,
    keys: KeyOrigin,
    certificate: Option<Certificate>,
) -> Result<Listener, ListenError> {
    let resolved = lookup_host(address).await;
    let mut addresses: Vec<SocketAddr> = resolved
        .map_err(|cause| ListenError::Unresolved { address: address.to_owned(), cause })?
        .collect();
    let is_local = addresses.iter().all(|address| address.ip().is_loopback());
    if keys == KeyOrigin::Generated && !is_local {
        return Err(ListenError::NoKeys { address: address.to_owned() });
    }
    addresses.sort();
    addresses.dedup();
    // A port that the system chooses differs between addresses.
    if addresses.iter().any(|address| address.port() == 0) {
        addresses.truncate(1);
    }
    let mut sockets = Vec::new();
    let mut unusable = None;
    for one in addresses {
        match TcpListener::bind(one).await {
            Ok(socket) => sockets.push(socket),
            Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => {
                return Err(ListenError::InUse { address: one.to_string() });
            }
            // For example `::1` on a machine without IPv6.
            Err(cause) => {
                unusable = Some(ListenError::Unusable { address: one.to_string(), cause });
            }
        }
    }
    if let Some(error) = unusable.filter(|_| sockets.is_empty()) {
        return Err(error);
    }
    if !is_local && certificate.is_none() {
        warn!(
            %address,
            "tokens are sent unencrypted: set BOB_HTTP_TLS_CERT and BOB_HTTP_TLS_KEY, or use a proxy with TLS"
        );
    }
    Ok(Listener { sockets, certificate: certificate.map(Arc::new) })
}

/// Serves a router until `stop` is cancelled and the requests in progress have ended, or until the
/// time for that is over.
pub async fn serve(listener: Listener, router: Router, limits: Limits, stop: CancellationToken) {
    let server = Server {
        router,
        limits,
        certificate: listener.certificate,
        permits: Arc::new(Semaphore::new(limits.connections)),
        connections: TaskTracker::new(),
        stop,
        abort: CancellationToken::new(),
    };
    // The sockets are closed when the loops end: a new server can then use the address.
    join_all(listener.sockets.into_iter().map(|socket| server.accept_all(socket))).await;
    server.connections.close();
    if timeout(limits.stop, server.connections.wait()).await.is_err() {
        debug!("closing the connections of requests that have not ended");
        server.abort.cancel();
        server.connections.wait().await;
    }
}

#[derive(Clone)]
struct Server {
    router: Router,
    limits: Limits,
    certificate: Option<Arc<Certificate>>,
    permits: Arc<Semaphore>,
    connections: TaskTracker,
    /// Cancelled when no further request is accepted.
    stop: CancellationToken,
    /// Cancelled when the connections are closed.
    abort: CancellationToken,
}

impl Server {
    async fn accept_all(&self, socket: TcpListener) {
        loop {
            let accepted = async {
                // Further clients wait in the backlog of the socket. The semaphore is never closed.
                let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
                (permit, socket.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let server = self.clone();
                    self.connections.spawn(async move {
                        let abort = server.abort.clone();
                        tokio::select! {
                            () = abort.cancelled() => {}
                            () = Box::pin(server.connection(stream, address)) => {}
                        }
                        drop(permit);
                    });
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    warn!(%error, "cannot accept connections to the HTTP API");
                    let pause = tokio::time::sleep(ACCEPT_PAUSE);
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = pause => {}
                    }
                }
            }
        }
    }

    async fn connection(&self, stream: TcpStream, address: SocketAddr) {
        // Only a matter of speed.
        stream.set_nodelay(true).ok();
        let peer = Peer { address };
        let Some(certificate) = &self.certificate else {
            return self.http_1(stream, peer).await;
        };
        let handshake = async {
            let acceptor = TlsAcceptor::from(certificate.config().await);
            acceptor.accept(stream).await
        };
        match timeout(self.limits.headers, handshake).await {
            Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(HTTP_2) => {
                self.http_2(stream, peer).await;
            }
            Ok(Ok(stream)) => self.http_1(stream, peer).await,
            Ok(Err(error)) => debug!(%address, %error, "the TLS handshake failed"),
            Err(_elapsed) => debug!(%address, "the TLS handshake took too long"),
        }
    }

    pub(super) async fn http_1<S>(&self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let service = service_fn(|request| self.respond(request, peer));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.headers)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEADER_BYTES as usize)
            .serve_connection(TokioIo::new(self.watched(stream)), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(address = %peer.address, %error, "a connection ended");
        }
    }

    async fn http_2<S>(&self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let first_request = Arc::new(Notify::new());
        let service = service_fn({
            let (server, first_request) = (self.clone(), Arc::clone(&first_request));
            move |request| {
                first_request.notify_one();
                let server = server.clone();
                async move { server.respond(request, peer).await }
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .serve_connection(TokioIo::new(self.watched(stream)), service);
        let mut connection = pin!(connection);
        let silent = async {
            if timeout(self.limits.headers, first_request.notified()).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = silent => return debug!(address = %peer.address, "a client sent no request"),
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(address = %peer.address, %error, "a connection ended");
        }
    }

    /// The stream, which fails if the client takes nothing of an answer for too long.
    fn watched<S: AsyncRead + AsyncWrite>(
        &self,
        stream: S,
    ) -> std::pin::Pin<Box<TimeoutStream<S>>> {
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.limits.write));
        Box::pin(stream)
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        peer: Peer,
    ) -> Result<Response, Infallible> {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(peer);
        self.router.clone().oneshot(request).await
    }
}

/// Whether an error of `accept` concerns a client that has gone already.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
