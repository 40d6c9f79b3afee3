//! What all handlers share.

use axum::http::StatusCode;
use tokio_util::sync::CancellationToken;

use super::hub::Hub;
use super::logs::Logs;
use super::problem::Problem;
use super::projection::{Behind, Projection};
use crate::client::{Client, Error, ErrorKind};

/// What all handlers share. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Api {
    /// Sends commands, and reads single runs and definitions.
    pub client: Client,
    /// Answers everything that lists.
    pub projection: Projection,
    /// Reads logs.
    pub logs: Logs,
    /// Reads the event stream for clients that follow it.
    pub hub: Hub,
    /// Whether definitions can contain secrets in clear text.
    pub literal_secrets: bool,
    /// The program.
    pub build: Build,
    /// Cancelled when the node takes no new work. Health checks report it.
    pub draining: CancellationToken,
    /// Cancelled when the server ends. Streams end with it.
    pub stop: CancellationToken,
}

/// The version of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build {
    /// The version.
    pub version: &'static str,
    /// The commit, if it is known.
    pub commit: Option<&'static str>,
}

impl From<Behind> for Problem {
    fn from(behind: Behind) -> Self {
        Self::unavailable(behind.to_string()).with_code("behind")
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        if error.kind() == ErrorKind::Service {
            return Self::unavailable(detail).with_code("service-unavailable");
        }
        let (status, code) = match error {
            Error::UnknownRun(_) => (StatusCode::NOT_FOUND, "unknown-run"),
            Error::UnknownPipeline(_) => (StatusCode::NOT_FOUND, "unknown-pipeline"),
            Error::Ended { .. } => (StatusCode::CONFLICT, "run-ended"),
            Error::FromFile { .. } => (StatusCode::CONFLICT, "from-file"),
            Error::InUse { .. } => (StatusCode::CONFLICT, "pipeline-in-use"),
            Error::NoRerun { .. } => (StatusCode::CONFLICT, "no-rerun"),
            Error::Contended { .. } => (StatusCode::CONFLICT, "contended"),
            Error::NoSuchStep { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "unknown-step"),
            Error::TooLarge(_) => (StatusCode::UNPROCESSABLE_ENTITY, "too-large"),
            Error::Unreadable { .. }
            | Error::Embedded
            | Error::Unavailable(_)
            | Error::Store(_)
            | Error::Queue(_)
            | Error::Events(_)
            | Error::NotTold(_) => (StatusCode::INTERNAL_SERVER_ERROR, "unreadable"),
        };
        Self::new(status, detail).with_code(code)
    }
}
