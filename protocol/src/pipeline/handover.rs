//! Input and output of a step besides its command: secrets, kept files and callbacks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::RegisteredName;

/// Files of a step that are kept with its run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Output {
    /// The path, relative to the directory that `relative-to` names. Can contain `*`, `?`, `[]` and
    /// `**`.
    #[schemars(length(min = 1))]
    pub path: String,
    /// Whether to keep only files or only directories that match. Both if missing.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<OutputKind>,
    /// What to do if nothing matches.
    #[serde(default, skip_serializing_if = "Missing::is_usual")]
    pub missing: Missing,
    /// Directory layout of the kept files.
    #[serde(default, skip_serializing_if = "Layout::is_usual")]
    pub layout: Layout,
    /// The directory that `path` is relative to.
    #[serde(default, skip_serializing_if = "RelativeTo::is_usual")]
    pub relative_to: RelativeTo,
}

impl Output {
    /// Whether the output requires files. `result.json` counts only if it must exist: a result can
    /// also be produced without a file.
    #[must_use]
    pub fn is_of_files(&self) -> bool {
        self.path != "result.json" || self.missing == Missing::Fail
    }
}

/// A file or directory that a step uploads for others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Artifact {
    /// The name in the store.
    pub name: String,
    /// The path, relative to the step's working directory.
    pub path: String,
    /// The registered artifact store.
    pub store: RegisteredName,
}

/// The kind of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutputKind {
    /// A file.
    File,
    /// A directory with its contents.
    Dir,
}

/// What to do if nothing matches an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// Nothing.
    Ignore,
    /// Write a warning to the log.
    #[default]
    Warn,
    /// Fail the step.
    Fail,
}

impl Missing {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// Directory layout of kept files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// All files in one directory. If two have the same name, the later one wins.
    #[default]
    Flat,
    /// The same layout as in the directory that `path` is relative to.
    Relative,
}

impl Layout {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// The directory that the path of an output is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RelativeTo {
    /// The step's working directory.
    #[default]
    WorkDir,
    /// The step's own directory, `$JOB_WORKDIR`. Only steps of `local`, `custom`, and `docker` with
    /// an image of their own have one.
    JobDir,
}

impl RelativeTo {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// An address that is notified when the step starts and when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Callback {
    /// The URL that notifications are posted to.
    #[schemars(regex(pattern = r"^(https?://|\$\{)"))]
    pub url: String,
    /// The bearer token sent with each notification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Token>,
}

/// A secret, by name or in clear text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Token {
    /// Looked up by name when the step runs.
    Named {
        /// The name.
        #[serde(rename = "secret-name")]
        name: String,
    },
    /// The secret in clear text.
    Literal(String),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named { name } => write!(f, "Named({name:?})"),
            Self::Literal(_) => f.write_str("Literal(***)"),
        }
    }
}

/// A secret passed to a step as a file, and optionally as an environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum SecretUse {
    /// A file of that name in the directory given by the variable `BOB_SECRETS`.
    File(
        #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^/\x00-\x1f\x7f-\x9f]+$"))]
        String,
    ),
    /// A file and an environment variable.
    Var {
        /// The secret's name.
        #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^/\x00-\x1f\x7f-\x9f]+$"))]
        name: String,
        /// The environment variable.
        #[schemars(regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
        env: String,
    },
}

impl SecretUse {
    /// The secret's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::File(name) | Self::Var { name, .. } => name,
        }
    }

    /// The environment variable, if any.
    #[must_use]
    pub fn env(&self) -> Option<&str> {
        match self {
            Self::File(_) => None,
            Self::Var { env, .. } => Some(env),
        }
    }
}
