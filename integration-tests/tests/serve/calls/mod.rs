//! Jobs in a cluster that call APIs. Each test names the rows of the job runner's table that it
//! covers. The rows are shared with the tests of the executors.

#[path = "../../../../runner/tests/call/rows.rs"]
mod rows;
#[expect(dead_code, reason = "the tests of calls use more of it")]
#[path = "../../../../runner/tests/call/server.rs"]
pub(crate) mod server;
#[path = "../../../../runner/tests/ssh/server.rs"]
mod sshd;

use serde_json::{Value, json};

use crate::place::TestEnv;
use crate::reader;
use rows::{TASK, invoice, of_proxmox, pve, with_account};
use server::{Reply, Server};

const CALLS: (&str, &str) = ("BOB_EXECUTORS", "ssh,proxmox,sevdesk,lexware");

/// A job file that a worker has run.
struct Ran {
    record: Value,
    events: Vec<Value>,
}

impl Ran {
    async fn file(place: &TestEnv, jobs: &str) -> Self {
        place.write("calls.yml", jobs);
        let run = place.submit("calls.yml").await;
        let record = place.keys.settled(&run).await;
        let events = reader::events_of(place, &run).await;
        reader::assert_gapless(&events);
        let said = format!("{events:?} {}", record["steps"]);
        assert!(!said.contains("s3cret"), "a key of an account was published: {said}");
        Self { record, events }
    }

    /// The result of each job, in order.
    fn results(&self) -> Vec<Value> {
        let steps = self.record["steps"].as_array().unwrap();
        steps.iter().map(|step| step["result"].clone()).collect()
    }

    /// The data of each job. All must have passed.
    fn data(&self) -> Vec<Value> {
        assert_eq!(self.record["status"], "passed", "{:#}", self.record);
        let results = self.results().into_iter();
        let data = results.map(|result| {
            assert_eq!((&result["success"], &result["error"]), (&json!(true), &json!("")));
            result["data"].clone()
        });
        data.collect()
    }

    fn lines(&self, step: &str) -> String {
        let of_step = reader::outputs(&self.events).remove(&(step.to_owned(), "stdout".to_owned()));
        String::from_utf8(of_step.unwrap_or_default()).unwrap()
    }
}

/// A job of a list.
fn job(name: &str, executor: &str, kind: &str, product: &str) -> String {
    format!("- {{ id: {name}, executor: {executor}, type: {kind}, product: {{ {product} }} }}\n")
}

// Rows: A14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_runs_jobs_on_another_host_and_reports_their_exit_codes() {
    let Some(place) = TestEnv::new().await else { return };
    let Some(host) = sshd::Server::start() else { return };
    let product = |commands: Value| {
        let mut product = host.with();
        // The default user is root.
        if host.user == "root" {
            product.remove("user");
        }
        product.insert("commands".to_owned(), commands);
        product
    };
    let jobs = json!([
        { "id": "there", "job_id": "there", "executor": "ssh", "variables": { "MYVAR": "it's" },
          "product": product(json!(["X='a b'", "echo \"$MYVAR $X\" $(id -un) ${HERE-not known}"])) },
        { "id": "wrong", "executor": "ssh",
          "product": product(json!("echo ${PREVIOUS_JOB_ID}; exit 7")) },
        { "id": "last", "executor": "ssh", "product": product(json!("false\ntrue")) },
    ]);
    let files = host.dir.path().to_str().unwrap();
    let server = place.serve(&[CALLS, ("HERE", "of the worker"), ("BOB_FILE_DIRS", files)]).await;
    let ran = Ran::file(&place, &jobs.to_string()).await;
    assert_eq!(ran.record["status"], "failed");
    assert_eq!(ran.lines("there"), format!("it's a b {} not known\n", host.user));
    assert_eq!(ran.lines("wrong"), "there\n");
    let steps = ran.record["steps"].as_array().unwrap();
    let codes: Vec<&Value> = steps.iter().map(|step| &step["exit-code"]).collect();
    assert_eq!(codes, [&json!(0), &json!(7), &json!(0)]);
    server.end().await;
}

