//! Settings with a fixed set of values.

use std::path::PathBuf;

/// Storage of queue and state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// RabbitMQ and etcd.
    Cluster,
    /// One local file, without servers.
    Embedded,
}

/// The protocol of the stream connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamProtocol {
    /// AMQP 0-9-1.
    Amqp,
    /// The native protocol of the stream plugin.
    Native,
}

/// Address of a container engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineUrl {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host and port.
    Tcp {
        /// The host, without the brackets of an IPv6 address.
        host: String,
        /// The port.
        port: u16,
    },
}

impl std::fmt::Display for EngineUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
        }
    }
}

/// Whether definitions can contain clear-text secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiteralSecrets {
    /// They can.
    Allow,
    /// They are rejected.
    Reject,
}

/// Level of the program's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "docs/settings.md describes them")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The level as written in settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Format of the program's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
    /// `[YYYY-MM-DD HH:MM:SS] [LEVEL] text`, on standard output.
    Ci,
}
