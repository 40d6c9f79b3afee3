//! Addresses and secrets that the operator opens to publishers of messages.

use std::net::{IpAddr, SocketAddr};

use globset::{Glob, GlobBuilder};
use ipnet::IpNet;

use super::parse::{Parsed, items};

/// An address that messages may use although its kind is blocked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedAddress {
    /// The hosts.
    pub host: AllowedHost,
    /// The port. Any port if missing.
    pub port: Option<u16>,
}

/// The hosts of an allowed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHost {
    /// A host, by the name used in a message.
    Name(String),
    /// Hosts with an address in this network.
    Net(IpNet),
}

/// Which pipelines may use which secrets of the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretScope {
    /// Names of secrets.
    pub secret: Glob,
    /// Groups of pipelines.
    pub group: Glob,
    /// Names of pipelines.
    pub pipeline: Glob,
    /// Hosts to which the secret may be sent. If missing, a step may use it in any way.
    pub host: Option<Glob>,
}

/// Hosts, hosts with a port, addresses and networks, separated by commas.
pub(super) fn addresses(text: &str) -> Parsed<Vec<AllowedAddress>> {
    items(text)
        .map(|item| address(item).ok_or_else(|| format!("{ADDRESSES}; not {item}")))
        .collect()
}

const ADDRESSES: &str = "hosts (hooks.example.org), hosts with a port (localhost:8080), addresses \
                         and networks (10.0.0.7, [::1]:8080, 10.1.0.0/16), with commas between them";

fn address(item: &str) -> Option<AllowedAddress> {
    let net = |net: IpNet, port| Some(AllowedAddress { host: AllowedHost::Net(net), port });
    let bare = item.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(item);
    if let Ok(network) = item.parse::<IpNet>() {
        return net(network, None);
    }
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return net(ip.into(), None);
    }
    if let Ok(address) = item.parse::<SocketAddr>() {
        return net(address.ip().into(), Some(address.port()));
    }
    let (name, port) = match item.split_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok()?)),
        None => (item, None),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    // A numeric last label means a misspelt address.
    let last = name.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let is_name = name.chars().all(fits) && !last.chars().all(|c| c.is_ascii_digit());
    is_name.then(|| AllowedAddress { host: AllowedHost::Name(name.to_owned()), port })
}

/// Scopes of secrets, separated by commas.
pub(super) fn scopes(text: &str) -> Parsed<Vec<SecretScope>> {
    items(text).map(|item| scope(item).ok_or_else(|| format!("{SCOPES}; not {item}"))).collect()
}

const SCOPES: &str = "SECRET=GROUP, SECRET=GROUP:PIPELINE or either with @HOST behind it, where * \
                      stands for any characters, with commas between them";

fn scope(item: &str) -> Option<SecretScope> {
    let (secret, rest) = item.split_once('=')?;
    let (pipelines, host) = match rest.rsplit_once('@') {
        Some((pipelines, host)) => (pipelines, Some(host)),
        None => (rest, None),
    };
    // A group cannot contain a colon.
    let (group, pipeline) = pipelines.split_once(':').unwrap_or((pipelines, "*"));
    let host = host.map(|host| pattern(host, true));
    Some(SecretScope {
        secret: pattern(secret, false)?,
        group: pattern(group, false)?,
        pipeline: pattern(pipeline, false)?,
        host: host.map_or(Some(None), |host| host.map(Some))?,
    })
}

/// A pattern in which `*` matches any characters and `?` matches one. No other character is
/// special.
fn pattern(text: &str, any_case: bool) -> Option<Glob> {
    let text = text.trim();
    let escaped = |c: char| match c {
        '*' | '?' => c.to_string(),
        c => globset::escape(c.encode_utf8(&mut [0; 4])),
    };
    let written: String = text.chars().map(escaped).collect();
    let glob = GlobBuilder::new(&written).case_insensitive(any_case).build().ok()?;
    (!text.is_empty()).then_some(glob)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowed_address_is_a_host_an_ip_or_a_network_with_an_optional_port() {
        let name =
            |name: &str, port| Some(AllowedAddress { host: AllowedHost::Name(name.into()), port });
        let net = |net: &str, port| {
            Some(AllowedAddress { host: AllowedHost::Net(net.parse().unwrap()), port })
        };
        assert_eq!(address("hooks.example.org"), name("hooks.example.org", None));
        assert_eq!(address("localhost:8080"), name("localhost", Some(8080)));
        assert_eq!(address("10.1.0.0/16"), net("10.1.0.0/16", None));
        assert_eq!(address("10.0.0.7"), net("10.0.0.7/32", None));
        assert_eq!(address("10.0.0.7:80"), net("10.0.0.7/32", Some(80)));
        assert_eq!(address("::1"), net("::1/128", None));
        assert_eq!(address("[::1]"), net("::1/128", None));
        assert_eq!(address("[::1]:80"), net("::1/128", Some(80)));
        for bad in [
            "http://h",
            "h:x",
            "h:99999",
            "10.0.0/8",
            "10.0.0.0/33",
            "10.0.0.256",
            "a b",
            ":80",
            "*",
        ] {
            assert_eq!(address(bad), None, "{bad}");
        }
        assert_eq!(addresses("a, b:1").unwrap().len(), 2);
        assert!(addresses("a, b:x").unwrap_err().ends_with("; not b:x"));
    }

    #[test]
    fn a_scope_names_secrets_and_pipelines_and_optionally_a_host() {
        let fits = |glob: &Glob, text: &str| glob.compile_matcher().is_match(text);
        let all = scope("*=*").unwrap();
        assert!(fits(&all.secret, "a.b/c") && fits(&all.group, "x") && fits(&all.pipeline, "y/z"));
        assert_eq!(all.host, None);
        let one = scope("deploy-*=prod:web@*.Example.org:443").unwrap();
        assert!(fits(&one.secret, "deploy-key") && !fits(&one.secret, "other"));
        assert!(fits(&one.group, "prod") && !fits(&one.group, "production"));
        assert!(fits(&one.pipeline, "web") && !fits(&one.pipeline, "web2"));
        let host = one.host.unwrap();
        assert!(fits(&host, "hooks.example.org:443") && !fits(&host, "example.org:443"));
        let odd = scope("a[b]{c}=g:p").unwrap();
        assert!(fits(&odd.secret, "a[b]{c}") && !fits(&odd.secret, "ab{c}"));
        for bad in ["", "a", "=g", "a=", "a=g:", "a=g@", "a=:p"] {
            assert_eq!(scope(bad), None, "{bad}");
        }
        assert!(scopes("a=g, b").unwrap_err().ends_with("; not b"));
    }
}
