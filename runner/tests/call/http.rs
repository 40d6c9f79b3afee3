//! The executor `http`.

use protocol::dialect::{Dialect, parse_as};
use serde_json::{Value, json};

use super::server::{Reply, Server};
use super::{bob, refused, run};

async fn server(answer: Value) -> Server {
    Server::start(move |_, _| Reply::json(200, &answer)).await
}

#[tokio::test]
async fn a_request_has_the_method_headers_and_body_of_its_step() {
    let server = server(json!({ "id": [1, 2] })).await;
    let with = format!(
        "url: '{}/a/b?token=s3cret-1', method: post, json: {{ a: [1, x] }}, \
         headers: {{ Authorization: Bearer s3cret-2, X-Number: 7 }}",
        server.url()
    );
    let done = run(&bob("http", &with)).await;
    assert_eq!(*done.data(), json!({ "id": [1, 2] }));
    let seen = server.seen().remove(0);
    assert_eq!((seen.line().as_str(), seen.query.as_str()), ("POST /a/b", "token=s3cret-1"));
    assert_eq!(seen.json(), json!({ "a": [1, "x"] }));
    assert_eq!(seen.header("authorization"), Some("Bearer s3cret-2"));
    assert_eq!(seen.header("x-number"), Some("7"));
    assert_eq!(done.out, "POST /a/b: 200\n");
}

#[tokio::test]
async fn a_request_defaults_to_get_and_its_text_is_the_result() {
    let server = Server::start(|_, _| Reply::Answer(200, Vec::new(), b"plain".to_vec())).await;
    let done = run(&bob("http", &format!("url: '{}'", server.url()))).await;
    assert_eq!((done.data(), server.lines()), (&json!("plain"), vec!["GET /".to_owned()]));
}

#[tokio::test]
async fn only_an_expected_status_is_a_success() {
    for (expect, status, code) in [
        ("", 201, 0),
        ("", 404, 1),
        ("expect: [404, 200-204]", 404, 0),
        ("expect: 404", 404, 0),
        ("expect: [404]", 200, 1),
    ] {
        let server = Server::start(move |_, _| Reply::json(status, &json!({ "a": 1 }))).await;
        let done = run(&bob("http", &format!("url: '{}/x', {expect}", server.url()))).await;
        assert_eq!(done.code, code, "{expect} {status}: {done:?}");
        assert_eq!(done.result["data"], json!({ "a": 1 }), "{expect} {status}");
        if code == 1 {
            assert!(done.error().contains(&format!("status {status}")), "{done:?}");
        }
    }
}

#[tokio::test]
async fn only_idempotent_requests_are_retried() {
    for (with, count) in [
        ("method: GET", 4),
        ("method: PUT, body: x", 4),
        ("method: DELETE", 4),
        ("method: POST, body: x", 1),
        ("method: PATCH, body: x", 1),
        ("method: POST, body: x, idempotent: true", 4),
        ("method: PUT, body: x, idempotent: false", 1),
    ] {
        let server = Server::start(|_, _| Reply::HangUp).await;
        let done = run(&bob("http", &format!("url: '{}/x', {with}", server.url()))).await;
        done.error();
        assert_eq!(server.seen().len(), count, "{with}");
    }
}

#[tokio::test]
async fn a_redirect_is_followed_on_request_with_headers_only_to_the_same_server() {
    let other = std::sync::Arc::new(server(json!("there")).await);
    let there = format!("{}/there?x=s3cret", other.url());
    let first = Server::start(move |seen, _| match seen.path.as_str() {
        "/same" => Reply::Answer(302, vec![("location", "/end".to_owned())], Vec::new()),
        "/other" => Reply::Answer(302, vec![("location", there.clone())], Vec::new()),
        _ => Reply::json(200, &json!("end")),
    })
    .await;
    let step =
        |path: &str, more: &str| bob("http", &format!("url: '{}{path}', {more}", first.url()));
    let done = run(&step("/same", "")).await;
    assert!(done.error().contains("is sent on to") && done.error().contains("/end"), "{done:?}");
    assert_eq!(run(&step("/same", "follow: true, headers: { A: b }")).await.data(), "end");
    assert_eq!(run(&step("/other", "follow: true")).await.data(), "there");
    let done = run(&step("/other", "follow: true, headers: { X-Token: s3cret-3 }")).await;
    let said = done.error();
    assert!(said.contains(&other.url()) && !said.contains("s3cret"), "{said}");
    assert_eq!(other.seen().len(), 1);
    assert!(refused(&step("/", "method: POST, follow: true")).await.contains("GET and HEAD"));
}

