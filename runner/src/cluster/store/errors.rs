//! Converts errors of etcd and its connection to [`StoreError`].

use etcd_client::Error;

use crate::cluster::tls;
use crate::ports::{StoreError, append_causes, with_causes};

/// Prefix of the variables with the certificates.
const VARIABLE: &str = "BOB_STORAGE";

// gRPC status codes. The crate that names them is not a direct dependency.
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const INTERNAL: i32 = 13;
const DATA_LOSS: i32 = 15;
const UNAUTHENTICATED: i32 = 16;

/// The error of a call, before it is converted to a [`StoreError`].
#[derive(Debug)]
pub(super) enum Fault {
    /// There was no reply, or one that may differ next time.
    Unreachable(String),
    /// There was no connection, so the request was not sent.
    Unsent(String),
    /// The user, password or certificate does not grant access.
    Denied(String),
    /// The server requires a user, and none is configured.
    NoUser,
    /// The token has expired. The user can log in again.
    StaleToken(String),
    /// A user is configured, but authentication is disabled on the server.
    NoAuthentication,
    /// The server accepts no writes from anyone.
    WritesRefused(String),
    /// The lease does not exist.
    LeaseGone,
    /// The revision was compacted.
    Compacted { oldest: i64 },
    /// A key or value was not written by a worker.
    Unreadable(String),
    /// The reply exceeds the size limit of the client.
    TooLargeAnswer,
    /// The server rejects the request, and would reject it again.
    Refused(String),
}

impl Fault {
    /// Converts the fault. `lease` and `asked` are the lease and the revision of the call.
    pub(super) fn into_store_error(self, at: &str, lease: Option<i64>, asked: i64) -> StoreError {
        match self {
            Self::Unreachable(cause) | Self::Unsent(cause) => {
                StoreError::Unreachable { at: at.to_owned(), cause }
            }
            Self::NoUser => StoreError::Denied {
                at: at.to_owned(),
                cause: "it wants a user, and none is given".to_owned(),
            },
            Self::Denied(cause) | Self::StaleToken(cause) => {
                StoreError::Denied { at: at.to_owned(), cause }
            }
            Self::NoAuthentication => StoreError::Denied {
                at: at.to_owned(),
                cause: "authentication is not enabled there, but a user is given".to_owned(),
            },
            Self::WritesRefused(cause) => StoreError::WritesRefused { at: at.to_owned(), cause },
            Self::LeaseGone => StoreError::LeaseGone(lease.unwrap_or_default()),
            Self::Compacted { oldest } => StoreError::Compacted { asked, oldest },
            Self::Unreadable(what) => StoreError::Unreadable(what),
            Self::TooLargeAnswer => {
                StoreError::Refused("the answer is larger than 128 MiB".to_owned())
            }
            Self::Refused(said) => StoreError::Refused(said),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => {
                let chain = append_causes(status.message().to_owned(), &status);
                of_status(status.code() as i32, status.message(), &chain)
            }
            Error::TransportError(transport) => of_transport(&with_causes(&transport)),
            Error::IoError(io) => of_transport(&io.to_string()),
            Error::LeaseKeepAliveError(said) if said.contains("lease not found") => Self::LeaseGone,
            Error::LeaseKeepAliveError(said)
            | Error::WatchError(said)
            | Error::EndpointError(said)
            | Error::Internal(said)
            | Error::ElectError(said) => Self::Unreachable(said),
            Error::EndpointsNotManaged => Self::Unreachable("it has no addresses".to_owned()),
            Error::InvalidArgs(said) => Self::Refused(said),
            Error::InvalidUri(said) => Self::Refused(format!("its address is no URL: {said}")),
            Error::Utf8Error(said) => Self::Refused(said.to_string()),
            Error::InvalidMetadataValue(said) => Self::Refused(said.to_string()),
        }
    }
}

