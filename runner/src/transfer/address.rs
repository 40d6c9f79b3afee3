//! Addresses of services: as registered, as requested, and as shown.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use protocol::pipeline::Vars;
use url::Url;

use crate::ports::TransferError;

/// All characters except the unreserved characters of a URL.
pub(super) const RESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A service at its address.
#[derive(Debug, Clone)]
pub(super) struct Service {
    /// The kind of service, used in errors.
    kind: &'static str,
    url: Url,
}

impl Service {
    /// Parses a registered service address.
    pub(super) fn at(kind: &'static str, registered: &str) -> Result<Self, TransferError> {
        match Url::parse(registered) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
                Ok(Self { kind, url })
            }
            Ok(_) | Err(_) => {
                Err(TransferError::BadUrl { what: kind.into(), url: without_user(registered) })
            }
        }
    }

    /// The registered URL.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The URL of a path in the service. Each segment is percent-encoded.
    pub(super) fn path(&self, segments: &[&str]) -> Result<Url, TransferError> {
        let mut url = self.url.clone();
        {
            let Ok(mut path) = url.path_segments_mut() else {
                let (what, url) = (self.kind.into(), self.display_url());
                return Err(TransferError::BadUrl { what, url });
            };
            path.pop_if_empty();
            for segment in segments {
                // The encoder does not change these, and they would lead elsewhere.
                if matches!(*segment, "" | "." | "..") {
                    return Err(TransferError::BadParams(format!(
                        "{segment:?} cannot be a part of an address at the {}",
                        self.kind
                    )));
                }
                path.push(segment);
            }
        }
        Ok(url)
    }

    /// The error of a service that does not answer.
    pub(super) fn unreachable(&self, cause: String) -> TransferError {
        TransferError::Unreachable { what: self.description(), url: self.display_url(), cause }
    }

    /// The error of a service that rejected a request.
    pub(super) fn rejected(&self, status: u16, body: &str) -> TransferError {
        let body = body.to_owned();
        TransferError::Refused { what: self.description(), url: self.display_url(), status, body }
    }

    /// The service's name in errors about data it sent.
    pub(super) fn named(&self) -> String {
        format!("{} at {}", self.description(), self.display_url())
    }

    fn description(&self) -> String {
        format!("the {}", self.kind)
    }

    fn display_url(&self) -> String {
        shown(&self.url)
    }
}

/// A URL for display, without the parts that often hold a secret.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    without_user(url.as_str())
}

/// A URL, even an invalid one, with its user and password masked.
fn without_user(url: &str) -> String {
    let start = url.find("//").map_or(0, |at| at + 2);
    let (scheme, rest) = url.split_at(start);
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}***{}", &rest[at..]),
        None => url.to_owned(),
    }
}

/// Appends query parameters to those of a URL, in order.
pub(super) fn add_query(url: &mut Url, params: &Vars) {
    let encode = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
    let own = url.query().filter(|query| !query.is_empty()).map(str::to_owned);
    let added = params.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    let query: Vec<String> = own.into_iter().chain(added).collect();
    url.set_query((!query.is_empty()).then(|| query.join("&")).as_deref());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(url: &str) -> Service {
        Service::at("artifact store", url).unwrap()
    }

    #[test]
    fn segments_and_parameters_are_encoded_and_keep_their_order() {
        let url = service("http://h:1/base/").path(&["a b", "c/d", "é?#%2e"]).unwrap();
        assert_eq!(url.as_str(), "http://h:1/base/a%20b/c%2Fd/%C3%A9%3F%23%252e");
        let mut url = service("http://h:1?token=1").path(&["x"]).unwrap();
        let params = [("z", "1&2 3+4"), ("a=", "ü/")];
        let params = params.map(|(name, value)| (name.to_owned(), value.to_owned()));
        add_query(&mut url, &params.into_iter().collect());
        assert_eq!(url.as_str(), "http://h:1/x?token=1&z=1%262%203%2B4&a%3D=%C3%BC%2F");
        add_query(&mut url, &Vars::new());
        assert!(url.query().is_some_and(|query| query.ends_with("%2F")));
    }

    #[test]
    fn a_segment_that_would_change_the_path_is_refused() {
        for bad in ["", ".", ".."] {
            assert!(service("http://h").path(&["a", bad]).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_address_that_is_not_http_is_refused_and_no_password_is_shown() {
        for bad in ["", "h:1", "ftp://u:secret@h/", "http://", "//u:secret@h", "u:secret@h"] {
            let error = Service::at("logger", bad).unwrap_err().to_string();
            assert!(error.contains("not an http or https URL"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let error = service("https://u:se@cret@h:1/p?q=secret").unreachable("gone".into());
        let expected = "cannot reach the artifact store at https://***@h:1/p: gone";
        assert_eq!(error.to_string(), expected);
    }
}
