//! Checks the `Host` of each request, and the origin of requests that change something.
//!
//! A page of another server can make a browser send requests here. With a DNS name that changes to
//! an address of this server (DNS rebinding), it can even read the answers; `Host` then contains
//! that name.

use std::net::IpAddr;

use axum::http::header::{HOST, HeaderName, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use url::Url;

use crate::http::Problem;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The hosts that requests can name.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    names: Vec<String>,
    /// Whether the server listens for other machines too.
    is_public: bool,
}

impl Hosts {
    /// The host of the server's address (`host:port`), and further names.
    pub(super) fn new(address: &str, names: &[String]) -> Self {
        let host = address.rsplit_once(':').map_or(address, |(host, _port)| host);
        let is_public = host != "localhost" && !ip(host).is_some_and(|ip| ip.is_loopback());
        let own = [host, "localhost"].into_iter().filter(|host| ip(host).is_none());
        let names = own.chain(names.iter().map(String::as_str));
        Self { names: names.map(str::to_ascii_lowercase).collect(), is_public }
    }

    /// Returns the host of a request, if this server has that name.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<Authority, Problem> {
        let named = named_host(uri, headers)?;
        if self.knows(named.host()) {
            return Ok(named);
        }
        let detail = format!(
            "this server is not called {}; if clients reach it under this name, add the name to \
             BOB_HTTP_HOSTS",
            named.host()
        );
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail).with_code("unknown-host"))
    }

    /// An address is never the result of DNS rebinding.
    fn knows(&self, host: &str) -> bool {
        match ip(host) {
            Some(ip) => self.is_public || ip.is_loopback(),
            None => {
                let host = host.strip_suffix('.').unwrap_or(host);
                self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
            }
        }
    }
}

