//! Keys of `with` for each executor, and the default service of each API executor.

use super::{ExecutorKind, ProcessLimits};

const PODMAN: [&str; 1] = ["label"];

const DOCKER: [&str; 5] = ["image", "namespace", "mounts", "tty", "label"];

const HOST: [&str; 2] = [ProcessLimits::KEY, "label"];

const SSH: [&str; 9] = [
    "host",
    "user",
    "port",
    "keyfile",
    "known_hosts",
    "known_hosts_file",
    "connect_timeout",
    "idempotent",
    "label",
];

const HTTP: [&str; 13] = [
    "url",
    "method",
    "headers",
    "body",
    "json",
    "expect",
    "timeout",
    "ca_file",
    "fingerprint",
    "insecure",
    "follow",
    "idempotent",
    "label",
];

const PROXMOX: [&str; 17] = [
    "host",
    "node",
    "token_id",
    "token_secret",
    "vmid",
    "type",
    "command",
    "method",
    "path",
    "params",
    "ca_file",
    "fingerprint",
    "insecure",
    "wait",
    "wait_timeout",
    "idempotent",
    "label",
];

const SEVDESK: [&str; 15] = [
    "action",
    "api_token",
    "base_url",
    "compat",
    "invoice_data",
    "invoice_id",
    "contact_id",
    "contact_data",
    "pdf_output",
    "to_email",
    "subject",
    "text",
    "filter",
    "idempotent",
    "label",
];

const LEXWARE: [&str; 9] = [
    "action",
    "api_key",
    "base_url",
    "customer_id",
    "invoice_data",
    "invoice_id",
    "finalize",
    "idempotent",
    "label",
];

impl ExecutorKind {
    /// The base URL of the API that is called if `base_url` is missing.
    #[must_use]
    pub fn usual_service(self) -> Option<&'static str> {
        match self {
            Self::Sevdesk => Some("https://my.sevdesk.de/api/v1"),
            Self::Lexware => Some("https://api.lexware.io/v1"),
            Self::Podman
            | Self::Docker
            | Self::Local
            | Self::Custom
            | Self::Ssh
            | Self::Http
            | Self::Proxmox => None,
        }
    }

    /// The keys that `with` accepts. An executor rejects every other key.
    #[must_use]
    pub const fn with_keys(self) -> &'static [&'static str] {
        match self {
            Self::Podman => &PODMAN,
            Self::Docker => &DOCKER,
            Self::Local | Self::Custom => &HOST,
            Self::Ssh => &SSH,
            Self::Http => &HTTP,
            Self::Proxmox => &PROXMOX,
            Self::Sevdesk => &SEVDESK,
            Self::Lexware => &LEXWARE,
        }
    }

    /// The keys that describe an API call; `None` if the executor makes no calls.
    #[must_use]
    pub fn call_keys(self) -> Option<&'static [&'static str]> {
        self.is_call().then(|| self.with_keys())
    }
}
