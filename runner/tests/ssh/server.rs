//! A real sshd on loopback per test, with its own keys, run by the user of the test.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use test_support::skipped::{Need, skip};

/// Debian's path. It is not in a user's `PATH`.
const SSHD: &str = "/usr/sbin/sshd";

/// The server. Each connection has its own process, which ends with the test.
pub(crate) struct Server {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) user: String,
    served: Arc<Mutex<Vec<(TcpStream, Child)>>>,
}

impl Server {
    /// Starts a server. `None` if there is no sshd.
    pub(crate) fn start() -> Option<Self> {
        if !Path::new(SSHD).exists() {
            skip(&["sshd"], Need::Provided);
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["host", "user", "other"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(at(name));
            assert!(keygen.status().unwrap().success());
        }
        std::fs::copy(at("user.pub"), at("authorized")).unwrap();
        let config = format!(
            "HostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nPidFile none\nUsePAM no\n\
             StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nPrintMotd no\nLogLevel ERROR\n",
            dir.path().display()
        );
        std::fs::write(at("config"), config).unwrap();
        let said = Command::new("id").arg("-un").output().unwrap();
        let user = String::from_utf8(said.stdout).unwrap().trim().to_owned();
        if user == "root" {
            // Debian's service unit would create it.
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = Arc::new(Mutex::new(Vec::new()));
        serve(listener, at("config"), at("log"), Arc::clone(&served));
        let server = Self { dir, port, user, served };
        server.know("host");
        Some(server)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds a key of the server to the known hosts.
    pub(crate) fn know(&self, key: &str) {
        let key = std::fs::read_to_string(self.path(&format!("{key}.pub"))).unwrap();
        let line = format!("[127.0.0.1]:{} {key}", self.port);
        std::fs::write(self.path("known_hosts"), line).unwrap();
    }

    /// The `with` of a step that logs in here.
    pub(crate) fn with(&self) -> Map<String, Value> {
        let with = json!({
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "keyfile": self.path("user"),
            "known_hosts_file": self.path("known_hosts"),
        });
        with.as_object().unwrap().clone()
    }

    /// Breaks all connections, like a network fault.
    pub(crate) fn cut(&self) {
        for (connection, _) in self.served.lock().iter() {
            // A connection that has ended is already closed.
            connection.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cut();
        for (_, child) in self.served.lock().iter_mut() {
            child.wait().unwrap();
        }
    }
}

/// Accepts connections until the test process ends.
fn serve(
    listener: TcpListener,
    config: PathBuf,
    log: PathBuf,
    served: Arc<Mutex<Vec<(TcpStream, Child)>>>,
) {
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let connection = connection.unwrap();
            let [read, write] =
                [(); 2].map(|()| Stdio::from(OwnedFd::from(connection.try_clone().unwrap())));
            let mut sshd = Command::new(SSHD);
            sshd.arg("-i").arg("-f").arg(&config).arg("-E").arg(&log).stdin(read).stdout(write);
            let child = sshd.stderr(Stdio::null()).spawn().unwrap();
            served.lock().push((connection, child));
        }
    });
}
