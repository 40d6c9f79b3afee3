//! Parses one text into one value. An error completes the sentence `expected ...`.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use protocol::pipeline::ExecutorKind;
use protocol::quantity::Span;
use url::Url;

use super::Secret;
use super::choices::{EngineUrl, StreamProtocol};
use super::env_files::{self, StepEnv};

/// The value, or a description of the expected value.
pub(super) type Parsed<T> = Result<T, String>;

/// A parsed broker URL. Missing parts are `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BrokerUrl {
    pub(super) protocol: StreamProtocol,
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret<String>>,
    pub(super) vhost: String,
}

/// The members of an etcd cluster without credentials, and the credentials found in any of their
/// URLs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StorageUrls {
    pub(super) urls: Vec<Url>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret<String>>,
}

/// One of several words.
pub(super) fn word<T: Clone>(text: &str, words: &[(&str, T)]) -> Parsed<T> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone()).ok_or_else(|| {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("one of {}", names.join(", "))
    })
}

/// A time span, or a number of seconds.
pub(super) fn span(text: &str) -> Parsed<Span> {
    let expected = || "a time span such as 90s, 10m or 1h30m, or whole seconds; not 0".to_owned();
    text.parse().ok().ok_or_else(expected)
}

/// Bytes, as a number or with a unit.
pub(super) fn bytes(text: &str) -> Parsed<u64> {
    let with_unit = || text.parse::<protocol::quantity::Memory>().ok().map(|memory| memory.bytes());
    text.parse().ok().or_else(with_unit).ok_or_else(|| {
        "bytes as a whole number, or digits and one of K M G T P E (or Ki Mi ..., the same)".into()
    })
}

/// A limit in bytes. 0 means no limit.
pub(super) fn limit(text: &str) -> Parsed<Option<u64>> {
    bytes(text).map(|bytes| Some(bytes).filter(|bytes| *bytes > 0))
}

/// The maximum size of the stream. RabbitMQ deletes whole segments and always keeps the last one.
pub(super) fn stream_bytes(text: &str) -> Parsed<u64> {
    let expected = || "at least 128Mi, two segments of the stream".to_owned();
    let bytes = bytes(text)?;
    let fits = bytes >= 128 << 20 && i64::try_from(bytes).is_ok();
    fits.then_some(bytes).ok_or_else(expected)
}

pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    if text.contains('\0') { Err("a path".into()) } else { Ok(PathBuf::from(text)) }
}

/// A file that is readable now, so that a wrong path is reported before the file is needed.
pub(super) fn readable_file(text: &str) -> Parsed<PathBuf> {
    let path = path(text)?;
    let checked = std::fs::File::open(&path).and_then(|file| file.metadata());
    match checked {
        Ok(meta) if meta.is_file() => Ok(path),
        Ok(_) => Err("a file, and this is none".into()),
        Err(cause) => Err(format!("a file that can be read ({cause})")),
    }
}

/// Existing directories, separated by colons.
pub(super) fn dirs(text: &str) -> Parsed<Vec<PathBuf>> {
    let one = |text: &str| {
        let dir = path(text)?;
        if !dir.is_absolute() {
            return Err("absolute paths of directories, with colons between them".to_owned());
        }
        match std::fs::metadata(&dir) {
            Ok(meta) if meta.is_dir() => Ok(dir),
            Ok(_) => Err(format!("directories, and {text} is none")),
            Err(cause) => Err(format!("directories that can be read; {text}: {cause}")),
        }
    };
    text.split(':').filter(|text| !text.is_empty()).map(one).collect()
}

/// The contents of comma-separated files of variables.
pub(super) fn env_files(text: &str) -> Parsed<(StepEnv, Vec<String>)> {
    let files: Vec<_> = text.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
    let files = files.into_iter().map(path).collect::<Parsed<Vec<_>>>()?;
    env_files::read(&files).map_err(|why| format!("files of variables: {why}"))
}

/// The name of a queue or stream.
pub(super) fn queue_name(text: &str) -> Parsed<String> {
    let fits = (1..=255).contains(&text.len())
        && !text.starts_with("amq.")
        && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned()).ok_or_else(|| {
        "1 to 255 bytes without control characters, not beginning with `amq.`".into()
    })
}

/// A non-empty text without control characters.
pub(super) fn line(text: &str) -> Parsed<String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        Err("a string without control characters".into())
    } else {
        Ok(text.to_owned())
    }
}

