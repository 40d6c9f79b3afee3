//! HTTP/1.1 to the engine, over its socket: connections that are kept, and ones that are handed over.
//!
//! podman-api asks one thing on each connection and drops what some answers say. Here a step keeps a
//! connection for as long as it runs: that also tells whether the engine is still the same process.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::ports::ExecError;

/// Every path of ours begins with it; newer engines still take it.
const PREFIX: &str = "/v4.0.0/libpod";
/// How many connections wait for their next use.
const KEPT: usize = 64;

/// What goes out with a request.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Why a call came to nothing.
#[derive(Debug, Error)]
pub(super) enum Fault {
    /// Nothing answers at the address.
    #[error("{0}")]
    Away(String),
    /// The connection ended in the middle; what was asked for may have been done.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The engine said no.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// The engine answered what is not in its contract.
    #[error("it answered what cannot be understood: {0}")]
    Garbled(String),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
}

impl Fault {
    /// The status of a refusal.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Away(_) | Self::Broken(_) | Self::Garbled(_) | Self::Late(_) => None,
        }
    }

    /// What the engine said no with; empty where it did not.
    pub(super) fn refusal(&self) -> &str {
        match self {
            Self::Refused { message, .. } => message,
            Self::Away(_) | Self::Broken(_) | Self::Garbled(_) | Self::Late(_) => "",
        }
    }

    /// As the port's error; `doing` is the call in words.
    pub(super) fn at(self, doing: &str, http: &Http) -> ExecError {
        match self {
            Self::Away(_) | Self::Broken(_) => {
                ExecError::Unreachable { at: http.address.clone(), cause: self.to_string() }
            }
            Self::Refused { ref message, .. } if no_space(message) => {
                ExecError::NoSpace { cause: message.clone() }
            }
            Self::Refused { .. } | Self::Garbled(_) | Self::Late(_) => {
                ExecError::Engine { doing: doing.to_owned(), cause: self.to_string() }
            }
        }
    }
}

/// Whether the engine says that its disk is full.
pub(super) fn no_space(message: &str) -> bool {
    message.contains("no space left on device") || message.contains("disk quota exceeded")
}

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Reply {
    /// The HTTP status.
    pub(super) status: u16,
    /// The body.
    pub(super) body: Bytes,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Reply {
    /// The same, where its status is one of success; else what the engine said.
    pub(super) fn good(self) -> Result<Self, Fault> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let message = match serde_json::from_slice::<Refusal>(&self.body) {
            Ok(refusal) => refusal.message,
            // Not every refusal is JSON: a proxy in front of the engine has words of its own.
            Err(_) => String::from_utf8_lossy(&self.body).trim().chars().take(500).collect(),
        };
        let message = if message.is_empty() { format!("status {}", self.status) } else { message };
        Err(Fault::Refused { status: self.status, message })
    }

    /// The body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        serde_json::from_slice(&self.body).map_err(|cause| Fault::Garbled(cause.to_string()))
    }
}

/// Whether a call may be made once more where its connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Twice does no harm.
    Yes,
    /// Only where it was not sent.
    Unsent,
}

/// A request without a stream in it.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) json: Option<Bytes>,
    pub(super) again: Again,
    pub(super) within: Duration,
    /// For how long an engine that went away is waited for.
    pub(super) patience: Duration,
}

impl Ask {
    /// A call with the usual bounds.
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            json: None,
            again: Again::Yes,
            within: Duration::from_secs(60),
            patience: Duration::from_secs(5),
        }
    }

    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(super) fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    pub(super) fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    fn request(&self) -> Result<Request<Body>, Fault> {
        let body = Full::new(self.json.clone().unwrap_or_default())
            .map_err(|never| match never {})
            .boxed_unsync();
        let mut request = request(&self.method, &self.path, body)?;
        if self.json.is_some() {
            let json = hyper::header::HeaderValue::from_static("application/json");
            request.headers_mut().insert(CONTENT_TYPE, json);
        }
        Ok(request)
    }
}

fn request(method: &Method, path: &str, body: Body) -> Result<Request<Body>, Fault> {
    Request::builder()
        .method(method)
        .uri(format!("{PREFIX}{path}"))
        .header(HOST, "engine")
        .body(body)
        .map_err(|cause| Fault::Garbled(format!("{path:?} is no request path: {cause}")))
}

enum Target {
    Unix(PathBuf),
    Tcp(String),
}

