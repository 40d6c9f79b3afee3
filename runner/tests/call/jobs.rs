//! Runs job files with calls through the whole program.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::rows::{TASK, invoice, of_proxmox, pve, with_account};
use super::server::{Reply, Server};

/// A job file that was run.
struct Ran {
    dir: tempfile::TempDir,
    code: Option<i32>,
    /// The complete output of the program.
    said: String,
}

impl Ran {
    async fn file(jobs: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("jobs.yml"), jobs).unwrap();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_bob-runner"));
        command.args(["run", "jobs.yml"]).env_clear().env("PATH", "/usr/bin:/bin");
        command.env("HOME", dir.path()).current_dir(dir.path());
        let output = command.output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout) + &text(&output.stderr);
        // The output must not contain an account's key.
        assert!(!said.contains("s3cret"), "{said}");
        Self { dir, code: output.status.code(), said }
    }

    fn path(&self, job: &str, file: &str) -> PathBuf {
        self.dir.path().join("workdir").join(job).join(file)
    }

    fn result(&self, job: &str) -> Value {
        let text = std::fs::read_to_string(self.path(job, "result.json"));
        serde_json::from_str(&text.unwrap_or_else(|_| panic!("{job}: {}", self.said))).unwrap()
    }

    /// The data of a job that passed.
    fn data(&self, job: &str) -> Value {
        let result = self.result(job);
        assert_eq!((&result["success"], &result["error"]), (&json!(true), &json!("")), "{job}");
        assert!(self.status(job).contains("status: success\nexit_code: 0\n"), "{job}");
        result["data"].clone()
    }

    fn status(&self, job: &str) -> String {
        std::fs::read_to_string(self.path(job, "status.yaml")).unwrap()
    }
}

fn job(name: &str, executor: &str, kind: &str, product: &str) -> String {
    format!(
        "- {{ id: {name}, job_id: {name}, executor: {executor}, type: {kind}, product: {{ {product} }} }}\n"
    )
}

// Rows: A15
#[tokio::test]
async fn a_job_file_that_starts_a_machine_waits_for_the_task_and_returns_it() {
    let server = Server::start(|seen, _| Reply::json(200, &pve(seen))).await;
    let product = of_proxmox(&server.url(), "vmid: 101");
    let ran = Ran::file(&job("started", "proxmox", "kvm_start", &product)).await;
    assert_eq!((ran.code, ran.data("started")), (Some(0), json!(TASK)), "{}", ran.said);
    let seen = server.seen();
    assert_eq!(seen[0].line(), "POST /api2/json/nodes/pve1/qemu/101/status/start");
    assert_eq!(seen[0].header("authorization"), Some("PVEAPIToken=ci@pve!ci=s3cret-of-pve"));
    assert!(seen[1].path.contains("/tasks/"), "{}", seen[1].path);
    assert!(ran.said.contains(&format!("task {TASK}: OK")), "{}", ran.said);
}

// Rows: A15
#[tokio::test]
async fn a_refused_machine_fails_the_job_file_and_the_next_job_continues() {
    let server = Server::start(|seen, _| match seen.method.as_str() {
        "POST" => Reply::Reason("500 VM 101 is locked"),
        _ => Reply::json(200, &pve(seen)),
    })
    .await;
    let product = of_proxmox(&server.url(), "vmid: 101");
    let jobs = job("refused", "proxmox", "kvm_start", &product)
        + &job("asked", "proxmox", "kvm_status", &product);
    let ran = Ran::file(&jobs).await;
    assert_eq!(ran.code, Some(1), "{}", ran.said);
    let refused = ran.result("refused");
    assert_eq!(refused["success"], false);
    assert!(refused["error"].as_str().unwrap().contains("VM 101 is locked"), "{refused}");
    assert!(ran.status("refused").contains("status: failed\nexit_code: 1\n"));
    assert_eq!(ran.data("asked"), json!({ "status": "running" }));
    assert_eq!(server.seen().len(), 2, "a call with an effect is sent once");
}

