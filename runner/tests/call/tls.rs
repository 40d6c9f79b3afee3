//! Trust in certificates.

use std::fmt::Write as _;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;

use super::server::{Reply, Server};
use super::{bob, job, refused, run};

/// A server with a new certificate, the certificate in PEM, and its SHA-256 digest.
async fn server() -> (Server, String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let digest = Sha256::digest(made.cert.der());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let answer =
        |_: &super::server::ReceivedRequest, _| Reply::json(200, &json!({ "data": "yes" }));
    let digits = digest.iter().fold(String::new(), |mut all, byte| {
        let colon = if all.is_empty() { "" } else { ":" };
        write!(all, "{colon}{byte:02X}").unwrap();
        all
    });
    (Server::tls(acceptor, answer).await, made.cert.pem(), digits)
}

fn step(server: &Server, more: &str) -> protocol::pipeline::Step {
    let product = format!(
        "host: '{}', node: pve1, token_id: 'ci@pve!ci', token_secret: s3cret, vmid: 1, {more}",
        server.url()
    );
    job("proxmox", "kvm_status", &product)
}

#[tokio::test]
async fn an_unknown_certificate_is_not_trusted_and_nothing_is_sent() {
    let (server, _, _) = server().await;
    let done = run(&step(&server, "")).await;
    let said = done.error();
    assert!(said.contains("was not sent") && said.contains("invalid peer certificate"), "{said}");
    assert!(said.contains("`ca_file`"), "{said}");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn only_the_certificate_with_the_given_fingerprint_is_trusted() {
    let (server, _, fingerprint) = server().await;
    for given in [fingerprint.clone(), fingerprint.replace(':', "").to_lowercase()] {
        let done = run(&step(&server, &format!("fingerprint: '{given}'"))).await;
        assert_eq!(done.data(), "yes");
    }
    let (other, _, _) = self::server().await;
    let done = run(&step(&other, &format!("fingerprint: '{fingerprint}'"))).await;
    assert!(done.error().contains("was not sent"), "{done:?}");
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn a_certificate_in_the_given_file_is_trusted() {
    let (server, pem, _) = server().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, pem).unwrap();
    let more = format!("ca_file: '{}'", file.display());
    assert_eq!(run(&step(&server, &more)).await.data(), "yes");
    let (other, _, _) = self::server().await;
    assert!(run(&step(&other, &more)).await.error().contains("was not sent"));
    let request = bob("http", &format!("url: '{}', {more}", server.url()));
    assert_eq!(run(&request).await.data()["data"], "yes");
    std::fs::write(&file, "no certificate").unwrap();
    assert!(refused(&step(&server, &more)).await.contains("contains no certificate in PEM format"));
}

#[tokio::test]
async fn any_certificate_is_trusted_if_the_step_allows_it() {
    let (server, _, _) = server().await;
    assert_eq!(run(&step(&server, "insecure: true")).await.data(), "yes");
    let both = step(&server, "insecure: true, fingerprint: x");
    assert!(refused(&both).await.contains("exclude each other"));
}
