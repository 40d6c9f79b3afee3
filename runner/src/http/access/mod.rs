//! Who can use the HTTP API, and the limits of its requests. Knows nothing about runs.
//!
//! A request passes [`listen::serve`] (connections, TLS, size and time of the headers) and then the
//! layers of [`Access::protect`] (host, origin, token, rate, size and time). A handler's route names
//! the [`Scope`] that it needs, and [`check_scope`] compares it with the [`Principal`].
//!
//! | module | duty |
//! |---|---|
//! | `guard` | what every request passes before its handler |
//! | `scope` | scopes, and the client of a request |
//! | `token` | verifies tokens, and signs tokens for development |
//! | `jwks` | the public keys of tokens |
//! | `crypto` | the algorithms of tokens |
//! | `hosts` | `Host`, and the origin of changes |
//! | `rate` | the number of requests |
//! | `body` | the size of a body |
//! | `headers` | headers of the answers |
//! | `peer` | the connection of a request |
//! | [`listen`] | accepts and serves connections |
//! | `tls` | the certificate |

mod body;
mod crypto;
mod guard;
mod headers;
mod hosts;
mod jwks;
pub mod listen;
mod peer;
mod rate;
mod scope;
#[cfg(test)]
mod tests;
mod tls;
mod token;

pub use guard::{Access, AccessOptions, check_scope};
pub use jwks::{JwksError, JwksSource};
pub use peer::Peer;
pub use scope::{Principal, Scope, Scopes, UnknownScope};
pub use tls::{Certificate, CertificateFiles, TlsError};
pub use token::{Grant, Rejection, SignError, TokenOptions, sign};
