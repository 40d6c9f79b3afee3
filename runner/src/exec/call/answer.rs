//! Responses of a service.

use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::{Response, StatusCode};
use serde_json::Value;

use super::address;
use crate::ports::causes;

/// The maximum size of a response body, in bytes.
pub(super) const MOST: usize = 1024 * 1024;
/// The maximum length of a service's error message in output, in characters.
const SHOWN: usize = 500;
/// The keys of error messages. The first of `MESSAGES` is used, and all of `DETAILS`.
const MESSAGES: [&str; 3] = ["message", "error", "detail"];
const DETAILS: [&str; 3] = ["errors", "details", "IssueList"];

/// A complete response.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The reason phrase of the status line. Some services put their error message there.
    reason: String,
    /// The target of a redirect.
    pub(super) elsewhere: Option<String>,
    says_json: bool,
    pub(super) body: Vec<u8>,
}

/// Reads a complete response. `None` if its body has more than `most` bytes.
pub(super) async fn whole(
    mut response: Response,
    most: usize,
) -> Result<Option<Answer>, reqwest::Error> {
    let status = response.status();
    let reason = response.extensions().get::<hyper::ext::ReasonPhrase>();
    let reason = reason.map(|said| String::from_utf8_lossy(said.as_bytes()).into_owned());
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let kind = header(CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
    let there = header(LOCATION).filter(|_| status.is_redirection());
    let there = there.and_then(|there| response.url().join(there).ok());
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(Answer {
        status,
        reason: reason.unwrap_or_default(),
        elsewhere: there.as_ref().map(address::display_url),
        says_json: kind.contains("json"),
        body,
    }))
}

impl Answer {
    /// The body as JSON if it is valid JSON, else as text.
    pub(super) fn data(&self) -> Value {
        let begins = self.body.iter().find(|byte| !byte.is_ascii_whitespace());
        let looks = self.says_json || matches!(begins, Some(b'{' | b'['));
        let parsed = if looks { serde_json::from_slice(&self.body).ok() } else { None };
        match parsed {
            Some(value) => value,
            None if self.body.is_empty() => Value::Null,
            None => String::from_utf8_lossy(&self.body).into_owned().into(),
        }
    }

    /// The service's error message, on one line.
    pub(super) fn said(&self) -> String {
        let data = self.data();
        let mut parts = Vec::new();
        match &data {
            Value::Object(map) => {
                parts.extend(MESSAGES.iter().find_map(|key| message(map.get(*key)?)));
                let details = DETAILS.iter().filter_map(|key| map.get(*key));
                parts.extend(details.filter(|said| !said.is_null()).map(Value::to_string));
            }
            Value::String(text) => parts.push(text.clone()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {}
        }
        if parts.is_empty() {
            parts.push(self.reason.clone());
        }
        let words = parts.join(" ");
        words.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// The message in the value of a key.
fn message(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(map) => map.get("message").and_then(Value::as_str).map(str::to_owned),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

/// Truncates a text to `SHOWN` characters.
pub(super) fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(SHOWN) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// Why a request failed, without its URL, which can contain a secret.
pub(super) fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let text = causes(error);
    if text.is_empty() {
        return "the request could not be made".to_owned();
    }
    if text.contains("invalid peer certificate") {
        return format!("{text} (`ca_file`, and of Proxmox `fingerprint`, say what to trust)");
    }
    text
}
