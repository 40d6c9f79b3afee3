//! Which pipelines can use which secrets of the worker.

use globset::GlobMatcher;

use crate::ports::{Destination, Purpose};

/// Access to the worker's secrets.
#[derive(Debug, Clone)]
pub enum Scopes {
    /// Every secret, for a user who runs a file locally.
    All,
    /// Only secrets covered by a scope.
    Only(Vec<Scope>),
}

/// Secrets, and the pipelines that can use them.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Names of secrets.
    pub secret: GlobMatcher,
    /// Groups of pipelines.
    pub group: GlobMatcher,
    /// Names of pipelines.
    pub pipeline: GlobMatcher,
    /// Hosts, with or without a port, that the secrets can be sent to. If missing, the secrets can
    /// also be passed to a step, which can send them anywhere.
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
        // The sender of a definition chooses its group and name, so a scope that names them does
        // not cover it.
        let is_for_everyone =
            || self.group.glob().glob() == "*" && self.pipeline.glob().glob() == "*";
        if !purpose.trusted && !is_for_everyone() {
            return false;
        }
        let by_host = match (&self.host, &purpose.to) {
            (None, _) => true,
            (Some(_), Destination::Anywhere) => false,
            (Some(pattern), Destination::Host { host, port }) => {
                pattern.is_match(host) || pattern.is_match(format!("{host}:{port}"))
            }
        };
        by_host
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
    fn a_secret_is_given_only_within_a_scope() {
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
