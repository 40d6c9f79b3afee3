//! What the engine could not do, as the port's errors.

use bollard::errors::Error;

use super::Docker;
use crate::exec::exhausted::no_keys;
pub(super) use crate::exec::exhausted::no_space;
use crate::ports::ExecError;

/// The status of a refusal.
pub(super) fn status(error: &Error) -> Option<u16> {
    if let Error::DockerResponseServerError { status_code, .. } = error {
        Some(*status_code)
    } else {
        None
    }
}

/// What the engine said no with; empty where it did not.
pub(super) fn refusal(error: &Error) -> &str {
    if let Error::DockerResponseServerError { message, .. } = error { message } else { "" }
}

/// Whether there is no such container: it may have gone while the engine looked at it, which podman
/// tells as an error of its own.
pub(super) fn is_gone(error: &Error) -> bool {
    status(error) == Some(404) || refusal(error).contains("no such container")
}

/// Whether the connection failed, and not what was asked for.
pub(super) fn is_away(error: &Error) -> bool {
    matches!(
        error,
        Error::IOError { .. }
            | Error::HyperResponseError { .. }
            | Error::HyperLegacyError { .. }
            | Error::SocketNotFoundError(_)
    )
}

/// An error with all that led to it.
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
    /// As the port's error; `doing` is the call in words.
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
