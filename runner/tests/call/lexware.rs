//! A18: the actions of Lexware Office.

use protocol::pipeline::Step;
use serde_json::{Value, json};

use super::rows::{self, invoice};
use super::server::{Reply, Server};
use super::{faults, job, refused, run};

fn action(server: &Server, name: &str, more: &str) -> Step {
    let product = rows::with_account("api_key: s3cret-of-lex", &server.url(), "v1", more);
    job("lexware", name, &product)
}

// Rows: A18
#[tokio::test]
async fn an_invoice_is_created_for_its_customer_unless_it_has_an_address() {
    for (keys, query, body) in [
        (
            "customer_id: 0b1c-2, invoice_data: { title: x }",
            "",
            json!({ "title": "x", "address": { "contactId": "0b1c-2" } }),
        ),
        (
            "customer_id: 5, invoice_data: { address: { name: ACME } }, finalize: true",
            "finalize=true",
            json!({ "address": { "name": "ACME" } }),
        ),
    ] {
        let server =
            Server::start(|_, _| Reply::json(201, &json!({ "id": "e9066f04", "version": 0 })))
                .await;
        let done = run(&action(&server, "create_invoice", keys)).await;
        assert_eq!(done.data()["id"], "e9066f04");
        let seen = server.seen().remove(0);
        assert_eq!(seen.line(), "POST /v1/invoices");
        assert_eq!((seen.query.as_str(), seen.json()), (query, body));
        assert_eq!(seen.header("authorization"), Some("Bearer s3cret-of-lex"));
        assert!(!format!("{done:?}").contains("s3cret"), "{done:?}");
    }
}

// Rows: A18
#[tokio::test]
async fn an_invoice_is_cancelled_by_a_credit_note_for_the_same_items() {
    let server = Server::start(|seen, _| match seen.method.as_str() {
        "GET" => Reply::json(200, &invoice()),
        _ => Reply::json(201, &json!({ "id": "note" })),
    })
    .await;
    let done = run(&action(&server, "cancel_invoice", "invoice_id: e9066f04")).await;
    assert_eq!(done.data()["id"], "note");
    assert_eq!(server.lines(), ["GET /v1/invoices/e9066f04", "POST /v1/credit-notes"]);
    let note = server.seen().remove(1);
    assert_eq!(note.query, "precedingSalesVoucherId=e9066f04&finalize=true");
    let mut body = note.json();
    let date = body.as_object_mut().unwrap().shift_remove("voucherDate").unwrap();
    let date = date.as_str().unwrap();
    assert!(date.len() == 29 && date.ends_with(".000+00:00"), "{date}");
    let all = invoice();
    let keys = ["address", "lineItems", "totalPrice", "taxConditions"];
    let expected: serde_json::Map<_, _> =
        keys.iter().map(|key| ((*key).to_owned(), all[*key].clone())).collect();
    assert_eq!(body, Value::Object(expected));
}

// Rows: A18
#[tokio::test]
async fn an_invoice_that_cannot_be_cancelled_gives_the_reason() {
    let server = Server::start(|seen, _| match seen.method.as_str() {
        "GET" => Reply::json(200, &invoice()),
        _ => Reply::json(406, &json!({ "message": "not allowed", "details": [{ "field": "id" }] })),
    })
    .await;
    let done = run(&action(&server, "cancel_invoice", "invoice_id: x")).await;
    let said = done.error();
    assert!(
        said.contains("406: not allowed [{\"field\":\"id\"}]; an invoice that is a draft"),
        "{said}"
    );
    let server = Server::start(|_, _| Reply::json(200, &json!({ "id": "x" }))).await;
    let done = run(&action(&server, "cancel_invoice", "invoice_id: x")).await;
    assert!(done.error().contains("has no `address`"), "{done:?}");
    assert_eq!(server.seen().len(), 1);
}

// Rows: A18
#[tokio::test]
async fn a_rate_limited_lexware_request_is_retried_a_few_times() {
    let server = Server::start(|_, _| Reply::json(429, &json!({ "message": "Rate limit" }))).await;
    let keys = "customer_id: 5, invoice_data: {}";
    let done = run(&action(&server, "create_invoice", keys)).await;
    assert!(done.error().ends_with("status 429: Rate limit"), "{done:?}");
    assert_eq!(server.seen().len(), 4);
}

// Rows: A18
#[tokio::test]
async fn missing_lexware_keys_are_refused_before_anything_is_sent() {
    let server = Server::start(|_, _| Reply::HangUp).await;
    for (name, keys, why) in [
        ("create_invoice", "invoice_data: {}", "`customer_id` is missing"),
        ("cancel_invoice", "", "`invoice_id` is missing"),
        ("cancel_invoice", "invoice_id: a, invoices: b", "not known"),
    ] {
        let product = format!("api_key: s3cret, base_url: '{}', {keys}", server.url());
        let text = format!("{{executor: lexware, type: {name}, product: {{{product}}}}}");
        assert!(faults(&text).contains(why), "{name}: {}", faults(&text));
    }
    let mut step = action(&server, "cancel_invoice", "invoice_id: a");
    step.with.insert("invoice_id".to_owned(), "..".into());
    assert!(refused(&step).await.contains("`invoice_id` is not an id"));
    step.with.insert("api_key".to_owned(), "a\nb".into());
    step.with.insert("invoice_id".to_owned(), "a".into());
    let said = refused(&step).await;
    assert!(said.contains("a header cannot have") && !said.contains("a\nb"), "{said}");
    assert!(server.seen().is_empty());
}
