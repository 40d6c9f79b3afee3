//! TLS to both servers: valid certificates work, others are rejected with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::path::PathBuf;
use std::time::Duration;

use protocol::event::{Event, Reason};
use protocol::time::Millis;
use runner::cluster::{AmqpEvents, AmqpOptions, AmqpQueue, Etcd, TlsFiles};
use runner::ports::{
    Events as _, Message, Queue as _, QueueError, Route, Store as _, StoreError, Txn,
};
use test_support::services::{OwnServices, Services, Vhost};

fn file(services: &Services, name: &str) -> Option<PathBuf> {
    Some(services.get(name).into())
}

/// An authority that did not sign any server here.
fn wrong_ca(services: &Services) -> Option<PathBuf> {
    file(services, "BOB_TEST_WRONG_CA")
}

fn wrong_client(services: &Services, ca: &str) -> TlsFiles {
    TlsFiles {
        ca: file(services, ca),
        cert: file(services, "BOB_TEST_WRONG_CERT"),
        key: file(services, "BOB_TEST_WRONG_KEY"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_is_used_over_tls() {
    let strict = ["--tls", "--rabbitmq-set", "ssl_options.fail_if_no_peer_cert=true"];
    let Some(own) = OwnServices::start("rabbitmq,etcd", &strict) else { return };
    let services = own.services();
    let vhost = services.vhost().await;
    let client = services.etcd().tls;
    let good = AmqpOptions { tls: client, ..services.amqp(&vhost) };

    let queue = AmqpQueue::connect(&good).await.unwrap();
    queue.publish(Route::Jobs, Message::default()).await.unwrap();
    let events = AmqpEvents::connect(&good).await.unwrap();
    let event = Event::new(Millis(1), Reason::RunnerReady, "ready".to_owned());
    let ticket = events.emit(event).await.unwrap();
    events.confirmed(ticket).await.unwrap();

    let ca = TlsFiles { ca: wrong_ca(services), ..good.tls.clone() };
    refused(&vhost, &good, ca, "not issued by an authority that is trusted here; BOB_QUEUE_CA")
        .await;
    let none = TlsFiles { ca: good.tls.ca.clone(), ..TlsFiles::default() };
    refused(&vhost, &good, none, "BOB_QUEUE_CERT").await;
    let stranger = wrong_client(services, "BOB_QUEUE_CA");
    refused(&vhost, &good, stranger, "BOB_QUEUE_CERT").await;
    // Without a CA setting, only public authorities are trusted.
    let public = TlsFiles { ca: None, ..good.tls.clone() };
    refused(&vhost, &good, public, "not issued by an authority that is trusted here; BOB_QUEUE_CA")
        .await;

    let plain = services.get("BOB_TEST_QUEUE_PLAIN_URL").replace("amqp:", "amqps:");
    let no_tls = AmqpOptions { url: format!("{plain}/{}", vhost.name), ..good.clone() };
    said(&AmqpQueue::connect(&no_tls).await.unwrap_err(), "does not speak TLS");
    let (url, tls) = (good.url.replace("amqps:", "amqp:"), TlsFiles::default());
    let only_tls = AmqpOptions { url, tls, ..good.clone() };
    said(&AmqpQueue::connect(&only_tls).await.unwrap_err(), "it speaks TLS on this port");
    let password = AmqpOptions { password: "wr0ng".to_owned(), ..good.clone() };
    said(&AmqpQueue::connect(&password).await.unwrap_err(), "Login was refused");
}

async fn refused(_: &Vhost, good: &AmqpOptions, tls: TlsFiles, because: &str) {
    // Fails at once if a retry is pointless. A hundred attempts would take over an hour.
    let options = AmqpOptions {
        tls,
        retry_attempts: 100,
        retry_delay: Duration::from_secs(60),
        ..good.clone()
    };
    said(&AmqpQueue::connect(&options).await.unwrap_err(), because);
    let error = AmqpEvents::connect(&options).await.unwrap_err();
    assert!(error.to_string().contains(because), "{error}");
}

fn said(error: &QueueError, because: &str) {
    assert!(matches!(error, QueueError::Denied { .. }), "{error}");
    assert!(error.to_string().contains(because), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_used_over_tls() {
    let Some(own) = OwnServices::start("etcd", &["--tls"]) else { return };
    let services = own.services();
    let good = services.etcd();
    let etcd = Etcd::connect(&good).await.unwrap();
    let reply = etcd.txn(Txn::new().put("test/tls", b"1".to_vec())).await.unwrap();
    let changes = etcd.watch("test/tls", reply.revision).await.unwrap();
    drop(changes);
    let lease = etcd.grant(Duration::from_secs(60)).await.unwrap();
    etcd.keep_alive(lease.lease).await.unwrap();

    let mut options = good.clone();
    options.retry_attempts = 100;
    options.retry_delay = Duration::from_secs(60);
    for (tls, because) in [
        (
            TlsFiles { ca: wrong_ca(services), ..good.tls.clone() },
            "not issued by an authority that is trusted here; BOB_STORAGE_CA",
        ),
        (
            TlsFiles { ca: None, ..good.tls.clone() },
            "not issued by an authority that is trusted here; BOB_STORAGE_CA",
        ),
        (TlsFiles { ca: good.tls.ca.clone(), ..TlsFiles::default() }, "BOB_STORAGE_CERT"),
        (wrong_client(services, "BOB_STORAGE_CA"), "BOB_STORAGE_CERT"),
    ] {
        options.tls = tls;
        let error = Etcd::connect(&options).await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
        assert!(error.to_string().contains(because), "{error}");
    }
    options.tls = TlsFiles::default();
    options.urls = good.urls.iter().map(|url| url.replace("https://", "http://")).collect();
    let error = Etcd::connect(&options).await.unwrap_err();
    assert!(error.to_string().contains("write https:// in BOB_STORAGE_URLS"), "{error}");
    // Certificates for an address without TLS are a configuration error.
    options.tls = good.tls.clone();
    options.urls = vec!["http://localhost:1".to_owned()];
    let error = Etcd::connect(&options).await.unwrap_err();
    assert!(error.to_string().contains("does not begin with https://"), "{error}");
}
