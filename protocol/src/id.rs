//! Validated identities: a value of one of these types is always well-formed.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Why an identity is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadId {
    /// Not `r-` followed by 1 to 126 characters of the permitted set.
    #[error("run id {given:?} must be `r-` and 1 to 126 of A-Z a-z 0-9 . _ -")]
    Run {
        /// The text as given.
        given: String,
    },
    /// A pipeline's group or name is empty, too long, or contains a forbidden character.
    #[error("pipeline {part} {given:?} must be 1 to 128 characters{rule}")]
    Pipeline {
        /// `group` or `name`.
        part: &'static str,
        /// The text as given.
        given: String,
        /// The remaining part of the rule.
        rule: &'static str,
    },
    /// `GROUP/NAME` or `group:name` without the separator.
    #[error("pipeline {given:?} must be GROUP/NAME")]
    PipelinePath {
        /// The text as given.
        given: String,
    },
    /// A step's name is empty, too long, or contains a forbidden character.
    #[error(
        "step name {given:?} must be 1 to 128 of A-Z a-z 0-9 . _ - and blank, beginning with a letter or digit"
    )]
    Step {
        /// The text as given.
        given: String,
    },
    /// A registered name (logger, provider, store) is empty, too long, or contains a forbidden
    /// character.
    #[error("name {given:?} must be 1 to 128 characters without control characters and `/`")]
    Registered {
        /// The text as given.
        given: String,
    },
}

macro_rules! text_id {
    ($name:ident, $check:expr, $bad:expr) => {
        impl $name {
            /// The identity as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let ok: fn(&str) -> bool = $check;
                if ok(text) { Ok(Self(text.to_owned())) } else { Err($bad(text.to_owned())) }
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

/// One execution of a pipeline: `r-` and 1 to 126 of `A-Z a-z 0-9 . _ -`.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(!try_from, !into)]
pub struct RunId(#[schemars(regex(pattern = r"^r-[A-Za-z0-9._-]{1,126}$"))] String);

text_id!(
    RunId,
    |text| text.strip_prefix("r-").is_some_and(|rest| {
        (1..=126).contains(&rest.len())
            && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
    }),
    |given| BadId::Run { given }
);

impl RunId {
    /// Makes a run id from a UUID. Version 7 makes ids sort by age.
    #[must_use]
    pub fn from_uuid(uuid: uuid::Uuid) -> Self {
        Self(format!("r-{uuid}"))
    }

    /// Derives the run id of a message without `run-id` from its `message_id`.
    ///
    /// The result is the `message_id` itself if it has the form of a run id. Otherwise it is the
    /// `message_id` with the prefix `r-` or, if that is still malformed, `r-` and its SHA-256 in
    /// hex. The same message therefore always yields the same run.
    #[must_use]
    pub fn from_message_id(message_id: &str) -> Self {
        let prefixed = if message_id.starts_with("r-") {
            message_id.to_owned()
        } else {
            format!("r-{message_id}")
        };
        prefixed
            .parse()
            .unwrap_or_else(|_| Self(format!("r-{}", hex::encode(Sha256::digest(message_id)))))
    }
}

/// A node: `bob/runner-<uuid v4>`, new at each start of a worker.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct NodeId(String);

impl NodeId {
    /// Makes the identity of a starting worker.
    #[must_use]
    pub fn from_uuid(uuid: uuid::Uuid) -> Self {
        Self(format!("bob/runner-{uuid}"))
    }

    /// Accepts a node id as found in a record or key, without validation.
    #[must_use]
    pub fn from_stored(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The identity as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A step's name, unique in its pipeline. A Bob step without a name gets its position, from `0`.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(!try_from, !into)]
pub struct StepName(#[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,127}$"))] String);

text_id!(
    StepName,
    |text| text.len() <= 128
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._- ".contains(&b)),
    |given| BadId::Step { given }
);

impl StepName {
    /// The name of the unnamed step at `position`.
    #[must_use]
    pub fn position(position: usize) -> Self {
        Self(position.to_string())
    }
}

/// The position of a step in its pipeline, from `0`. The `on-error` step follows the last step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepPosition(usize);

impl StepPosition {
    /// The position of the step with this index.
    #[must_use]
    pub const fn new(index: usize) -> Self {
        Self(index)
    }

    /// The index of the step.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

impl fmt::Display for StepPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for StepPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The name under which a logger, resource provider or artifact store is registered.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(!try_from, !into)]
pub struct RegisteredName(
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[^/\x00-\x1f\x7f-\x9f]*$"))] String,
);

text_id!(
    RegisteredName,
    |text| (1..=128).contains(&text.chars().count())
        && !text.chars().any(|c| c.is_control() || c == '/'),
    |given| BadId::Registered { given }
);

/// A pipeline's identity: `group` and `name`, each 1 to 128 characters, no control characters,
/// `group` without `:`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PipelineId {
    group: String,
    name: String,
}

impl PipelineId {
    /// Validates both parts.
    ///
    /// # Errors
    /// [`BadId::Pipeline`] names the malformed part.
    pub fn new(group: &str, name: &str) -> Result<Self, BadId> {
        let fits = |text: &str| {
            (1..=128).contains(&text.chars().count()) && !text.chars().any(char::is_control)
        };
        if !fits(group) || group.contains(':') {
            return Err(BadId::Pipeline {
                part: "group",
                given: group.to_owned(),
                rule: ", no control characters, no `:`",
            });
        }
        if !fits(name) {
            return Err(BadId::Pipeline {
                part: "name",
                given: name.to_owned(),
                rule: ", no control characters",
            });
        }
        Ok(Self { group: group.to_owned(), name: name.to_owned() })
    }

    /// Parses `GROUP/NAME`, the form used on the command line. The group ends at the first `/`.
    ///
    /// # Errors
    /// [`BadId`] if the separator is missing or a part is malformed.
    pub fn from_path(path: &str) -> Result<Self, BadId> {
        let (group, name) =
            path.split_once('/').ok_or_else(|| BadId::PipelinePath { given: path.to_owned() })?;
        Self::new(group, name)
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The name within the group.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for PipelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.name)
    }
}

/// A number that grows each time a run changes owner: the create-revision of its owner key.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Epoch(pub i64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_has_its_prefix_and_a_bounded_length() {
        assert!("r-a".parse::<RunId>().is_ok());
        assert!(format!("r-{}", "x".repeat(126)).parse::<RunId>().is_ok());
        for bad in ["", "r-", "x-a", "r-a b", "r-ä", "r-a/b", &format!("r-{}", "x".repeat(127))] {
            assert!(bad.parse::<RunId>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_message_id_always_gives_the_same_run_id() {
        assert_eq!(RunId::from_message_id("r-7").as_str(), "r-7");
        assert_eq!(RunId::from_message_id("7").as_str(), "r-7");
        let odd = RunId::from_message_id("a message id/with blanks");
        assert_eq!(odd.as_str().len(), 2 + 64);
        assert_eq!(odd, RunId::from_message_id("a message id/with blanks"));
        assert_ne!(odd, RunId::from_message_id("another message id/with blanks"));
    }

    #[test]
    fn a_pipeline_name_can_contain_a_colon_but_its_group_cannot() {
        assert!(PipelineId::new("dev", "a:b").is_ok());
        assert!(PipelineId::new("d:ev", "a").is_err());
        assert!(PipelineId::new("", "a").is_err());
        assert!(PipelineId::new("dev", "a\n").is_err());
        assert_eq!(PipelineId::from_path("dev/a/b").unwrap().name(), "a/b");
    }
}
