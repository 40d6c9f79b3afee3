//! The connection of a request.

use std::net::SocketAddr;

/// The client's end of the connection, in the extensions of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The address of the client, or of the proxy before it.
    pub address: SocketAddr,
}
