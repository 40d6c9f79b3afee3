//! The requests of call jobs, one row per action, and the services' responses. Shared with the
//! tests of clusters.

use serde_json::{Value, json};

use super::server::ReceivedRequest;

/// The task started by every asynchronous call.
pub(crate) const TASK: &str = "UPID:pve1:0003A1B2:0C8E:66AA:qmstart:101:ci@pve!ci:";

/// The `product` of a Proxmox VE call.
pub(crate) fn of_proxmox(url: &str, more: &str) -> String {
    format!("host: '{url}', node: pve1, token_id: 'ci@pve!ci', token_secret: s3cret-of-pve, {more}")
}

/// The `product` of a call with an account, below a path of a service.
pub(crate) fn with_account(account: &str, url: &str, below: &str, more: &str) -> String {
    format!("{account}, base_url: '{url}/{below}', {more}")
}

/// Answers like Proxmox.
pub(crate) fn pve(seen: &ReceivedRequest) -> Value {
    let last = seen.path.rsplit('/').next().unwrap();
    if seen.path.contains("/tasks/") {
        return json!({ "data": { "status": "stopped", "exitstatus": "OK" } });
    }
    match (seen.method.as_str(), last) {
        ("POST", "exec") => json!({ "data": { "pid": 77 } }),
        ("GET", "exec-status") => {
            json!({ "data": { "exited": 1, "exitcode": 0, "out-data": "total 0\n" } })
        }
        ("POST", "vncproxy") => {
            json!({ "data": { "ticket": "PVEVNC:a+b", "port": "5901", "user": "ci@pve!ci" } })
        }
        ("GET", "vncwebsocket") => json!({ "data": { "port": "5901" } }),
        ("GET", _) => json!({ "data": { "status": "running" } }),
        (_, _) => json!({ "data": TASK }),
    }
}

/// An action, its keys, the method, the path below the API's base, the query, and the body.
pub(crate) type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, Value);

/// The shortcuts of one kind of machine, without prefix.
pub(crate) fn of_machines(kind: &str) -> Vec<Row> {
    let null = Value::Null;
    let mut rows = vec![
        (
            "create",
            "params: { ostemplate: 'local:vztmpl/x', cores: 2, start: true }",
            "POST",
            "",
            "",
            json!({ "ostemplate": "local:vztmpl/x", "cores": 2, "start": true, "vmid": "101" }),
        ),
        ("start", "", "POST", "/101/status/start", "", null.clone()),
        (
            "stop",
            "params: { timeout: 30 }",
            "POST",
            "/101/status/stop",
            "",
            json!({ "timeout": 30 }),
        ),
        ("delete", "params: { purge: true }", "DELETE", "/101", "purge=1", null.clone()),
        ("status", "", "GET", "/101/status/current", "", null.clone()),
        ("config", "", "GET", "/101/config", "", null.clone()),
        (
            "agent_exec",
            "params: { command: [ls, -l] }",
            "POST",
            "/101/agent/exec",
            "",
            json!({ "command": ["ls", "-l"] }),
        ),
        (
            "vncproxy",
            "params: { websocket: 1 }",
            "POST",
            "/101/vncproxy",
            "",
            json!({ "websocket": 1 }),
        ),
        (
            "vncwebsocket",
            "params: { port: 5900, vncticket: 'PVEVNC:x+y' }",
            "GET",
            "/101/vncwebsocket",
            "port=5900&vncticket=PVEVNC%3Ax%2By",
            null,
        ),
    ];
    rows.extend(later_rows(kind));
    rows
}

