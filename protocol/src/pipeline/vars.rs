//! Variables and template values.

use indexmap::IndexMap;
use schemars::JsonSchema;

/// Variables, in the order in which they were written.
pub type Vars = IndexMap<String, String>;

/// Template values of a run: text, numbers, lists or maps.
pub type Params = serde_json::Map<String, serde_json::Value>;

// Only the schema is used. The dialect reads a tree that preserves the spelling of numbers.
/// A text, or a scalar that becomes text as it was written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
pub(crate) enum Scalar {
    /// A text.
    Text(String),
    /// `2.50` becomes "2.50".
    Number(f64),
    /// `true` becomes "true".
    Boolean(bool),
}

/// Pattern for the name of a variable.
pub(super) const VARIABLE: &str = r"^[^=\x00]+$";

/// The rule that a variable breaks, if it cannot be passed to a process.
#[must_use]
pub fn bad_variable(name: &str, value: &str) -> Option<&'static str> {
    if name.is_empty() || name.contains('=') || name.contains('\0') {
        return Some("a name that is not empty and has no `=` and no NUL character");
    }
    value.contains('\0').then_some("a value without NUL characters")
}
