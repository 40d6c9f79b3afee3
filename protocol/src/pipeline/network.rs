//! The network of a step, as written in pipelines, messages and settings.

use std::str::FromStr;

use ipnet::Ipv4Net;
use thiserror::Error;

/// A network: `MODE[:OPTION,...]`, or the name of an engine network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The kind of network.
    pub mode: NetworkMode,
    /// Options for `slirp4netns` or `pasta`, in the order given.
    pub options: Vec<String>,
}

/// The kind of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkMode {
    /// No network except the container's own loopback.
    None,
    /// The host's network, including services that listen on its loopback.
    Host,
    /// A network of the container's own, of the engine's default kind.
    Private,
    /// The engine's default bridge.
    Bridge,
    /// User-mode networking by slirp4netns.
    Slirp4netns,
    /// User-mode networking by pasta.
    Pasta,
    /// A named network of the engine.
    Named(String),
}

/// Why a text is not a network, as the rest of a sentence that begins with the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadNetwork {
    /// The text is empty.
    #[error("is empty")]
    Empty,
    /// It would join another container's or process's network namespace.
    #[error("is the network of something outside of the run")]
    Foreign,
    /// The mode accepts no options.
    #[error("has options, which only pasta and slirp4netns take")]
    Options,
    /// It contains a character that network names cannot have.
    #[error("is not a valid name of a network")]
    Name,
    /// An option contains a blank or control character and cannot be passed as one argument.
    #[error("has a blank or a control character")]
    Blank,
}

/// Network access that an operator must grant explicitly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkGrant {
    /// The host's network.
    Host,
    /// Services that listen on the host's loopback.
    HostLoopback,
    /// A named network of the engine.
    Named(String),
}

/// A text does not name a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("is neither `host`, `host-loopback` nor the name of a network of the engine")]
pub struct BadNetworkGrant;

impl FromStr for NetworkGrant {
    type Err = BadNetworkGrant;

    fn from_str(text: &str) -> Result<Self, BadNetworkGrant> {
        if text == Self::HOST_LOOPBACK {
            return Ok(Self::HostLoopback);
        }
        match text.parse::<Network>() {
            Ok(Network { mode: NetworkMode::Host, .. }) => Ok(Self::Host),
            Ok(Network { mode: NetworkMode::Named(name), .. }) => Ok(Self::Named(name)),
            Ok(_) | Err(_) => Err(BadNetworkGrant),
        }
    }
}

impl NetworkGrant {
    /// The word that grants the host's network.
    pub const HOST: &str = "host";
    /// The word that grants access to the host's loopback.
    pub const HOST_LOOPBACK: &str = "host-loopback";

    /// The word that grants this access in the settings.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Host => Self::HOST,
            Self::HostLoopback => Self::HOST_LOOPBACK,
            Self::Named(name) => name,
        }
    }
}

/// Modes with a reserved name.
const MODES: [(&str, NetworkMode); 6] = [
    ("none", NetworkMode::None),
    ("host", NetworkMode::Host),
    ("private", NetworkMode::Private),
    ("bridge", NetworkMode::Bridge),
    ("slirp4netns", NetworkMode::Slirp4netns),
    ("pasta", NetworkMode::Pasta),
];

/// Prefixes that make an engine join a foreign namespace.
const FOREIGN: [&str; 2] = ["container", "ns"];

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (word, options) = match text.split_once(':') {
            Some((word, options)) => (word, Some(options)),
            None => (text, None),
        };
        if text.is_empty() {
            return Err(BadNetwork::Empty);
        }
        if options.is_some() && FOREIGN.contains(&word) {
            return Err(BadNetwork::Foreign);
        }
        let known = MODES.into_iter().find(|(name, _)| *name == word).map(|(_, mode)| mode);
        let mode = match known {
            Some(mode) => mode,
            None if is_name(word) => NetworkMode::Named(word.to_owned()),
            None => return Err(BadNetwork::Name),
        };
        let options = options.unwrap_or_default();
        if options.is_empty() {
            return Ok(Self { mode, options: Vec::new() });
        }
        if !matches!(mode, NetworkMode::Slirp4netns | NetworkMode::Pasta) {
            return Err(BadNetwork::Options);
        }
        if options.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(BadNetwork::Blank);
        }
        Ok(Self { mode, options: options.split(',').map(str::to_owned).collect() })
    }
}

fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(fits)
}