/// The address that a host consists of, in brackets if it is one of IPv6.
fn ip(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// The host that a request names, in its target or in exactly one header.
fn named_host(uri: &Uri, headers: &HeaderMap) -> Result<Authority, Problem> {
    let malformed = || Problem::bad_request("the request must have exactly one valid Host header");
    let mut given = headers.get_all(HOST).iter();
    let in_header = match (given.next(), given.next()) {
        (None, _) => None,
        (Some(host), None) => {
            let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
            Some(host.ok_or_else(malformed)?)
        }
        (Some(_), Some(_)) => return Err(malformed()),
    };
    let host = match (uri.authority(), in_header) {
        (Some(target), Some(header)) if *target != header => return Err(malformed()),
        (Some(host), _) => host.clone(),
        (None, Some(host)) => host,
        (None, None) => return Err(malformed()),
    };
    if host.as_str().contains('@') { Err(malformed()) } else { Ok(host) }
}

/// Rejects a request that changes something if a page of another server sent it. Other programs
/// than browsers send neither of these headers.
pub(super) fn check_origin(
    method: &Method,
    host: &Authority,
    headers: &HeaderMap,
) -> Result<(), Problem> {
    if method.is_safe() {
        return Ok(());
    }
    let site = headers.get(FETCH_SITE).map(|site| site.as_bytes());
    let is_own = match (site, headers.get(ORIGIN)) {
        (Some(site), _) => matches!(site, b"same-origin" | b"none"),
        (None, Some(origin)) => origin.to_str().is_ok_and(|origin| is_origin_of(origin, host)),
        (None, None) => true,
    };
    if is_own {
        return Ok(());
    }
    let detail = "a page of another server sent this request; only pages of this server can change \
                  something here";
    Err(Problem::new(StatusCode::FORBIDDEN, detail).with_code("foreign-origin"))
}

/// Whether an origin is that of this server. The scheme can differ behind a proxy.
fn is_origin_of(origin: &str, host: &Authority) -> bool {
    let Ok(origin) = Url::parse(origin) else { return false };
    let usual_port = match origin.scheme() {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let port = host.port_u16().unwrap_or(usual_port);
    let same_host = origin.host_str().is_some_and(|name| name.eq_ignore_ascii_case(host.host()));
    same_host && origin.port_or_known_default() == Some(port)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn status(hosts: &Hosts, given: &[&str]) -> Option<StatusCode> {
        let mut headers = HeaderMap::new();
        for host in given {
            headers.append(HOST, HeaderValue::from_str(host).unwrap());
        }
        let uri = Uri::from_static("/api/v1/runs");
        hosts.check(&uri, &headers).err().map(|problem| problem.status())
    }

    #[test]
    fn only_loopback_hosts_are_known_on_loopback() {
        let hosts = Hosts::new("localhost:9009", &[]);
        for known in ["localhost", "LOCALHOST:9009", "localhost.:1", "127.0.0.1:9009", "[::1]:9009"]
        {
            assert_eq!(status(&hosts, &[known]), None, "{known}");
        }
        for foreign in
            ["evil.example", "localhost.evil.example:9009", "192.0.2.1", "127.0.0.1.nip.io"]
        {
            let rejected = Some(StatusCode::MISDIRECTED_REQUEST);
            assert_eq!(status(&hosts, &[foreign]), rejected, "{foreign}");
        }
    }

    #[test]
    fn a_public_server_knows_its_own_and_the_configured_names_and_every_address() {
        let hosts = Hosts::new("ci.example.org:80", &["builds.example.org".into()]);
        for known in ["ci.example.org", "builds.example.org:8443", "192.0.2.1:80", "localhost"] {
            assert_eq!(status(&hosts, &[known]), None, "{known}");
        }
        assert_eq!(status(&hosts, &["example.org"]), Some(StatusCode::MISDIRECTED_REQUEST));
        let any = Hosts::new("0.0.0.0:9009", &[]);
        assert_eq!(status(&any, &["192.0.2.1:9009"]), None);
        assert_eq!(status(&any, &["evil.example"]), Some(StatusCode::MISDIRECTED_REQUEST));
    }

    #[test]
    fn a_missing_doubled_or_malformed_host_is_a_bad_request() {
        let hosts = Hosts::new("localhost:9009", &[]);
        let bad = Some(StatusCode::BAD_REQUEST);
        assert_eq!(status(&hosts, &[]), bad);
        assert_eq!(status(&hosts, &["localhost", "localhost"]), bad);
        assert_eq!(status(&hosts, &["user@localhost"]), bad);
        assert_eq!(status(&hosts, &["local host"]), bad);
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("localhost"));
        let target = Uri::from_static("http://evil.example/");
        assert_eq!(hosts.check(&target, &headers).unwrap_err().status(), StatusCode::BAD_REQUEST);
    }

    fn change_is_allowed(headers: &[(HeaderName, &'static str)]) -> bool {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect();
        let host = Authority::from_static("localhost:9009");
        check_origin(&Method::POST, &host, &headers).is_ok()
    }

    #[test]
    fn only_pages_of_this_server_and_other_programs_can_change_something() {
        assert!(change_is_allowed(&[]));
        assert!(change_is_allowed(&[(ORIGIN, "http://localhost:9009")]));
        assert!(change_is_allowed(&[(FETCH_SITE, "same-origin"), (ORIGIN, "null")]));
        assert!(change_is_allowed(&[(FETCH_SITE, "none")]));
        for site in ["cross-site", "same-site", "same-origin ", ""] {
            assert!(!change_is_allowed(&[(FETCH_SITE, site)]), "{site:?}");
        }
        for origin in [
            "null",
            "",
            "http://evil.example",
            "http://localhost:9010",
            "http://localhost",
            "http://localhost.evil.example:9009",
            "ftp://localhost:9009",
        ] {
            assert!(!change_is_allowed(&[(ORIGIN, origin)]), "{origin:?}");
        }
    }

    #[test]
    fn reading_is_allowed_from_everywhere_because_the_answer_stays_unreadable() {
        let headers: HeaderMap =
            [(ORIGIN, HeaderValue::from_static("http://evil.example"))].into_iter().collect();
        let host = Authority::from_static("localhost:9009");
        assert!(check_origin(&Method::GET, &host, &headers).is_ok());
        assert!(check_origin(&Method::DELETE, &host, &headers).is_err());
    }
}
