//! Access to the HTTP API from the settings: keys, limits, the socket, and tokens for development.

use std::io;
use std::time::Duration;

use protocol::quantity::Span;
use thiserror::Error;

use super::own_secret;
use crate::config::{Config, HttpAccess, KeySource};
use crate::http::access::listen::{self, KeyOrigin, Limits, ListenError, Listener};
use crate::http::access::{
    self, Access, AccessOptions, Certificate, CertificateFiles, Grant, JwksError, JwksSource,
    Scope, SignError, TlsError, TokenOptions,
};
use crate::ports::Secret;

/// Time within which a client must take something of an answer.
const WRITE_TIME: Duration = Duration::from_secs(60);

/// Time for the end of requests in progress when the server stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// The HTTP API cannot be offered with these settings. The program exits with 78.
#[derive(Debug, Error)]
pub enum UnusableHttp {
    /// The server cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The keys of tokens cannot be read.
    #[error("{0}; see BOB_HTTP_JWKS")]
    Keys(JwksError),
    /// No keys are set, and none can be generated.
    #[error(
        "no secret for the HTTP API can be kept in {dir}: {cause}; set BOB_HTTP_JWT_SECRET or \
         BOB_DATA_DIR, or BOB_HTTP_ADDRESS=off"
    )]
    NoSecretKept {
        /// The data directory.
        dir: String,
        /// The cause.
        cause: io::Error,
    },
    /// The certificate cannot be used.
    #[error("{0}; see BOB_HTTP_TLS_CERT and BOB_HTTP_TLS_KEY")]
    Certificate(TlsError),
}

impl UnusableHttp {
    /// Whether only this node has the problem, and only with the default settings: another process
    /// uses the address, or there is nowhere to keep a secret.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Listen(ListenError::InUse { .. }) | Self::NoSecretKept { .. })
    }
}

/// Reads the keys and listens on the address. Clients need no token for the public paths.
pub(super) async fn open(
    config: &Config,
    address: &str,
    public_paths: &'static [&'static str],
) -> Result<(Access, Listener), UnusableHttp> {
    let http = &config.http_access;
    let mut tokens = token_options(http);
    let keys = if tokens.has_keys() { KeyOrigin::Settings } else { KeyOrigin::Generated };
    if keys == KeyOrigin::Generated {
        let dir = &config.data_dir;
        let kept = own_secret::read_or_create(dir)
            .map_err(|cause| UnusableHttp::NoSecretKept { dir: dir.display().to_string(), cause });
        tokens.secret = Some(kept?);
    }
    let certificate = match &http.certificate {
        Some(files) => {
            let files = CertificateFiles { cert: files.cert.clone(), key: files.key.clone() };
            Some(Certificate::open(files).await.map_err(UnusableHttp::Certificate)?)
        }
        None => None,
    };
    let listener = listen::bind(address, keys, certificate).await?;
    let access = Access::open(AccessOptions {
        tokens,
        address: address.to_owned(),
        hosts: http.hosts.clone(),
        rate: http.rate,
        max_body_bytes: usize::try_from(http.max_body_bytes).unwrap_or(usize::MAX),
        request_time: http.request_time,
        public_paths,
    });
    Ok((access.await.map_err(UnusableHttp::Keys)?, listener))
}

/// The limits of connections.
pub(super) fn limits(config: &Config) -> Limits {
    Limits {
        connections: config.http_access.max_connections as usize,
        headers: config.http_access.header_time,
        write: WRITE_TIME,
        stop: STOP_TIME,
    }
}

fn token_options(http: &HttpAccess) -> TokenOptions {
    TokenOptions {
        secret: secret(http),
        jwks: http.keys.as_ref().map(|keys| match keys {
            KeySource::File(path) => JwksSource::File(path.clone()),
            KeySource::Url(url) => JwksSource::Url(url.clone()),
        }),
        audience: http.audience.clone(),
        issuer: http.issuer.clone(),
    }
}

fn secret(http: &HttpAccess) -> Option<Secret> {
    http.secret.as_ref().map(|secret| Secret::new(secret.expose().as_bytes()))
}

/// A token for development cannot be signed.
#[derive(Debug, Error)]
pub enum NoToken {
    /// The server verifies tokens with public keys alone.
    #[error(
        "no token can be signed without a shared secret, because BOB_HTTP_JWKS contains public keys \
         only: get a token from their issuer, or set BOB_HTTP_JWT_SECRET here and on the server"
    )]
    PublicKeys,
    /// The secret of a server on this machine cannot be read.
    #[error(
        "no token can be signed: {cause}; start `bob-runner serve` as this user first, or set \
         BOB_HTTP_JWT_SECRET to that of the server"
    )]
    NoServer {
        /// The cause.
        cause: io::Error,
    },
    /// The signature failed.
    #[error(transparent)]
    Unsigned(#[from] SignError),
}

/// Signs a token with the shared secret of the settings. Without any keys in the settings, it is
/// the secret that a server of this user has made.
///
/// # Errors
/// If there is no secret.
pub fn sign_token(
    config: &Config,
    subject: Option<String>,
    scope: Scope,
    lifetime: Span,
) -> Result<String, NoToken> {
    let http = &config.http_access;
    let grant = Grant {
        subject,
        scope,
        lifetime: lifetime.as_duration(),
        audience: http.audience.first().cloned(),
        issuer: http.issuer.first().cloned(),
    };
    let secret = match (secret(http), &http.keys) {
        (Some(secret), _) => secret,
        (None, Some(_)) => return Err(NoToken::PublicKeys),
        (None, None) => {
            own_secret::read(&config.data_dir).map_err(|cause| NoToken::NoServer { cause })?
        }
    };
    Ok(access::sign(&secret, &grant)?)
}
