//! A15 and A16: calls of Proxmox VE.

use protocol::pipeline::Step;
use runner::ports::{Gate, StopLevel, StopSignal};
use serde_json::{Value, json};

use super::rows::{self, TASK, pve};
use super::server::{Reply, Server};
use super::{attempt, bob, faults, job, options, refused, run};

const TASK_PATH: &str =
    "/api2/json/nodes/pve1/tasks/UPID:pve1:0003A1B2:0C8E:66AA:qmstart:101:ci@pve!ci:/status";

pub(super) fn product(server: &Server, more: &str) -> String {
    rows::of_proxmox(&server.url(), more)
}

/// A shortcut for machine 101.
pub(super) fn shortcut(server: &Server, name: &str, more: &str) -> Step {
    job("proxmox", name, &product(server, &format!("vmid: 101, {more}")))
}

pub(super) async fn server() -> Server {
    Server::start(|seen, _| Reply::json(200, &pve(seen))).await
}

// Rows: A15
#[tokio::test]
async fn each_of_32_shortcuts_sends_its_api_call_with_the_token_or_is_refused() {
    let mut told = 0;
    for (prefix, kind) in [("kvm", "qemu"), ("lxc", "lxc")] {
        for (action, params, method, path, query, body) in rows::of_machines(kind) {
            let server = server().await;
            let name = format!("{prefix}_{action}");
            told += 1;
            if name == "lxc_agent_exec" {
                let text = format!(
                    "{{executor: proxmox, type: {name}, product: {{{}}}}}",
                    product(&server, &format!("vmid: 101, {params}"))
                );
                assert!(faults(&text).contains("containers have no agent"), "{}", faults(&text));
                assert!(server.seen().is_empty());
                continue;
            }
            let done = run(&shortcut(&server, &name, params)).await;
            done.data();
            let seen = server.seen().remove(0);
            let whole = format!("{method} /api2/json/nodes/pve1/{kind}{path}");
            assert_eq!(seen.line(), whole, "{name}");
            assert_eq!((seen.query.as_str(), seen.json()), (query, body), "{name}");
            let token = seen.header("authorization");
            assert_eq!(token, Some("PVEAPIToken=ci@pve!ci=s3cret-of-pve"), "{name}");
            assert!(done.out.starts_with(&format!("{whole}: 200\n")), "{name}: {}", done.out);
            assert!(!format!("{done:?}").contains("s3cret"), "{name}: {done:?}");
        }
    }
    assert_eq!(told, 32);
}

// Rows: A15
#[tokio::test]
async fn a_call_that_starts_a_task_waits_for_its_end() {
    let server = Server::start(|seen, count| match count {
        1 | 2 => Reply::json(200, &json!({ "data": { "status": "running" } })),
        _ => Reply::json(200, &pve(seen)),
    })
    .await;
    let done = run(&shortcut(&server, "kvm_start", "")).await;
    assert_eq!(done.data(), TASK);
    let look = format!("GET {TASK_PATH}");
    let start = "POST /api2/json/nodes/pve1/qemu/101/status/start";
    assert_eq!(server.lines(), [start, &look, &look, &look]);
    // Only the first poll is logged.
    assert_eq!(done.out, format!("{start}: 200\n{look}: 200\ntask {TASK}: OK\n"));
}

// Rows: A15
#[tokio::test]
async fn a_task_with_warnings_passes_and_a_failed_task_gives_the_reason() {
    for (status, code) in [("WARNINGS: 1", 0), ("can't lock file", 1)] {
        let server = Server::start(move |seen, count| {
            let task = json!({ "data": { "status": "stopped", "exitstatus": status } });
            Reply::json(200, &if count == 0 { pve(seen) } else { task })
        })
        .await;
        let done = run(&shortcut(&server, "lxc_stop", "")).await;
        assert_eq!(done.code, code, "{done:?}");
        if code == 1 {
            assert_eq!(done.error(), format!("task {TASK} failed: {status}"));
            assert_eq!(done.result["data"], TASK);
        }
    }
}

