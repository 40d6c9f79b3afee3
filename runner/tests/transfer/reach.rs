//! Services at addresses that messages and definitions must not name.

use std::time::Duration;

use bytes::Bytes;
use runner::egress::{Exception, Pattern, Rules};

use super::*;

fn http_by(rules: Rules) -> Http {
    let options = Options {
        policy: Policy::restricted(rules),
        spill_dir: std::env::temp_dir(),
        spill_bytes: 0,
    };
    Http::new(options).unwrap()
}

fn opened(server: &Server) -> Rules {
    let port = server.url().rsplit_once(':').unwrap().1.parse().unwrap();
    let net = "127.0.0.1/32".parse().unwrap();
    let exception = Exception { pattern: Pattern::Net(net), port: Some(port) };
    Rules { exceptions: vec![exception], own: Vec::new() }
}

/// The error of each kind of transfer for a URL.
async fn said(http: &Http, url: &str) -> Vec<String> {
    let tar = || stream::iter([Ok(Bytes::from_static(b"some"))]).boxed();
    let mut said = Vec::new();
    let mut note = |what: &str, error: TransferError| said.push(format!("{what}: {error}"));
    let params = vars(&[("group", "g"), ("name", "n"), ("run-id", "r-1")]);
    note("provider", http.external_resource(url, &params, "m").await.err().unwrap());
    note("store", http.internal_resource(url, &params, "m").await.err().unwrap());
    note("upload", http.upload_artifact(url, PATH, tar(), &origin()).await.unwrap_err());
    note("callback", http.post(url, None, "id", Bytes::from_static(b"{}")).await.unwrap_err());
    said
}

#[tokio::test]
async fn no_transfer_reaches_the_workers_own_host() {
    let (server, mut lines) = same_answer(200, small_tar("file", b"x")).await;
    let http = http_by(Rules::default());
    let names = ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"];
    for url in names.map(|name| server.url().replace("127.0.0.1", name)) {
        for said in said(&http, &url).await {
            assert!(said.contains("BOB_ALLOWED_ADDRESSES"), "{url}: {said}");
        }
        let feed = http.logger(&url, &"r-1".parse().unwrap()).unwrap();
        feed.push(Bytes::from_static(b"line\n"));
        assert_eq!(feed.finish(Duration::ZERO).await, 5, "{url}");
    }
    assert!(lines.try_recv().is_err(), "something was sent");
}

#[tokio::test]
async fn a_redirect_of_a_provider_does_not_reach_the_workers_own_host() {
    let (inner, mut lines) = same_answer(200, small_tar("file", b"x")).await;
    for name in ["127.0.0.1", "localhost"] {
        let to = Box::leak(inner.url().replace("127.0.0.1", name).into_boxed_str());
        let (outer, _seen) = redirecting(302, to).await;
        let http = http_by(opened(&outer));
        let error = http.external_resource(&outer.url(), &vars(&[]), "m").await.err().unwrap();
        assert!(error.to_string().contains("BOB_ALLOWED_ADDRESSES"), "{error}");
    }
    assert!(lines.try_recv().is_err(), "the redirect was followed");
    let (outer, _seen) = redirecting(302, Box::leak(inner.url().into_boxed_str())).await;
    let rules = Rules {
        exceptions: [opened(&outer), opened(&inner)].map(|rules| rules.exceptions).concat(),
        own: Vec::new(),
    };
    let tar = http_by(rules).external_resource(&outer.url(), &vars(&[]), "m").await.unwrap();
    assert!(!whole(tar).await.unwrap().is_empty(), "an open address is reached");
}
