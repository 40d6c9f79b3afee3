//! Closed addresses, and the exceptions that an operator has listed.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::class;

/// Rules for what a message names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Exceptions from the kinds of addresses that are closed.
    pub exceptions: Vec<Exception>,
    /// Services that only the worker itself speaks to.
    pub own: Vec<OwnService>,
}

/// Something that an operator has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    /// Which hosts.
    pub pattern: Pattern,
    /// Which port; any if there is none.
    pub port: Option<u16>,
}

/// Hosts of an exception.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// A host by the name that the message uses. Whatever that name resolves to is open.
    Name(String),
    /// Hosts with an address in this network.
    Net(IpNet),
}

/// A service of the worker's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnService {
    /// Its name, for people.
    pub name: &'static str,
    /// Its host, as the settings name it.
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

/// A name without the dot at its end, which makes it no other one.
fn bare(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

impl Rules {
    /// Why an address is closed to a message that names `host`; `None` if it is open.
    ///
    /// A service of the worker's own is opened only by an exception with its port: a network or a
    /// host that is opened as a whole does not mean it.
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
    /// Whether the service is at that address. One whose host cannot be resolved may be.
    async fn is_at(&self, address: SocketAddr) -> bool {
        let Ok(found) = tokio::net::lookup_host((self.host.as_str(), address.port())).await else {
            return true;
        };
        let forms = class::forms(address.ip());
        let is_here = forms.iter().any(|ip| class::is_of_this_host(*ip));
        let mut found = found.map(|own| own.ip().to_canonical());
        // A service of this host that listens on one of its addresses often listens on all.
        found.any(|own: IpAddr| {
            forms.contains(&own) || (is_here && class::is_of_this_host(own)) || own.is_unspecified()
        })
    }
}
