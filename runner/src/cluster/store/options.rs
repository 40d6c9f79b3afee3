//! The configuration of the connection to etcd.

use std::time::Duration;

use crate::cluster::tls::TlsFiles;

/// Addresses and credentials of etcd.
#[derive(Clone)]
pub struct EtcdOptions {
    /// The addresses of the members.
    pub urls: Vec<String>,
    /// The user. Without one, authentication is not used.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// The certificates for `https://`.
    pub tls: TlsFiles,
    /// The number of attempts to establish the first connection.
    pub retry_attempts: u32,
    /// The delay between these attempts.
    pub retry_delay: Duration,
}

impl std::fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("urls", &display_urls(&self.urls))
            .field("user", &self.user)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Returns the addresses without users and passwords.
pub(super) fn display_urls(urls: &[String]) -> String {
    let shown = urls.iter().map(|url| match url::Url::parse(url) {
        Ok(parsed) if !parsed.username().is_empty() || parsed.password().is_some() => {
            let (scheme, rest) = url.split_once("://").unwrap_or_default();
            let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            format!("{scheme}://{host}")
        }
        Ok(_) | Err(_) => url.clone(),
    });
    shown.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_an_address_are_not_shown() {
        let urls =
            ["https://bob:secret@etcd.example:2379/".to_owned(), "localhost:2379".to_owned()];
        assert_eq!(display_urls(&urls), "https://etcd.example:2379/,localhost:2379");
    }

    #[test]
    fn the_debug_output_does_not_contain_the_password() {
        let options = EtcdOptions {
            urls: vec!["http://localhost:2379".to_owned()],
            user: Some("bob".to_owned()),
            password: Some("hidden".to_owned()),
            tls: TlsFiles::default(),
            retry_attempts: 1,
            retry_delay: Duration::ZERO,
        };
        assert!(!format!("{options:?}").contains("hidden"));
    }
}
