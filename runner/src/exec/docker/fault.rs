//! Maps errors of the engine to the port's errors.

use bollard::errors::Error;

use super::Docker;
use crate::exec::exhausted::no_keys;
pub(super) use crate::exec::exhausted::no_space;
use crate::ports::ExecError;

/// The HTTP status if the engine rejected the call.
pub(super) fn status(error: &Error) -> Option<u16> {
    if let Error::DockerResponseServerError { status_code, .. } = error {
        Some(*status_code)
    } else {
        None
    }
}

/// The engine's message if it rejected the call, else the empty text.
pub(super) fn refusal(error: &Error) -> &str {
    if let Error::DockerResponseServerError { message, .. } = error { message } else { "" }
}

/// Whether the container does not exist. If it disappears while podman inspects it, podman answers
/// with a different error.
pub(super) fn is_gone(error: &Error) -> bool {
    status(error) == Some(404) || refusal(error).contains("no such container")
}

/// Whether the connection failed rather than the call.
pub(super) fn is_away(error: &Error) -> bool {
    matches!(
        error,
        Error::IOError { .. }
            | Error::HyperResponseError { .. }
            | Error::HyperLegacyError { .. }
            | Error::SocketNotFoundError(_)
    )
}

/// An error with the chain of its causes.
fn whole(error: &Error) -> String {
    let mut text = error.to_string();
    let mut deeper = std::error::Error::source(error);
    while let Some(source) = deeper {
        let said = source.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        deeper = source.source();
    }
    text
}

impl Docker {
    /// The port's error. `doing` describes the call in words.
    pub(super) fn failed(&self, doing: &str, error: &Error) -> ExecError {
        let said = refusal(error);
        if is_away(error) {
            return ExecError::Unreachable { at: self.wire.address.clone(), cause: whole(error) };
        }
        if no_space(said) {
            return ExecError::NoSpace { cause: said.to_owned() };
        }
        if no_keys(said) {
            return ExecError::KeyQuota { cause: said.to_owned() };
        }
        let cause = if said.is_empty() { whole(error) } else { said.trim().to_owned() };
        ExecError::Engine { doing: doing.to_owned(), cause }
    }
}
