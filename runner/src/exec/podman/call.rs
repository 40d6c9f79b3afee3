//! One call to the engine: request, response and error.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::timeout;

pub(super) use crate::exec::exhausted::no_space;
use crate::ports::{ByteStream, Pauses, with_causes};

/// The prefix of every path. Newer engines still accept this version.
const PREFIX: &str = "/v4.0.0/libpod";

/// The timeout for the start of a response, and then for the next bytes of it.
pub(super) const ANSWERS: Duration = Duration::from_secs(120);

/// The maximum length of a response that is read into memory, in bytes. A step decides how many
/// paths the list of its changes has.
const LONGEST: usize = 64 << 20;

/// The body of a request.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Why a call failed.
#[derive(Debug, Error)]
pub(super) enum Fault {
    /// The engine is unreachable.
    #[error("{0}")]
    Unreachable(String),
    /// The connection broke. The call might have taken effect.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The engine rejected the call.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The engine's message.
        message: String,
    },
    /// The response was not what the API specifies.
    #[error("it answered what cannot be understood: {0}")]
    Malformed(String),
    /// The call timed out.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

impl Fault {
    /// The HTTP status if the engine rejected the call.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unreachable(_) | Self::Broken(_) | Self::Malformed(_) | Self::TimedOut(_) => None,
        }
    }

    /// The engine's message if it rejected the call, else the empty text.
    pub(super) fn refusal(&self) -> &str {
        match self {
            Self::Refused { message, .. } => message,
            Self::Unreachable(_) | Self::Broken(_) | Self::Malformed(_) | Self::TimedOut(_) => "",
        }
    }

    /// Whether the object does not exist. If a container disappears while podman 4.3 inspects it,
    /// podman answers with a different error.
    pub(super) fn is_gone(&self) -> bool {
        self.status() == Some(404) || self.refusal().contains("no such container")
    }
}

/// Whether the call failed because an image or layer of another run was removed meanwhile. A retry
/// no longer sees it.
pub(super) fn saw_a_removal(message: &str) -> bool {
    // The last but one is from podman 5, for a layer that it was about to reuse. The last is podman
    // 4.3's own panic message for an image that was removed during the call.
    [
        "layer not known",
        "image not known",
        "identifier is not a",
        "locating item named",
        "layer for blob",
        "nil pointer dereference",
    ]
    .iter()
    .any(|said| message.contains(said))
}

/// The pauses before a call is retried that [`saw_a_removal`].
pub(super) fn removal_pauses() -> Pauses {
    Pauses::doubling(Duration::from_millis(40), Duration::from_secs(2))
}

/// A complete response.
#[derive(Debug)]
pub(super) struct Reply {
    /// The HTTP status.
    pub(super) status: u16,
    /// The body. Empty if it was too long.
    pub(super) body: Bytes,
    /// Whether the body was longer than [`LONGEST`].
    pub(super) is_too_long: bool,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Reply {
    /// Returns the response if its status is a success, else the engine's error.
    pub(super) fn good(self) -> Result<Self, Fault> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let message = match serde_json::from_slice::<Refusal>(&self.body) {
            Ok(refusal) => refusal.message,
            // A rejection is not always JSON: a proxy in front of the engine sends its own text.
            Err(_) => String::from_utf8_lossy(&self.body).trim().chars().take(500).collect(),
        };
        let message = if message.is_empty() { format!("status {}", self.status) } else { message };
        Err(Fault::Refused { status: self.status, message })
    }

    /// The body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        if self.is_too_long {
            return Err(Fault::Malformed(format!("more than {LONGEST} bytes")));
        }
        serde_json::from_slice(&self.body).map_err(|cause| Fault::Malformed(cause.to_string()))
    }
}

/// Whether a call may be retried after its connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// The call is idempotent.
    Yes,
    /// Only if it was not sent.
    Unsent,
}

