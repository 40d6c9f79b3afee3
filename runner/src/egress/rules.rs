//! Closed addresses, and the exceptions configured by the operator.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::class;

/// The rules for addresses in messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Exceptions from the closed classes of addresses.
    pub exceptions: Vec<Exception>,
    /// Services that only the worker itself may use.
    pub own: Vec<OwnService>,
}

/// An exception configured by the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    /// The hosts.
    pub pattern: Pattern,
    /// The port. `None` means any port.
    pub port: Option<u16>,
}

/// The hosts of an exception.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// A host by the name in the message. All its addresses are open.
    Name(String),
    /// Hosts with an address in this network.
    Net(IpNet),
}

/// A service of the worker itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnService {
    /// The name for messages.
    pub name: &'static str,
    /// The host, as configured.
    pub host: String,
    /// Its ports.
    pub ports: Vec<u16>,
}

impl Exception {
    fn covers(&self, host: &str, address: SocketAddr) -> bool {
        let by_port = self.port.is_none_or(|port| port == address.port());
        let by_host = match &self.pattern {
            Pattern::Name(name) => bare(host).eq_ignore_ascii_case(bare(name)),
            Pattern::Net(net) => net.contains(&address.ip().to_canonical()),
        };
        by_port && by_host
    }
}

/// Removes the trailing dot of a name, which does not change its meaning.
fn bare(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

impl Rules {
    /// Returns why an address is closed to a message that names `host`, or `None` if it is open.
    ///
    /// A service of the worker itself is opened only by an exception with its port. An exception
    /// for a whole host or network does not include it.
    pub(super) async fn closed(&self, host: &str, address: SocketAddr) -> Option<String> {
        let covering = || self.exceptions.iter().filter(|it| it.covers(host, address));
        if covering().any(|exception| exception.port.is_some()) {
            return None;
        }
        for service in self.own.iter().filter(|own| own.ports.contains(&address.port())) {
            if service.is_at(address).await {
                return Some(format!("the worker's own {}", service.name));
            }
        }
        if covering().next().is_some() {
            return None;
        }
        class::closed(address.ip()).map(str::to_owned)
    }
}

impl OwnService {
    /// Returns true if the service may have this address. If its host cannot be resolved, it may.
    async fn is_at(&self, address: SocketAddr) -> bool {
        let Ok(found) = tokio::net::lookup_host((self.host.as_str(), address.port())).await else {
            return true;
        };
        let forms = class::forms(address.ip());
        let is_here = forms.iter().any(|ip| class::is_of_this_host(*ip));
        let mut found = found.map(|own| own.ip().to_canonical());
        // A service on this host that listens on one address often listens on all.
        found.any(|own: IpAddr| {
            forms.contains(&own) || (is_here && class::is_of_this_host(own)) || own.is_unspecified()
        })
    }
}
