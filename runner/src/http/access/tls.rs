//! The certificate of the server, which is read again when its files change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::time::Instant;
use tracing::{info, warn};

/// The protocols that clients can choose, the preferred one first.
pub(super) const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// How often the files are read at most.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// The files of a certificate, in PEM format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate with its chain.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// A file does not contain what it must.
    #[error("{} contains no {what} in PEM format", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// The certificate and the key do not fit together, or are of an unknown kind.
    #[error("cannot use the certificate {} with its key: {cause}", cert.display())]
    Unusable {
        /// The file of the certificate.
        cert: PathBuf,
        /// The cause.
        cause: rustls::Error,
    },
}

/// The content of the two files.
#[derive(PartialEq, Eq)]
struct Pems {
    cert: Vec<u8>,
    key: Vec<u8>,
}

/// The current certificate of a server.
pub struct Certificate {
    files: CertificateFiles,
    current: Mutex<Current>,
}

struct Current {
    pems: Pems,
    config: Arc<ServerConfig>,
    last_read: Instant,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads a certificate.
    ///
    /// # Errors
    /// A file that cannot be read or used.
    pub async fn open(files: CertificateFiles) -> Result<Self, TlsError> {
        let pems = Pems::read(&files).await?;
        let config = pems.config(&files)?;
        let current = Mutex::new(Current { pems, config, last_read: Instant::now() });
        Ok(Self { files, current })
    }

    /// The settings of TLS with the current certificate. A new certificate that cannot be used, as
    /// in the middle of its replacement, leaves the old one in use.
    pub(super) async fn config(&self) -> Arc<ServerConfig> {
        if self.is_due() {
            match self.reread().await {
                Ok(false) => {}
                Ok(true) => info!(cert = %self.files.cert.display(), "read a new certificate"),
                Err(error) => warn!(%error, "the last certificate that was read stays in use"),
            }
        }
        Arc::clone(&self.current.lock().config)
    }

    fn is_due(&self) -> bool {
        let mut current = self.current.lock();
        let now = Instant::now();
        let is_due = now.duration_since(current.last_read) >= MIN_PAUSE;
        if is_due {
            current.last_read = now;
        }
        is_due
    }

    /// Returns whether the files have changed.
    async fn reread(&self) -> Result<bool, TlsError> {
        let pems = Pems::read(&self.files).await?;
        if self.current.lock().pems == pems {
            return Ok(false);
        }
        let config = pems.config(&self.files)?;
        let mut current = self.current.lock();
        current.pems = pems;
        current.config = config;
        Ok(true)
    }
}

impl Pems {
    async fn read(files: &CertificateFiles) -> Result<Self, TlsError> {
        let read = async |path: &PathBuf| {
            let content = tokio::fs::read(path).await;
            content.map_err(|cause| TlsError::Unreadable { path: path.clone(), cause })
        };
        Ok(Self { cert: read(&files.cert).await?, key: read(&files.key).await? })
    }

    fn config(&self, files: &CertificateFiles) -> Result<Arc<ServerConfig>, TlsError> {
        let not_pem = |path: &PathBuf, what| TlsError::NotPem { path: path.clone(), what };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<_, _>>()
            .map_err(|_malformed| not_pem(&files.cert, "certificate"))?;
        if chain.is_empty() {
            return Err(not_pem(&files.cert, "certificate"));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_malformed| not_pem(&files.key, "private key"))?;
        let unusable = |cause| TlsError::Unusable { cert: files.cert.clone(), cause };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
        Ok(Arc::new(config))
    }
}