/// Any text, as a secret.
#[expect(clippy::unnecessary_wraps, reason = "it has the form of the parsers")]
pub(super) fn secret(text: &str) -> Parsed<Secret<String>> {
    Ok(Secret::new(text.to_owned()))
}

/// A glob for paths.
pub(super) fn glob(text: &str) -> Parsed<String> {
    let glob = globset::GlobBuilder::new(text).literal_separator(true).build();
    glob.map(|_valid| text.to_owned()).map_err(|cause| format!("a glob; {}", cause.kind()))
}

/// `host:port`.
pub(super) fn address(text: &str) -> Parsed<String> {
    text.rsplit_once(':')
        .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        .map(|_| text.to_owned())
        .ok_or_else(|| "host:port".into())
}

/// `host:port`, or `off` for `None`.
pub(super) fn address_or_off(text: &str) -> Parsed<Option<String>> {
    match text {
        "off" => Ok(None),
        text => address(text).map(Some).map_err(|expected| format!("{expected}, or off")),
    }
}

/// `host:port`, or nothing.
pub(super) fn address_or_none(text: &str) -> Parsed<String> {
    if text.is_empty() { Ok(String::new()) } else { address(text) }
}

/// Executors, separated by commas.
pub(super) fn executors(text: &str) -> Parsed<Vec<ExecutorKind>> {
    let known = ExecutorKind::named();
    items(text).map(|one| word(one, &known)).collect()
}

/// Registries as `host` or `host:port`, separated by commas.
pub(super) fn hosts(text: &str) -> Parsed<Vec<String>> {
    let one = |host: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        if host.chars().all(fits) {
            Ok(host.to_owned())
        } else {
            Err("registries as host or host:port, with commas between them".to_owned())
        }
    };
    items(text).map(one).collect()
}

/// A registry, with or without a repository.
pub(super) fn repository(text: &str) -> Parsed<String> {
    let (host, path) = text.split_once('/').unwrap_or((text, "x"));
    let is_host =
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
    let is_path = path.split('/').all(|part| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        part.chars().all(fits) && ends(part.chars().next()) && ends(part.chars().next_back())
    });
    if is_host && is_path {
        Ok(text.to_owned())
    } else {
        Err("a registry as host, host:port or host:port/repository, without tag".into())
    }
}

/// The items of a comma-separated list.
pub(super) fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

pub(super) fn storage_urls(text: &str) -> Parsed<StorageUrls> {
    let expected = || "http://host:port or https://host:port, several with commas between them";
    let mut read = StorageUrls { urls: Vec::new(), user: None, password: None };
    for item in items(text) {
        let mut url = Url::parse(item)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
            .filter(|url| matches!(url.path(), "" | "/") && url.query().is_none())
            .ok_or_else(expected)?;
        if read.urls.iter().any(|other| other.scheme() != url.scheme()) {
            return Err("members that are all http:// or all https://".into());
        }
        let (user, password) = credentials(&url)?;
        if read.user.is_some()
            && user.is_some()
            && (&read.user, &read.password) != (&user, &password)
        {
            return Err("the same credentials in every URL, or in one alone".into());
        }
        read.user = read.user.or(user);
        read.password = read.password.or(password);
        // A URL with a host accepts both.
        let _always_ok = (url.set_username(""), url.set_password(None));
        read.urls.push(url);
    }
    if read.urls.is_empty() { Err(expected().into()) } else { Ok(read) }
}

pub(super) fn queue_url(text: &str) -> Parsed<BrokerUrl> {
    broker_url(text)
        .filter(|url| url.protocol == StreamProtocol::Amqp)
        .ok_or_else(|| "amqp://host:port or amqps://host:port, with /vhost unless it is /".into())
}

pub(super) fn stream_url(text: &str) -> Parsed<BrokerUrl> {
    broker_url(text).ok_or_else(|| {
        "amqp://host:port, amqps://host:port, rabbitmq-stream://host:port or rabbitmq-stream+tls://host:port"
            .into()
    })
}

