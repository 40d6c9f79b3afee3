//! A17: the actions of sevDesk.

use protocol::pipeline::Step;
use serde_json::{Value, json};

use super::server::{Reply, Server};
use super::{faults, job, options, refused, rows, run, run_with};

fn action(server: &Server, name: &str, more: &str) -> Step {
    let product = rows::with_account("api_token: s3cret-of-sev", &server.url(), "api/v1", more);
    job("sevdesk", name, &product)
}

async fn server(answer: Value) -> Server {
    Server::start(move |_, _| Reply::json(200, &answer)).await
}

// Rows: A17
#[tokio::test]
async fn each_action_sends_the_call_that_sevdesk_documents() {
    for (name, keys, method, path, query, body) in rows::of_sevdesk() {
        let answer = json!({ "objects": [{ "id": "4711", "status": "200" }] });
        let server = server(answer.clone()).await;
        let done = run(&action(&server, name, keys)).await;
        let expected = if name == "get_invoice_status" {
            json!({ "id": "4711", "status": "200" })
        } else {
            answer
        };
        assert_eq!(*done.data(), expected, "{name}");
        let seen = server.seen();
        assert_eq!(seen.len(), 1, "{name}");
        assert_eq!(seen[0].line(), format!("{method} /api/v1{path}"), "{name}");
        assert_eq!((seen[0].query.as_str(), seen[0].json()), (query, body), "{name}");
        assert_eq!(seen[0].header("authorization"), Some("s3cret-of-sev"), "{name}");
        assert!(!format!("{done:?}").contains("s3cret"), "{done:?}");
    }
}

// Rows: A17
#[tokio::test]
async fn legacy_calls_are_sent_in_compatibility_mode() {
    for (name, keys, line, body) in [
        (
            "create_invoice",
            "contact_id: 7, invoice_data: { a: 1 }",
            "POST /api/v1/Invoice",
            json!({ "contact": { "id": 7 }, "invoice": { "a": 1 } }),
        ),
        ("save_invoice_draft", "invoice_data: { a: 1 }", "POST /api/v1/Invoice", json!({ "a": 1 })),
        ("cancel_invoice", "invoice_id: 3", "PATCH /api/v1/Invoice/3", json!({ "status": 100 })),
    ] {
        let server = server(json!({})).await;
        run(&action(&server, name, &format!("{keys}, compat: true"))).await.data();
        let seen = server.seen().remove(0);
        assert_eq!((seen.line().as_str(), seen.json()), (line, body));
    }
}

// Rows: A17
#[tokio::test]
async fn a_missing_contact_is_created_first() {
    let server = server(json!({ "objects": { "id": "88" } })).await;
    let keys = "contact_data: { name: ACME }, invoice_data: { header: x }";
    run(&action(&server, "create_invoice", keys)).await.data();
    let lines = ["POST /api/v1/Contact", "POST /api/v1/Invoice/Factory/saveInvoice"];
    assert_eq!(server.lines(), lines);
    let seen = server.seen();
    assert_eq!(seen[0].json(), json!({ "name": "ACME" }));
    let contact = json!({ "id": 88, "objectName": "Contact" });
    assert_eq!(seen[1].json()["invoice"]["contact"], contact);
}

// Rows: A17
#[tokio::test]
async fn a_created_contact_is_named_if_its_invoice_is_refused() {
    let server = Server::start(|_, count| match count {
        0 => Reply::json(201, &json!({ "objects": { "id": "88" } })),
        _ => Reply::json(422, &json!({ "objects": null, "error": { "message": "no tax rule" } })),
    })
    .await;
    let keys = "contact_data: {}, invoice_data: {}";
    let done = run(&action(&server, "create_invoice", keys)).await;
    assert!(done.error().ends_with("422: no tax rule; contact 88 was made and stays"), "{done:?}");
}