/// The requests that a service received, without polls.
fn acts(server: &Server) -> Vec<server::ReceivedRequest> {
    let is_look = |seen: &server::ReceivedRequest| {
        seen.path.contains("/tasks/") || seen.path.ends_with("/agent/exec-status")
    };
    server.seen().into_iter().filter(|seen| !is_look(seen)).collect()
}

// Rows: A15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_sends_the_api_call_of_each_proxmox_shortcut_with_the_token() {
    let Some(place) = TestEnv::new().await else { return };
    let served = Server::start(|seen, _| Reply::json(200, &pve(seen))).await;
    let worker = place.serve(&[CALLS]).await;
    let mut sent = 0;
    for (prefix, kind) in [("kvm", "qemu"), ("lxc", "lxc")] {
        let name = |action: &str| format!("{prefix}_{action}");
        let mut rows = rows::of_machines(kind);
        // It does not exist, and no worker is needed to find that out.
        rows.retain(|row| name(row.0) != "lxc_agent_exec");
        let jobs: String = rows
            .iter()
            .map(|(action, params, ..)| {
                let product = of_proxmox(&served.url(), &format!("vmid: 101, {params}"));
                job(&name(action), "proxmox", &name(action), &product)
            })
            .collect();
        let ran = Ran::file(&place, &jobs).await;
        assert_eq!(ran.data().len(), rows.len());
        assert_eq!(ran.data()[1], TASK, "the task that a start returns");
        let seen = acts(&served).split_off(sent);
        sent += seen.len();
        assert_eq!(seen.len(), rows.len(), "a call with an effect is sent once");
        for ((action, _, method, path, query, body), seen) in rows.iter().zip(&seen) {
            let whole = format!("{method} /api2/json/nodes/pve1/{kind}{path}");
            assert_eq!(seen.line(), whole, "{action}");
            assert_eq!((seen.query.as_str(), &seen.json()), (*query, body), "{action}");
            let token = seen.header("authorization");
            assert_eq!(token, Some("PVEAPIToken=ci@pve!ci=s3cret-of-pve"), "{action}");
        }
    }
    assert_eq!(sent, 31);
    let agent = job("no", "proxmox", "lxc_agent_exec", &of_proxmox(&served.url(), "vmid: 101"));
    place.write("agent.yml", &agent);
    let said = place.program(&["submit", "agent.yml"], &[]).output().await.unwrap();
    let err = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(65), "{err}");
    assert!(err.contains("containers have no agent"), "{err}");
    worker.end().await;
}

// Rows: A15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_machine_fails_its_job_and_later_jobs_still_run() {
    let Some(place) = TestEnv::new().await else { return };
    let served = Server::start(|seen, _| match seen.method.as_str() {
        "POST" => Reply::Reason("500 VM 101 is locked"),
        _ => Reply::json(200, &pve(seen)),
    })
    .await;
    let worker = place.serve(&[CALLS]).await;
    let product = of_proxmox(&served.url(), "vmid: 101");
    let jobs = job("starts", "proxmox", "kvm_start", &product)
        + &job("asks", "proxmox", "kvm_status", &product);
    let ran = Ran::file(&place, &jobs).await;
    assert_eq!(ran.record["status"], "failed");
    let results = ran.results();
    assert!(results[0]["error"].as_str().unwrap().contains("VM 101 is locked"), "{results:?}");
    assert_eq!((&results[0]["success"], &results[1]["success"]), (&json!(false), &json!(true)));
    assert_eq!(ran.record["steps"][0]["exit-code"], 1);
    assert_eq!(served.seen().len(), 2);
    worker.end().await;
}

// Rows: A16
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_sends_an_explicit_proxmox_call_with_the_result_of_another_job() {
    let Some(place) = TestEnv::new().await else { return };
    let served = Server::start(|seen, _| Reply::json(200, &pve(seen))).await;
    let worker = place.serve(&[CALLS]).await;
    let call = |name: &str, more: &str| {
        let more = format!("vmid: 7, type: lxc, {more}");
        job(name, "proxmox", "mine", &of_proxmox(&served.url(), &more))
    };
    let writes = "api_command: config, api_method: PUT, \
                  api_params: { description: 'was ${reads.data.status}', cores: 4 }";
    let jobs = call("reads", "api_command: status/current")
        + &call("writes", writes)
        + &call("posts", "api_command: status/reboot");
    Ran::file(&place, &jobs).await.data();
    let seen = acts(&served);
    let lines: Vec<String> = seen.iter().map(server::ReceivedRequest::line).collect();
    let sent = ["GET /status/current", "PUT /config", "POST /status/reboot"];
    assert_eq!(lines, sent.map(|line| line.replace(" /", " /api2/json/nodes/pve1/lxc/7/")));
    assert_eq!(seen[1].json(), json!({ "description": "was running", "cores": 4 }));
    worker.end().await;
}

