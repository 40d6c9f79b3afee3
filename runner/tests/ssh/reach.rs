//! The hosts, keys and known hosts that a worker lets others' steps name.

use runner::egress::{Exception, Pattern, Rules};

use super::*;

/// A worker that allows an address and a directory.
fn worker(exceptions: Vec<Exception>, dir: &Path) -> Ssh {
    let inherited = std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "HOME");
    Ssh::new(Options {
        program: "ssh".into(),
        inherited: inherited.collect(),
        policy: Policy::restricted(Rules { exceptions, own: Vec::new() }),
        named: NamedFiles::below(vec![dir.to_owned()]),
    })
}

fn opened(server: &Server) -> Vec<Exception> {
    let net = "127.0.0.1/32".parse().unwrap();
    vec![Exception { pattern: Pattern::Net(net), port: Some(server.port) }]
}

async fn run_by(ssh: &Ssh, with: Map<String, Value>) -> (Result<StepOutcome, ExecError>, String) {
    let (kept, stop, scope) = (Arc::new(OutputRecorder::default()), StopSignal::default(), scope());
    let out: Arc<dyn LogSink> = Arc::<OutputRecorder>::clone(&kept);
    let step = step(with, "echo there");
    let ran = ssh.run_step(&scope, &step, Gate::open(), out, &stop);
    (soon("the end of a step", ran).await, kept.text())
}

async fn refused(ssh: &Ssh, with: Map<String, Value>) -> String {
    match run_by(ssh, with).await {
        (Err(ExecError::Unsupported(why)), _) => why,
        (other, _) => panic!("it was not refused: {other:?}"),
    }
}

fn changed(server: &Server, changes: Value) -> Map<String, Value> {
    let mut with = server.with();
    let Value::Object(changes) = changes else { panic!("{changes} is not a map of changes") };
    with.extend(changes);
    with
}

#[tokio::test]
async fn a_closed_host_is_refused_by_address_and_by_name() {
    let Some(server) = Server::start() else { return };
    let ssh = worker(Vec::new(), server.dir.path());
    for host in ["127.0.0.1", "localhost", "::ffff:127.0.0.1", "0", "127.1", "64:ff9b::7f00:1"] {
        let why = refused(&ssh, changed(&server, json!({ "host": host }))).await;
        assert!(why.contains("BOB_ALLOWED_ADDRESSES"), "{host}: {why}");
    }
}

#[tokio::test]
async fn an_opened_host_is_reached_and_its_key_is_looked_up_by_name() {
    let Some(server) = Server::start() else { return };
    let ssh = worker(opened(&server), server.dir.path());
    let (ran, text) = run_by(&ssh, server.with()).await;
    assert_eq!((ran.unwrap().exit.code, text.as_str()), (0, "there\n"));
    // The key is not known under another name, even if the address is the same.
    let by_name = changed(&server, json!({ "host": "localhost" }));
    let (ran, _) = run_by(&ssh, by_name).await;
    let error = ran.unwrap_err().to_string();
    assert!(error.contains("key"), "{error}");
    let known = std::fs::read_to_string(server.path("known_hosts")).unwrap();
    std::fs::write(server.path("known_hosts"), known.replace("[127.0.0.1]", "[localhost]"))
        .unwrap();
    let (ran, _) = run_by(&ssh, changed(&server, json!({ "host": "localhost" }))).await;
    assert_eq!(ran.unwrap().exit.code, 0);
}

#[tokio::test]
async fn key_and_known_hosts_must_be_files_that_the_operator_allows() {
    let Some(server) = Server::start() else { return };
    let ssh = worker(opened(&server), server.dir.path());
    let elsewhere = tempfile::tempdir().unwrap();
    for name in ["user", "known_hosts"] {
        std::fs::copy(server.path(name), elsewhere.path().join(name)).unwrap();
    }
    for (key, name) in [("keyfile", "user"), ("known_hosts_file", "known_hosts")] {
        let link = server.path(&format!("link-{name}"));
        std::os::unix::fs::symlink(elsewhere.path().join(name), &link).unwrap();
        for path in [elsewhere.path().join(name), link, "/dev/zero".into(), "~/.ssh/id".into()] {
            let mut with = server.with();
            with.insert(key.to_owned(), json!(path));
            let why = refused(&ssh, with).await;
            assert!(why.contains(&format!("`{key}`")), "{path:?}: {why}");
        }
    }
}

#[tokio::test]
async fn a_named_known_hosts_file_is_never_written() {
    let Some(server) = Server::start() else { return };
    let ssh = worker(opened(&server), server.dir.path());
    let target = server.path("notes");
    std::fs::write(&target, "").unwrap();
    for known_hosts in ["accept-new", "off"] {
        let more = json!({ "known_hosts": known_hosts, "known_hosts_file": target });
        let why = refused(&ssh, changed(&server, more)).await;
        assert!(why.contains("known_hosts: strict"), "{why}");
    }
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "");
}
