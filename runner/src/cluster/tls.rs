//! TLS certificates for RabbitMQ and etcd, and explanations of handshake errors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::AsyncReadExt as _;
use rustls_connector::rustls_pki_types::pem::PemObject as _;
use rustls_connector::rustls_pki_types::{CertificateDer, PrivateKeyDer};
use rustls_connector::{RustlsConnector, RustlsConnectorConfig};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_util::compat::TokioAsyncReadCompatExt as _;

use crate::ports::with_causes;

/// The timeout of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The paths of the certificates and the key, all in PEM format.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The only certificate authorities that are trusted for the server. Defaults to those that
    /// browsers trust.
    pub ca: Option<PathBuf>,
    /// The client certificate with its chain.
    pub cert: Option<PathBuf>,
    /// The key of the client certificate.
    pub key: Option<PathBuf>,
}

/// The content of the certificate files.
#[derive(Clone, Default)]
pub(super) struct TlsPems {
    pub(super) ca: Option<Vec<u8>>,
    /// The client certificate with its chain, and its key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// An invalid certificate file or combination of files.
#[derive(Debug, Error)]
pub(super) enum TlsError {
    #[error("cannot read the certificate file {}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: std::io::Error },
    #[error("{} contains no {what} in PEM format", path.display())]
    NotPem { path: PathBuf, what: &'static str },
    #[error("a client certificate and its key must be set together, but only the {present} is set")]
    Incomplete { present: &'static str },
}

impl TlsFiles {
    /// Returns true if no file is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads and checks the files, so that an invalid one is reported before any handshake.
    pub(super) fn read(&self) -> Result<TlsPems, TlsError> {
        let ca = self.ca.as_deref().map(|path| read_pem(path, "CERTIFICATE", "certificate"));
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((
                read_pem(cert, "CERTIFICATE", "certificate")?,
                read_pem(key, "PRIVATE KEY", "private key")?,
            )),
            (None, None) => None,
            (Some(_), None) => return Err(TlsError::Incomplete { present: "certificate" }),
            (None, Some(_)) => return Err(TlsError::Incomplete { present: "key" }),
        };
        Ok(TlsPems { ca: ca.transpose()?, identity })
    }
}

/// Reads a file that must contain a PEM block whose label ends with `label`. So `PRIVATE KEY` also
/// accepts `EC PRIVATE KEY`.
fn read_pem(path: &Path, label: &str, what: &'static str) -> Result<Vec<u8>, TlsError> {
    let bytes = std::fs::read(path)
        .map_err(|cause| TlsError::Unreadable { path: path.to_owned(), cause })?;
    let end = format!("{label}-----");
    let has_block = String::from_utf8_lossy(&bytes)
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&end));
    if has_block { Ok(bytes) } else { Err(TlsError::NotPem { path: path.to_owned(), what }) }
}

/// Explains the error text of a failed handshake. Returns `None` if the text is unknown.
///
/// The libraries pass on the error text of rustls, which has been stable for years. Callers show
/// unknown texts unchanged. `prefix` is the common start of the variables that name the files, such
/// as `BOB_QUEUE`.
pub(super) fn explain(text: &str, prefix: &str) -> Option<String> {
    const NOT_ACCEPTED: &str =
        "it rejects the client certificate in {}_CERT, or requires one and none is set";
    const NOT_TRUSTED: &str = "its certificate was not issued by an authority that is trusted \
        here; {}_CA names the PEM file of the authority to trust";
    const KNOWN: &[(&str, &str)] = &[
        ("UnknownIssuer", NOT_TRUSTED),
        ("BadSignature", NOT_TRUSTED),
        ("certificate expired", "its certificate has expired"),
        ("Expired", "its certificate has expired"),
        ("NotValidYet", "its certificate is not valid yet"),
        ("not valid for name", "its certificate was issued for another host name"),
        ("NotValidForName", "its certificate was issued for another host name"),
        ("CertificateRequired", "it requires a client certificate: set {}_CERT and {}_KEY"),
        ("UnknownCA", "it does not know the authority of the client certificate in {}_CERT"),
        ("BadCertificate", NOT_ACCEPTED),
        ("CertificateUnknown", NOT_ACCEPTED),
        ("DecryptError", NOT_ACCEPTED),
        ("HandshakeFailure", NOT_ACCEPTED),
        ("InvalidContentType", "it does not speak TLS on this port"),
        ("corrupt message", "it does not speak TLS on this port"),
    ];
    KNOWN.iter().find(|(sign, _)| text.contains(sign)).map(|(_, meaning)| {
        let meaning = meaning.replace("{}", prefix);
        format!("{meaning} ({text})")
    })
}

