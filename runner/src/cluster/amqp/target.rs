//! Address, certificates and name of a connection to a broker.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use lapin::tcp::AsyncTcpStream;
use lapin::types::LongString;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Connection, ConnectionProperties};
use parking_lot::Mutex;
use rustls_connector::RustlsConnector;
use url::{Host, Url};

use super::faults::of_handshake;
use super::{AmqpOptions, Fault};
use crate::cluster::tls;

/// The timeout of establishing a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// The heartbeat interval. A connection that is silent for twice this time is closed.
const HEARTBEAT_SECONDS: u16 = 10;
/// lapin keeps 32 frames in each direction. A smaller frame saves memory without a loss of speed.
const FRAME_BYTES: u32 = 32 * 1024;

/// The parameters of a connection.
#[derive(Clone)]
pub(in crate::cluster) struct Target {
    uri: AMQPUri,
    connector: Option<Arc<RustlsConnector>>,
    name: String,
    at: Arc<str>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("at", &self.at)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Target {
    pub(in crate::cluster) fn new(
        options: &AmqpOptions,
        url: &str,
        name: String,
    ) -> Result<Self, Fault> {
        let address = Address::parse(url)?;
        let at = address.to_string().into();
        let connector = if address.tls {
            let pems = options.tls.read().map_err(|fault| Fault::Denied(fault.to_string()))?;
            Some(Arc::new(tls::connector(&pems).map_err(Fault::Denied)?))
        } else if options.tls.is_empty() {
            None
        } else {
            return Err(Fault::Denied(
                "certificates are given, but its address does not begin with amqps://".to_owned(),
            ));
        };
        let uri = AMQPUri {
            scheme: if address.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: options.user.clone(),
                    password: options.password.clone(),
                },
                host: address.host,
                port: address.port,
            },
            vhost: address.vhost,
            query: AMQPQueryString {
                frame_max: Some(FRAME_BYTES),
                heartbeat: Some(HEARTBEAT_SECONDS),
                ..AMQPQueryString::default()
            },
        };
        Ok(Self { uri, connector, name, at })
    }

    /// Sets a different frame size.
    pub(in crate::cluster) fn with_frames_of(mut self, bytes: u32) -> Self {
        self.uri.query.frame_max = Some(bytes);
        self
    }

    /// Returns the address without credentials.
    pub(in crate::cluster) fn at(&self) -> &Arc<str> {
        &self.at
    }

    /// Returns the virtual host.
    pub(in crate::cluster) fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    /// Connects. If that fails for no clear reason, checks whether the certificates are the cause.
    pub(super) async fn connect(&self) -> Result<(Connection, Line), Fault> {
        let fault = match self.connect_once().await {
            Err(Fault::Unreachable(cause)) => cause,
            other => return other,
        };
        let AMQPAuthority { host, port, .. } = &self.uri.authority;
        if self.connector.is_none() && tls::speaks_tls(host, *port).await {
            return Err(Fault::Denied(
                "it speaks TLS on this port; write amqps://, or give the port without TLS (5672 by \
                 default)"
                    .to_owned(),
            ));
        }
        if let Some(connector) = &self.connector {
            let said = tls::probe(connector, host, *port).await;
            if let Some(denied) = said.and_then(|said| of_handshake(&said)) {
                return Err(denied);
            }
        }
        Err(Fault::Unreachable(fault))
    }

    async fn connect_once(&self) -> Result<(Connection, Line), Fault> {
        let line = Line::default();
        let connecting = self.open(line.clone());
        match tokio::time::timeout(PATIENCE, connecting).await {
            Ok(connected) => Ok((connected?, line)),
            Err(_elapsed) => {
                // Otherwise the thread that reads this socket would wait forever.
                line.cut();
                Err(Fault::Unreachable(format!(
                    "it did not answer within {} s",
                    PATIENCE.as_secs()
                )))
            }
        }
    }

    async fn open(&self, line: Line) -> Result<Connection, Fault> {
        let connector = self.connector.clone();
        let properties = ConnectionProperties::default()
            .with_connection_name(LongString::from(self.name.clone()))
            .with_client_property("product".into(), "bob-runner".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let runtime = lapin::runtime::default_runtime().map_err(Fault::from)?;
        let own = runtime.clone();
        let connect = async move |uri: AMQPUri, _| {
            let host = uri.authority.host.clone();
            let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
            for address in tokio::net::lookup_host((host.as_str(), uri.authority.port)).await? {
                match AsyncTcpStream::connect(&own, address).await {
                    Ok(stream) => {
                        if let AsyncTcpStream::Plain(plain) = &stream {
                            line.hold(plain.get_ref())?;
                        }
                        return Ok(match &connector {
                            Some(connector) => stream.into_rustls(connector, &host).await?,
                            None => stream,
                        });
                    }
                    Err(error) => last = error,
                }
            }
            Err(last.into())
        };
        Ok(Connection::connector(self.uri.clone(), runtime, connect, properties).await?)
    }
}

