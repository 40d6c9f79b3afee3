//! The executor contract, for every executor of calls.

use std::sync::Arc;

use futures::FutureExt as _;
use protocol::pipeline::{ExecutorKind, Step};
use runner::exec::Executors;
use runner::exec::call::all;
use runner::exec::local::{Local, Options as LocalOptions};
use runner::ports::Executor;
use serde_json::json;
use test_support::conformance::{Act, CallSubject, ExecutorSubject, call};

use super::proxmox::shortcut;
use super::rows::pve;
use super::server::{Reply, Server};
use super::{bob, job, options};

/// A secret in every call.
const KEY: &str = "s3cret-of-all";

/// The step is a call for every `Act`, so it has no command.
fn words(_: &Act) -> Vec<String> {
    Vec::new()
}

fn executor(kind: ExecutorKind, dir: &std::path::Path) -> Arc<dyn Executor> {
    let local = Local::new(LocalOptions {
        cgroup: None,
        supervisor: ("/nowhere".into(), Vec::new()),
        runs: dir.join("runs"),
        work_dir: None,
        inherited: Vec::new(),
        memory: Vec::new(),
    });
    let found = all(&options()).into_iter().find(|(of, _)| *of == kind).unwrap();
    Arc::new(Executors::new(None, Arc::new(local)).with(kind, found.1))
}

/// Checks that an executor keeps the contract. `step` builds a call to a server.
async fn keeps_the_contract(kind: ExecutorKind, step: fn(&Server) -> Step) {
    let dir = tempfile::tempdir().unwrap();
    let passes = Server::start(|seen, _| Reply::json(200, &pve(seen))).await;
    // A service can send any text, even the secret.
    let refuses = Server::start(|_, _| Reply::json(403, &json!({ "message": KEY }))).await;
    let hangs = Server::start(|_, _| Reply::Never).await;
    let with = [&passes, &refuses, &hangs].map(|server| {
        let mut step = step(server);
        for value in step.with.values_mut() {
            if value.as_str().is_some_and(|text| text.starts_with("s3cret")) {
                *value = KEY.into();
            }
        }
        step.with
    });
    let [passes_with, refused, unanswered] = with;
    let servers = Arc::new([passes, refuses, hangs]);
    let asked = Arc::clone(&servers);
    // Each unanswered call expects one more request.
    let so_far = std::sync::atomic::AtomicUsize::new(0);
    call(CallSubject {
        of: ExecutorSubject {
            prefix: "suite".into(),
            executor: executor(kind, dir.path()),
            other: executor(kind, dir.path()),
            kind,
            with: passes_with,
            has_a_shell: false,
            on_images: false,
            dir: String::new(),
            image: String::new(),
            missing: String::new(),
            words,
        },
        refused,
        hangs: unanswered,
        key: KEY,
        seen: Box::new(move || {
            let all = servers.iter().flat_map(Server::seen);
            all.map(|seen| format!("{seen:?}")).collect()
        }),
        asked: Box::new(move || {
            let count = so_far.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
            let servers = Arc::clone(&asked);
            async move { servers[2].asked(count).await }.boxed()
        }),
    })
    .await;
}

#[tokio::test]
async fn http_requests_pass_the_executor_conformance_suite() {
    keeps_the_contract(ExecutorKind::Http, |server| {
        let headers = format!("headers: {{ Authorization: Bearer {KEY} }}");
        bob("http", &format!("url: '{}/a', {headers}", server.url()))
    })
    .await;
}

#[tokio::test]
async fn proxmox_calls_pass_the_executor_conformance_suite() {
    keeps_the_contract(ExecutorKind::Proxmox, |server| shortcut(server, "kvm_status", "")).await;
}

#[tokio::test]
async fn sevdesk_calls_pass_the_executor_conformance_suite() {
    keeps_the_contract(ExecutorKind::Sevdesk, |server| {
        let access = format!("api_token: {KEY}, base_url: '{}/api/v1'", server.url());
        job("sevdesk", "list_invoices", &access)
    })
    .await;
}

#[tokio::test]
async fn lexware_calls_pass_the_executor_conformance_suite() {
    keeps_the_contract(ExecutorKind::Lexware, |server| {
        let access = format!("api_key: {KEY}, base_url: '{}/v1'", server.url());
        let invoice = "customer_id: 0b1c-2, invoice_data: { title: x }";
        job("lexware", "create_invoice", &format!("{access}, {invoice}"))
    })
    .await;
}
