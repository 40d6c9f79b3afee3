//! The host of a step, and the arguments of `ssh` for it.

use std::ffi::OsString;
use std::fs::File;
use std::num::NonZeroU16;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use protocol::quantity::Span;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::exec::NamedFiles;

/// A host and how to log in: the keys of a step's `with`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    host: String,
    #[serde(default = "root")]
    user: String,
    port: Option<NonZeroU16>,
    keyfile: Option<String>,
    #[serde(default)]
    pub(super) known_hosts: KnownHosts,
    known_hosts_file: Option<String>,
    connect_timeout: Option<Span>,
    /// Used only by the rules.
    #[serde(default, rename = "idempotent")]
    _idempotent: bool,
    /// The label from a job file.
    #[serde(rename = "label")]
    _label: Option<String>,
}

/// How a host's key is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum KnownHosts {
    /// The key must be known.
    #[default]
    Strict,
    /// The key must match the known one. A new host's key is recorded.
    AcceptNew,
    /// The key is not checked.
    Off,
}

fn root() -> String {
    "root".to_owned()
}

/// The default timeout for connecting, in seconds.
const CONNECT_SECS: u64 = 10;

/// Options that override the user's ssh settings for every step: no prompts, no shared connections,
/// no forwarding, and detection of dead connections.
const ALWAYS: [&str; 12] = [
    "BatchMode=yes",
    "LogLevel=ERROR",
    "EscapeChar=none",
    "ControlMaster=no",
    "ControlPath=none",
    "RemoteCommand=none",
    "PermitLocalCommand=no",
    "ClearAllForwardings=yes",
    "UpdateHostKeys=no",
    "ConnectionAttempts=1",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
];

impl Target {
    /// Parses and checks the keys of `with`. The error is a sentence.
    pub(super) fn read(with: &Map<String, Value>) -> Result<Self, String> {
        let target: Self = serde_json::from_value(Value::Object(with.clone()))
            .map_err(|cause| format!("`with` of executor ssh: {cause}"))?;
        let Self { host, user, keyfile, known_hosts_file, .. } = &target;
        name("host", host)?;
        if host.contains(['@', '/']) {
            return Err(format!("`host` {host:?} is not a host: the user belongs in `user`"));
        }
        name("user", user)?;
        file("keyfile", keyfile.as_deref())?;
        file("known_hosts_file", known_hosts_file.as_deref())?;
        if let Some(path) = known_hosts_file.as_deref().filter(|path| path.contains(['"', '\\'])) {
            return Err(format!("`known_hosts_file` {path:?} has a quote or a backslash"));
        }
        Ok(target)
    }

    /// Opens the files that the step names, if the operator restricts them, and makes `ssh` use the
    /// open files: a path could lead elsewhere by the time `ssh` reads it. They must stay open
    /// while `ssh` can read them.
    pub(super) async fn open(&mut self, named: &NamedFiles) -> Result<Vec<File>, String> {
        let mut opened = Vec::new();
        if named.is_any() {
            self.missing_keyfile().await?;
            return Ok(opened);
        }
        if self.known_hosts_file.is_some() && self.known_hosts != KnownHosts::Strict {
            // ssh would write to the file.
            return Err(
                "`known_hosts_file` is for `known_hosts: strict` on a worker: otherwise ssh \
                        notes new keys in it"
                    .to_owned(),
            );
        }
        for (key, path) in
            [("keyfile", &mut self.keyfile), ("known_hosts_file", &mut self.known_hosts_file)]
        {
            if let Some(path) = path {
                let file = named.open(key, Path::new(path)).await?;
                // ssh closes inherited descriptors, but can open its parent's through /proc.
                *path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
                opened.push(file);
            }
        }
        Ok(opened)
    }

    /// Checks that the key file exists if its path is plain. ssh also expands `~`, `%` and `$`.
    async fn missing_keyfile(&self) -> Result<(), String> {
        let plain = |path: &&str| !path.starts_with('~') && !path.contains(['%', '$']);
        if let Some(path) = self.keyfile.as_deref().filter(plain) {
            let found = tokio::fs::metadata(path).await;
            found.map_err(|cause| format!("`keyfile` {path}: {cause}"))?;
        }
        Ok(())
    }

