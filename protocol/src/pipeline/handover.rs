//! What a step is handed, and what it hands over: secrets, files that are kept, and whom it tells about
//! its end.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Files of a step that are kept with its run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Output {
    /// Where they lie, relative to the step's working directory; `*`, `?`, `[]` and `**` match.
    #[schemars(length(min = 1))]
    pub path: String,
    /// What is taken of that which matches; all of it where this is missing.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<OutputKind>,
    /// What becomes of the step where nothing matches.
    #[serde(default, skip_serializing_if = "Missing::is_usual")]
    pub missing: Missing,
    /// Where they are put.
    #[serde(default, skip_serializing_if = "Layout::is_usual")]
    pub layout: Layout,
}

impl Output {
    /// Whether it asks for a file: what a step has found out need be none.
    #[must_use]
    pub fn is_of_files(&self) -> bool {
        self.path != "result.json" || self.missing == Missing::Fail
    }
}

/// What an output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutputKind {
    /// A file.
    File,
    /// A directory with all that is in it.
    Dir,
}

/// What becomes of a step where an output is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// Nothing: it may be there, or not.
    Ignore,
    /// It is said in the log.
    #[default]
    Warn,
    /// The step has failed.
    Fail,
}

impl Missing {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// Where outputs are put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// All beside each other, by their last name; of two with the same one the later wins.
    #[default]
    Flat,
    /// As they lie in the step's working directory.
    Relative,
}

impl Layout {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// Who is told that a step runs, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Callback {
    /// Where the news are posted to.
    #[schemars(regex(pattern = r"^(https?://|\$\{)"))]
    pub url: String,
    /// The bearer token that goes with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Token>,
}

/// A secret: by its name, or as it stood in a file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Token {
    /// Looked up where the step runs.
    Named {
        /// Its name.
        #[serde(rename = "secret-name")]
        name: String,
    },
    /// The secret itself.
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

/// A secret that a step is given: as a file, or as a variable where that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum SecretUse {
    /// As a file of that name in the directory that the variable `BOB_SECRETS` names.
    File(
        #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^/\x00-\x1f\x7f-\x9f]+$"))]
        String,
    ),
    /// As a variable too.
    Var {
        /// Its name.
        #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^/\x00-\x1f\x7f-\x9f]+$"))]
        name: String,
        /// The variable.
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

    /// The variable, where one is asked for.
    #[must_use]
    pub fn env(&self) -> Option<&str> {
        match self {
            Self::File(_) => None,
            Self::Var { env, .. } => Some(env),
        }
    }
}
