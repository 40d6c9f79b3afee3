//! A publisher cannot make the worker read or write a file of its host.

use serde_json::{Value, json};

use crate::place::TestEnv;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_does_not_read_host_files_that_a_message_names() {
    let Some(place) = TestEnv::new().await else { return };
    let dir = place.dir.path();
    let (open, closed) = (dir.join("open"), dir.join("closed"));
    for made in [&open, &closed] {
        std::fs::create_dir(made).unwrap();
        std::fs::write(made.join("file"), "").unwrap();
    }
    std::os::unix::fs::symlink(closed.join("file"), open.join("link")).unwrap();
    let fifo = open.join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let server = place
        .serve(&[
            ("BOB_EXECUTORS", "http,ssh,proxmox,sevdesk"),
            ("BOB_FILE_DIRS", open.to_str().unwrap()),
        ])
        .await;
    let http = |path: &Value| json!({ "executor": "http", "with": { "url": "https://127.0.0.1:9", "ca_file": path } });
    let ssh = |key: &str, path: &Value, known: &str| {
        json!({ "executor": "ssh", "cmd": "true",
            "with": { "host": "127.0.0.1", "port": 9, "known_hosts": known, key: path } })
    };
    let mut steps = Vec::new();
    for path in ["/dev/zero", closed.join("file").to_str().unwrap(), "../closed/file"] {
        let path = json!(path);
        steps.push((http(&path), "BOB_FILE_DIRS"));
        steps.push((ssh("keyfile", &path, "off"), "BOB_FILE_DIRS"));
        steps.push((ssh("known_hosts_file", &path, "strict"), "BOB_FILE_DIRS"));
    }
    steps.push((http(&json!(open.join("link"))), "leads out of"));
    steps.push((http(&json!(fifo)), "not a regular file"));
    for known in ["accept-new", "off"] {
        let named = ssh("known_hosts_file", &json!(open.join("file")), known);
        steps.push((named, "known_hosts: strict"));
    }
    let pdf = json!({ "action": "get_invoice_pdf", "api_token": "t", "invoice_id": 1,
        "pdf_output": "made.pdf", "base_url": "http://127.0.0.1:9" });
    steps.push((json!({ "executor": "sevdesk", "with": pdf }), "pdf_output"));
    for (number, (step, why)) in steps.into_iter().enumerate() {
        let run = place.run(&format!("named-{number}"));
        place.start(&run, &place.pipeline("named", &json!([step]))).await;
        let record = place.keys.settled(&run).await;
        assert_eq!(record["status"], "failed", "{step}: {record:#}");
        assert!(record.to_string().contains(why), "{step}: {record:#}");
    }
    for made in [&open, &closed] {
        assert_eq!(std::fs::read_to_string(made.join("file")).unwrap(), "", "the file was changed");
    }
    server.end().await;
}