// Rows: A16
#[tokio::test]
async fn an_explicit_call_is_sent_unchanged_with_the_result_of_another_job() {
    let server = Server::start(|seen, _| Reply::json(200, &pve(seen))).await;
    let url = server.url();
    let reads = of_proxmox(&url, "vmid: 7, type: lxc, api_command: status/current");
    let writes = "vmid: 7, type: lxc, api_command: config, api_method: PUT, \
                  api_params: { description: 'was ${PREVIOUS_RESULT.data.status}', cores: 4 }";
    let jobs = job("reads", "proxmox", "mine", &reads)
        + &job("writes", "proxmox", "mine", &of_proxmox(&url, writes));
    let ran = Ran::file(&jobs).await;
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    let below = "/api2/json/nodes/pve1/lxc/7";
    let sent: Vec<String> =
        server.lines().into_iter().filter(|line| !line.contains("/tasks/")).collect();
    assert_eq!(sent, [format!("GET {below}/status/current"), format!("PUT {below}/config")]);
    assert_eq!(server.seen()[1].json(), json!({ "description": "was running", "cores": 4 }));
    ran.data("writes");
}

// Rows: A17
#[tokio::test]
async fn an_invoice_is_created_sent_and_downloaded_by_its_new_number() {
    let answer = json!({ "objects": { "invoice": { "id": "4711" } } });
    let pdf = json!({ "objects": { "filename": "a.pdf", "content": "JVBERi0xLjc=" } });
    let server = Server::start(move |seen, _| {
        Reply::json(200, if seen.path.ends_with("/getPdf") { &pdf } else { &answer })
    })
    .await;
    let action = |name: &str, kind: &str, more: &str| {
        let account = "api_token: s3cret-of-sev";
        job(name, "sevdesk", kind, &with_account(account, &server.url(), "api/v1", more))
    };
    let number = "invoice_id: '${made.result.data.objects.invoice.id}'";
    let jobs = action("made", "create_invoice", "contact_id: 7, invoice_data: { header: x }")
        + &action("sent", "send_invoice", &format!("{number}, toEmail: a@b, subject: s, text: t"))
        + &action("kept", "get_invoice_pdf", &format!("{number}, pdf_output: out/a.pdf"));
    let ran = Ran::file(&jobs).await;
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    assert_eq!(ran.data("made")["objects"]["invoice"]["id"], "4711");
    let lines = [
        "POST /api/v1/Invoice/Factory/saveInvoice",
        "POST /api/v1/Invoice/4711/sendViaEmail",
        "GET /api/v1/Invoice/4711/getPdf",
    ];
    assert_eq!(server.lines(), lines);
    let token = server.seen()[0].header("authorization").map(str::to_owned);
    assert_eq!(token.as_deref(), Some("s3cret-of-sev"));
    ran.data("sent");
    assert_eq!(ran.data("kept")["path"], "out/a.pdf");
    assert_eq!(std::fs::read(ran.dir.path().join("out/a.pdf")).unwrap(), b"%PDF-1.7");
}

// Rows: A18
#[tokio::test]
async fn an_invoice_is_created_and_cancelled_by_its_new_id() {
    let server = Server::start(|seen, _| match (seen.method.as_str(), seen.path.as_str()) {
        ("GET", _) => Reply::json(200, &invoice()),
        (_, "/v1/invoices") => Reply::json(201, &json!({ "id": "e9066f04" })),
        (_, _) => Reply::json(201, &json!({ "id": "note" })),
    })
    .await;
    let action = |name: &str, kind: &str, more: &str| {
        let account = "api_key: s3cret-of-lex";
        job(name, "lexware", kind, &with_account(account, &server.url(), "v1", more))
    };
    let jobs = action("made", "create_invoice", "customer_id: 0b1c-2, invoice_data: { title: x }")
        + &action("cancelled", "cancel_invoice", "invoice_id: '${made.data.id}'");
    let ran = Ran::file(&jobs).await;
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    assert_eq!(
        (ran.data("made")["id"].clone(), ran.data("cancelled")["id"].clone()),
        (json!("e9066f04"), json!("note"))
    );
    let lines = ["POST /v1/invoices", "GET /v1/invoices/e9066f04", "POST /v1/credit-notes"];
    assert_eq!(server.lines(), lines);
    assert_eq!(server.seen()[0].header("authorization"), Some("Bearer s3cret-of-lex"));
}
