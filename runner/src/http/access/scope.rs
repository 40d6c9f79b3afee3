//! What a client is allowed to do.

use serde::Deserialize;

/// A right that a route requires. Each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// See pipelines, runs, logs and nodes.
    Read,
    /// Also start, stop and rerun runs.
    Run,
    /// Also change definitions and registrations.
    Admin,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 3] = [Self::Read, Self::Run, Self::Admin];

    /// The name of the scope in tokens.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Run => "run",
            Self::Admin => "admin",
        }
    }
}

/// A text is not the name of a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown scope {given:?}; expected read, run or admin")]
pub struct UnknownScope {
    /// The text.
    pub given: String,
}

impl std::str::FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let known = Self::ALL.into_iter().find(|scope| scope.name() == text);
        known.ok_or_else(|| UnknownScope { given: text.to_owned() })
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The rights of a client: the greatest scope that it was granted, which includes the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(Option<Scope>);

impl Scopes {
    /// Every right.
    pub const ALL: Self = Self(Some(Scope::Admin));
    /// Only reading.
    pub const READ: Self = Self(Some(Scope::Read));
    /// No right.
    pub const NONE: Self = Self(None);

    /// Whether the scope is granted.
    #[must_use]
    pub fn allow(self, scope: Scope) -> bool {
        self.0.is_some_and(|greatest| greatest >= scope)
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().max())
    }
}

impl std::fmt::Display for Scopes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.map_or("no scope", Scope::name))
    }
}

/// The claim `scope`: names separated by spaces, or a list. Names of other services are ignored.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum ScopeClaim {
    Text(String),
    List(Vec<String>),
}

impl ScopeClaim {
    pub(super) fn scopes(&self) -> Scopes {
        match self {
            Self::Text(text) => scopes_of(text.split_ascii_whitespace()),
            Self::List(names) => scopes_of(names.iter().map(String::as_str)),
        }
    }
}

fn scopes_of<'a>(names: impl Iterator<Item = &'a str>) -> Scopes {
    names.filter_map(|name| name.parse::<Scope>().ok()).collect()
}

/// The client of a request. Handlers find it in the request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The claim `sub` of the token, which becomes the user of a run. Empty without one.
    pub subject: String,
    /// The rights.
    pub scopes: Scopes,
}

#[cfg(test)]
impl Principal {
    /// Someone without a name who has every right.
    pub(crate) fn anyone() -> Self {
        Self { subject: String::new(), scopes: Scopes::ALL }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(json: &str) -> Scopes {
        serde_json::from_str::<ScopeClaim>(json).unwrap().scopes()
    }

    #[test]
    fn a_scope_includes_the_lesser_ones() {
        let run: Scopes = [Scope::Run].into_iter().collect();
        assert!(run.allow(Scope::Read) && run.allow(Scope::Run) && !run.allow(Scope::Admin));
        assert!(Scopes::ALL.allow(Scope::Admin));
        assert!(!Scopes::NONE.allow(Scope::Read));
    }

    #[test]
    fn the_claim_is_a_text_or_a_list_and_other_names_grant_nothing() {
        assert!(claim(r#""openid run""#).allow(Scope::Run));
        assert!(claim(r#"["read", "admin"]"#).allow(Scope::Admin));
        assert_eq!(claim(r#""openid administrator""#), Scopes::NONE);
        assert_eq!(claim(r#""""#), Scopes::NONE);
        assert_eq!(claim("[]"), Scopes::NONE);
    }
}
