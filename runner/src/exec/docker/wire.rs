//! A connection to the engine for calls that bollard handles wrongly.
//!
//! bollard treats terminal output as frames if it happens to begin like one, and fails on container
//! states it does not know. So this module reads output as raw bytes and parses only the needed
//! fields of a container.

use std::path::PathBuf;
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::exec::work_dir::STAT_HEADER;
use crate::ports::ExecError;

/// The timeout for the start of a response, and then for the next bytes of it.
pub(super) const ANSWERS: Duration = Duration::from_secs(60);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The streams of an attached container.
pub(super) type Attached = TokioIo<hyper::upgrade::Upgraded>;

/// The transport to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Unix(PathBuf),
    Tcp(String),
}

/// Connections to an engine.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) target: Target,
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
        let bad = || {
            ExecError::Unsupported(format!(
                "the Docker engine's address {address:?} must be unix:///path, http://host:port or tcp://host:port; set BOB_DOCKER_URL"
            ))
        };
        let target = match address.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Target::Unix(path.into()),
            Some(("http" | "tcp", rest)) => {
                let host = rest.trim_end_matches('/');
                let (name, port) = host.rsplit_once(':').ok_or_else(bad)?;
                if name.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
                    return Err(bad());
                }
                Target::Tcp(host.to_owned())
            }
            Some(_) | None => return Err(bad()),
        };
        Ok(Self { target, address: address.to_owned(), drivers: TaskTracker::new() })
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, Error> {
        let stream: Box<dyn Stream> = match &self.target {
            Target::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Target::Tcp(host) => {
                let stream = TcpStream::connect(host).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
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