// Rows: A15
#[tokio::test]
async fn a_job_waits_for_a_task_only_on_request_and_up_to_its_timeout() {
    let server = server().await;
    let done = run(&shortcut(&server, "kvm_start", "wait: false")).await;
    assert_eq!((done.data(), server.seen().len()), (&json!(TASK), 1));
    let slow = Server::start(|seen, count| {
        let runs = json!({ "data": { "status": "running" } });
        Reply::json(200, &if count == 0 { pve(seen) } else { runs })
    })
    .await;
    let done = run(&shortcut(&slow, "kvm_start", "wait_timeout: 1ms")).await;
    assert!(done.error().contains("continues after `wait_timeout`"), "{done:?}");
}

// Rows: A15
#[tokio::test]
async fn a_stopped_step_names_the_task_it_was_waiting_for() {
    let server = Server::start(|seen, count| match count {
        0 => Reply::json(200, &pve(seen)),
        _ => Reply::Never,
    })
    .await;
    let (step, stop) = (shortcut(&server, "kvm_start", ""), StopSignal::default());
    let (options, gate) = (options(), Gate::open());
    let running = attempt(&step, &options, gate, &stop);
    let stopping = async {
        server.asked(2).await;
        stop.raise(StopLevel::Kill);
    };
    let (done, ()) = tokio::join!(running, stopping);
    let done = done.unwrap();
    assert_eq!((done.code, done.error()), (143, &*format!("stopped: task {TASK} continues there")));
}

// Rows: A15
#[tokio::test]
async fn a_stopped_step_drops_its_pending_request() {
    let server = Server::start(|_, _| Reply::Never).await;
    let (step, stop) = (shortcut(&server, "kvm_start", ""), StopSignal::default());
    let (options, gate) = (options(), Gate::open());
    let running = attempt(&step, &options, gate, &stop);
    let stopping = async {
        server.asked(1).await;
        stop.raise(StopLevel::Stop { grace: std::time::Duration::from_secs(60) });
    };
    let (done, ()) = tokio::join!(running, stopping);
    let done = done.unwrap();
    assert_eq!(done.code, 143);
    let said = done.error();
    assert!(said.contains("/101/status/start was under way; whether it took effect"), "{said}");
}

// Rows: A15
#[tokio::test]
async fn a_step_has_the_output_and_exit_code_of_its_command_in_a_machine() {
    let server = Server::start(|seen, count| match count {
        1 => Reply::json(200, &json!({ "data": { "exited": 0 } })),
        2 => Reply::json(
            200,
            &json!({ "data": { "exited": 1, "exitcode": 3, "out-data": "a\n", "err-data": "b\n" } }),
        ),
        _ => Reply::json(200, &pve(seen)),
    })
    .await;
    let done = run(&shortcut(&server, "kvm_agent_exec", "params: { command: [x] }")).await;
    assert_eq!(done.code, 3);
    assert!(done.out.ends_with("a\n") && done.err.starts_with("b\n"), "{done:?}");
    assert_eq!(done.error(), "process 77 ended with exit code 3");
    assert_eq!(done.result["data"]["pid"], 77);
    let look = &server.seen()[1];
    assert_eq!(look.line(), "GET /api2/json/nodes/pve1/qemu/101/agent/exec-status");
    assert_eq!(look.query, "pid=77");
}

// Rows: A15
#[tokio::test]
async fn a_websocket_call_without_a_ticket_requests_one_first() {
    let server = server().await;
    let done = run(&shortcut(&server, "kvm_vncwebsocket", "")).await;
    let below = "/api2/json/nodes/pve1/qemu/101";
    let lines = [format!("POST {below}/vncproxy"), format!("GET {below}/vncwebsocket")];
    assert_eq!(server.lines(), lines);
    assert_eq!(server.seen()[0].json(), json!({ "websocket": 1 }));
    assert_eq!(server.seen()[1].query, "port=5901&vncticket=PVEVNC%3Aa%2Bb");
    let data = done.data();
    assert_eq!((&data["port"], &data["ticket"]), (&json!("5901"), &json!("PVEVNC:a+b")));
    assert!(!done.out.contains("PVEVNC"), "{}", done.out);
}