/// A request without a streamed body.
#[derive(Debug, Clone)]
pub(super) struct EngineCall {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) json: Option<Bytes>,
    pub(super) again: Repeat,
    pub(super) within: Duration,
    /// How long to wait for an engine that became unreachable.
    pub(super) patience: Duration,
}

impl EngineCall {
    /// A request with default timeouts.
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            json: None,
            again: Repeat::Yes,
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

    /// Builds the HTTP request.
    pub(super) fn request(&self) -> Result<Request<Body>, Fault> {
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

/// Builds an HTTP request for a path of the engine.
pub(super) fn request(method: &Method, path: &str, body: Body) -> Result<Request<Body>, Fault> {
    Request::builder()
        .method(method)
        .uri(format!("{PREFIX}{path}"))
        .header(HOST, "engine")
        .body(body)
        .map_err(|cause| Fault::Malformed(format!("{path:?} is not a valid request path: {cause}")))
}

/// An empty body.
pub(super) fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

/// The fault of a failed connection, with its causes.
pub(super) fn broken<E: std::error::Error>(cause: E) -> Fault {
    Fault::Broken(with_causes(&cause))
}

/// Reads a response to its end.
pub(super) async fn read(answer: Response<Incoming>) -> Result<Reply, Fault> {
    let status = answer.status().as_u16();
    let body = collect(answer.into_body(), LONGEST).await?;
    Ok(Reply { status, is_too_long: body.is_none(), body: body.unwrap_or_default() })
}

/// Reads a body to its end. `None` if it has more than `most` bytes.
async fn collect<B>(body: B, most: usize) -> Result<Option<Bytes>, Fault>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: std::error::Error,
{
    let mut body = std::pin::pin!(body);
    let mut all = BytesMut::new();
    while let Some(bytes) = next_bytes(&mut body, ANSWERS).await? {
        if all.len() + bytes.len() > most {
            return Ok(None);
        }
        all.extend_from_slice(&bytes);
    }
    Ok(Some(all.freeze()))
}

/// The next bytes of a response, which must come within this time; `None` at its end.
pub(super) async fn next_bytes<B>(body: &mut B, within: Duration) -> Result<Option<Bytes>, Fault>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error,
{
    loop {
        let frame =
            timeout(within, body.frame()).await.map_err(|_elapsed| Fault::TimedOut(within))?;
        match frame.transpose().map_err(broken)?.map(Frame::into_data) {
            Some(Ok(bytes)) => return Ok(Some(bytes)),
            // Trailers.
            Some(Err(_)) => {}
            None => return Ok(None),
        }
    }
}

/// The bytes of a response as they come. One that stalls is an error.
pub(super) fn bytes_of(body: Incoming) -> ByteStream {
    let bytes = stream::try_unfold(body, |mut body| async move {
        let next = next_bytes(&mut body, ANSWERS).await.map_err(io::Error::other)?;
        Ok(next.map(|bytes| (bytes, body)))
    });
    bytes.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_the_engine_said_whatever_its_form() {
        let reply = |status, body: &'static str| Reply {
            status,
            body: Bytes::from_static(body.as_bytes()),
            is_too_long: false,
        };
        let said = |status, body: &'static str| reply(status, body).good().unwrap_err().to_string();
        assert_eq!(said(500, r#"{"cause":"c","message":"m","response":500}"#), "m");
        assert_eq!(said(502, "bad gateway\n"), "bad gateway");
        assert_eq!(said(404, ""), "status 404");
        assert!(reply(304, "").good().is_err());
    }

    #[tokio::test]
    async fn a_response_is_read_up_to_its_limit() {
        let body = || Full::new(Bytes::from_static(b"12345"));
        assert_eq!(collect(body(), 5).await.unwrap().as_deref(), Some(&b"12345"[..]));
        assert_eq!(collect(body(), 4).await.unwrap(), None);
        let long = Reply { status: 200, body: Bytes::new(), is_too_long: true };
        assert!(long.json::<()>().unwrap_err().to_string().contains("more than 67108864 bytes"));
    }
}