impl Network {
    /// The grants that a pipeline needs for this network. A network confined to the container needs
    /// none.
    ///
    /// # Errors
    /// The option that no operator can grant. Options are passed as arguments to `slirp4netns` or
    /// `pasta`, which can write files and open ports on the host.
    pub fn grants(&self) -> Result<Vec<NetworkGrant>, String> {
        match &self.mode {
            NetworkMode::None | NetworkMode::Private | NetworkMode::Bridge => Ok(Vec::new()),
            NetworkMode::Host => Ok(vec![NetworkGrant::Host]),
            NetworkMode::Named(name) => Ok(vec![NetworkGrant::Named(name.clone())]),
            NetworkMode::Slirp4netns => {
                let reach = self.options.iter().map(|option| slirp_reach(option));
                loopback_if_any(reach)
            }
            NetworkMode::Pasta => loopback_if_any(pasta_reaches(&self.options).into_iter()),
        }
    }
}

/// How far an option reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OptionReach {
    Container,
    HostLoopback,
}

fn loopback_if_any(
    reaches: impl Iterator<Item = Result<OptionReach, String>>,
) -> Result<Vec<NetworkGrant>, String> {
    let reaches: Vec<OptionReach> = reaches.collect::<Result<_, _>>()?;
    let is_open = reaches.contains(&OptionReach::HostLoopback);
    Ok(if is_open { vec![NetworkGrant::HostLoopback] } else { Vec::new() })
}

fn slirp_reach(option: &str) -> Result<OptionReach, String> {
    let refused = || Err(option.to_owned());
    match option.split_once('=') {
        Some(("mtu", value)) if is_mtu(value) => Ok(OptionReach::Container),
        Some(("cidr", value)) if is_private(value) => Ok(OptionReach::Container),
        Some(("enable_ipv6", "true" | "false")) => Ok(OptionReach::Container),
        Some(("allow_host_loopback", "false")) => Ok(OptionReach::Container),
        Some(("allow_host_loopback", "true")) => Ok(OptionReach::HostLoopback),
        Some(_) | None => refused(),
    }
}

/// Flags of pasta without a value that restrict the container or change nothing outside of it. They
/// are compared in full, because pasta also accepts abbreviated flags.
const PASTA_FLAGS: [&str; 12] = [
    "--ipv4-only",
    "-4",
    "--ipv6-only",
    "-6",
    "--no-map-gw",
    "--no-tcp",
    "--no-udp",
    "--no-icmp",
    "--no-dhcp",
    "--no-dhcpv6",
    "--no-ndp",
    "--no-ra",
];

/// Flags of pasta that forward container ports to the host's loopback.
const PASTA_PORTS: [&str; 4] = ["--tcp-ns", "-T", "--udp-ns", "-U"];

fn pasta_reaches(options: &[String]) -> Vec<Result<OptionReach, String>> {
    let mut reaches = Vec::new();
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let (flag, value) = match option.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag, Some(value)),
            Some(_) | None => (option.as_str(), None),
        };
        let reach = match (flag, value) {
            ("--map-gw", None) => Some(OptionReach::HostLoopback),
            (flag, None) if PASTA_FLAGS.contains(&flag) => Some(OptionReach::Container),
            ("--mtu" | "-m", value) => {
                let value = value.or_else(|| options.next().map(String::as_str));
                value.filter(|value| is_mtu(value)).map(|_| OptionReach::Container)
            }
            (flag, value) if PASTA_PORTS.contains(&flag) => {
                let value = value.or_else(|| options.next().map(String::as_str));
                value.filter(|value| is_ports(value)).map(|_| OptionReach::HostLoopback)
            }
            (_, _) => None,
        };
        reaches.push(reach.ok_or_else(|| option.clone()));
    }
    reaches
}

