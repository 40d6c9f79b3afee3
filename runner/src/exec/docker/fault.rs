//! Classifies errors of the engine.

use bollard::errors::Error;

pub(super) use crate::exec::exhausted::no_space;

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
