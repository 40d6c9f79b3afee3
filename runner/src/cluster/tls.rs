//! Certificates of both servers, and what is said when they do not fit.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Where the certificates are, in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that the server's certificate may come from; only these. Without them, the
    /// authorities that browsers trust.
    pub ca: Option<PathBuf>,
    /// Our own certificate, with what leads to its authority.
    pub cert: Option<PathBuf>,
    /// The key of our own certificate.
    pub key: Option<PathBuf>,
}

/// The same, read.
#[derive(Clone, Default)]
pub(super) struct TlsPems {
    pub(super) ca: Option<Vec<u8>>,
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// What is wrong with the files.
#[derive(Debug, Error)]
pub(super) enum TlsError {
    #[error("cannot read the certificate file {}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: std::io::Error },
    #[error("{} holds no {what} in PEM", path.display())]
    NotPem { path: PathBuf, what: &'static str },
    #[error("a client certificate and its key belong together, but only the {given} is given")]
    Half { given: &'static str },
}

impl TlsFiles {
    /// Whether none is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads them. A faulty file is found here and not in the middle of a handshake.
    pub(super) fn read(&self) -> Result<TlsPems, TlsError> {
        let ca = self.ca.as_deref().map(|path| read_pem(path, "CERTIFICATE", "certificate"));
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((
                read_pem(cert, "CERTIFICATE", "certificate")?,
                read_pem(key, "PRIVATE KEY", "private key")?,
            )),
            (None, None) => None,
            (Some(_), None) => return Err(TlsError::Half { given: "certificate" }),
            (None, Some(_)) => return Err(TlsError::Half { given: "key" }),
        };
        Ok(TlsPems { ca: ca.transpose()?, identity })
    }
}

/// A file with at least one block whose label ends so (`EC PRIVATE KEY` is a `PRIVATE KEY`).
fn read_pem(path: &Path, label: &str, what: &'static str) -> Result<Vec<u8>, TlsError> {
    let bytes = std::fs::read(path)
        .map_err(|cause| TlsError::Unreadable { path: path.to_owned(), cause })?;
    let end = format!("{label}-----");
    let has = String::from_utf8_lossy(&bytes)
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&end));
    if has { Ok(bytes) } else { Err(TlsError::NotPem { path: path.to_owned(), what }) }
}

/// What a failed handshake means, for people; `None` where the text is not about certificates.
///
/// The libraries hand on rustls's own words, which have been stable for years; what is not known
/// here is shown as it came.
pub(super) fn explain(text: &str, variable: &str) -> Option<String> {
    const KNOWN: &[(&str, &str)] = &[
        ("UnknownIssuer", "its certificate was not issued by the authority in {}_CA"),
        ("BadSignature", "its certificate was not issued by the authority in {}_CA"),
        ("certificate expired", "its certificate has expired"),
        ("Expired", "its certificate has expired"),
        ("NotValidYet", "its certificate is not valid yet"),
        ("not valid for name", "its certificate is made out for another host name"),
        ("NotValidForName", "its certificate is made out for another host name"),
        ("CertificateRequired", "it wants a client certificate: set {}_CERT and {}_KEY"),
        ("BadCertificate", "it does not accept the client certificate in {}_CERT"),
        ("UnknownCA", "it does not know the authority of the client certificate in {}_CERT"),
        ("DecryptError", "it does not accept the client certificate in {}_CERT"),
        ("CertificateUnknown", "it does not accept the client certificate in {}_CERT"),
        ("InvalidContentType", "it does not speak TLS on this port"),
        ("corrupt message", "it does not speak TLS on this port"),
    ];
    KNOWN.iter().find(|(sign, _)| text.contains(sign)).map(|(_, meaning)| {
        let meaning = meaning.replace("{}", variable);
        format!("{meaning} ({text})")
    })
}

/// An error and what caused it, each thing said once.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_certificate_without_its_key_is_refused() {
        let files = TlsFiles { cert: Some("client.pem".into()), ..TlsFiles::default() };
        assert!(matches!(files.read(), Err(TlsError::Half { given: "certificate" })));
    }

    #[test]
    fn a_file_that_is_no_pem_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not a certificate\n").unwrap();
        let files = TlsFiles { ca: Some(file.path().to_owned()), ..TlsFiles::default() };
        let said = files.read().err().unwrap().to_string();
        assert!(said.contains(&*file.path().to_string_lossy()), "{said}");
        assert!(said.contains("holds no certificate in PEM"), "{said}");
    }

    #[test]
    fn a_key_may_name_its_algorithm() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        std::fs::write(&cert, "-----BEGIN CERTIFICATE-----\nAA==\n").unwrap();
        std::fs::write(&key, "-----BEGIN EC PRIVATE KEY-----\nAA==\n").unwrap();
        let files = TlsFiles { ca: None, cert: Some(cert), key: Some(key) };
        assert!(files.read().unwrap().identity.is_some());
    }

    #[test]
    fn a_wrong_authority_is_called_one() {
        let said = explain("invalid peer certificate: UnknownIssuer", "BOB_QUEUE").unwrap();
        assert!(said.starts_with("its certificate was not issued by the authority in BOB_QUEUE_CA"));
        assert_eq!(explain("connection refused", "BOB_QUEUE"), None);
    }
}
