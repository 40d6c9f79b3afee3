//! Errors of the host.

use crate::ports::ExecError;

pub(super) fn failed(doing: &str, cause: impl std::fmt::Display) -> ExecError {
    ExecError::Engine { doing: doing.to_owned(), cause: cause.to_string() }
}
