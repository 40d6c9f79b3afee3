//! Classes of closed addresses, recognized in every notation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Addresses at which clouds provide the credentials of a machine, apart from link-local ones.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

/// Returns why an address is closed, or `None` if it is open.
pub(super) fn closed(ip: IpAddr) -> Option<&'static str> {
    let kind = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => kind_v4(*ip),
        IpAddr::V6(ip) => kind_v6(*ip),
    };
    let forms = forms(ip);
    let found = forms.iter().find_map(kind);
    found.or_else(|| {
        forms.iter().any(|ip| is_of_this_host(*ip)).then_some("an address of the worker's own host")
    })
}

fn kind_v4(ip: Ipv4Addr) -> Option<&'static str> {
    if ip.is_loopback() {
        Some("a loopback address")
    } else if ip.octets()[0] == 0 {
        Some("an unspecified address")
    } else if ip.is_link_local() {
        Some("a link-local address")
    } else if METADATA_V4.contains(&ip) {
        Some("the address of a cloud's metadata service")
    } else if ip.is_multicast() || ip.is_broadcast() {
        Some("an address of several hosts")
    } else {
        None
    }
}

fn kind_v6(ip: Ipv6Addr) -> Option<&'static str> {
    if ip.is_loopback() {
        Some("a loopback address")
    } else if ip.is_unspecified() {
        Some("an unspecified address")
    } else if ip.is_unicast_link_local() {
        Some("a link-local address")
    } else if METADATA_V6.contains(&ip) {
        Some("the address of a cloud's metadata service")
    } else if ip.is_multicast() {
        Some("an address of several hosts")
    } else {
        None
    }
}

/// Returns the address and the IPv4 addresses that a gateway or the system translates it to.
pub(super) fn forms(ip: IpAddr) -> Vec<IpAddr> {
    let mut forms = vec![ip];
    let IpAddr::V6(ip) = ip else { return forms };
    let parts = ip.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    let last = v4(parts[6], parts[7]);
    match parts {
        // `::1` and `::` have their own classes.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => {}
        // IPv4-compatible, IPv4-mapped, IPv4-translated.
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] => forms.push(last),
        // NAT64, with the well-known prefix and with the prefix for local use.
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] | [0x64, 0xff9b, 1, ..] => forms.push(last),
        // 6to4.
        [0x2002, high, low, ..] => forms.push(v4(high, low)),
        // Teredo: the server, and the client with its bits inverted.
        [0x2001, 0, high, low, ..] => forms.extend([v4(high, low), v4(!parts[6], !parts[7])]),
        // ISATAP.
        [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => forms.push(last),
        _ => {}
    }
    forms
}

/// Returns true if an address belongs to this machine. Asks the system for the source address of
/// packets to it, which is the same address if it is local. Sends nothing.
pub(super) fn is_of_this_host(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    ip.is_loopback() || from.is_ok_and(|from| from.ip() == ip)
}