/// The actions in the second half of the table.
fn later_rows(kind: &str) -> Vec<Row> {
    let name = if kind == "lxc" { "hostname" } else { "name" };
    let null = Value::Null;
    vec![
        (
            "migrate",
            "params: { target: pve2, online: 1 }",
            "POST",
            "/101/migrate",
            "",
            json!({ "target": "pve2", "online": 1 }),
        ),
        (
            "clone",
            "params: { newid: 102, name: copy }",
            "POST",
            "/101/clone",
            "",
            json!({ "newid": 102, name: "copy" }),
        ),
        (
            "resize",
            "params: { disk: scsi0, size: +10G }",
            "PUT",
            "/101/resize",
            "",
            json!({ "disk": "scsi0", "size": "+10G" }),
        ),
        ("firewall", "", "GET", "/101/firewall/options", "", null.clone()),
        (
            "metrics",
            "params: { timeframe: day, cf: MAX }",
            "GET",
            "/101/rrddata",
            "timeframe=day&cf=MAX",
            null.clone(),
        ),
        ("list", "", "GET", "", "", null),
        (
            "snapshot",
            "params: { snapname: before, description: why not }",
            "POST",
            "/101/snapshot",
            "",
            json!({ "snapname": "before", "description": "why not" }),
        ),
    ]
}

/// The path that saves an invoice together with its parts.
const SAVE: &str = "/Invoice/Factory/saveInvoice";

/// The actions of sevDesk.
pub(crate) fn of_sevdesk() -> Vec<Row> {
    let mut rows = sevdesk_changes();
    rows.extend(sevdesk_reads());
    rows
}

/// The actions that create or change an invoice or a contact.
fn sevdesk_changes() -> Vec<Row> {
    let draft = json!({ "invoice": {
        "header": "x", "objectName": "Invoice", "mapAll": true, "status": 100
    } });
    let null = Value::Null;
    vec![
        (
            "create_invoice",
            "contact_id: 7, invoice_data: { header: x, invoicePosSave: [{ name: a }] }",
            "POST",
            SAVE,
            "",
            json!({
                "invoicePosSave": [{ "name": "a" }],
                "invoice": {
                    "header": "x", "objectName": "Invoice", "mapAll": true,
                    "contact": { "id": 7, "objectName": "Contact" }
                }
            }),
        ),
        ("save_invoice_draft", "invoice_data: { header: x }", "POST", SAVE, "", draft.clone()),
        ("save_invoice_draft", "invoice_data: { invoice: { header: x } }", "POST", SAVE, "", draft),
        (
            "cancel_invoice",
            "invoice_id: 4711",
            "POST",
            "/Invoice/4711/cancelInvoice",
            "",
            null.clone(),
        ),
        ("delete_invoice", "invoice_id: '4711'", "DELETE", "/Invoice/4711", "", null),
        (
            "send_invoice",
            "invoice_id: 1, toEmail: a@b, subject: s, text: hello",
            "POST",
            "/Invoice/1/sendViaEmail",
            "",
            json!({ "toEmail": "a@b", "subject": "s", "text": "hello" }),
        ),
        (
            "create_contact",
            "contact_data: { name: ACME }",
            "POST",
            "/Contact",
            "",
            json!({ "name": "ACME" }),
        ),
    ]
}

/// The actions that only read.
fn sevdesk_reads() -> Vec<Row> {
    let null = Value::Null;
    vec![
        ("get_invoice", "invoice_id: 4711", "GET", "/Invoice/4711", "", null.clone()),
        ("get_invoice_status", "invoice_id: 4711", "GET", "/Invoice/4711", "", null.clone()),
        (
            "list_invoices",
            "filter: { status: 100, header: 'a&b', contact: { id: 7, objectName: Contact } }",
            "GET",
            "/Invoice",
            "status=100&header=a%26b&contact%5Bid%5D=7&contact%5BobjectName%5D=Contact",
            null,
        ),
    ]
}

/// An invoice as Lexware Office returns it.
pub(crate) fn invoice() -> Value {
    json!({
        "id": "e9066f04", "voucherStatus": "open", "remark": "of its own",
        "address": { "contactId": "c-1" }, "lineItems": [{ "name": "a" }],
        "totalPrice": { "currency": "EUR" }, "taxConditions": { "taxType": "net" }
    })
}