// Rows: A17
#[tokio::test]
async fn a_pdf_is_decoded_and_written_to_the_directory_of_the_run() {
    let answer = json!({ "objects": {
        "filename": "RE-1.pdf", "base64encoded": true, "content": "JVBERi0xLjc="
    } });
    let server = server(answer).await;
    let step = action(&server, "get_invoice_pdf", "invoice_id: 1, pdf_output: out/a.pdf");
    let dir = tempfile::tempdir().unwrap();
    let here = runner::exec::call::Options { files: Some(dir.path().to_owned()), ..options() };
    let done = run_with(&step, &here).await;
    assert_eq!(*done.data(), json!({ "filename": "RE-1.pdf", "size": 8, "path": "out/a.pdf" }));
    assert_eq!(std::fs::read(dir.path().join("out/a.pdf")).unwrap(), b"%PDF-1.7");
    assert_eq!(server.lines(), ["GET /api/v1/Invoice/1/getPdf"]);
    // A worker in a cluster has no directory for files.
    assert!(refused(&step).await.contains("a worker keeps no files"));
    for out in ["/etc/x.pdf", "../x.pdf"] {
        let mut step = step.clone();
        step.with.insert("pdf_output".to_owned(), out.into());
        let gate = runner::ports::Gate::open();
        let stop = runner::ports::StopSignal::default();
        let error = super::attempt(&step, &here, gate, &stop).await.unwrap_err().to_string();
        assert!(error.contains("not a path below the working directory"), "{out}: {error}");
    }
    assert_eq!(server.seen().len(), 1);
}

// Rows: A17
#[tokio::test]
async fn the_result_contains_a_small_pdf_but_not_a_large_one() {
    let small =
        server(json!({ "objects": { "filename": "a.pdf", "content": "JVBERi0xLjc=" } })).await;
    let done = run(&action(&small, "get_invoice_pdf", "invoice_id: 1")).await;
    assert_eq!(done.data()["base64"], "JVBERi0xLjc=");
    let large = server(json!({ "objects": { "content": "AAAA".repeat(22_000) } })).await;
    let done = run(&action(&large, "get_invoice_pdf", "invoice_id: 1")).await;
    assert!(done.error().contains("66000 bytes"), "{done:?}");
}

// Rows: A17
#[tokio::test]
async fn a_rate_limited_sevdesk_request_is_retried_after_the_given_delay() {
    let server = Server::start(|_, count| match count {
        0 | 1 => Reply::Answer(429, vec![("retry-after", "0".to_owned())], Vec::new()),
        _ => Reply::json(200, &json!({})),
    })
    .await;
    run(&action(&server, "create_contact", "contact_data: {}")).await.data();
    assert_eq!(server.seen().len(), 3);
    // A request that failed in another way might have taken effect.
    let server = Server::start(|_, _| Reply::json(502, &json!({}))).await;
    run(&action(&server, "create_contact", "contact_data: {}")).await.error();
    assert_eq!(server.seen().len(), 1);
}

// Rows: A17
#[tokio::test]
async fn missing_or_unknown_sevdesk_keys_are_refused_before_anything_is_sent() {
    let server = server(json!({})).await;
    for (name, keys, why) in [
        ("cancel_invoice", "", "`invoice_id` is missing"),
        ("create_invoice", "invoice_data: {}", "`contact_id` or `contact_data` is missing"),
        ("get_invoice", "invoice_id: 1, invoice: 2", "not known"),
        ("get_invoice", "invoice_id: 1, filter: {}", "`filter` is not for `get_invoice`"),
        ("get_invoices", "", "list_invoices"),
    ] {
        let product = format!("api_token: s3cret, base_url: '{}', {keys}", server.url());
        let text = format!("{{executor: sevdesk, type: {name}, product: {{{product}}}}}");
        assert!(faults(&text).contains(why), "{name}: {}", faults(&text));
    }
    let mut step = action(&server, "get_invoice", "invoice_id: 1");
    step.with.insert("invoice_id".to_owned(), "1/../2".into());
    assert!(refused(&step).await.contains("`invoice_id` is not a number"));
    step.with.insert("invoice_idd".to_owned(), 1.into());
    assert!(refused(&step).await.contains("did you mean `invoice_id`?"));
    step.with.shift_remove("invoice_idd");
    step.with.shift_remove("api_token");
    assert!(refused(&step).await.contains("`api_token` is missing"));
    assert!(server.seen().is_empty());
}
