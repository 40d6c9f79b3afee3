//! Calls: the keys that they may have in `with`, and the services that they are for.

use super::ExecutorKind;

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
    /// The address of the service that is called if `base_url` names no other.
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

    /// The keys that `with` may have; `None` where the step is no call.
    #[must_use]
    pub fn call_keys(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Http => Some(&HTTP),
            Self::Proxmox => Some(&PROXMOX),
            Self::Sevdesk => Some(&SEVDESK),
            Self::Lexware => Some(&LEXWARE),
            Self::Podman | Self::Docker | Self::Local | Self::Custom | Self::Ssh => None,
        }
    }
}
