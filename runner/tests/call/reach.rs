//! Calls to addresses that messages must not name: nothing is sent.

use std::net::TcpListener;

use protocol::pipeline::Step;
use runner::egress::{Exception, Pattern, Policy, Rules};
use runner::exec::call::Options;
use runner::ports::{Gate, StopSignal};
use serde_json::json;

use super::server::{Reply, Server};
use super::{StepResult, attempt, bob, job, options};

fn only(exceptions: Vec<Exception>) -> Options {
    let rules = Rules { exceptions, own: Vec::new() };
    Options { policy: Policy::restricted(rules), ..options() }
}

/// Allows one test server.
fn opened(server: &Server) -> Exception {
    let port = server.url().rsplit_once(':').unwrap().1.parse().unwrap();
    Exception { pattern: Pattern::Net("127.0.0.1/32".parse().unwrap()), port: Some(port) }
}

async fn run(step: &Step, options: &Options) -> StepResult {
    attempt(step, options, Gate::open(), &StopSignal::default()).await.unwrap()
}

#[tokio::test]
async fn no_call_reaches_a_closed_address_by_number_or_by_name() {
    let server = Server::start(|_, _| Reply::json(200, &json!({}))).await;
    let by_name = server.url().replace("127.0.0.1", "localhost");
    let mapped = server.url().replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let closed = only(Vec::new());
    for url in [&server.url(), &by_name, &mapped] {
        let steps = [
            bob("http", &format!("url: '{url}/x'")),
            bob("http", &format!("url: '{url}/x', method: POST, json: {{ a: 1 }}")),
            bob(
                "proxmox",
                &format!(
                    "host: '{url}', node: n, method: GET, path: /api2/json/version, token_id: a, \
                     token_secret: s3cret"
                ),
            ),
            job(
                "sevdesk",
                "get_invoice",
                &format!("api_token: s3cret, base_url: '{url}', invoice_id: 1"),
            ),
            job(
                "lexware",
                "cancel_invoice",
                &format!("api_key: s3cret, base_url: '{url}', invoice_id: x"),
            ),
        ];
        for step in &steps {
            let done = run(step, &closed).await;
            let said = done.error();
            assert!(
                said.contains("was not sent") && said.contains("BOB_ALLOWED_ADDRESSES"),
                "{said}"
            );
            assert!(said.contains("a loopback address"), "{said}");
            assert!(
                !done.err.contains("sent again"),
                "a refused address must not be retried: {done:?}"
            );
        }
    }
    assert!(server.seen().is_empty(), "{:?}", server.lines());
}

#[tokio::test]
async fn a_redirect_does_not_reach_a_closed_address() {
    let inner = Server::start(|_, _| Reply::json(200, &json!("inside"))).await;
    for host in ["127.0.0.1", "localhost", "[::ffff:7f00:1]"] {
        let there = format!("{}/latest", inner.url().replace("127.0.0.1", host));
        let outer = Server::start(move |_, _| {
            Reply::Answer(302, vec![("location", there.clone())], Vec::new())
        })
        .await;
        let options = only(vec![opened(&outer)]);
        let step = bob("http", &format!("url: '{}/x', follow: true", outer.url()));
        let done = run(&step, &options).await;
        assert!(done.error().contains("BOB_ALLOWED_ADDRESSES"), "{host}: {done:?}");
        assert_eq!(outer.seen().len(), 1, "{host}");
    }
    assert!(inner.seen().is_empty(), "{:?}", inner.lines());
}

#[tokio::test]
async fn a_call_reaches_an_opened_address() {
    let server = Server::start(|_, _| Reply::json(200, &json!({ "a": 1 }))).await;
    let step = bob("http", &format!("url: '{}/x'", server.url()));
    assert_eq!(run(&step, &only(vec![opened(&server)])).await.data()["a"], 1);
    // Another port of the same address stays closed.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let step = bob("http", &format!("url: 'http://{}/x'", other.local_addr().unwrap()));
    let done = run(&step, &only(vec![opened(&server)])).await;
    assert!(done.error().contains("BOB_ALLOWED_ADDRESSES"), "{done:?}");
}
