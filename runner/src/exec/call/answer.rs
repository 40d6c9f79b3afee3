//! The answer of a service.

use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::{Response, StatusCode};
use serde_json::Value;

use super::address;
use super::request::{Call, Halt, Request};

/// How much of an answer is kept, in bytes.
pub(super) const MOST: usize = 1024 * 1024;
/// How much of what a service says is shown, in characters.
const SHOWN: usize = 500;
/// Where services say what is wrong: one of these, and what of the others there is.
const MESSAGES: [&str; 3] = ["message", "error", "detail"];
const DETAILS: [&str; 3] = ["errors", "details", "IssueList"];

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// What stands beside the status, where a service says what is wrong there.
    reason: String,
    /// Where it sends us on to.
    elsewhere: Option<String>,
    says_json: bool,
    pub(super) body: Vec<u8>,
}

/// Takes a whole answer; `None` where it has more than `most` bytes.
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
        elsewhere: there.as_ref().map(address::shown),
        says_json: kind.contains("json"),
        body,
    }))
}

impl Answer {
    /// What the body holds: what its JSON says, or its text.
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

    /// The failure that an answer is which says no, with what people can do about it.
    pub(super) fn refused(&self, request: &Request, call: &Call, hint: Option<&str>) -> Halt {
        let (method, path, status) = (&request.method, request.url.path(), self.status.as_u16());
        let mut why = format!("{method} {path} was refused with status {status}");
        if let Some(there) = &self.elsewhere {
            why = format!("{method} {path} is sent on to {there} (status {status})");
        }
        // What is hidden is hidden whole, before anything is cut off.
        let said = shortened(call.hide(&self.said()));
        if !said.is_empty() {
            why = format!("{why}: {said}");
        }
        if let Some(hint) = hint {
            why = format!("{why}; {hint}");
        }
        Halt::Failed { why, data: self.data(), code: 1 }
    }

    /// What the service says is wrong, on one line.
    fn said(&self) -> String {
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

/// The message in what stands at a key.
fn message(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(map) => map.get("message").and_then(Value::as_str).map(str::to_owned),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

/// The beginning of a text, of as many characters as are shown.
fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(SHOWN) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// What went wrong, with everything beneath it, without the address: it may hold a secret.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = next {
        let part = error.to_string();
        // Some errors repeat in their own words what is beneath them.
        if parts.last().is_none_or(|last| !last.contains(&part)) {
            parts.push(part);
        }
        next = error.source();
    }
    let text = match (parts.is_empty(), error.is_timeout()) {
        (_, true) => "no answer in time".to_owned(),
        (true, false) => "the request could not be made".to_owned(),
        (false, false) => parts.join(": "),
    };
    if text.contains("invalid peer certificate") {
        return format!("{text} (`ca_file`, and of Proxmox `fingerprint`, say what to trust)");
    }
    text
}
