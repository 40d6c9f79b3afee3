//! Classifies errors of the broker and of its connection.

use lapin::{Error, ErrorKind};

use crate::cluster::tls;
use crate::ports::{EventsError, QueueError, with_causes};

/// Prefix of the variables with the certificates.
pub(super) const VARIABLE: &str = "BOB_QUEUE";

// AMQP 0-9-1 reply codes.
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;

/// An error of the broker or its connection.
#[derive(Debug, Clone)]
pub(in crate::cluster) enum Fault {
    /// There is no connection, or it was lost.
    Unreachable(String),
    /// The user, password, virtual host or certificate is wrong, or a permission is missing.
    Denied(String),
    /// A queue or exchange does not exist.
    Missing(String),
    /// A queue or exchange exists with different arguments.
    Differs(String),
    /// A queue or exchange exists with a different type and must be deleted.
    WrongKind(String),
}

impl Fault {
    pub(in crate::cluster) fn cause(&self) -> &str {
        match self {
            Self::Unreachable(said)
            | Self::Denied(said)
            | Self::Missing(said)
            | Self::Differs(said)
            | Self::WrongKind(said) => said,
        }
    }

    pub(in crate::cluster) fn of_queue(self, at: &str) -> QueueError {
        match self {
            Self::Denied(cause) => QueueError::Denied { at: at.to_owned(), cause },
            Self::WrongKind(cause) => QueueError::WrongKind { at: at.to_owned(), cause },
            Self::Unreachable(cause) | Self::Missing(cause) | Self::Differs(cause) => {
                QueueError::Unreachable { at: at.to_owned(), cause }
            }
        }
    }

    pub(in crate::cluster) fn of_stream(self, at: &str) -> EventsError {
        match self {
            Self::Denied(cause) => EventsError::Denied { at: at.to_owned(), cause },
            Self::WrongKind(cause) => EventsError::WrongKind { at: at.to_owned(), cause },
            Self::Unreachable(cause) | Self::Missing(cause) | Self::Differs(cause) => {
                EventsError::Unreachable { at: at.to_owned(), cause }
            }
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        if let ErrorKind::ProtocolError(said) = error.kind() {
            return of_reply(said.get_id(), said.get_message().as_str());
        }
        let text = with_causes(&error);
        let text = text.strip_prefix("IO error: ").unwrap_or(&text).to_owned();
        match of_handshake(&text) {
            Some(denied) if error.is_io_error() => denied,
            Some(_) | None => Self::Unreachable(text),
        }
    }
}

/// Returns the fault behind a failed handshake, or `None` if the text is not about one.
pub(super) fn of_handshake(text: &str) -> Option<Fault> {
    let meaning = tls::explain(text, VARIABLE)?;
    let hint = if meaning.contains("does not speak TLS") {
        "; write amqp:// for a port without TLS, or give the port that has it (5671 by default)"
    } else {
        ""
    };
    Some(Fault::Denied(format!("{meaning}{hint}")))
}

fn of_reply(code: u16, text: &str) -> Fault {
    // The prefix, as in `ACCESS_REFUSED - Login was refused ...`, only repeats the code.
    let said = text.split_once(" - ").map_or(text, |(_, said)| said).to_owned();
    match code {
        ACCESS_REFUSED | NOT_ALLOWED => {
            let hint = hint(code, &said);
            Fault::Denied(format!("{said}{hint}"))
        }
        NOT_FOUND => {
            let hint = hint(code, &said);
            Fault::Missing(format!("{said}{hint}"))
        }
        PRECONDITION_FAILED => Fault::Differs(said),
        RESOURCE_LOCKED => Fault::Unreachable(said),
        _ => Fault::Unreachable(text.to_owned()),
    }
}

/// Returns how to fix a refusal. The broker's text distinguishes refusals with the same code.
fn hint(code: u16, said: &str) -> &'static str {
    match (code, said) {
        (_, said) if said.starts_with("Login was refused") => {
            "; check BOB_QUEUE_USER and BOB_QUEUE_PASSWORD"
        }
        (NOT_ALLOWED, said) if said.contains("vhost") && said.contains("not found") => {
            "; the path of the URL names the virtual host, and `rabbitmqctl add_vhost` makes one"
        }
        (NOT_FOUND, said) if said.contains("is down or inaccessible") => {
            "; if that node runs, the broker was killed before it had registered the queue, and an \
             operator must delete it: docs/reliability.md, \"A queue that is down\""
        }
        (_, said) if said.contains("refused for user") => {
            "; `rabbitmqctl set_permissions` gives the user the right to configure, write and read"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_login_is_distinguished_from_an_unreachable_broker() {
        let refused = of_reply(ACCESS_REFUSED, "ACCESS_REFUSED - Login was refused");
        assert!(matches!(refused, Fault::Denied(said) if said.starts_with("Login was refused;")));
        let away = of_reply(320, "CONNECTION_FORCED - broker forced connection closure");
        assert!(away.of_queue("mq.example").retryable());
    }

    #[test]
    fn a_refusal_names_the_remedy() {
        let denied = |code, text: &str| of_reply(code, text).of_queue("mq.example").to_string();
        let all = [
            (
                denied(ACCESS_REFUSED, "ACCESS_REFUSED - Login was refused using PLAIN"),
                "BOB_QUEUE_PASSWORD",
            ),
            (denied(NOT_ALLOWED, "NOT_ALLOWED - vhost dev not found"), "add_vhost"),
            (
                denied(NOT_ALLOWED, "NOT_ALLOWED - access to vhost 'dev' refused for user 'x'"),
                "set_permissions",
            ),
            (
                denied(ACCESS_REFUSED, "ACCESS_REFUSED - access to queue 'q' refused for user 'x'"),
                "set_permissions",
            ),
            (
                of_reply(
                    NOT_FOUND,
                    "NOT_FOUND - home node 'rabbit@mq' of durable queue 'bob.event-stream' in vhost \
                     '/' is down or inaccessible",
                )
                .of_stream("mq.example")
                .to_string(),
                "an operator must delete it",
            ),
            (
                of_handshake("received corrupt message of type InvalidContentType")
                    .unwrap()
                    .of_queue("mq.example")
                    .to_string(),
                "amqp://",
            ),
        ];
        let hints = [
            "BOB_QUEUE_PASSWORD",
            "add_vhost",
            "set_permissions",
            "an operator must delete it",
            "amqp://",
        ];
        for (text, hint) in all {
            for other in hints {
                assert_eq!(text.contains(other), other == hint, "{other}: {text}");
            }
        }
    }

    #[test]
    fn a_wrong_authority_is_not_retried() {
        let io = std::io::Error::other("invalid peer certificate: UnknownIssuer");
        let error = Fault::from(Error::from(io)).of_queue("mq.example");
        assert!(!error.retryable());
        assert!(
            error
                .to_string()
                .contains("not issued by an authority that is trusted here; BOB_QUEUE_CA"),
            "{error}"
        );
    }
}