/// A second handle to a socket that another thread reads.
#[derive(Clone, Default)]
pub(super) struct Line(Arc<Mutex<Option<std::net::TcpStream>>>);

impl Line {
    fn hold(&self, stream: &tokio::net::TcpStream) -> io::Result<()> {
        let second = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
        *self.0.lock() = Some(second);
        Ok(())
    }

    /// Ends the connection without the consent of the broker.
    pub(super) fn cut(&self) {
        if let Some(stream) = self.0.lock().take() {
            // It may be closed already.
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }
}

/// The parts of a URL that determine the address.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    tls: bool,
    host: String,
    port: u16,
    vhost: String,
}

impl Address {
    fn parse(url: &str) -> Result<Self, Fault> {
        // Do not include the URL in the error: it may contain a password.
        let bad = |what: &str| Fault::Denied(format!("its URL {what}"));
        let parsed = Url::parse(url).map_err(|cause| bad(&format!("cannot be read: {cause}")))?;
        let tls = match parsed.scheme() {
            "amqp" => false,
            "amqps" => true,
            other => return Err(bad(&format!("begins with {other}:, not amqp: or amqps:"))),
        };
        let host = match parsed.host() {
            Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => ip.to_string(),
            Some(Host::Domain(_)) | None => return Err(bad("names no host")),
        };
        // A missing and an empty path both mean the default virtual host, which has the name `/`.
        let name = parsed.path().strip_prefix('/').unwrap_or_default();
        let vhost = match percent_encoding::percent_decode_str(name).decode_utf8() {
            Ok(name) if name.is_empty() => "/".to_owned(),
            Ok(name) => name.into_owned(),
            Err(_not_text) => return Err(bad("names a virtual host that is not valid UTF-8")),
        };
        let port = parsed.port().unwrap_or(if tls { 5671 } else { 5672 });
        Ok(Self { tls, host, port, vhost })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)?;
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)?;
        }
        if self.vhost == "/" { Ok(()) } else { write!(f, "/{}", self.vhost) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Address {
        Address::parse(url).unwrap()
    }

    #[test]
    fn an_address_has_a_port_and_a_virtual_host_by_default() {
        let plain = parsed("amqp://mq.example");
        assert_eq!((plain.port, plain.vhost.as_str(), plain.tls), (5672, "/", false));
        assert_eq!(parsed("amqps://mq.example/").port, 5671);
        assert_eq!(parsed("amqp://mq.example/%2f").vhost, "/");
        assert_eq!(parsed("amqp://mq.example:1/builds").vhost, "builds");
    }

    #[test]
    fn an_ipv6_address_is_not_taken_for_localhost() {
        let address = parsed("amqp://[::1]:7000/v");
        assert_eq!(address.host, "::1");
        assert_eq!(address.to_string(), "amqp://[::1]:7000/v");
    }

    #[test]
    fn a_displayed_address_has_no_password() {
        assert_eq!(parsed("amqp://bob:secret@mq.example").to_string(), "amqp://mq.example:5672");
        for bad in ["http://bob:secret@mq.example", "amqp://bob:secret@", "bob:secret@mq"] {
            let said = Address::parse(bad).unwrap_err().cause().to_owned();
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
