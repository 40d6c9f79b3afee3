//! Parses the address of a podman or Docker engine, connects to it, and determines its identity.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

/// A connection to an engine.
pub(super) type EngineStream = Either<UnixStream, TcpStream>;

/// The address of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EngineAddress {
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl EngineAddress {
    /// Parses `unix:///path`, `http://host:port` or `tcp://host:port`. Without a default port, the
    /// port is required.
    pub(super) fn parse(text: &str, default_port: Option<u16>) -> Option<Self> {
        match text.split_once("://")? {
            ("unix", path) if path.starts_with('/') => Some(Self::Unix(path.into())),
            ("http" | "tcp", rest) => {
                let host = rest.trim_end_matches('/');
                if host.is_empty() || host.contains('/') {
                    return None;
                }
                let has_port = host
                    .rsplit_once(':')
                    .is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
                if has_port {
                    return Some(Self::Tcp(host.to_owned()));
                }
                default_port.map(|port| Self::Tcp(format!("{host}:{port}")))
            }
            _ => None,
        }
    }

    /// The engine's socket, if it is on this machine.
    pub(super) fn socket(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) => None,
        }
    }

    pub(super) async fn connect(&self) -> io::Result<EngineStream> {
        match self {
            Self::Unix(path) => Ok(Either::Left(UnixStream::connect(path).await?)),
            Self::Tcp(host) => {
                let stream = TcpStream::connect(host).await?;
                stream.set_nodelay(true)?;
                Ok(Either::Right(stream))
            }
        }
    }
}

/// Whether an engine says that a container has the name already. podman has a second text for a
/// name that it finds taken only while it stores the new container, such as that of a container that
/// is being removed.
pub(super) fn is_name_taken(said: &str) -> bool {
    said.contains("already in use") || said.contains("container already exists")
}

/// Reads a machine id from the first of these files that contains one.
pub(super) fn machine_id(files: &[&str]) -> Option<String> {
    let read = |file: &&str| std::fs::read_to_string(file).ok().map(|id| id.trim().to_owned());
    files.iter().find_map(read).filter(|id| !id.is_empty())
}

/// A stable id of an engine's store, from the machine and the store's directory.
pub(super) fn store_id(machine: &str, root: &str) -> String {
    hex::encode(&Sha256::digest(format!("{machine}\n{root}"))[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_in_either_text_of_podman() {
        assert!(is_name_taken("the container name \"x\" is already in use by 1f0c"));
        assert!(is_name_taken("container create: name \"x\" is in use: container already exists"));
        assert!(!is_name_taken("no such image: x"));
    }

    #[test]
    fn an_address_is_a_socket_or_a_host_with_a_port() {
        let tcp = |host: &str| Some(EngineAddress::Tcp(host.to_owned()));
        let socket = EngineAddress::parse("unix:///run/x.sock", None).unwrap();
        assert_eq!(socket.socket(), Some(Path::new("/run/x.sock")));
        assert_eq!(EngineAddress::parse("http://localhost:2375", None), tcp("localhost:2375"));
        assert_eq!(EngineAddress::parse("tcp://10.0.0.1:1/", Some(80)), tcp("10.0.0.1:1"));
        assert_eq!(EngineAddress::parse("http://h", Some(80)), tcp("h:80"));
        for bad in ["", "/run/x.sock", "unix://x", "https://h:1", "http://", "tcp://h:1/p"] {
            assert_eq!(EngineAddress::parse(bad, Some(80)), None, "{bad}");
        }
        for bad in ["http://h", "tcp://:1", "tcp://h:x"] {
            assert_eq!(EngineAddress::parse(bad, None), None, "{bad}");
        }
    }
}