// Rows: A15
#[tokio::test]
async fn metrics_default_to_the_last_hour() {
    let server = server().await;
    run(&shortcut(&server, "lxc_metrics", "")).await.data();
    assert_eq!(server.seen()[0].query, "timeframe=hour");
}

// Rows: A16
#[tokio::test]
async fn an_explicit_call_uses_its_method_and_path() {
    for (more, line, body) in [
        ("api_command: status/current", "GET /qemu/101/status/current", Value::Null),
        ("api_command: config", "GET /qemu/101/config", Value::Null),
        ("api_command: status/reboot", "POST /qemu/101/status/reboot", Value::Null),
        (
            "api_command: config, api_method: PUT, api_params: { cores: 4 }",
            "PUT /qemu/101/config",
            json!({ "cores": 4 }),
        ),
        (
            "api_command: 'snapshot/a%20b', api_method: DELETE",
            "DELETE /qemu/101/snapshot/a%20b",
            Value::Null,
        ),
    ] {
        let server = server().await;
        let step =
            job("proxmox", "mine", &product(&server, &format!("vmid: 101, type: qemu, {more}")));
        run(&step).await.data();
        let seen = server.seen().remove(0);
        let line = line.replace(" /", " /api2/json/nodes/pve1/");
        assert_eq!((seen.line(), seen.json()), (line, body), "{more}");
    }
}

// Rows: A16
#[tokio::test]
async fn the_parameters_of_a_reading_call_become_its_query() {
    let server = server().await;
    let more = "type: lxc, api_command: rrddata, api_method: GET, vmid: '7', \
        api_params: { timeframe: week, 'a b': 'x&y', on: true }";
    let done = run(&job("proxmox", "mine", &product(&server, more))).await;
    assert_eq!(done.data()["status"], "running");
    assert_eq!(server.seen()[0].query, "timeframe=week&a+b=x%26y&on=1");
}

// Rows: A16
#[tokio::test]
async fn substituted_values_cannot_change_the_path_of_a_call() {
    let server = server().await;
    let mut step = shortcut(&server, "kvm_start", "");
    for vmid in ["1/../..", "..", "100?x", "${no.such}"] {
        step.with.insert("vmid".to_owned(), vmid.into());
        assert!(refused(&step).await.contains("`vmid` is not a number"), "{vmid}");
    }
    step.with.insert("vmid".to_owned(), 101.into());
    for path in
        ["/api2/json/nodes/{node}/../x", "/api2/json/a%2Fb", "/other/json/nodes", "/api2/json/a?b"]
    {
        step.with.insert("path".to_owned(), path.into());
        let said = refused(&step).await;
        assert!(said.contains("path"), "{said}");
    }
    assert!(server.seen().is_empty());
}

// Rows: A16
#[tokio::test]
async fn an_agent_call_for_a_container_is_refused_in_every_form() {
    let server = server().await;
    let more = "vmid: 101, type: lxc, api_command: agent/exec, api_params: { command: [ls] }";
    let said = refused(&job("proxmox", "mine", &product(&server, more))).await;
    assert!(said.contains("containers have no agent"), "{said}");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_bob_step_must_specify_the_whole_call() {
    let server = server().await;
    let with = product(
        &server,
        "type: qemu, vmid: 9, method: GET, path: '/api2/json/nodes/{node}/qemu/{vmid}/config'",
    );
    let done = run(&bob("proxmox", &with)).await;
    assert_eq!(done.data()["status"], "running");
    assert_eq!(server.lines(), ["GET /api2/json/nodes/pve1/qemu/9/config"]);
    let said = refused(&bob("proxmox", &product(&server, "method: GET"))).await;
    assert!(said.contains("`path` is missing"), "{said}");
}
