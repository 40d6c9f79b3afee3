//! The rules that decide which pipelines can use which secrets of the worker.

use globset::GlobMatcher;

use crate::ports::{Destination, Purpose};

/// Access to the worker's secrets.
#[derive(Debug, Clone)]
pub enum Scopes {
    /// All secrets, for a user who runs a file locally.
    All,
    /// Only the secrets that a scope covers.
    Only(Vec<Scope>),
}

/// Secrets, and the pipelines that can use them.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Matches names of secrets.
    pub secret: GlobMatcher,
    /// Matches groups of pipelines.
    pub group: GlobMatcher,
    /// Matches names of pipelines.
    pub pipeline: GlobMatcher,
    /// Matches the hosts, with or without a port, to which the secrets can be sent. If `None`, the
    /// secrets can also be passed to a step, which can send them anywhere.
    pub host: Option<GlobMatcher>,
}

impl Scopes {
    /// Whether a secret can be used for a purpose.
    pub(super) fn allow(&self, secret: &str, purpose: &Purpose) -> bool {
        match self {
            Self::All => true,
            Self::Only(scopes) => scopes.iter().any(|scope| scope.covers(secret, purpose)),
        }
    }
}

impl Scope {
    fn covers(&self, secret: &str, purpose: &Purpose) -> bool {
        // An untrusted sender can choose any group and name. So only a scope for all pipelines covers
        // an untrusted run.
        let covers_all_pipelines =
            || self.group.glob().glob() == "*" && self.pipeline.glob().glob() == "*";
        if !purpose.trusted && !covers_all_pipelines() {
            return false;
        }
        let host_matches = match (&self.host, &purpose.to) {
            (None, _) => true,
            (Some(_), Destination::Anywhere) => false,
            (Some(pattern), Destination::Host { host, port }) => {
                pattern.is_match(host) || pattern.is_match(format!("{host}:{port}"))
            }
        };
        host_matches
            && self.secret.is_match(secret)
            && self.group.is_match(&purpose.group)
            && self.pipeline.is_match(&purpose.pipeline)
    }
}

#[cfg(test)]
mod tests {
    use globset::Glob;

    use super::*;

    fn scope(secret: &str, group: &str, pipeline: &str, host: Option<&str>) -> Scope {
        let glob = |text: &str| Glob::new(text).unwrap().compile_matcher();
        Scope {
            secret: glob(secret),
            group: glob(group),
            pipeline: glob(pipeline),
            host: host.map(glob),
        }
    }

    fn purpose(group: &str, pipeline: &str, to: Option<(&str, u16)>) -> Purpose {
        let to = match to {
            None => Destination::Anywhere,
            Some((host, port)) => Destination::Host { host: host.to_owned(), port },
        };
        Purpose { group: group.to_owned(), pipeline: pipeline.to_owned(), trusted: true, to }
    }

    #[test]
    fn a_secret_can_be_used_only_within_a_scope() {
        let scopes = Scopes::Only(vec![
            scope("deploy-*", "prod", "*", None),
            scope("hook", "*", "*", Some("*.example.org:443")),
        ]);
        let step = |secret, group| scopes.allow(secret, &purpose(group, "p", None));
        assert!(step("deploy-key", "prod"));
        assert!(!step("deploy-key", "dev") && !step("other", "prod"));
        assert!(!step("hook", "prod"), "a step could send it anywhere");
        let post = |host, port| scopes.allow("hook", &purpose("g", "p", Some((host, port))));
        assert!(post("a.example.org", 443));
        assert!(!post("a.example.org", 80) && !post("example.org.evil.net", 443));
        let untrusted = Purpose { trusted: false, ..purpose("prod", "p", None) };
        assert!(!scopes.allow("deploy-key", &untrusted), "a message can claim any group");
        let everyone = Scopes::Only(vec![scope("deploy-*", "*", "*", None)]);
        assert!(everyone.allow("deploy-key", &untrusted));
        assert!(!Scopes::Only(Vec::new()).allow("a", &purpose("g", "p", None)));
        assert!(Scopes::All.allow("a", &purpose("g", "p", None)));
    }
}
