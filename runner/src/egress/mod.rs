//! Decides to which addresses the worker may connect on behalf of a message or a definition. This
//! module does not connect: it checks addresses, and resolves names for its callers.
//!
//! A name is checked when it is resolved for a connection, so that a DNS answer that changes after
//! the check cannot be used. [`Policy::guarded`] installs that resolver in an HTTP client. HTTP
//! clients do not resolve an IP address in a URL: [`Policy::check`] checks those, for the first
//! request and for each redirect.

mod class;
mod rules;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::LOCATION;
use reqwest::{ClientBuilder, Response, StatusCode, Url};
use thiserror::Error;
use url::Host;

pub use rules::{Exception, OwnService, Pattern, Rules};

/// The addresses to which the worker may connect on behalf of a message.
#[derive(Debug, Clone)]
pub struct Policy(Option<Arc<Rules>>);

/// The error for a closed address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "a worker does not connect to {at} for a step, a callback or a definition: {address} is \
     {what}; an operator can list {at} in BOB_ALLOWED_ADDRESSES"
)]
pub struct Refused {
    /// Host and port in the message.
    at: String,
    /// The address of that host.
    address: SocketAddr,
    /// Why the address is closed.
    what: String,
}

impl Policy {
    /// Creates a policy that permits every address. For users who run their own file.
    #[must_use]
    pub fn unrestricted() -> Self {
        Self(None)
    }

    /// Creates a policy that closes the worker's own host, link-local and metadata addresses, and
    /// the worker's own services.
    #[must_use]
    pub fn restricted(rules: Rules) -> Self {
        Self(Some(Arc::new(rules)))
    }

    /// Returns true if no address is closed.
    #[must_use]
    pub fn is_unrestricted(&self) -> bool {
        self.0.is_none()
    }

    /// Resolves a host and returns its open addresses.
    ///
    /// # Errors
    /// The error of the resolver, or an [`io::Error`] that contains [`Refused`] if no address is
    /// open.
    pub async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
        let Some(rules) = &self.0 else { return Ok(found) };
        let mut open = Vec::new();
        let mut refused = None;
        for address in found {
            match rules.closed(host, address).await {
                None => open.push(address),
                Some(what) => {
                    let at = format_address(host, port);
                    refused = refused.or(Some(Refused { at, address, what }));
                }
            }
        }
        match refused {
            Some(refused) if open.is_empty() => Err(io::Error::other(refused)),
            Some(_) | None => Ok(open),
        }
    }

    /// Checks a URL whose host is an IP address. A host name is checked when it is resolved.
    ///
    /// # Errors
    /// [`Refused`] if the address is closed.
    pub async fn check(&self, url: &Url) -> Result<(), Refused> {
        let Some(rules) = &self.0 else { return Ok(()) };
        let port = url.port_or_known_default().unwrap_or_default();
        let address: SocketAddr = match url.host() {
            Some(Host::Ipv4(ip)) => (ip, port).into(),
            Some(Host::Ipv6(ip)) => (ip, port).into(),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        let host = address.ip().to_string();
        match rules.closed(&host, address).await {
            None => Ok(()),
            Some(what) => Err(Refused { at: format_address(&host, port), address, what }),
        }
    }

    /// Makes a client resolve names through this policy. The client must only connect to this port:
    /// a rule may depend on the port, which a resolver does not receive.
    pub fn guarded(&self, builder: ClientBuilder, port: u16) -> ClientBuilder {
        if self.is_unrestricted() {
            return builder;
        }
        builder.dns_resolver(Arc::new(Guard { policy: self.clone(), port }))
    }
}

/// Resolves names for connections to one port.
struct Guard {
    policy: Policy,
    port: u16,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, port) = (self.policy.clone(), self.port);
        Box::pin(async move {
            let found = policy.addresses(name.as_str(), port).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Returns the [`Refused`] that caused a client's error, if any.
#[must_use]
pub fn refusal<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Refused> {
    let mut errors = std::iter::successors(Some(error), |&error| error.source());
    errors.find_map(|error| {
        // The source of an io::Error is not its content but the content's source.
        let inside = || error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref();
        error.downcast_ref().or_else(inside)
    })
}

/// Returns the target if the response is a redirect. Clients here do not follow redirects
/// themselves: each hop is checked, and resolved for its own port.
#[must_use]
pub fn redirect(response: &Response) -> Option<Url> {
    let follows = matches!(
        response.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    let location = response.headers().get(LOCATION).filter(|_| follows)?;
    let next = response.url().join(std::str::from_utf8(location.as_bytes()).ok()?).ok()?;
    (matches!(next.scheme(), "http" | "https") && next.has_host()).then_some(next)
}

/// Formats host and port.
fn format_address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests;
