//! Which requests are sent, how often, and which errors are reported.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use runner::ports::{ExecError, Gate, StopSignal};
use serde_json::{Value, json};

use super::proxmox::{server, shortcut};
use super::rows::pve;
use super::server::{Reply, Server};
use super::{attempt, options, run};

#[tokio::test]
async fn a_refused_call_reports_the_message_of_proxmox_and_is_never_retried() {
    let server = Server::start(|_, _| {
        let said = json!({
            "data": null, "message": "Parameter verification failed.\n",
            "errors": { "vmid": "bad, s3cret-of-pve" }
        });
        Reply::json(400, &said)
    })
    .await;
    let done = run(&shortcut(&server, "kvm_start", "")).await;
    assert_eq!(
        done.error(),
        "POST /api2/json/nodes/pve1/qemu/101/status/start was refused with status 400: \
         Parameter verification failed. {\"vmid\":\"bad, ***\"}"
    );
    assert!(!format!("{done:?}").contains("s3cret"), "{done:?}");
    // Proxmox puts its error message into the status line.
    let server = Server::start(|_, _| Reply::Reason("503 VM 101 already running")).await;
    let done = run(&shortcut(&server, "kvm_start", "")).await;
    assert!(done.error().ends_with("status 503: VM 101 already running"), "{done:?}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_call_with_an_effect_is_sent_once_and_a_lost_response_is_reported() {
    let server = Server::start(|_, _| Reply::HangUp).await;
    for name in ["kvm_start", "kvm_delete"] {
        let done = run(&shortcut(&server, name, "")).await;
        assert!(done.error().ends_with("whether it took effect is not known"), "{done:?}");
    }
    let resize = "params: { disk: scsi0, size: +10G }";
    run(&shortcut(&server, "kvm_resize", resize)).await.error();
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_call_that_only_reads_is_retried() {
    let server = Server::start(|seen, count| match count {
        0 => Reply::HangUp,
        1 => Reply::json(503, &Value::Null),
        _ => Reply::json(200, &pve(seen)),
    })
    .await;
    let done = run(&shortcut(&server, "kvm_status", "")).await;
    assert_eq!(done.data()["status"], "running");
    assert_eq!(server.seen().len(), 3);
    assert!(done.err.contains("it is sent again"), "{}", done.err);
}

#[tokio::test]
async fn an_unreachable_host_is_named_and_nothing_is_sent() {
    let gone = { server().await.url() };
    let server = server().await;
    let mut step = shortcut(&server, "kvm_start", "");
    step.with.insert("host".to_owned(), gone.clone().into());
    let done = run(&step).await;
    let said = done.error();
    assert!(said.contains("was not sent: cannot reach") && said.contains(&gone), "{said}");
}

#[tokio::test]
async fn nothing_is_sent_if_the_gate_is_closed_or_the_owner_is_lost() {
    let server = server().await;
    let (step, stop) = (shortcut(&server, "kvm_start", ""), StopSignal::default());
    for gate in [
        Gate::new(std::future::ready(false), || true),
        Gate::new(std::future::ready(true), || false),
    ] {
        let error = attempt(&step, &options(), gate, &stop).await.unwrap_err();
        assert!(matches!(error, ExecError::NotStarted), "{error}");
    }
    assert!(server.seen().is_empty());
    // The ownership is lost before the second request.
    let owner = Arc::new(AtomicBool::new(true));
    let lost = Arc::clone(&owner);
    let server = Server::start(move |seen, _| {
        lost.store(false, Ordering::SeqCst);
        Reply::json(200, &pve(seen))
    })
    .await;
    let gate = Gate::new(std::future::ready(true), move || owner.load(Ordering::SeqCst));
    let step = shortcut(&server, "kvm_start", "");
    let done = attempt(&step, &options(), gate, &stop).await.unwrap();
    assert!(done.error().contains("nothing more is sent"), "{done:?}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn an_overlong_response_is_not_stored() {
    let server =
        Server::start(|_, _| Reply::Answer(200, Vec::new(), vec![b'x'; 1024 * 1024 + 1])).await;
    let done = run(&shortcut(&server, "kvm_status", "")).await;
    assert!(done.error().contains("more than 1048576 bytes"), "{done:?}");
}