/// The engine's address, and the connections to it.
pub(super) struct Http {
    target: Target,
    /// As it was given.
    pub(super) address: String,
    idle: Mutex<Vec<SendRequest<Body>>>,
    /// An engine that has never answered is not waited for.
    answered: AtomicBool,
    shares_processes: AtomicBool,
    drivers: TaskTracker,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Http {
    /// Reads an address: `unix:///path`, `http://host:port` or `tcp://host:port`.
    pub(super) fn new(address: &str) -> Result<Arc<Self>, ExecError> {
        let bad = || {
            ExecError::Unsupported(format!(
                "the container engine's address {address:?} must be unix:///path, http://host:port or tcp://host:port; set CONTAINER_ENGINE_URL"
            ))
        };
        let target = match address.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Target::Unix(path.into()),
            Some(("http" | "tcp", rest)) => {
                let host = rest.trim_end_matches('/');
                let port = host
                    .rsplit_once(':')
                    .is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
                match (port, host.contains('/') || host.is_empty()) {
                    (_, true) => return Err(bad()),
                    (true, false) => Target::Tcp(host.to_owned()),
                    (false, false) => Target::Tcp(format!("{host}:80")),
                }
            }
            Some(_) | None => return Err(bad()),
        };
        Ok(Arc::new(Self {
            target,
            address: address.to_owned(),
            idle: Mutex::default(),
            answered: AtomicBool::new(false),
            shares_processes: AtomicBool::new(false),
            drivers: TaskTracker::new(),
        }))
    }

