//! Decides which access to the engine's host steps have beyond their own containers. No other
//! module decides that.

use std::path::{Path, PathBuf};

use protocol::pipeline::{Network, NetworkGrant};

/// The access of an executor's steps to the engine's host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostAccess {
    /// The operator's grants. `None` if a person runs a file of their own: such a run has the
    /// access of that person.
    pub granted: Option<Granted>,
    /// Other sockets of container engines on this host, besides the executor's own.
    pub sockets: Vec<PathBuf>,
    /// The repository of checkpoints, `HOST[:PORT]/REPOSITORY`, which no step may name as its
    /// image.
    pub checkpoints: Option<String>,
}

/// Grants to everyone who can start a run. The default grants nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// Directories that a step can mount.
    pub dirs: Vec<SharedDir>,
    /// Volumes that a step can mount although bob-runner did not create them.
    pub volumes: Vec<String>,
    /// Networks that a step can use beyond those that end at its container.
    pub networks: Vec<NetworkGrant>,
    /// The network of steps that do not name one. A step can also name it without a grant, because
    /// that gives the step nothing more.
    pub default_network: Option<String>,
}

/// A directory that steps can mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDir {
    /// The directory.
    pub path: PathBuf,
    /// Whether steps can only read it. If so, its parts can be mounted by themselves.
    pub is_read_only: bool,
}

/// Default sockets of container engines. Access to one gives everything the engine's user can do.
const USUAL_SOCKETS: [&str; 4] = [
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
];

/// File names of engine sockets, wherever they are.
const SOCKET_NAMES: [&str; 4] = ["docker.sock", "podman.sock", "containerd.sock", "crio.sock"];

impl HostAccess {
    /// The network of a step, if the step may use it. `name` is the step's.
    ///
    /// # Errors
    /// A sentence that names the step, the network and the setting that grants it.
    pub(super) fn network(&self, name: &str, text: &str) -> Result<Network, String> {
        let refused = |why: String| format!("step {name}: network {text:?} {why}");
        let network: Network = text.parse().map_err(|why| refused(format!("{why}")))?;
        let Some(granted) = &self.granted else { return Ok(network) };
        if granted.default_network.as_deref() == Some(text) {
            return Ok(network);
        }
        let needed = network.grants().map_err(|option| {
            refused(format!(
                "has the option {option:?}, which only the operator of this worker can set (BOB_NETWORK)"
            ))
        })?;
        match needed.into_iter().find(|grant| !granted.networks.contains(grant)) {
            None => Ok(network),
            Some(missing) => Err(refused(format!(
                "is not open to pipelines on this worker: its operator can add {:?} to BOB_NETWORKS",
                missing.as_str()
            ))),
        }
    }

    /// Whether a step may mount a volume that it did not create.
    pub(super) fn has_volume(&self, name: &str) -> bool {
        self.granted
            .as_ref()
            .is_none_or(|granted| granted.volumes.iter().any(|known| known == name))
    }

    /// Whether mounting this path would give access to an engine. `own` is the executor's own
    /// socket.
    pub(super) fn hands_over_an_engine(&self, path: &Path, own: Option<&Path>) -> bool {
        if is_named_like_a_socket(path) {
            return true;
        }
        let mut known = self.sockets.iter().map(PathBuf::as_path).chain(own).map(real);
        if self.granted.is_none() {
            // A person who runs a file may mount their whole home directory: they can use the
            // engine anyway.
            return known.any(|socket| socket == path || socket.parent() == Some(path));
        }
        let usual = USUAL_SOCKETS.iter().map(Path::new).map(real);
        known.chain(usual).any(|socket| socket.starts_with(path))
    }
}

/// Whether the last component of a path is the name of an engine's socket. Does not read the host.
pub(super) fn is_named_like_a_socket(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    SOCKET_NAMES.contains(&name)
}

/// Resolves links in a path, even if its last components do not exist.
pub(super) fn real(path: &Path) -> PathBuf {
    if let Ok(real) = std::fs::canonicalize(path) {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        (_, _) => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granting(networks: &[&str]) -> HostAccess {
        let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
        HostAccess {
            granted: Some(Granted { networks, ..Granted::default() }),
            ..HostAccess::default()
        }
    }

    #[test]
    fn a_network_beyond_the_container_needs_a_grant_of_the_operator() {
        let closed = granting(&[]);
        for text in ["none", "bridge", "private", "slirp4netns:mtu=1500", "pasta:--mtu=1400"] {
            assert!(closed.network("s", text).is_ok(), "{text}");
        }
        for (text, grant) in [
            ("host", "host"),
            ("mine", "mine"),
            ("slirp4netns:allow_host_loopback=true", "host-loopback"),
            ("pasta:-T,2379", "host-loopback"),
        ] {
            let why = closed.network("build", text).unwrap_err();
            assert!(why.contains("step build") && why.contains("BOB_NETWORKS"), "{why}");
            assert!(why.contains(&format!("{grant:?}")), "{why}");
            assert!(granting(&[grant]).network("build", text).is_ok(), "{text}");
        }
        let own = HostAccess::default();
        assert!(own.network("s", "pasta:--pcap,/path").is_ok(), "a person may do what they may");
    }

    #[test]
    fn an_argument_of_the_network_helper_is_the_operators_alone() {
        let all = granting(&["host", "host-loopback", "mine"]);
        for text in ["pasta:--pcap,/path", "pasta:--log-file=/path", "slirp4netns:outbound_addr=lo"]
        {
            let why = all.network("s", text).unwrap_err();
            assert!(why.contains("BOB_NETWORK)"), "{why}");
        }
        let mut access = granting(&[]);
        let text = "pasta:--map-host-loopback=10.0.0.1";
        access.granted.as_mut().unwrap().default_network = Some(text.to_owned());
        assert!(access.network("s", text).is_ok(), "it is the operator's own default");
        assert!(access.network("s", "pasta:--map-host-loopback=10.0.0.2").is_err());
    }

    #[test]
    fn a_directory_above_a_socket_of_an_engine_hands_the_engine_over() {
        let dir = tempfile::tempdir().unwrap();
        let root = real(dir.path());
        let socket = root.join("user/podman/engine");
        let access = HostAccess { sockets: vec![socket.clone()], ..granting(&[]) };
        for path in [&socket, &root.join("user/podman"), &root.join("user"), &root] {
            assert!(access.hands_over_an_engine(path, None), "{}", path.display());
        }
        assert!(!access.hands_over_an_engine(&root.join("user/other"), None));
        assert!(access.hands_over_an_engine(&root.join("own"), Some(&root.join("own/engine"))));
        for path in ["/run", "/", "/srv/docker.sock"] {
            assert!(granting(&[]).hands_over_an_engine(Path::new(path), None), "{path}");
        }
        let person = HostAccess { granted: None, ..access };
        assert!(person.hands_over_an_engine(&root.join("user/podman"), None));
        assert!(!person.hands_over_an_engine(&root, None), "a person may mount their home");
    }
}