#[tokio::test]
async fn a_missing_response_ends_the_request() {
    let server = Server::start(|_, _| Reply::Never).await;
    let with = format!("url: '{}/x', method: POST, timeout: 50ms", server.url());
    let done = run(&bob("http", &with)).await;
    let said = done.error();
    assert!(said.contains("no answer in time; whether it took effect is not known"), "{said}");
}

#[tokio::test]
async fn a_secret_in_a_header_is_masked_if_the_server_echoes_it() {
    let server = Server::start(|seen, _| {
        let said = seen.header("authorization").unwrap_or_default();
        Reply::json(403, &json!({ "message": format!("who is {said}?") }))
    })
    .await;
    let with = format!("url: '{}/x', headers: {{ Authorization: Bearer s3cret-4 }}", server.url());
    let done = run(&bob("http", &with)).await;
    assert!(done.error().ends_with("status 403: who is ***?"), "{done:?}");
    assert!(!format!("{done:?}").contains("s3cret"), "{done:?}");
}

#[tokio::test]
async fn an_invalid_request_is_refused_before_anything_is_sent() {
    let server = server(Value::Null).await;
    let url = server.url();
    for (with, why) in [
        ("method: GET".to_owned(), "`url` is missing"),
        ("url: 'ftp://x'".to_owned(), "not a web address"),
        (format!("url: '{url}', method: 'A B'"), "`method` is not a method"),
        (format!("url: '{url}', body: x, json: {{}}"), "exclude each other"),
        (format!("url: '{url}', expect: [20x]"), "`expect`"),
        (format!("url: '{url}', expect: []"), "`expect`"),
        (format!("url: '{url}', timeout: soon"), "`timeout`"),
        (format!("url: '{url}', insecure: true, ca_file: x"), "exclude each other"),
        (format!("url: '{url}', fingerprint: 'AA:BB'"), "64 hexadecimal digits"),
        (format!("url: '{url}', ca_file: /no/such.pem"), "`ca_file` /no/such.pem"),
        (format!("url: '{url}', headers: {{ 'a b': c }}"), "not the name of a header"),
    ] {
        let said = refused(&bob("http", &with)).await;
        assert!(said.contains(why), "{with}: {said}");
    }
    let text = "{group: g, name: n, steps: [{executor: http, with: {urll: x}}]}";
    let parsed = parse_as(Some(Dialect::Bob), None, text.as_bytes());
    let said = parsed.diagnostics[0].to_string();
    assert!(said.contains("urll") && said.contains("`url`"), "{said}");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn the_program_runs_a_pipeline_with_a_call() {
    let server = Server::start(|_, _| Reply::json(201, &json!({ "id": 7 }))).await;
    let dir = tempfile::tempdir().unwrap();
    let with = format!("url: '{}/hook', method: POST, json: {{ a: 1 }}", server.url());
    let text = format!("{{group: g, name: n, steps: [{{executor: http, with: {{{with}}}}}]}}");
    std::fs::write(dir.path().join("pipeline.yaml"), text).unwrap();
    let said = tokio::process::Command::new(env!("CARGO_BIN_EXE_bob-runner"))
        .args(["run", "pipeline.yaml"])
        .env_clear()
        .env("HOME", dir.path())
        .current_dir(dir.path())
        .output()
        .await
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert_eq!(said.status.code(), Some(0), "{out} {err}");
    assert!(out.contains("POST /hook: 201"), "{out}");
    assert_eq!(server.seen()[0].json(), json!({ "a": 1 }));
}
