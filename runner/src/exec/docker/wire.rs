//! A connection to the engine for calls that bollard handles wrongly.
//!
//! bollard treats terminal output as frames if it happens to begin like one, and fails on container
//! states it does not know. So this module reads output as raw bytes and parses only the needed
//! fields of a container.

use std::time::Duration;

use bollard::errors::Error;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::exec::engine::EngineAddress;
use crate::exec::work_dir::STAT_HEADER;
use crate::ports::ExecError;

/// The timeout for the start of a response, and then for the next bytes of it.
pub(super) const ANSWERS: Duration = Duration::from_secs(60);

/// The streams of an attached container.
pub(super) type Attached = TokioIo<hyper::upgrade::Upgraded>;

/// Connections to an engine.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) target: EngineAddress,
    /// The address as configured.
    pub(super) address: String,
    drivers: TaskTracker,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Wire {
    /// Parses an address: `unix:///path`, `http://host:port` or `tcp://host:port`.
    pub(super) fn new(address: &str) -> Result<Self, ExecError> {
        let target = EngineAddress::parse(address, None).ok_or_else(|| {
            ExecError::Unsupported(format!(
                "the Docker engine's address {address:?} must be unix:///path, http://host:port or tcp://host:port; set BOB_DOCKER_URL"
            ))
        })?;
        Ok(Self { target, address: address.to_owned(), drivers: TaskTracker::new() })
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, Error> {
        let stream = self.target.connect().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // The task ends with its sender. The sender's calls return the same error.
        drop(self.drivers.spawn(connection.with_upgrades()));
        Ok(sender)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        is_upgrade: bool,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "engine");
        if is_upgrade {
            request = request.header(CONNECTION, "Upgrade").header(UPGRADE, "tcp");
        }
        let request = request.body(Full::default())?;
        let asking = async { Ok(self.connect().await?.send_request(request).await?) };
        let answer = timeout(ANSWERS, asking).await.unwrap_or(Err(Error::RequestTimeoutError))?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let body = timeout(ANSWERS, answer.into_body().collect()).await;
        let body = body.map_err(|_elapsed| Error::RequestTimeoutError)??.to_bytes();
        let message = match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => refusal.message,
            // A rejection is not always JSON: a proxy in front of the engine sends its own text.
            Err(_) => String::from_utf8_lossy(&body).trim().chars().take(500).collect(),
        };
        Err(Error::DockerResponseServerError { status_code: status.as_u16(), message })
    }

    /// Returns the status and the path description of a response without a body.
    pub(super) async fn head(&self, path: &str) -> Result<(u16, Option<Vec<u8>>), Error> {
        let request = Request::builder().method(Method::HEAD).uri(path).header(HOST, "engine");
        let request = request.body(Full::default())?;
        let asking = async { Ok(self.connect().await?.send_request(request).await?) };
        let answer = timeout(ANSWERS, asking).await.unwrap_or(Err(Error::RequestTimeoutError))?;
        let stat = answer.headers().get(STAT_HEADER).map(|value| value.as_bytes().to_vec());
        Ok((answer.status().as_u16(), stat))
    }

    /// Returns a response body as a stream.
    pub(super) async fn open(&self, path: &str) -> Result<Incoming, Error> {
        Ok(self.ask(Method::GET, path, false).await?.into_body())
    }

    /// Returns a response parsed as JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let reading = async { Ok(self.open(path).await?.collect().await?.to_bytes()) };
        let body = timeout(ANSWERS, reading).await.unwrap_or(Err(Error::RequestTimeoutError))?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// Upgrades a connection to a container's raw streams.
    pub(super) async fn upgrade(&self, path: &str) -> Result<Attached, Error> {
        let answer = self.ask(Method::POST, path, true).await?;
        let status = answer.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let message = format!("status {status} to an upgrade");
            return Err(Error::DockerResponseServerError { status_code: status.as_u16(), message });
        }
        Ok(TokioIo::new(hyper::upgrade::on(answer).await?))
    }
}

/// The next bytes of an answer; `None` at its end.
pub(super) async fn next_bytes(body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    loop {
        let frame = timeout(ANSWERS, body.frame()).await;
        let frame = frame.map_err(|_elapsed| Error::RequestTimeoutError)?.transpose()?;
        match frame.map(Frame::into_data) {
            Some(Ok(bytes)) => return Ok(Some(bytes)),
            // Trailers.
            Some(Err(_)) => {}
            None => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixListener;

    use super::*;
    use crate::exec::fast_clock::quickly;

    #[tokio::test]
    async fn an_answer_that_stalls_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let wire = Wire::new(&format!("unix://{}", socket.display())).unwrap();
        let answering = async {
            let (mut engine, _) = listener.accept().await.unwrap();
            engine.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nout").await.unwrap();
            engine
        };
        let (opened, _engine) = tokio::join!(wire.open("/logs"), answering);
        let mut body = opened.unwrap();
        assert_eq!(next_bytes(&mut body).await.unwrap().unwrap(), "out");
        let stalled = quickly(next_bytes(&mut body)).await;
        assert!(matches!(stalled, Err(Error::RequestTimeoutError)), "{stalled:?}");
    }

    #[test]
    fn an_address_is_a_socket_or_a_host_with_a_port() {
        for good in ["unix:///run/x.sock", "http://localhost:2375", "tcp://10.0.0.1:1/"] {
            assert!(Wire::new(good).is_ok(), "{good} was refused");
        }
        for bad in ["", "/run/x.sock", "unix://x", "https://h:1", "http://h", "tcp://h:1/p"] {
            let said = Wire::new(bad).unwrap_err().to_string();
            assert!(said.contains("BOB_DOCKER_URL"), "{said}");
        }
    }
}
