//! Logging in: hosts, keys, and values passed to the host.

use super::*;

const HOSTILE: [&str; 10] = [
    "it's \"quoted\"",
    "$(touch owned) `touch owned` ${HOME} $$",
    "two\nlines\n",
    "\n",
    "",
    " blanks \t and\ttabs ",
    "back\\slash \\n \\'",
    "ünïcödé 日本 😀 Á Ă \u{1}\u{7f}\r",
    "; exit 7 & | < > * ? [a] {b,c} ~ # !",
    "-n --help",
];

/// Row A14: port, keyfile, user and quoting. The default user `root` is tested with the arguments
/// of `ssh` (`exec::ssh::target`), because tests need not run as root.
// Rows: A14
#[tokio::test]
async fn port_keyfile_user_and_quoting_reach_ssh_unchanged() {
    let Some(server) = Server::start() else { return };
    let names = (0..HOSTILE.len()).map(|at| format!("V{at}"));
    let env: Vars = names.zip(HOSTILE.map(str::to_owned)).collect();
    let shown: String =
        (0..HOSTILE.len()).map(|at| format!("printf '%s\\0' \"$V{at}\"; ")).collect();
    let texts = |text: &str| -> Vec<String> {
        text.strip_suffix('\0').unwrap().split('\0').map(str::to_owned).collect()
    };
    // As variables, and as a program that contains each of them.
    let said = StepSpec { env, ..step(server.with(), &shown) };
    let (code, text) = ended(&said).await;
    assert_eq!((code, texts(&text)), (0, HOSTILE.map(str::to_owned).to_vec()));
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let shown: String =
        HOSTILE.map(|text| format!("printf '%s\\0' {}\n", quoted(text))).into_iter().collect();
    let (code, text) = ended(&step(server.with(), &shown)).await;
    assert_eq!((code, texts(&text)), (0, HOSTILE.map(str::to_owned).to_vec()));
    // As the words of a command.
    let mut words = vec!["printf".to_owned(), "%s\\0".to_owned()];
    words.extend(HOSTILE.map(str::to_owned));
    let command = StepSpec { script: None, words, ..step(server.with(), "") };
    let (code, text) = ended(&command).await;
    assert_eq!((code, texts(&text)), (0, HOSTILE.map(str::to_owned).to_vec()));
    // The user is the one that was named.
    let (_, text) = ended(&step(server.with(), "id -un")).await;
    assert_eq!(text.trim(), server.user);
}

#[tokio::test]
async fn values_of_a_step_appear_in_no_argument_list() {
    let Some(server) = Server::start() else { return };
    let secret = uuid::Uuid::new_v4().simple().to_string();
    let program = format!("echo $$; : {secret}; sleep 1000; :");
    let env = Vars::from([("SECRET".into(), secret.clone())]);
    let running = Running::start(StepSpec { env, ..step(server.with(), &program) });
    running.pids(1).await;
    let lines = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = lines.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let shown: Vec<String> = lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(&secret))
        .collect();
    assert!(shown.is_empty(), "{shown:?}");
    running.stop.raise(StopLevel::Kill);
    assert_eq!(running.end().await.unwrap().exit.code, 137);
}

fn but(with: Map<String, Value>, key: &str, value: Value) -> Map<String, Value> {
    let mut with = with;
    with.insert(key.to_owned(), value);
    with
}

/// Why a step was not started, and its exit code.
async fn refusal(with: Map<String, Value>) -> (i32, String) {
    match run(&step(with, "echo ran")).await {
        (Err(ExecError::Start { cause, code, .. }), kept) => {
            assert_eq!(kept.text(), "", "nothing ran");
            (code, cause)
        }
        (other, _) => panic!("it cannot be started: {other:?}"),
    }
}

#[tokio::test]
async fn a_host_with_an_unknown_key_is_refused_unless_the_step_allows_it() {
    let Some(server) = Server::start() else { return };
    std::fs::write(server.path("known_hosts"), "").unwrap();
    let (code, why) = refusal(server.with()).await;
    assert_eq!(code, 255);
    for part in ["127.0.0.1", "is not known", "known_hosts", "`known_hosts: accept-new`"] {
        assert!(why.contains(part), "{why}");
    }
    let off = but(server.with(), "known_hosts", "off".into());
    let off = but(off, "known_hosts_file", json!(server.path("none")));
    assert_eq!(ended(&step(off, "echo ran")).await.1, "ran\n");
    let new = but(server.with(), "known_hosts", "accept-new".into());
    assert_eq!(ended(&step(new.clone(), "echo ran")).await.1, "ran\n");
    assert_eq!(
        ended(&step(server.with(), "echo ran")).await.1,
        "ran\n",
        "the new key was recorded"
    );
    server.know("other");
    let (_, why) = refusal(new).await;
    assert!(why.contains("is not the one that is known"), "{why}");
}

#[tokio::test]
async fn a_rejected_login_gives_the_reason() {
    let Some(server) = Server::start() else { return };
    let (code, why) = refusal(but(server.with(), "keyfile", json!(server.path("other")))).await;
    assert_eq!(code, 255);
    assert!(
        why.contains("does not let the worker in") && why.contains("Permission denied"),
        "{why}"
    );
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let (code, why) = refusal(but(server.with(), "port", port.into())).await;
    assert_eq!(code, 255);
    assert!(why.contains("there is no connection to") && why.contains("refused"), "{why}");
}

#[tokio::test]
async fn an_unsupported_step_is_refused_before_anything_starts() {
    let Some(server) = Server::start() else { return };
    let good = step(server.with(), "true");
    let with =
        |key: &str, value: Value| StepSpec { with: but(server.with(), key, value), ..good.clone() };
    let limits = Limits { cpu: "1".parse().ok(), ..Limits::default() };
    let env = |name: &str, value: &str| Vars::from([(name.into(), value.into())]);
    for (bad, part) in [
        (with("host", "-oProxyCommand=touch owned".into()), "begins with `-`"),
        (with("user", "a b".into()), "`user`"),
        (with("keyfile", json!(server.path("nowhere"))), "`keyfile`"),
        (StepSpec { limits, ..good.clone() }, "limits"),
        (StepSpec { env: env("A-B", "x"), ..good.clone() }, "\"A-B\""),
        (StepSpec { env: env("A;exit", "x"), ..good.clone() }, "no shell knows"),
        (StepSpec { env: env("A", "\0"), ..good.clone() }, "NUL"),
        (StepSpec { with: Map::new(), ..good.clone() }, "missing field `host`"),
    ] {
        match run(&bad).await.0 {
            Err(ExecError::Unsupported(why)) => {
                assert!(why.starts_with("step 0: ") && why.contains(part), "{part}: {why}");
            }
            other => panic!("{part} is refused: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_worker_without_ssh_names_the_package_to_install() {
    let none = Ssh::new(Options {
        program: "/nowhere/ssh".into(),
        inherited: Vec::new(),
        policy: Policy::unrestricted(),
        named: NamedFiles::any(),
    });
    let with = json!({ "host": "127.0.0.1" }).as_object().unwrap().clone();
    let out: Arc<dyn LogSink> = Arc::new(OutputRecorder::default());
    let stop = StopSignal::default();
    match none.run_step(&scope(), &step(with, "true"), Gate::open(), out, &stop).await {
        Err(ExecError::Unsupported(why)) => assert!(why.contains("openssh-client"), "{why}"),
        other => panic!("it must report the missing ssh: {other:?}"),
    }
}
