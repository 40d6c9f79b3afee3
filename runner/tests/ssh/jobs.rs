//! Job files whose commands run on another host, through the whole program.

use serde_json::{Value, json};

use super::server::Server;

/// Runs a job file. Returns the exit code and the program's output.
fn run_file(server: &Server, jobs: &Value) -> (Option<i32>, String, String) {
    std::fs::write(server.path("jobs.json"), jobs.to_string()).unwrap();
    let said = std::process::Command::new(env!("CARGO_BIN_EXE_bob-runner"))
        .args(["run", "jobs.json"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", server.dir.path())
        .env("HERE", "of the runner")
        .current_dir(server.dir.path())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (said.status.code(), text(said.stdout), text(said.stderr))
}

/// The `product` of a job on the server.
fn product(server: &Server, commands: &Value) -> Value {
    let mut product = server.with();
    // The default user is root.
    if server.user == "root" {
        product.remove("user");
    }
    product.insert("commands".to_owned(), commands.clone());
    Value::Object(product)
}

// Rows: A14
#[test]
fn a_job_file_on_another_host_has_the_results_of_its_remote_commands() {
    let Some(server) = Server::start() else { return };
    let commands = json!([
        "X='in one shell'",
        "echo \"$MYVAR, $X, ${HERE-not known}, $(id -un)\"",
        "echo 'a'\\''b $MYVAR' ${UNKNOWN:-kept}",
    ]);
    let variables = json!({ "MYVAR": "it's \"odd\" $HOME; exit 1" });
    let jobs = json!([
        { "id": "a", "job_id": "there", "executor": "ssh", "variables": variables,
          "product": product(&server, &commands) },
        { "job_id": "wrong", "executor": "ssh",
          "product": product(&server, &json!("echo before ${PREVIOUS_JOB_ID}; exit 7")) },
        { "job_id": "last", "executor": "ssh", "product": product(&server, &json!("false\ntrue")) },
    ]);
    let (code, out, err) = run_file(&server, &jobs);
    assert_eq!(code, Some(1), "{out} {err}");
    let user = &server.user;
    let first = format!("it's \"odd\" $HOME; exit 1, in one shell, not known, {user}\n");
    assert!(out.contains(&format!("{first}a'b $MYVAR kept\n")), "{out}");
    let read = |file: &str| std::fs::read_to_string(server.path(file)).unwrap();
    assert!(read("workdir/there/status.yaml").contains("status: success\nexit_code: 0\n"));
    let wrong = read("workdir/wrong/status.yaml");
    assert!(wrong.contains("status: failed\nexit_code: 7\n"), "{wrong}");
    assert!(read("workdir/last/status.yaml").contains("status: success"), "the last status holds");
    assert!(read("logs/there.log").contains(&first));
    assert!(read("logs/wrong.log").contains("before there\n"), "{}", read("logs/wrong.log"));
}

// Rows: A14
#[test]
fn a_host_with_an_unknown_key_fails_its_job_and_receives_nothing() {
    let Some(server) = Server::start() else { return };
    server.know("other");
    let mark = server.path("mark");
    let commands = json!(format!("touch {}", mark.display()));
    let job = json!({ "job_id": "j", "executor": "ssh", "product": product(&server, &commands) });
    let (code, out, err) = run_file(&server, &job);
    assert_eq!(code, Some(1), "{out} {err}");
    let status = std::fs::read_to_string(server.path("workdir/j/status.yaml")).unwrap();
    assert!(status.contains("status: failed"), "{status}");
    assert!(!mark.exists());
}
