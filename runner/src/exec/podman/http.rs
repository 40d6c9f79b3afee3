//! HTTP/1.1 over the engine's socket, with reused and upgraded connections.
//!
//! podman-api opens a connection per call and drops parts of some responses. Here a step keeps one
//! connection while it runs, which also shows whether the engine is still the same process.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, UPGRADE};
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::either::Either;
use tokio_util::task::TaskTracker;

use super::call::{
    ANSWERS, Body, EngineCall, Fault, Repeat, Reply, broken, empty, no_space, read, request,
};
use crate::exec::engine::EngineAddress;
use crate::exec::exhausted::no_keys;
use crate::ports::{ExecError, Pauses};

/// The maximum number of idle connections.
const KEPT: usize = 64;
/// The timeout of one connection attempt.
const CONNECTING: Duration = Duration::from_secs(10);
/// The pauses between two connection attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long after a crash an engine can still fail because of what it left half done.
const LATELY: Duration = Duration::from_secs(20);

/// The engine's address and the connections to it.
pub(super) struct Http {
    target: EngineAddress,
    /// The address as configured.
    pub(super) address: String,
    idle: Mutex<Vec<SendRequest<Body>>>,
    /// Whether the engine has ever answered. Calls do not wait for an engine that never has.
    answered: AtomicBool,
    shares_processes: AtomicBool,
    /// When a connection last broke.
    broke: Mutex<Option<Instant>>,
    drivers: TaskTracker,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Http {
    /// Parses an address: `unix:///path`, `http://host:port` or `tcp://host:port`.
    pub(super) fn new(address: &str) -> Result<Arc<Self>, ExecError> {
        let target = EngineAddress::parse(address, Some(80)).ok_or_else(|| {
            ExecError::Unsupported(format!(
                "the container engine's address {address:?} must be unix:///path, http://host:port or tcp://host:port; set CONTAINER_ENGINE_URL"
            ))
        })?;
        Ok(Arc::new(Self {
            target,
            address: address.to_owned(),
            idle: Mutex::default(),
            answered: AtomicBool::new(false),
            shares_processes: AtomicBool::new(false),
            broke: Mutex::default(),
            drivers: TaskTracker::new(),
        }))
    }

    /// Whether the engine is on this machine.
    pub(super) fn is_local(&self) -> bool {
        self.socket().is_some()
    }

    /// Its socket, if it is on this machine.
    pub(super) fn socket(&self) -> Option<&Path> {
        self.target.socket()
    }

    /// Notes that the engine answered elsewhere. From now on calls wait for it.
    pub(super) fn has_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether the engine crashed recently, so that a failure now can be a consequence.
    pub(super) fn went_lately(&self) -> bool {
        let broke = *self.broke.lock();
        broke.is_some_and(|at| at.elapsed() < LATELY)
    }

    fn went(&self) {
        // An engine that never answered has not started yet.
        if !self.answered.load(Ordering::Relaxed) {
            return;
        }
        *self.broke.lock() = Some(Instant::now());
    }

    /// Whether process ids of the engine are valid in this process.
    pub(super) fn shares_processes(&self) -> bool {
        self.shares_processes.load(Ordering::Relaxed)
    }

    /// A connection for successive calls.
    pub(super) fn link(self: &Arc<Self>) -> Link {
        Link { http: Arc::clone(self), sender: self.take(), breaks: 0 }
    }

    /// Makes one call on any connection.
    pub(super) async fn call(self: &Arc<Self>, ask: EngineCall) -> Result<Reply, Fault> {
        self.link().call(ask).await
    }

    fn take(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock();
        while let Some(sender) = idle.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: SendRequest<Body>) {
        // A connection whose response was not read to its end cannot be reused.
        if sender.is_ready() {
            let mut idle = self.idle.lock();
            if idle.len() < KEPT {
                idle.push(sender);
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Body>, Fault> {
        let away = |cause: io::Error| {
            self.went();
            Fault::Unreachable(cause.to_string())
        };
        let stream = self.target.connect().await.map_err(away)?;
        if let Either::Left(local) = &stream {
            self.shares_processes.store(shares_processes(local), Ordering::Relaxed);
        }
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // The task ends with its sender. The sender's calls return the same error.
        drop(self.drivers.spawn(connection.with_upgrades()));
        Ok(sender)
    }

    async fn connect_within(&self, patience: Duration) -> Result<SendRequest<Body>, Fault> {
        let until = Instant::now() + patience;
        let mut pauses = Pauses::doubling(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let made = timeout(CONNECTING, self.connect()).await;
            let pause = pauses.take_next();
            let late =
                || Fault::Unreachable(format!("no connection within {} s", CONNECTING.as_secs()));
            match made.unwrap_or_else(|_| Err(late())) {
                Ok(sender) => {
                    self.has_answered();
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
        }
    }

    /// Requests a streamed response, on a separate connection.
    pub(super) async fn open(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Body,
    ) -> Result<Response<Incoming>, Fault> {
        self.open_within(ANSWERS, method, path, headers, body).await
    }

    /// Like [`Self::open`], with another timeout for the start of the response.
    pub(super) async fn open_within(
        &self,
        within: Duration,
        method: &Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Body,
    ) -> Result<Response<Incoming>, Fault> {
        let mut request = request(method, path, body)?;
        for (name, value) in headers {
            let value = value.parse().map_err(|cause| {
                Fault::Malformed(format!("the value of the header {name} is invalid: {cause}"))
            })?;
            request.headers_mut().insert(*name, value);
        }
        let mut sender = self.connect_within(Duration::from_secs(5)).await?;
        let answer = timeout(within, sender.send_request(request)).await;
        answer.map_err(|_elapsed| Fault::TimedOut(within))?.map_err(broken)
    }

    /// Upgrades a connection to a container's raw streams.
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
                Ok(reply) => {
                    Err(Fault::Malformed(format!("status {} to an upgrade", reply.status)))
                }
                Err(fault) => Err(fault),
            }
        };
        let within = Duration::from_secs(120);
        timeout(within, opening).await.unwrap_or(Err(Fault::TimedOut(within)))
    }
}

impl Fault {
    /// The port's error. `doing` describes the call in words.
    pub(super) fn at(self, doing: &str, http: &Http) -> ExecError {
        match self {
            Self::Unreachable(_) | Self::Broken(_) => {
                ExecError::Unreachable { at: http.address.clone(), cause: self.to_string() }
            }
            Self::Refused { ref message, .. } if no_space(message) => {
                ExecError::NoSpace { cause: message.clone() }
            }
            Self::Refused { ref message, .. } if no_keys(message) => {
                ExecError::KeyQuota { cause: message.clone() }
            }
            // An engine that was killed during a call can fail on leftovers after its restart.
            Self::Refused { status: 500.., .. } | Self::Malformed(_) if http.went_lately() => {
                let cause = format!("it failed at {doing} after it had gone away: {self}");
                ExecError::Unreachable { at: http.address.clone(), cause }
            }
            Self::Refused { .. } | Self::Malformed(_) | Self::TimedOut(_) => {
                ExecError::Engine { doing: doing.to_owned(), cause: self.to_string() }
            }
        }
    }
}

/// Whether the listener is in this process's PID namespace. If its namespace is unreadable, it is
/// not.
fn shares_processes(stream: &UnixStream) -> bool {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/pid")).ok();
    let listener = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
    let theirs = listener.and_then(|pid| namespace(&pid.to_string()));
    theirs.is_some() && theirs == namespace("self")
}

/// A connection for successive calls.
#[derive(Debug)]
pub(super) struct Link {
    /// The engine that it connects to.
    pub(super) http: Arc<Http>,
    sender: Option<SendRequest<Body>>,
    /// How often the connection was replaced. As long as it is the same, so is the engine's
    /// process.
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
    /// Makes one call. Waits for an unreachable engine, and retries if that is safe.
    ///
    /// # Cancel safety
    /// If the future is dropped, the call might still take effect.
    pub(super) async fn call(&mut self, ask: EngineCall) -> Result<Reply, Fault> {
        let until = Instant::now() + ask.patience;
        loop {
            match self.once(&ask, until).await {
                Err(ConnectAttempt::Unsent(fault)) if Instant::now() < until => {
                    tracing::debug!(call = %ask.path, %fault, "asking the engine again");
                }
                Err(ConnectAttempt::Sent(fault))
                    if ask.again == Repeat::Yes && Instant::now() < until =>
                {
                    tracing::debug!(call = %ask.path, %fault, "asking the engine again");
                }
                Err(
                    ConnectAttempt::Sent(fault)
                    | ConnectAttempt::Unsent(fault)
                    | ConnectAttempt::Away(fault)
                    | ConnectAttempt::Late(fault),
                ) => return Err(fault),
                Ok(reply) => return Ok(reply),
            }
        }
    }

    fn lose(&mut self) {
        if self.sender.take().is_some() {
            self.breaks += 1;
        }
    }

    async fn once(&mut self, ask: &EngineCall, until: Instant) -> Result<Reply, ConnectAttempt> {
        let request = ask.request().map_err(ConnectAttempt::Sent)?;
        if self.sender.as_ref().is_some_and(SendRequest::is_closed) {
            self.lose();
        }
        let patience = until.saturating_duration_since(Instant::now());
        let sender = match self.sender.as_mut() {
            Some(sender) => sender,
            None => {
                // The whole patience is used here, so the caller must not retry.
                let made =
                    self.http.connect_within(patience).await.map_err(ConnectAttempt::Away)?;
                self.sender.insert(made)
            }
        };
        let asking = async {
            match sender.try_send_request(request).await {
                Ok(answer) => read(answer).await.map_err(ConnectAttempt::Sent),
                Err(mut failed) => {
                    let unsent = failed.take_message().is_some();
                    let fault = broken(failed.into_error());
                    Err(if unsent {
                        ConnectAttempt::Unsent(fault)
                    } else {
                        ConnectAttempt::Sent(fault)
                    })
                }
            }
        };
        // A late response must not be read as that of the next call.
        let answered = timeout(ask.within, asking).await;
        let answered = answered.unwrap_or(Err(ConnectAttempt::Late(Fault::TimedOut(ask.within))));
        if let Err(failed) = &answered {
            if matches!(failed, ConnectAttempt::Sent(_)) {
                self.http.went();
            }
            self.lose();
        }
        answered
    }
}

enum ConnectAttempt {
    /// No connection could be made within the patience.
    Away(Fault),
    Unsent(Fault),
    Sent(Fault),
    /// The call timed out.
    Late(Fault),
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

    #[tokio::test]
    async fn an_engine_that_never_answered_is_not_waited_for() {
        let http = Http::new("unix:///nowhere/engine.sock").unwrap();
        let ask = EngineCall { patience: Duration::from_secs(3600), ..EngineCall::get("/_ping") };
        let fault = http.call(ask).await.unwrap_err();
        let error = fault.at("ping", &http);
        assert!(matches!(error, ExecError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("unix:///nowhere/engine.sock"), "{error}");
    }
}
