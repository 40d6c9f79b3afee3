//! The executors, and a table of their capabilities.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ProcessLimits;

/// The executor of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExecutorKind {
    /// A rootless podman container on the image chain of its run.
    #[default]
    Podman,
    /// A container of a Docker engine.
    Docker,
    /// A process on the worker's host.
    Local,
    /// A host command of a job file.
    Custom,
    /// A command on another host, over SSH.
    Ssh,
    /// A Proxmox VE API call.
    Proxmox,
    /// A Lexware Office API call.
    Lexware,
    /// A sevDesk API call.
    Sevdesk,
    /// An HTTP request.
    Http,
}

/// The kind of environment in which an executor runs steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a container of the worker's engine.
    Engine,
    /// In processes of the worker's host.
    Host,
    /// In processes of another host.
    RemoteHost,
    /// In a service, through an API that the worker calls.
    Service,
}

/// One row of the table: the properties of an executor. All code that depends on them reads this
/// table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the columns of a table")]
pub struct Capabilities {
    /// The name on the wire.
    pub name: &'static str,
    /// The environment in which its steps run.
    pub place: Place,
    /// Whether a step can have an image of its own, named in `with`. Jobs of job files use this.
    pub has_own_images: bool,
    /// Whether steps can use secrets.
    pub takes_secrets: bool,
    /// Whether a step can be stopped with a chosen signal.
    pub has_signals: bool,
    /// Whether a step can produce files that are kept as outputs.
    pub has_files: bool,
    /// The keys that `with` accepts. An executor rejects every other key.
    pub with_keys: &'static [&'static str],
    /// The key of `with` whose value is the only address to which a step sends its secrets. `None` if
    /// the step can send them anywhere.
    pub address_key: Option<&'static str>,
    /// The base URL of the API if a step does not set `address_key`.
    pub default_address: Option<&'static str>,
}

impl Capabilities {
    /// Whether a step is an API call that `with` describes entirely.
    #[must_use]
    pub fn is_call(&self) -> bool {
        self.place == Place::Service
    }

    /// Whether steps run on the worker's host or engine, so that the worker can end them and remove
    /// what they leave.
    #[must_use]
    pub fn is_on_this_host(&self) -> bool {
        matches!(self.place, Place::Engine | Place::Host)
    }

    /// Whether a step has a directory of its own, `$JOB_WORKDIR`. `names_image` says whether the step
    /// names an image in `with`.
    #[must_use]
    pub fn has_job_dir(&self, names_image: bool) -> bool {
        self.place == Place::Host || (self.has_own_images && names_image)
    }
}

const PODMAN: Capabilities = Capabilities {
    name: "podman",
    place: Place::Engine,
    has_own_images: false,
    takes_secrets: true,
    has_signals: true,
    has_files: true,
    with_keys: &["label"],
    address_key: None,
    default_address: None,
};

const DOCKER: Capabilities = Capabilities {
    name: "docker",
    place: Place::Engine,
    has_own_images: true,
    takes_secrets: true,
    has_signals: true,
    has_files: true,
    with_keys: &["image", "namespace", "mounts", "tty", "label"],
    address_key: None,
    default_address: None,
};

const LOCAL: Capabilities = Capabilities {
    name: "local",
    place: Place::Host,
    has_own_images: false,
    takes_secrets: true,
    has_signals: true,
    has_files: true,
    with_keys: &[ProcessLimits::KEY, "label"],
    address_key: None,
    default_address: None,
};

const CUSTOM: Capabilities = Capabilities {
    name: "custom",
    place: Place::Host,
    has_own_images: false,
    takes_secrets: true,
    has_signals: true,
    has_files: true,
    with_keys: &[ProcessLimits::KEY, "label"],
    address_key: None,
    default_address: None,
};

const SSH: Capabilities = Capabilities {
    name: "ssh",
    place: Place::RemoteHost,
    has_own_images: false,
    takes_secrets: false,
    has_signals: false,
    has_files: false,
    with_keys: &[
        "host",
        "user",
        "port",
        "keyfile",
        "known_hosts",
        "known_hosts_file",
        "connect_timeout",
        "idempotent",
        "label",
    ],
    address_key: None,
    default_address: None,
};

const PROXMOX: Capabilities = Capabilities {
    name: "proxmox",
    place: Place::Service,
    has_own_images: false,
    takes_secrets: true,
    has_signals: false,
    has_files: false,
    with_keys: &[
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
    ],
    address_key: Some("host"),
    default_address: None,
};

const LEXWARE: Capabilities = Capabilities {
    name: "lexware",
    place: Place::Service,
    has_own_images: false,
    takes_secrets: true,
    has_signals: false,
    has_files: false,
    with_keys: &[
        "action",
        "api_key",
        "base_url",
        "customer_id",
        "invoice_data",
        "invoice_id",
        "finalize",
        "idempotent",
        "label",
    ],
    address_key: Some("base_url"),
    default_address: Some("https://api.lexware.io/v1"),
};

const SEVDESK: Capabilities = Capabilities {
    name: "sevdesk",
    place: Place::Service,
    has_own_images: false,
    takes_secrets: true,
    has_signals: false,
    has_files: false,
    with_keys: &[
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
    ],
    address_key: Some("base_url"),
    default_address: Some("https://my.sevdesk.de/api/v1"),
};

const HTTP: Capabilities = Capabilities {
    name: "http",
    place: Place::Service,
    has_own_images: false,
    takes_secrets: true,
    has_signals: false,
    has_files: false,
    with_keys: &[
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
    ],
    address_key: Some("url"),
    default_address: None,
};

impl ExecutorKind {
    /// All executors.
    pub const ALL: [Self; 9] = [
        Self::Podman,
        Self::Docker,
        Self::Local,
        Self::Custom,
        Self::Ssh,
        Self::Proxmox,
        Self::Lexware,
        Self::Sevdesk,
        Self::Http,
    ];

    /// Returns the executor's row in the table.
    #[must_use]
    pub const fn capabilities(self) -> &'static Capabilities {
        match self {
            Self::Podman => &PODMAN,
            Self::Docker => &DOCKER,
            Self::Local => &LOCAL,
            Self::Custom => &CUSTOM,
            Self::Ssh => &SSH,
            Self::Proxmox => &PROXMOX,
            Self::Lexware => &LEXWARE,
            Self::Sevdesk => &SEVDESK,
            Self::Http => &HTTP,
        }
    }

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.capabilities().name
    }

    /// All executors with their names.
    #[must_use]
    pub fn named() -> [(&'static str, Self); 9] {
        Self::ALL.map(|kind| (kind.as_str(), kind))
    }
}