fn of_status(code: i32, message: &str, chain: &str) -> Fault {
    let said = message.strip_prefix("etcdserver: ").unwrap_or(message).to_owned();
    match code {
        UNAUTHENTICATED => Fault::StaleToken(said),
        PERMISSION_DENIED => Fault::Denied(format!("{said} for this user")),
        // The user or its roles changed since the token was issued.
        INVALID_ARGUMENT if said.contains("revision of auth store is old") => {
            Fault::StaleToken(said)
        }
        INVALID_ARGUMENT if said.contains("authentication failed") => {
            Fault::Denied("user and password do not fit".to_owned())
        }
        INVALID_ARGUMENT if said.contains("user name is empty") => Fault::NoUser,
        FAILED_PRECONDITION if said.contains("authentication is not enabled") => {
            Fault::NoAuthentication
        }
        NOT_FOUND if said.contains("lease not found") => Fault::LeaseGone,
        OUT_OF_RANGE if said.contains("compacted") => Fault::Compacted { oldest: 0 },
        OUT_OF_RANGE if said.contains("decoded message length too large") => Fault::TooLargeAnswer,
        INVALID_ARGUMENT if said.contains("request is too large") => too_large(),
        RESOURCE_EXHAUSTED if said.contains("received message larger than max") => too_large(),
        RESOURCE_EXHAUSTED if said.contains("database space exceeded") => Fault::WritesRefused(
            "its database is full: compact and defragment it, then disarm the alarm".to_owned(),
        ),
        // A member has detected corrupt data. etcd rejects requests that depend on it.
        DATA_LOSS | INTERNAL if said.contains("corrupt cluster") => Fault::WritesRefused(
            "the data of a member is corrupt: replace that member, then disarm the alarm"
                .to_owned(),
        ),
        INVALID_ARGUMENT | NOT_FOUND | FAILED_PRECONDITION | OUT_OF_RANGE => Fault::Refused(said),
        DEADLINE_EXCEEDED => Fault::Unreachable("it did not answer in time".to_owned()),
        _ => of_transport(if chain.is_empty() { &said } else { chain }),
    }
}

/// Classifies a connection error. Except for wrong certificates, it may be temporary.
fn of_transport(chain: &str) -> Fault {
    if let Some(meaning) = of_certificates(chain) {
        return Fault::Denied(meaning);
    }
    let unsent = ["connect error", "dns error"].iter().any(|sign| chain.contains(sign));
    if unsent { Fault::Unsent(chain.to_owned()) } else { Fault::Unreachable(chain.to_owned()) }
}

/// Explains a failed handshake and how to fix it. Returns `None` if the text is not about one.
pub(super) fn of_certificates(said: &str) -> Option<String> {
    let meaning = tls::explain(said, VARIABLE)?;
    let is_plain = meaning.contains("does not speak TLS");
    let hint =
        if is_plain { "; write http:// in BOB_STORAGE_URLS for a port without TLS" } else { "" };
    Some(format!("{meaning}{hint}"))
}

fn too_large() -> Fault {
    Fault::Refused(
        "it is larger than the store takes at once (1.5 MiB, unless its --max-request-bytes says \
         otherwise)"
            .to_owned(),
    )
}

/// Classifies a watch that the server cancelled, except by a compaction.
pub(super) fn of_cancel(reason: &str) -> Fault {
    let said = reason.strip_prefix("etcdserver: ").unwrap_or(reason).to_owned();
    if said.contains("permission denied") {
        Fault::Denied(format!("{said} for this user"))
    } else if said.contains("auth token") {
        Fault::StaleToken(said)
    } else {
        Fault::Unreachable(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe_status(code: i32, message: &str) -> String {
        of_status(code, message, message)
            .into_store_error("etcd.example", Some(0x2a), 7)
            .to_string()
    }

    #[test]
    fn a_too_large_request_is_reported_as_such() {
        for (code, message) in [
            (INVALID_ARGUMENT, "etcdserver: request is too large"),
            (RESOURCE_EXHAUSTED, "grpc: received message larger than max (2 vs. 1)"),
        ] {
            assert!(
                describe_status(code, message).contains("larger than the store takes"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_wrong_password_is_not_retried() {
        let fault = of_status(
            INVALID_ARGUMENT,
            "etcdserver: authentication failed, invalid user ID or password",
            "",
        );
        let error = fault.into_store_error("etcd.example", None, 0);
        assert!(!error.retryable());
        assert!(error.to_string().contains("user and password do not fit"), "{error}");
    }

    #[test]
    fn a_full_database_is_retryable() {
        let fault = of_status(RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", "");
        let error = fault.into_store_error("etcd.example", None, 0);
        assert!(error.retryable() && error.refuses_writes());
        let said = error.to_string();
        assert!(said.starts_with("the store at etcd.example refuses writes"), "{said}");
    }

    #[test]
    fn a_lost_lease_is_reported_with_its_id() {
        assert_eq!(
            describe_status(NOT_FOUND, "etcdserver: requested lease not found"),
            "lease 2a is gone"
        );
    }

    #[test]
    fn unsent_requests_are_distinguished_from_those_that_might_have_arrived() {
        let refused = "tcp connect error: transport error: Connection refused (os error 111)";
        assert!(matches!(of_status(14, refused, refused), Fault::Unsent(_)));
        let lost = "http2 error: transport error: keep-alive timed out: operation timed out";
        assert!(matches!(of_status(14, lost, lost), Fault::Unreachable(_)));
    }

    #[test]
    fn unknown_errors_are_retryable() {
        let error = of_status(14, "etcdserver: leader changed", "").into_store_error(
            "etcd.example",
            None,
            0,
        );
        assert!(error.retryable());
    }
}