fn is_mtu(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// Whether a text is a port specification of pasta: `80`, `8080:80`, `80-90`, `~22`, `all`, `auto`,
/// `none`.
fn is_ports(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_digit() || b":-~".contains(&byte);
    let is_list = !text.is_empty() && !text.starts_with('-') && text.bytes().all(fits);
    is_list || ["all", "auto", "none"].contains(&text)
}

/// Address ranges allowed for a container's own network. Other ranges would shadow outside
/// addresses.
const PRIVATE: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"];

fn is_private(cidr: &str) -> bool {
    let Ok(net) = cidr.parse::<Ipv4Net>() else { return false };
    PRIVATE.iter().filter_map(|range| range.parse::<Ipv4Net>().ok()).any(|own| own.contains(&net))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(text: &str) -> Result<Vec<String>, String> {
        let grants = text.parse::<Network>().unwrap().grants()?;
        Ok(grants.iter().map(|grant| grant.as_str().to_owned()).collect())
    }

    #[test]
    fn a_network_is_a_mode_with_options_or_the_name_of_one() {
        for good in
            ["none", "host", "private", "bridge", "pasta", "slirp4netns", "my_net.1", "pasta:-T,80"]
        {
            assert!(good.parse::<Network>().is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", BadNetwork::Empty),
            ("container:x", BadNetwork::Foreign),
            ("ns:/proc/1/ns/net", BadNetwork::Foreign),
            ("a b", BadNetwork::Name),
            ("-x", BadNetwork::Name),
            ("a/b", BadNetwork::Name),
            ("é", BadNetwork::Name),
            (":x", BadNetwork::Name),
            ("none:x", BadNetwork::Options),
            ("host:x", BadNetwork::Options),
            ("bridge:ip=10.88.0.3", BadNetwork::Options),
            ("mine:alias=db", BadNetwork::Options),
            ("pasta:--mtu, 1", BadNetwork::Blank),
        ] {
            assert_eq!(bad.parse::<Network>(), Err(why), "{bad}");
        }
    }

    #[test]
    fn a_network_inside_the_container_needs_no_grant() {
        for text in [
            "none",
            "private",
            "bridge",
            "slirp4netns",
            "slirp4netns:mtu=1500,cidr=10.0.3.0/24,enable_ipv6=true,allow_host_loopback=false",
            "pasta",
            "pasta:",
            "pasta:--mtu=1400,-4,--no-map-gw",
            "pasta:-m,1400,--no-udp",
        ] {
            assert_eq!(grants(text), Ok(Vec::new()), "{text}");
        }
    }

    #[test]
    fn the_host_its_loopback_and_a_named_network_each_need_a_grant() {
        for (text, grant) in [
            ("host", "host"),
            ("mine", "mine"),
            ("slirp4netns:mtu=1500,allow_host_loopback=true", "host-loopback"),
            ("pasta:-T,80", "host-loopback"),
            ("pasta:--tcp-ns=8080:80,--mtu=1400", "host-loopback"),
            ("pasta:--udp-ns,auto", "host-loopback"),
            ("pasta:--map-gw", "host-loopback"),
        ] {
            assert_eq!(grants(text), Ok(vec![grant.to_owned()]), "{text}");
        }
    }

    #[test]
    fn a_grant_is_a_word_or_the_name_of_a_network() {
        for text in ["host", "host-loopback", "mine"] {
            assert_eq!(text.parse::<NetworkGrant>().unwrap().as_str(), text);
        }
        // As a network, `host-loopback` is an ordinary name.
        assert_ne!(grants("host-loopback"), Ok(Vec::new()));
        let network = "host-loopback".parse::<Network>().unwrap().grants().unwrap();
        assert_eq!(network, [NetworkGrant::Named("host-loopback".into())]);
        for bad in ["", "none", "bridge", "pasta", "pasta:-T,80", "container:x", "a b"] {
            assert_eq!(bad.parse::<NetworkGrant>(), Err(BadNetworkGrant), "{bad}");
        }
    }

    #[test]
    fn an_option_that_reaches_beyond_the_network_cannot_be_granted() {
        for (text, option) in [
            ("pasta:--pcap,/path", "--pcap"),
            ("pasta:--pcap=/path", "--pcap=/path"),
            ("pasta:--pc=/path", "--pc=/path"),
            ("pasta:-p,/path", "-p"),
            ("pasta:-p/path", "-p/path"),
            ("pasta:--log-file=/path", "--log-file=/path"),
            ("pasta:-l/path", "-l/path"),
            ("pasta:--mtu,--pcap=/path", "--mtu"),
            ("pasta:-m,1400,/path", "/path"),
            ("pasta:-T,/path", "-T"),
            ("pasta:-T", "-T"),
            ("pasta:-t,80", "-t"),
            ("pasta:--map-host-loopback=10.0.0.1", "--map-host-loopback=10.0.0.1"),
            ("pasta:--no-map-gw=x", "--no-map-gw=x"),
            ("pasta:-4,", ""),
            ("slirp4netns:port_handler=x", "port_handler=x"),
            ("slirp4netns:outbound_addr=lo", "outbound_addr=lo"),
            ("slirp4netns:mtu=+1", "mtu=+1"),
            ("slirp4netns:mtu=", "mtu="),
            ("slirp4netns:cidr=127.0.0.0/24", "cidr=127.0.0.0/24"),
            ("slirp4netns:cidr=0.0.0.0/0", "cidr=0.0.0.0/0"),
            ("slirp4netns:cidr=169.254.0.0/16", "cidr=169.254.0.0/16"),
            ("slirp4netns:allow_host_loopback=TRUE", "allow_host_loopback=TRUE"),
            ("slirp4netns:allow_host_loopback", "allow_host_loopback"),
        ] {
            assert_eq!(grants(text), Err(option.to_owned()), "{text}");
        }
    }
}
