//! A settings file in the working directory does not decide where credentials are sent, and a file
//! that other users can change is not read. The rule is part of the program, so engines do not
//! matter.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The credential that must not be sent anywhere.
const PASSWORD: &str = "hunter2";

/// A checkout whose settings file names this listener as the broker.
struct Checkout {
    dir: tempfile::TempDir,
    listener: TcpListener,
}

impl Checkout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("amqp://{}", listener.local_addr().unwrap());
        let text = format!("[queue]\nurl = \"{url}\"\n");
        std::fs::write(dir.path().join("bob-runner.toml"), text).unwrap();
        Self { dir, listener }
    }

    /// Pauses a pipeline, which needs only the broker.
    fn pause(&self, options: &[&str]) -> Output {
        let home = self.dir.path().join("home");
        Command::new(env!("CARGO_BIN_EXE_bob-runner-under-test"))
            .args(["pause", "dev/x"])
            .args(options)
            .env_clear()
            .env("HOME", home)
            .env("BOB_QUEUE_PASSWORD", PASSWORD)
            .env("BOB_CONNECTION_RETRY_ATTEMPTS", "1")
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Whether the program has connected to the listener.
    fn has_connection(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        self.listener.accept().is_ok()
    }
}

fn assert_rejected(output: &Output, sentence: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains(sentence), "{said}");
    assert!(!said.contains(PASSWORD), "{said}");
}

#[test]
fn a_settings_file_in_the_working_directory_cannot_redirect_credentials() {
    let checkout = Checkout::new();
    let output = checkout.pause(&[]);
    assert_rejected(&output, "queue.url: is not combined with credentials from elsewhere");
    assert!(!checkout.has_connection(), "the broker of the checkout was asked");
}

#[test]
fn an_explicitly_named_settings_file_can_set_the_broker() {
    let checkout = Checkout::new();
    let listener = checkout.listener.try_clone().unwrap();
    // A broker that closes the connection, so that the program does not wait for a response.
    let accepted = std::thread::spawn(move || listener.accept().map(drop).is_ok());
    let output = checkout.pause(&["--config", "bob-runner.toml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(accepted.join().unwrap(), "{said}");
}

#[test]
fn a_settings_file_that_other_users_can_replace_is_not_read() {
    let checkout = Checkout::new();
    let path = checkout.dir.path().join("bob-runner.toml");
    let set_mode = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    set_mode(&path, 0o664);
    let named = ["--config", "bob-runner.toml"];
    assert_rejected(&checkout.pause(&named), "can be changed by other users (mode 664)");
    set_mode(&path, 0o600);
    set_mode(checkout.dir.path(), 0o777);
    assert_rejected(&checkout.pause(&named), "in which other users can replace files");
    assert!(!checkout.has_connection(), "the broker of the checkout was asked");
}
