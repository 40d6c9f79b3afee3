//! Turns the response or the error of a service into a message for people.

use std::time::Duration;

use reqwest::Response;
use reqwest::header::LOCATION;

use super::address::{self, Service};
use crate::egress::refusal;
use crate::ports::{TransferError, causes};

/// How many bytes of a response an error shows.
pub(super) const SHOWN: usize = 300;

/// Why a request failed, without its URL, which can contain a password.
pub(super) fn reason(error: &reqwest::Error) -> String {
    if let Some(refused) = refusal(error) {
        return refused.to_string();
    }
    let text = causes(error);
    match (text.is_empty(), error.is_timeout()) {
        (true, true) => "no answer in time".into(),
        (true, false) => "the request could not be made".into(),
        (false, _) => text,
    }
}

/// Returns a successful response. Others become an error with the beginning of their body.
pub(super) async fn accepted(
    service: &Service,
    response: Response,
    idle: Duration,
) -> Result<Response, TransferError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let said = match redirect_target(&response) {
        Some(there) => format!(
            "it redirects to {there}, but data is sent to the registered address only; register the new one"
        ),
        None => beginning(response, idle).await,
    };
    Err(service.rejected(status, &said))
}

/// The target of a redirect, for display.
fn redirect_target(response: &Response) -> Option<String> {
    let given = response.headers().get(LOCATION).filter(|_| response.status().is_redirection())?;
    let there = response.url().join(given.to_str().ok()?).ok()?;
    Some(address::shown(&there))
}

/// The beginning of a response body, on one line.
async fn beginning(mut response: Response, idle: Duration) -> String {
    let mut body = Vec::new();
    let reading = async {
        while body.len() < SHOWN {
            let Ok(Some(chunk)) = response.chunk().await else { break };
            body.extend_from_slice(&chunk);
        }
    };
    // Use whatever part of the body arrives in time.
    tokio::time::timeout(idle, reading).await.ok();
    body.truncate(SHOWN);
    let text = String::from_utf8_lossy(&body);
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() { "(nothing)".into() } else { words.join(" ") }
}
