//! How a call reaches its service, and which certificates it trusts.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};

use super::pace::RequestSlots;
use super::with::StepArguments;
use crate::ports::ExecError;

/// How to reach a service.
pub(super) struct Access {
    /// The base URL of the service.
    pub(super) service: Url,
    pub(super) trust: Trust,
    pub(super) follow: Follow,
    /// Headers sent with every request.
    pub(super) headers: HeaderMap,
    /// Values that must be masked in output.
    pub(super) hidden: Vec<String>,
    /// The rate limit of the account, if the service has one.
    pub(super) turns: Option<RequestSlots>,
    /// The response timeout set by the step.
    pub(super) within: Option<Duration>,
}

impl Access {
    pub(super) fn new(service: Url, trust: Trust) -> Self {
        Self {
            service,
            trust,
            follow: Follow::Nowhere,
            headers: HeaderMap::new(),
            hidden: Vec::new(),
            turns: None,
            within: None,
        }
    }

    /// Adds a header whose value contains `secret`. `None` if the value is not valid in a header.
    pub(super) fn with_secret(
        mut self,
        header: reqwest::header::HeaderName,
        value: &str,
        secret: &str,
    ) -> Option<Self> {
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        self.headers.insert(header, value);
        self.hidden.push(secret.to_owned());
        Some(self)
    }
}

/// The certificates that a call trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// Certificates of the system's authorities.
    System,
    /// Certificates of the system's authorities and of those in a file.
    File(PathBuf),
    /// One certificate, identified by its SHA-256 digest.
    Pinned([u8; 32]),
    /// Any certificate.
    Anything,
}

/// The redirects that a call follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// None.
    Nowhere,
    /// Redirects to the same server.
    SameServer,
    /// All redirects.
    Anywhere,
}

impl Trust {
    /// Reads the keys `ca_file`, `fingerprint` and `insecure`.
    pub(super) fn read(with: StepArguments<'_>) -> Result<Self, ExecError> {
        let insecure = with.switch("insecure")?.unwrap_or(false);
        match (with.text("ca_file")?, with.text("fingerprint")?, insecure) {
            (None, None, false) => Ok(Self::System),
            (Some(path), None, false) => Ok(Self::File(path.into())),
            (None, Some(text), false) => fingerprint(text).map(Self::Pinned).ok_or_else(|| {
                with.bad("`fingerprint` is no SHA-256 of a certificate: 64 hexadecimal digits")
            }),
            (None, None, true) => Ok(Self::Anything),
            (_, _, _) => Err(with.bad(
                "`ca_file`, `fingerprint` and `insecure` exclude each other: keep one of them",
            )),
        }
    }
}

/// Parses 64 hexadecimal digits, with or without colons between the bytes.
fn fingerprint(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text.replace(':', ""), &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_has_64_digits_with_colons_or_without() {
        let plain = "0aFF".repeat(16);
        let bytes = fingerprint(&plain).unwrap();
        assert_eq!(bytes[..2], [0x0a, 0xff]);
        let colons: Vec<&str> = (0..32).map(|at| &plain[at * 2..at * 2 + 2]).collect();
        assert_eq!(fingerprint(&colons.join(":")), Some(bytes));
        for bad in ["", "AA:BB", &plain[1..], &format!("{plain}00"), &"xy".repeat(32)] {
            assert_eq!(fingerprint(bad), None, "{bad}");
        }
    }
}
