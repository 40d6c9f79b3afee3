//! The nodes of a tree, and the limits of its size.

use std::fmt::Write as _;

use crate::diagnostic::{Class, Diagnostic};

/// Maximum size of a text, in bytes.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;
/// Maximum nesting depth of lists and maps.
pub(crate) const MAX_DEPTH: usize = 64;
/// Maximum number of values. Each use of an alias counts in full.
pub(crate) const MAX_NODES: usize = 100_000;
/// Maximum number of bytes in scalars. Each use of an alias counts in full.
pub(crate) const MAX_TEXT: usize = 4 * MAX_BYTES;

/// A document and the faults of its text.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: Node,
    /// Faults of the text that do not prevent reading it, so that a dialect can add its own.
    pub(crate) faults: Vec<Diagnostic>,
    /// Uses of syntax that only YAML 1.1 allows: merge keys and a byte order mark. They are
    /// resolved in `root`. A dialect whose original program allows them ignores this list.
    pub(crate) yaml_1_1: Vec<Diagnostic>,
}

impl Tree {
    /// The document and all faults, for a dialect that does not allow YAML 1.1.
    pub(crate) fn without_yaml_1_1(self) -> (Node, Vec<Diagnostic>) {
        let Self { root, mut faults, yaml_1_1 } = self;
        faults.extend(yaml_1_1);
        (root, faults)
    }
}

/// A value and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) at: Position,
}

/// A parsed value. Scalars keep their text: `2.50` stays `2.50`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Bool(String),
    Number(String),
    String(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value. Keys are unique within a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) at: Position,
    pub(crate) value: Node,
}

/// A line and a column, counted from 1. Both are 0 if the document has no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Position {
    pub(super) fn new(line: usize, column: usize) -> Self {
        // In a text of at most MAX_BYTES, every line and column fits.
        let bounded = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self { line: bounded(line), column: bounded(column) }
    }

    /// The position of a byte offset.
    pub(super) fn of_byte(text: &[u8], byte: usize) -> Self {
        let before = &text[..byte.min(text.len())];
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        Self::new(line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
    }

    /// Prefixes a hint with the line of the first occurrence, if known.
    pub(crate) fn in_line(self, advice: &str) -> String {
        match self.line {
            0 => advice.to_owned(),
            line => format!("in line {line}; {advice}"),
        }
    }

    /// Makes a fault at this position.
    pub(crate) fn fault(self, message: impl Into<String>, hint: Option<&str>) -> Diagnostic {
        Diagnostic {
            class: Class::Error,
            file: None,
            line: self.line,
            column: self.column,
            path: String::new(),
            message: message.into(),
            hint: hint.map(str::to_owned),
        }
    }
}

impl Node {
    /// The type of the value, in words.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// The value as shown in errors, shortened.
    pub(crate) fn shown(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(text) | Value::Number(text) => short(text),
            Value::String(text) => quoted(text),
            Value::List(_) | Value::Map(_) => self.kind().to_owned(),
        }
    }

    /// The text of a scalar as written.
    pub(crate) fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Bool(text) | Value::Number(text) | Value::String(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// The entry with this key, if the value is a map that contains it.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The entries of a map. Empty for any other value.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::List(_) => {
                &[]
            }
        }
    }
}

/// A text as shown in errors, quoted and shortened.
pub(crate) fn quoted(text: &str) -> String {
    let mut shown = format!("{:?}", text.chars().take(60).collect::<String>());
    if text.chars().nth(60).is_some() {
        shown.push_str("...");
    }
    shown
}

fn short(text: &str) -> String {
    let mut shown: String = text.chars().take(60).collect();
    if text.chars().nth(60).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The remaining budget for a document.
#[derive(Debug)]
pub(super) struct Budget {
    nodes: usize,
    text: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { nodes: MAX_NODES, text: MAX_TEXT }
    }
}

impl Budget {
    pub(super) fn spend(
        &mut self,
        nodes: usize,
        text: usize,
        at: Position,
    ) -> Result<(), Diagnostic> {
        match (self.nodes.checked_sub(nodes), self.text.checked_sub(text)) {
            (Some(nodes), Some(text)) => {
                *self = Self { nodes, text };
                Ok(())
            }
            (None, _) => {
                let message =
                    format!("there are more than {MAX_NODES} values, the uses of aliases counted");
                Err(at.fault(message, None))
            }
            (_, None) => {
                let message = format!(
                    "there are more than {MAX_TEXT} bytes of text, the uses of aliases counted"
                );
                Err(at.fault(message, None))
            }
        }
    }
}

pub(super) fn too_deep(at: Position) -> Diagnostic {
    at.fault(format!("lists and maps are nested deeper than {MAX_DEPTH}"), None)
}

pub(super) fn duplicate(key: &str, first: Position, second: Position) -> Diagnostic {
    let mut message = format!("the key {} occurs twice", quoted(key));
    if first.line != 0 {
        // Writing to a String cannot fail.
        let _infallible = write!(message, ", first in line {}", first.line);
    }
    second.fault(message, Some("remove one of them"))
}