// Rows: A17
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_sends_the_call_of_each_sevdesk_action() {
    let Some(place) = TestEnv::new().await else { return };
    let answer = json!({ "objects": [{ "id": "4711", "status": "200" }] });
    let pdf = json!({ "objects": { "filename": "a.pdf", "content": "JVBERi0xLjc=" } });
    let served = Server::start(move |seen, _| {
        Reply::json(200, if seen.path.ends_with("/getPdf") { &pdf } else { &answer })
    })
    .await;
    let worker = place.serve(&[CALLS]).await;
    let of = |action: &str, keys: &str, position: usize| {
        let product = with_account("api_token: s3cret-of-sev", &served.url(), "api/v1", keys);
        job(&format!("j{position}"), "sevdesk", action, &product)
    };
    let rows = rows::of_sevdesk();
    let mut jobs: String =
        rows.iter().enumerate().map(|(position, row)| of(row.0, row.1, position)).collect();
    // One job uses the result of another.
    jobs += &of("delete_invoice", "invoice_id: '${j0.result.data.objects[0].id}'", rows.len());
    jobs += &of("get_invoice_pdf", "invoice_id: 1", rows.len() + 1);
    let data = Ran::file(&place, &jobs).await.data();
    assert_eq!(data[0]["objects"][0]["id"], "4711");
    assert_eq!(data[rows.len() + 1]["base64"], "JVBERi0xLjc=");
    let seen = served.seen();
    assert_eq!(seen.len(), rows.len() + 2);
    for ((action, _, method, path, query, body), seen) in rows.iter().zip(&seen) {
        assert_eq!(seen.line(), format!("{method} /api/v1{path}"), "{action}");
        assert_eq!((seen.query.as_str(), &seen.json()), (*query, body), "{action}");
        assert_eq!(seen.header("authorization"), Some("s3cret-of-sev"), "{action}");
    }
    assert_eq!(seen[rows.len()].line(), "DELETE /api/v1/Invoice/4711");
    assert_eq!(seen[rows.len() + 1].line(), "GET /api/v1/Invoice/1/getPdf");
    worker.end().await;
}

// Rows: A18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_creates_and_cancels_an_invoice_at_lexware() {
    let Some(place) = TestEnv::new().await else { return };
    let served = Server::start(|seen, _| match (seen.method.as_str(), seen.path.as_str()) {
        ("GET", _) => Reply::json(200, &invoice()),
        (_, "/v1/invoices") => Reply::json(201, &json!({ "id": "e9066f04" })),
        (_, _) => Reply::json(201, &json!({ "id": "note" })),
    })
    .await;
    let worker = place.serve(&[CALLS]).await;
    let of = |name: &str, action: &str, keys: &str| {
        let product = with_account("api_key: s3cret-of-lex", &served.url(), "v1", keys);
        job(name, "lexware", action, &product)
    };
    let jobs = of("made", "create_invoice", "customer_id: 5, invoice_data: { title: x }")
        + &of("cancelled", "cancel_invoice", "invoice_id: '${made.data.id}'");
    let data = Ran::file(&place, &jobs).await.data();
    assert_eq!((&data[0]["id"], &data[1]["id"]), (&json!("e9066f04"), &json!("note")));
    let seen = served.seen();
    let lines = ["POST /v1/invoices", "GET /v1/invoices/e9066f04", "POST /v1/credit-notes"];
    assert_eq!(served.lines(), lines);
    assert_eq!(seen[0].json(), json!({ "title": "x", "address": { "contactId": "5" } }));
    assert_eq!(seen[2].query, "precedingSalesVoucherId=e9066f04&finalize=true");
    assert!(seen.iter().all(|seen| seen.header("authorization") == Some("Bearer s3cret-of-lex")));
    worker.end().await;
}