fn broker_url(text: &str) -> Option<BrokerUrl> {
    let url = Url::parse(text).ok()?;
    let (protocol, tls, usual_port) = match url.scheme() {
        "amqp" => (StreamProtocol::Amqp, false, 5672),
        "amqps" => (StreamProtocol::Amqp, true, 5671),
        "rabbitmq-stream" => (StreamProtocol::Native, false, 5552),
        "rabbitmq-stream+tls" => (StreamProtocol::Native, true, 5551),
        _ => return None,
    };
    let host = host_of(&url)?;
    let (user, password) = credentials(&url).ok()?;
    // An empty path or a single slash means the default virtual host, named `/`.
    let vhost = match url.path().strip_prefix('/').unwrap_or_default() {
        "" => "/".to_owned(),
        path => decoded(path).ok()?,
    };
    let port = url.port().unwrap_or(usual_port);
    (url.query().is_none() && url.fragment().is_none()).then_some(BrokerUrl {
        protocol,
        tls,
        host,
        port,
        user,
        password,
        vhost,
    })
}

pub(super) fn engine_url(text: &str) -> Parsed<EngineUrl> {
    let expected = || "unix:///path, http://host:port or tcp://host:port".to_owned();
    if let Some(path) = text.strip_prefix("unix://") {
        return if path.starts_with('/') {
            Ok(EngineUrl::Unix(PathBuf::from(path)))
        } else {
            Err(expected())
        };
    }
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "tcp"));
    let url = url.filter(|url| matches!(url.path(), "" | "/") && url.username().is_empty());
    let host = url.as_ref().and_then(host_of).ok_or_else(expected)?;
    let port = url.as_ref().and_then(Url::port_or_known_default).unwrap_or(8080);
    Ok(EngineUrl::Tcp { host, port })
}

fn host_of(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!bare.is_empty()).then(|| bare.to_owned())
}

type Credentials = (Option<String>, Option<Secret<String>>);

fn credentials(url: &Url) -> Parsed<Credentials> {
    let user = Some(url.username()).filter(|user| !user.is_empty()).map(decoded).transpose()?;
    let password = url.password().map(decoded).transpose()?.map(Secret::new);
    Ok((user, password))
}

fn decoded(text: &str) -> Parsed<String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_not_utf8| "credentials and paths that are UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_url_contains_host_port_credentials_and_virtual_host() {
        let url = queue_url("amqps://us%40er:p%2Fw@[::1]:1234/%2Fown").unwrap();
        assert!(url.tls);
        assert_eq!((url.host.as_str(), url.port, url.vhost.as_str()), ("::1", 1234, "/own"));
        assert_eq!(url.user.as_deref(), Some("us@er"));
        assert_eq!(url.password.unwrap().expose(), "p/w");
        for (text, port, vhost) in [
            ("amqp://h", 5672, "/"),
            ("amqp://h/", 5672, "/"),
            ("amqps://h/%2f", 5671, "/"),
            ("amqp://h:7/dev", 7, "dev"),
        ] {
            let url = queue_url(text).unwrap();
            assert_eq!((url.port, url.vhost.as_str()), (port, vhost), "{text}");
        }
        for bad in
            ["", "localhost:5672", "http://h", "amqp://", "amqp://h:99999", "rabbitmq-stream://h"]
        {
            assert!(queue_url(bad).is_err(), "{bad} was taken");
        }
        assert_eq!(stream_url("rabbitmq-stream://h").unwrap().port, 5552);
    }

    #[test]
    fn storage_urls_have_one_scheme_and_their_credentials_are_extracted() {
        let read = storage_urls("http://u:p@a:1, http://b:2").unwrap();
        let urls: Vec<&str> = read.urls.iter().map(Url::as_str).collect();
        assert_eq!(urls, ["http://a:1/", "http://b:2/"]);
        assert_eq!(read.user.as_deref(), Some("u"));
        for bad in [
            "",
            ",",
            "a:1",
            "ftp://a",
            "http://a,https://b",
            "http://a/path",
            "http://u@a,http://v@b",
        ] {
            assert!(storage_urls(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn an_engine_is_a_socket_or_a_host_with_a_port() {
        assert_eq!(
            engine_url("unix:///run/p.sock").unwrap(),
            EngineUrl::Unix("/run/p.sock".into())
        );
        assert_eq!(engine_url("tcp://h:1").unwrap().to_string(), "http://h:1");
        assert_eq!(engine_url("http://[::1]:8").unwrap().to_string(), "http://[::1]:8");
        for bad in ["", "unix://p", "/run/p.sock", "https://h", "http://h/path", "tcp://"] {
            assert!(engine_url(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn bytes_can_have_a_unit() {
        assert_eq!(bytes("1024"), Ok(1024));
        assert_eq!(bytes("1Gi"), Ok(1 << 30));
        assert!(bytes("1.5G").is_err());
    }
}