    /// Whether the engine is on this machine.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.target, Target::Unix(_))
    }

    /// Whether the engine's process ids mean the same here as there.
    pub(super) fn shares_processes(&self) -> bool {
        self.shares_processes.load(Ordering::Relaxed)
    }

    /// A connection to make calls on, one after the other.
    pub(super) fn link(self: &Arc<Self>) -> Link {
        Link { http: Arc::clone(self), sender: self.take(), breaks: 0 }
    }

    /// One call, on any connection.
    pub(super) async fn call(self: &Arc<Self>, ask: Ask) -> Result<Reply, Fault> {
        self.link().call(ask).await
    }

    fn take(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sender) = idle.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: SendRequest<Body>) {
        // One whose answer was not read to its end is of no more use.
        if sender.is_ready() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < KEPT {
                idle.push(sender);
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Body>, Fault> {
        let away = |cause: io::Error| Fault::Away(cause.to_string());
        let wire: Box<dyn Wire> = match &self.target {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(away)?;
                self.shares_processes.store(shares_processes(&stream), Ordering::Relaxed);
                Box::new(stream)
            }
            Target::Tcp(host) => {
                let stream = TcpStream::connect(host).await.map_err(away)?;
                stream.set_nodelay(true).map_err(away)?;
                Box::new(stream)
            }
        };
        let (sender, connection) = http1::handshake(TokioIo::new(wire)).await.map_err(broken)?;
        // It ends with its sender. What it fails with, the sender's calls fail with too.
        drop(self.drivers.spawn(connection.with_upgrades()));
        Ok(sender)
    }

    async fn connect_within(&self, patience: Duration) -> Result<SendRequest<Body>, Fault> {
        let until = Instant::now() + patience;
        let mut pause = Duration::from_millis(20);
        loop {
            match self.connect().await {
                Ok(sender) => {
                    self.answered.store(true, Ordering::Relaxed);
                    return Ok(sender);
                }
                Err(fault) => {
                    let known = self.answered.load(Ordering::Relaxed);
                    if !known || Instant::now() + pause > until {
                        return Err(fault);
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// Asks for something whose answer is a stream, on a connection of its own.
    pub(super) async fn open(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Body,
    ) -> Result<Response<Incoming>, Fault> {
        let mut request = request(method, path, body)?;
        for (name, value) in headers {
            let value = value
                .parse()
                .map_err(|cause| Fault::Garbled(format!("{name} is no header: {cause}")))?;
            request.headers_mut().insert(*name, value);
        }
        let mut sender = self.connect_within(Duration::from_secs(5)).await?;
        sender.send_request(request).await.map_err(broken)
    }

    /// Turns a connection over to the bytes of a container.
    pub(super) async fn upgrade(
        &self,
        path: &str,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, Fault> {
        let headers = [(CONNECTION.as_str(), "Upgrade".into()), (UPGRADE.as_str(), "tcp".into())];
        let headers: [(&'static str, String); 2] = headers;
        let opening = async {
            let answer = self.open(&Method::POST, path, &headers, empty()).await?;
            if answer.status() == hyper::StatusCode::SWITCHING_PROTOCOLS {
                return Ok(TokioIo::new(hyper::upgrade::on(answer).await.map_err(broken)?));
            }
            match read(answer).await?.good() {
                Ok(reply) => Err(Fault::Garbled(format!("status {} to an upgrade", reply.status))),
                Err(fault) => Err(fault),
            }
        };
        let within = Duration::from_secs(120);
        timeout(within, opening).await.unwrap_or(Err(Fault::Late(within)))
    }
}

/// Whether who listens there is in the same process namespace. What cannot be seen is in another.
fn shares_processes(stream: &UnixStream) -> bool {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/pid")).ok();
    let listener = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
    let theirs = listener.and_then(|pid| namespace(&pid.to_string()));
    theirs.is_some() && theirs == namespace("self")
}

/// No body.
pub(super) fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(cause: hyper::Error) -> Fault {
    let mut text = cause.to_string();
    let mut deeper = std::error::Error::source(&cause);
    while let Some(source) = deeper {
        text = format!("{text}: {source}");
        deeper = source.source();
    }
    Fault::Broken(text)
}

/// Reads an answer to its end.
pub(super) async fn read(answer: Response<Incoming>) -> Result<Reply, Fault> {
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
    Ok(Reply { status, body })
}

/// A connection that one after the other calls are made on.
#[derive(Debug)]
pub(super) struct Link {
    /// Where it goes.
    pub(super) http: Arc<Http>,
    sender: Option<SendRequest<Body>>,
    /// How often it had to be made anew: while this stays, the engine is the same process.
    pub(super) breaks: u32,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.http.keep(sender);
        }
    }
}

impl Link {
    /// One call. Waits for an engine that went away, and asks again where that does no harm.
    ///
    /// # Cancel safety
    /// The call may have been made.
    pub(super) async fn call(&mut self, ask: Ask) -> Result<Reply, Fault> {
        let until = Instant::now() + ask.patience;
        loop {
            let made = timeout(ask.within, self.once(&ask, until)).await;
            let Ok(made) = made else {
                // The answer may still come: it is not the next call's.
                self.lose();
                return Err(Fault::Late(ask.within));
            };
            match made {
                Err(Tried::Unsent(fault)) if Instant::now() < until => {
                    tracing::debug!(call = %ask.path, %fault, "asking the engine again");
                }
                Err(Tried::Sent(fault)) if ask.again == Again::Yes && Instant::now() < until => {
                    tracing::debug!(call = %ask.path, %fault, "asking the engine again");
                }
                Err(Tried::Sent(fault) | Tried::Unsent(fault) | Tried::Away(fault)) => {
                    return Err(fault);
                }
                Ok(reply) => return Ok(reply),
            }
        }
    }

    fn lose(&mut self) {
        if self.sender.take().is_some() {
            self.breaks += 1;
        }
    }

    async fn once(&mut self, ask: &Ask, until: Instant) -> Result<Reply, Tried> {
        let request = ask.request().map_err(Tried::Sent)?;
        if self.sender.as_ref().is_some_and(SendRequest::is_closed) {
            self.lose();
        }
        let patience = until.saturating_duration_since(Instant::now());
        let sender = match self.sender.as_mut() {
            Some(sender) => sender,
            None => {
                // Not asked again by the caller: the patience is used up here.
                let made = self.http.connect_within(patience).await.map_err(Tried::Away)?;
                self.sender.insert(made)
            }
        };
        let answer = match sender.try_send_request(request).await {
            Ok(answer) => answer,
            Err(mut failed) => {
                let unsent = failed.take_message().is_some();
                let fault = broken(failed.into_error());
                self.lose();
                return Err(if unsent { Tried::Unsent(fault) } else { Tried::Sent(fault) });
            }
        };
        match read(answer).await {
            Ok(reply) => Ok(reply),
            Err(fault) => {
                self.lose();
                Err(Tried::Sent(fault))
            }
        }
    }
}

enum Tried {
    /// There is no connection, and the patience for one is used up.
    Away(Fault),
    Unsent(Fault),
    Sent(Fault),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_socket_or_a_host() {
        for good in ["unix:///run/x.sock", "http://localhost:8080", "tcp://10.0.0.1:1/", "http://h"]
        {
            assert!(Http::new(good).is_ok(), "{good} was refused");
        }
        for bad in ["", "/run/x.sock", "unix://x", "https://h:1", "http://", "tcp://h/p", "ssh://h"]
        {
            let said = Http::new(bad).unwrap_err().to_string();
            assert!(said.contains("CONTAINER_ENGINE_URL"), "{said}");
        }
    }

    #[test]
    fn a_refusal_says_what_the_engine_said_whatever_its_form() {
        let said = |status, body: &'static str| {
            let reply = Reply { status, body: Bytes::from_static(body.as_bytes()) };
            reply.good().unwrap_err().to_string()
        };
        assert_eq!(said(500, r#"{"cause":"c","message":"m","response":500}"#), "m");
        assert_eq!(said(502, "bad gateway\n"), "bad gateway");
        assert_eq!(said(404, ""), "status 404");
        assert!(Reply { status: 304, body: Bytes::new() }.good().is_err());
    }

    #[tokio::test]
    async fn an_engine_that_never_answered_is_not_waited_for() {
        let http = Http::new("unix:///nowhere/engine.sock").unwrap();
        let ask = Ask { patience: Duration::from_secs(3600), ..Ask::get("/_ping") };
        let fault = http.call(ask).await.unwrap_err();
        let error = fault.at("ping", &http);
        assert!(matches!(error, ExecError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("unix:///nowhere/engine.sock"), "{error}");
    }
}
