//! Faults in documents that people write: location, message and hint.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The severity of a fault.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Invalid: nothing is run.
    Error,
    /// Valid, but not supported by this version: nothing is run.
    Unsupported,
    /// The document runs, but perhaps not as intended.
    Warning,
}

impl Class {
    /// Whether a document with such a fault is refused.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Error | Self::Unsupported)
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Diagnostic {
    /// The severity.
    pub class: Class,
    /// The file, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line, from 1. It is 0 if there is no text, as for a stored definition.
    pub line: u32,
    /// The column in characters, from 1. It is 0 if there is no text.
    pub column: u32,
    /// The path in the document, such as `steps[2].cmd`. It is empty for the document itself.
    pub path: String,
    /// The fault, as one sentence.
    pub message: String,
    /// How to fix it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    /// Writes `file:line:column: message (hint)` without unknown parts. If there is no line, the
    /// path takes its place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), 0) => write!(f, "{file}: ")?,
            (Some(file), line) => write!(f, "{file}:{line}:{}: ", self.column)?,
            (None, 0) => {}
            (None, line) => write!(f, "{line}:{}: ", self.column)?,
        }
        // Without a line, only the path identifies the place.
        if self.line == 0 && !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        if self.class == Class::Warning {
            f.write_str("warning: ")?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault() -> Diagnostic {
        Diagnostic {
            class: Class::Error,
            file: Some("a.yaml".into()),
            line: 3,
            column: 5,
            path: "steps[0].cmd".into(),
            message: "`cmd` is missing".into(),
            hint: Some("say what is run".into()),
        }
    }

    #[test]
    fn a_fault_is_shown_with_the_known_parts_of_its_position() {
        let mut fault = fault();
        assert_eq!(fault.to_string(), "a.yaml:3:5: `cmd` is missing (say what is run)");
        fault.line = 0;
        assert_eq!(fault.to_string(), "a.yaml: steps[0].cmd: `cmd` is missing (say what is run)");
        fault.file = None;
        fault.hint = None;
        assert_eq!(fault.to_string(), "steps[0].cmd: `cmd` is missing");
        fault.path.clear();
        assert_eq!(fault.to_string(), "`cmd` is missing");
        fault.class = Class::Warning;
        fault.line = 9;
        assert_eq!(fault.to_string(), "9:5: warning: `cmd` is missing");
    }

    #[test]
    fn a_fault_round_trips_through_json() {
        let json = serde_json::to_string(&fault()).unwrap();
        assert_eq!(serde_json::from_str::<Diagnostic>(&json).unwrap(), fault());
    }
}
