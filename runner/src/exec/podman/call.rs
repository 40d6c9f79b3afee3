//! One call to the engine: what is asked, what is answered, and why it came to nothing.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::http::Http;
use crate::exec::exhausted::no_keys;
pub(super) use crate::exec::exhausted::no_space;
use crate::ports::ExecError;

/// Every path of ours begins with it; newer engines still take it.
const PREFIX: &str = "/v4.0.0/libpod";

/// What goes out with a request.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

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

    /// Whether there is no such thing: it may have gone while the engine looked at it, which podman
    /// 4.3 tells as an error of its own.
    pub(super) fn is_gone(&self) -> bool {
        self.status() == Some(404) || self.refusal().contains("no such container")
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
            Self::Refused { ref message, .. } if no_keys(message) => {
                ExecError::KeyQuota { cause: message.clone() }
            }
            // Killed in the middle of a call it has come back to what it does not understand.
            Self::Refused { status: 500.., .. } | Self::Garbled(_) if http.went_lately() => {
                let cause = format!("it failed at {doing} after it had gone away: {self}");
                ExecError::Unreachable { at: http.address.clone(), cause }
            }
            Self::Refused { .. } | Self::Garbled(_) | Self::Late(_) => {
                ExecError::Engine { doing: doing.to_owned(), cause: self.to_string() }
            }
        }
    }
}

/// Whether the engine came to nothing because another run's image or layer was removed while it
/// looked at it: the next time it is not seen any more.
pub(super) fn saw_a_removal(message: &str) -> bool {
    // The last but one is podman 5's, of a layer that it was about to use again; the last is what
    // podman 4.3 comes upon in its own code where an image goes under its hands.
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

    /// As it goes out.
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

/// A request for a path of the engine.
pub(super) fn request(method: &Method, path: &str, body: Body) -> Result<Request<Body>, Fault> {
    Request::builder()
        .method(method)
        .uri(format!("{PREFIX}{path}"))
        .header(HOST, "engine")
        .body(body)
        .map_err(|cause| Fault::Garbled(format!("{path:?} is no request path: {cause}")))
}

/// No body.
pub(super) fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

/// A connection that failed, with all that led to it.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn broken(cause: hyper::Error) -> Fault {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