    /// The host for messages: `user@host:port`.
    pub(super) fn at(&self) -> String {
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}@{}{port}", self.user, self.host)
    }

    /// The file with the known keys of hosts, for messages.
    pub(super) fn known_in(&self) -> &str {
        self.known_hosts_file.as_deref().unwrap_or("the known_hosts of the worker's user")
    }

    /// The arguments of `ssh` that name the host.
    pub(super) fn to_host(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(port) = self.port {
            words.extend(["-p".into(), port.to_string().into()]);
        }
        words.extend(["-l".into(), (&self.user).into(), "--".into(), (&self.host).into()]);
        words
    }

    /// The arguments of `ssh`. It logs its own errors to `log`. `route` has the options that pin
    /// the address.
    pub(super) fn arguments(&self, log: &Path, route: &[String], command: &str) -> Vec<OsString> {
        let millis = self.connect_timeout.map_or(CONNECT_SECS * 1000, Span::as_millis);
        let checked = match self.known_hosts {
            KnownHosts::Strict => "yes",
            KnownHosts::AcceptNew => "accept-new",
            KnownHosts::Off => "no",
        };
        let mut options: Vec<String> = ALWAYS.map(str::to_owned).into();
        options.extend_from_slice(route);
        options.push(format!("ConnectTimeout={}", millis.div_ceil(1000)));
        options.push(format!("StrictHostKeyChecking={checked}"));
        match (&self.known_hosts_file, self.known_hosts) {
            (Some(path), _) => options.push(format!("UserKnownHostsFile=\"{path}\"")),
            // A key that is not checked must not be recorded either.
            (None, KnownHosts::Off) => options.push("UserKnownHostsFile=/dev/null".to_owned()),
            (None, KnownHosts::Strict | KnownHosts::AcceptNew) => {}
        }
        let mut words: Vec<OsString> = ["-T", "-a", "-x", "-E"].map(OsString::from).into();
        words.push(log.into());
        if let Some(path) = &self.keyfile {
            options.push("IdentitiesOnly=yes".to_owned());
            words.extend(["-i".into(), path.into()]);
        }
        words.extend(options.into_iter().flat_map(|option| ["-o".into(), option.into()]));
        words.extend(self.to_host());
        words.push(command.into());
        words
    }
}

/// Checks a text that becomes an argument of `ssh`, and a word of a shell if the ssh settings have
/// a proxy command. Anything that could be more than a name there is rejected.
fn name(key: &str, text: &str) -> Result<(), String> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "'`\"$\\;&<>|(){}*?~#!".contains(c);
    let why = if text.is_empty() {
        "is empty"
    } else if text.starts_with('-') {
        "begins with `-`, as options do"
    } else if text.contains(odd) {
        "has a character that no such name has"
    } else {
        return Ok(());
    };
    Err(format!("`{key}` {text:?} {why}"))
}

fn file(key: &str, path: Option<&str>) -> Result<(), String> {
    match path {
        Some("") => Err(format!("`{key}` is empty")),
        Some(path) if path.contains(char::is_control) => {
            Err(format!("`{key}` {path:?} has a control character"))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(with: &Value) -> Result<Target, String> {
        Target::read(with.as_object().unwrap())
    }

    fn line(with: &Value) -> String {
        let words = read(with).unwrap().arguments(Path::new("log"), &[], "command");
        let words: Vec<String> =
            words.into_iter().map(|word| word.into_string().unwrap()).collect();
        format!("{} ", words.join(" "))
    }

    #[test]
    fn the_user_is_root_and_the_key_of_the_host_is_known_where_a_step_says_nothing() {
        let line = line(&json!({ "host": "build.example.org" }));
        assert!(line.ends_with(" -l root -- build.example.org command "), "{line}");
        for option in ["BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=10"] {
            assert!(line.contains(&format!(" -o {option} ")), "{line}");
        }
        for absent in [" -p ", " -i ", "UserKnownHostsFile"] {
            assert!(!line.contains(absent), "{line}");
        }
    }

    #[test]
    fn what_a_step_says_is_what_ssh_is_told() {
        let said = line(&json!({
            "host": "::1", "user": "deploy", "port": 2222, "keyfile": "keys/my key",
            "known_hosts": "accept-new", "known_hosts_file": "/etc/known hosts",
            "connect_timeout": "1500ms", "idempotent": true, "label": "x",
        }));
        for part in [
            " -i keys/my key -o ",
            " -o IdentitiesOnly=yes ",
            " -o StrictHostKeyChecking=accept-new ",
            " -o UserKnownHostsFile=\"/etc/known hosts\" ",
            " -o ConnectTimeout=2 ",
            " -p 2222 -l deploy -- ::1 command ",
        ] {
            assert!(said.contains(part), "{part} {said}");
        }
        let off = line(&json!({ "host": "h", "known_hosts": "off" }));
        assert!(
            off.contains(" StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "),
            "{off}"
        );
    }

    #[test]
    fn what_could_be_taken_for_something_else_is_refused() {
        for odd in [
            "",
            "-oProxyCommand=x",
            "a b",
            "a\nb",
            "$(id)",
            "`id`",
            "a;b",
            "a|b",
            "'a'",
            "\"",
            "a&",
        ] {
            let why = read(&json!({ "host": odd })).unwrap_err();
            assert!(why.starts_with("`host`"), "{why}");
            let why = read(&json!({ "host": "h", "user": odd })).unwrap_err();
            assert!(why.starts_with("`user`"), "{why}");
        }
        for (with, named) in [
            (json!({}), "missing field `host`"),
            (json!({ "host": "a@b" }), "the user belongs in `user`"),
            (json!({ "host": "ssh://h" }), "is not a host"),
            (json!({ "host": "h", "password": "s3cret" }), "unknown field `password`"),
            (json!({ "host": "h", "port": 0 }), "`with`"),
            (json!({ "host": "h", "port": 65536 }), "`with`"),
            (json!({ "host": "h", "keyfile": "" }), "`keyfile` is empty"),
            (json!({ "host": "h", "known_hosts": "never" }), "`with`"),
            (json!({ "host": "h", "known_hosts_file": "a\"b" }), "has a quote"),
            (json!({ "host": "h", "connect_timeout": "soon" }), "`with`"),
        ] {
            let why = read(&with).unwrap_err();
            assert!(why.contains(named) && !why.contains("s3cret"), "{with}: {why}");
        }
    }
}
