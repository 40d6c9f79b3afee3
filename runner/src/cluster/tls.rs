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
const PROBE: Duration = Duration::from_secs(2);

/// The paths of the certificates, in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The only accepted authorities of the server's certificate. Defaults to the authorities that
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
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// An invalid certificate file or combination of files.
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
    /// Returns true if no file is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the files. Detects an invalid file before the handshake.
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

/// Reads a file that must contain a PEM block whose label ends with `label`. The label
/// `EC PRIVATE KEY` ends with `PRIVATE KEY`, for example.
fn read_pem(path: &Path, label: &str, what: &'static str) -> Result<Vec<u8>, TlsError> {
    let bytes = std::fs::read(path)
        .map_err(|cause| TlsError::Unreadable { path: path.to_owned(), cause })?;
    let end = format!("{label}-----");
    let has = String::from_utf8_lossy(&bytes)
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&end));
    if has { Ok(bytes) } else { Err(TlsError::NotPem { path: path.to_owned(), what }) }
}

/// Returns the meaning of a failed handshake, or `None` if the text is not about certificates.
///
/// The libraries pass on the error text of rustls, which has been stable for years. Unknown texts
/// are shown unchanged.
pub(super) fn explain(text: &str, variable: &str) -> Option<String> {
    const NOT_ACCEPTED: &str =
        "it does not accept the client certificate in {}_CERT, or that there is none";
    const NOT_TRUSTED: &str = "its certificate was not issued by an authority that is trusted \
        here; {}_CA names the PEM file of the authority to trust";
    const KNOWN: &[(&str, &str)] = &[
        ("UnknownIssuer", NOT_TRUSTED),
        ("BadSignature", NOT_TRUSTED),
        ("certificate expired", "its certificate has expired"),
        ("Expired", "its certificate has expired"),
        ("NotValidYet", "its certificate is not valid yet"),
        ("not valid for name", "its certificate is made out for another host name"),
        ("NotValidForName", "its certificate is made out for another host name"),
        ("CertificateRequired", "it wants a client certificate: set {}_CERT and {}_KEY"),
        ("UnknownCA", "it does not know the authority of the client certificate in {}_CERT"),
        ("BadCertificate", NOT_ACCEPTED),
        ("CertificateUnknown", NOT_ACCEPTED),
        ("DecryptError", NOT_ACCEPTED),
        ("HandshakeFailure", NOT_ACCEPTED),
        ("InvalidContentType", "it does not speak TLS on this port"),
        ("corrupt message", "it does not speak TLS on this port"),
    ];
    KNOWN.iter().find(|(sign, _)| text.contains(sign)).map(|(_, meaning)| {
        let meaning = meaning.replace("{}", variable);
        format!("{meaning} ({text})")
    })
}

/// Makes a handshake, waits for a moment, and returns the error text of rustls, if any.
///
/// A server that rejects the client certificate reports that after the handshake and then closes
/// the connection. A client that has sent data by then often sees only the close, not the reason.
/// This probe sends nothing.
pub(super) async fn probe(connector: &RustlsConnector, host: &str, port: u16) -> Option<String> {
    let looking = async {
        let stream = TcpStream::connect((host, port)).await.ok()?;
        let mut stream = match connector.connect_async(host, stream.compat()).await {
            Ok(stream) => stream,
            Err(error) => return Some(with_causes(&error)),
        };
        stream.read(&mut [0]).await.err().map(|error| with_causes(&error))
    };
    // A server that accepts the certificate waits for data.
    tokio::time::timeout(PROBE, looking).await.ok().flatten()
}

/// Returns true if a server speaks TLS, even if it rejects the certificates.
pub(super) async fn speaks_tls(host: &str, port: u16) -> bool {
    let looking = async {
        let connector = connector(&TlsPems::default()).ok()?;
        let stream = TcpStream::connect((host, port)).await.ok()?;
        match connector.connect_async(host, stream.compat()).await {
            Ok(_) => Some(true),
            Err(error) => {
                let said = with_causes(&error);
                let signs = ["certificate", "received fatal alert", "UnknownIssuer"];
                Some(signs.iter().any(|sign| said.contains(sign)))
            }
        }
    };
    tokio::time::timeout(PROBE, looking).await.ok().flatten().unwrap_or(false)
}

/// Returns a TLS connector with these certificates.
pub(super) fn connector(pems: &TlsPems) -> Result<RustlsConnector, String> {
    let config = match &pems.ca {
        Some(ca) => RustlsConnectorConfig::default().with_parsable_certificates(certificates(ca)?),
        None => RustlsConnectorConfig::new_with_webpki_root_certs(),
    };
    let made = match &pems.identity {
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|cause| {
                format!("the key of the client certificate cannot be read: {cause}")
            })?;
            config.connector_with_single_cert(certificates(cert)?, key)
        }
        None => config.connector_with_no_client_auth(),
    };
    made.map_err(|cause| format!("the certificates cannot be used: {cause}"))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|cause| format!("a certificate cannot be read: {cause}"))
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
    fn a_file_that_is_not_pem_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not a certificate\n").unwrap();
        let files = TlsFiles { ca: Some(file.path().to_owned()), ..TlsFiles::default() };
        let said = files.read().err().unwrap().to_string();
        assert!(said.contains(&*file.path().to_string_lossy()), "{said}");
        assert!(said.contains("holds no certificate in PEM"), "{said}");
    }

    #[test]
    fn a_key_can_name_its_algorithm() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        std::fs::write(&cert, "-----BEGIN CERTIFICATE-----\nAA==\n").unwrap();
        std::fs::write(&key, "-----BEGIN EC PRIVATE KEY-----\nAA==\n").unwrap();
        let files = TlsFiles { ca: None, cert: Some(cert), key: Some(key) };
        assert!(files.read().unwrap().identity.is_some());
    }

    #[test]
    fn a_wrong_authority_is_reported_as_such() {
        let said = explain("invalid peer certificate: UnknownIssuer", "BOB_QUEUE").unwrap();
        assert!(said.starts_with(
            "its certificate was not issued by an authority that is trusted here; BOB_QUEUE_CA"
        ));
        assert_eq!(explain("connection refused", "BOB_QUEUE"), None);
    }
}