/// Performs a handshake, waits briefly, and returns the error text of rustls, if any.
///
/// A server that rejects the client certificate reports that after the handshake and then closes
/// the connection. A client that has sent data by then often sees only the close, not the reason.
/// This probe sends nothing.
pub(super) async fn probe(connector: &RustlsConnector, host: &str, port: u16) -> Option<String> {
    let attempt = async {
        let stream = TcpStream::connect((host, port)).await.ok()?;
        let mut stream = match connector.connect_async(host, stream.compat()).await {
            Ok(stream) => stream,
            Err(error) => return Some(with_causes(&error)),
        };
        stream.read(&mut [0]).await.err().map(|error| with_causes(&error))
    };
    // A server that accepts the certificate waits for data, so the read times out.
    tokio::time::timeout(PROBE_TIMEOUT, attempt).await.ok().flatten()
}

/// Returns true if a server speaks TLS, even if it rejects the certificates.
pub(super) async fn speaks_tls(host: &str, port: u16) -> bool {
    let attempt = async {
        let connector = connector(&TlsPems::default()).ok()?;
        let stream = TcpStream::connect((host, port)).await.ok()?;
        match connector.connect_async(host, stream.compat()).await {
            Ok(_) => Some(true),
            Err(error) => {
                let text = with_causes(&error);
                let signs = ["certificate", "received fatal alert", "UnknownIssuer"];
                Some(signs.iter().any(|sign| text.contains(sign)))
            }
        }
    };
    tokio::time::timeout(PROBE_TIMEOUT, attempt).await.ok().flatten().unwrap_or(false)
}

/// Returns a TLS connector with these certificates.
pub(super) fn connector(pems: &TlsPems) -> Result<RustlsConnector, String> {
    let config = match &pems.ca {
        Some(ca) => RustlsConnectorConfig::default().with_parsable_certificates(certificates(ca)?),
        None => RustlsConnectorConfig::new_with_webpki_root_certs(),
    };
    let connector = match &pems.identity {
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|cause| {
                format!("cannot parse the key of the client certificate: {cause}")
            })?;
            config.connector_with_single_cert(certificates(cert)?, key)
        }
        None => config.connector_with_no_client_auth(),
    };
    connector.map_err(|cause| format!("cannot use the certificates: {cause}"))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|cause| format!("cannot parse a certificate: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_certificate_without_its_key_is_refused() {
        let files = TlsFiles { cert: Some("client.pem".into()), ..TlsFiles::default() };
        assert!(matches!(files.read(), Err(TlsError::Incomplete { present: "certificate" })));
    }

    #[test]
    fn an_error_names_a_file_that_is_not_pem() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not a certificate\n").unwrap();
        let files = TlsFiles { ca: Some(file.path().to_owned()), ..TlsFiles::default() };
        let message = files.read().err().unwrap().to_string();
        assert!(message.contains(&*file.path().to_string_lossy()), "{message}");
        assert!(message.contains("contains no certificate in PEM format"), "{message}");
    }

    #[test]
    fn the_label_of_a_key_can_name_its_algorithm() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        std::fs::write(&cert, "-----BEGIN CERTIFICATE-----\nAA==\n").unwrap();
        std::fs::write(&key, "-----BEGIN EC PRIVATE KEY-----\nAA==\n").unwrap();
        let files = TlsFiles { ca: None, cert: Some(cert), key: Some(key) };
        assert!(files.read().unwrap().identity.is_some());
    }

    #[test]
    fn an_untrusted_authority_is_explained_with_the_setting_that_trusts_it() {
        let message = explain("invalid peer certificate: UnknownIssuer", "BOB_QUEUE").unwrap();
        assert!(message.starts_with(
            "its certificate was not issued by an authority that is trusted here; BOB_QUEUE_CA"
        ));
        assert_eq!(explain("connection refused", "BOB_QUEUE"), None);
    }
}
