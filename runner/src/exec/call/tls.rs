//! The HTTP clients of a call, with its TLS trust.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::redirect::Policy as Redirects;
use reqwest::{Certificate, Client, ClientBuilder, Response, Url};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use sha2::{Digest as _, Sha256};

use super::access::{Access, Follow, Trust};
use super::options::Options;
use super::with::StepArguments;
use crate::egress::{self, Policy};
use crate::ports::ExecError;

/// The maximum number of redirects to follow.
const REDIRECTS: usize = 5;

/// Creates the clients of a call. Each port has its own, because an address can be open at one port
/// and closed at another.
#[derive(Clone)]
pub(super) struct Clients {
    trusted: Trusted,
    follow: Follow,
    connect: Duration,
    policy: Policy,
    made: Arc<Mutex<Option<(u16, Client)>>>,
}

/// The trust of a client, with the certificate file loaded.
#[derive(Clone)]
enum Trusted {
    System,
    Authorities(Vec<Certificate>),
    Pinned(Arc<ClientConfig>),
    Anything,
}

impl Clients {
    /// Loads the trusted certificates. The error says what is wrong with the step.
    pub(super) async fn new(
        with: StepArguments<'_>,
        access: &Access,
        options: &Options,
    ) -> Result<Self, ExecError> {
        let trusted = match &access.trust {
            Trust::System => Trusted::System,
            Trust::File(path) => {
                let pem = options.named.read("ca_file", path).await;
                Trusted::Authorities(authorities(with, path, &pem.map_err(|why| with.bad(&why))?)?)
            }
            Trust::Pinned(digest) => Trusted::Pinned(Arc::new(pinned(with, *digest)?)),
            Trust::Anything => Trusted::Anything,
        };
        let clients = Self {
            trusted,
            follow: access.follow,
            connect: options.times.connect,
            policy: options.policy.clone(),
            made: Arc::default(),
        };
        let port = access.service.port_or_known_default().unwrap_or_default();
        let made = clients.at(port).map_err(|why| with.bad(&why));
        made.map(|_client| clients)
    }

    fn at(&self, port: u16) -> Result<Client, String> {
        let mut made = self.made.lock();
        if let Some((_, client)) = made.as_ref().filter(|(of, _)| *of == port) {
            return Ok(client.clone());
        }
        // The worker's proxy settings are not meant for addresses that a step names.
        let builder = Client::builder()
            .no_proxy()
            .referer(false)
            .connect_timeout(self.connect)
            .redirect(Redirects::none())
            .user_agent(concat!("bob-runner/", env!("CARGO_PKG_VERSION")));
        let builder = match &self.trusted {
            Trusted::System => builder,
            Trusted::Authorities(found) => {
                found.iter().cloned().fold(builder, ClientBuilder::add_root_certificate)
            }
            Trusted::Pinned(config) => builder.use_preconfigured_tls(ClientConfig::clone(config)),
            Trusted::Anything => builder.danger_accept_invalid_certs(true),
        };
        let built = self.policy.guarded(builder, port).build();
        let client = built.map_err(|cause| format!("TLS cannot be set up: {cause}"))?;
        *made = Some((port, client.clone()));
        Ok(client)
    }

    /// The client for a URL, after checking that its address is open to steps.
    pub(super) async fn to(&self, url: &Url) -> Result<Client, String> {
        self.policy.check(url).await.map_err(|refused| refused.to_string())?;
        self.at(url.port_or_known_default().unwrap_or_default())
    }

    /// The target of a redirect, if it is to be followed after `followed` others. A redirect that
    /// is not followed is returned as the response.
    pub(super) fn next(&self, response: &Response, followed: usize) -> Option<Url> {
        let next = egress::redirect(response).filter(|_| followed < REDIRECTS)?;
        match self.follow {
            Follow::Nowhere => None,
            Follow::SameServer => Some(next).filter(|to| to.origin() == response.url().origin()),
            Follow::Anywhere => Some(next),
        }
    }
}

fn authorities(
    with: StepArguments<'_>,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<Certificate>, ExecError> {
    let shown = path.display();
    let found = Certificate::from_pem_bundle(pem)
        .map_err(|cause| with.bad(&format!("`ca_file` {shown} cannot be used: {cause}")))?;
    if found.is_empty() {
        return Err(with.bad(&format!("`ca_file` {shown} contains no certificate in PEM format")));
    }
    Ok(found)
}

fn pinned(with: StepArguments<'_>, digest: [u8; 32]) -> Result<ClientConfig, ExecError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Pinned { digest, provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| with.bad(&format!("TLS cannot be set up: {cause}")))?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    Ok(config.with_no_client_auth())
}

/// Trusts one certificate, whatever its issuer and host name. The handshake still proves that the
/// server has the private key, because the certificate itself is public.
#[derive(Debug)]
struct Pinned {
    digest: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if Sha256::digest(end_entity).as_slice() == self.digest {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
