//! Who can use the HTTP API, and the limits of its requests.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use url::{Host, Url};

use super::parse::{Parsed, items, path};
use super::secret::Secret;

/// The shortest shared secret for tokens, in characters.
const MIN_SECRET_CHARS: usize = 16;

/// Who can use the HTTP API, and the limits of its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAccess {
    /// The shared secret of tokens.
    pub secret: Option<Secret<String>>,
    /// The public keys of tokens.
    pub keys: Option<KeySource>,
    /// Values of `aud`, one of which a token must contain. Not checked if empty.
    pub audience: Vec<String>,
    /// Values of `iss`, one of which a token must contain. Not checked if empty.
    pub issuer: Vec<String>,
    /// Host names of the server, besides that of its address.
    pub hosts: Vec<String>,
    /// The certificate. Without one, connections are not encrypted.
    pub certificate: Option<CertificateFiles>,
    /// Maximum requests of one user per second. `None` means unlimited.
    pub rate: Option<NonZeroU32>,
    /// Maximum size of a request's body, in bytes.
    pub max_body_bytes: u64,
    /// Maximum number of connections.
    pub max_connections: u32,
    /// Time for the headers of a request.
    pub header_time: Duration,
    /// Time for a request and the start of its response.
    pub request_time: Duration,
}

/// The files of a certificate, in PEM format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate with its chain.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Where the public keys of tokens are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file with a JSON Web Key Set.
    File(PathBuf),
    /// The URL of a JSON Web Key Set.
    Url(Url),
}

/// A secret that is long enough to sign tokens.
pub(super) fn jwt_secret(text: &str) -> Parsed<Secret<String>> {
    if text.chars().count() < MIN_SECRET_CHARS {
        return Err(format!("at least {MIN_SECRET_CHARS} characters"));
    }
    Ok(Secret::new(text.to_owned()))
}

/// The file or the URL of a JSON Web Key Set. Someone who can change it on its way can make any
/// token valid, so only this machine's own servers can do without TLS.
pub(super) fn key_source(text: &str) -> Parsed<KeySource> {
    const EXPECTED: &str = "the path of a file, or https://host/path (http:// only for localhost)";
    if text.is_empty() {
        return Err(EXPECTED.into());
    }
    if !text.contains("://") {
        return path(text).map(KeySource::File);
    }
    Url::parse(text)
        .ok()
        .filter(|url| url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url)))
        .filter(|url| url.username().is_empty() && url.password().is_none())
        .map(KeySource::Url)
        .ok_or_else(|| EXPECTED.into())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Host names, separated by commas.
pub(super) fn host_names(text: &str) -> Parsed<Vec<String>> {
    let one = |item: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if item.chars().all(fits) {
            Ok(item.to_ascii_lowercase())
        } else {
            Err(format!("host names without port, such as ci.example.org; not {item}"))
        }
    };
    items(text).map(one).collect()
}

/// Values of a claim, separated by commas.
#[expect(clippy::unnecessary_wraps, reason = "it has the form of the parsers")]
pub(super) fn claim_values(text: &str) -> Parsed<Vec<String>> {
    Ok(items(text).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_secret_has_at_least_16_characters() {
        assert!(jwt_secret("fifteen-letters").is_err());
        assert_eq!(jwt_secret("sixteen-letters!").unwrap().expose(), "sixteen-letters!");
    }

    #[test]
    fn keys_come_from_a_file_or_over_tls() {
        assert_eq!(key_source("/etc/keys.json"), Ok(KeySource::File("/etc/keys.json".into())));
        for url in ["https://id.example.org/keys", "http://localhost:1/k", "http://[::1]:1/k"] {
            assert_eq!(key_source(url), Ok(KeySource::Url(url.parse().unwrap())));
        }
        for bad in ["", "http://id.example.org/keys", "ftp://localhost/k", "https://u:p@h/k"] {
            assert!(key_source(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn host_names_have_no_port() {
        assert_eq!(host_names("CI.example.org, b").unwrap(), ["ci.example.org", "b"]);
        assert!(host_names("a:80").unwrap_err().ends_with("not a:80"));
    }
}
