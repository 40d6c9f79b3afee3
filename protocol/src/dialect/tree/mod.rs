//! One tree with positions for both JSON and YAML, with bounded size, depth and alias expansion.
//!
//! Dialects read only this tree, never the text. Therefore every fault has a position, and both
//! formats can express the same.

mod json;
#[cfg(test)]
mod tests;
mod yaml;

use std::fmt::Write as _;

use crate::diagnostic::{Class, Diagnostic};

/// Maximum size of a text, in bytes.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;
/// The UTF-8 byte order mark that some editors put at the start of a file.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
const SAVE_AS_UTF8: &str = "save it as UTF-8 without a byte order mark";
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

/// A line and column, both from 1, or both 0 if there is no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Position {
    fn new(line: usize, column: usize) -> Self {
        // In a text of at most MAX_BYTES, every line and column fits.
        let bounded = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self { line: bounded(line), column: bounded(column) }
    }

    /// The position of a byte offset.
    fn of_byte(text: &[u8], byte: usize) -> Self {
        let before = &text[..byte.min(text.len())];
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        Self::new(line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
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

/// Reads a file as JSON or YAML according to its extension. Without one, text that starts like JSON
/// and is valid JSON is JSON; everything else is YAML.
pub(crate) fn read(file: Option<&str>, bytes: &[u8]) -> Result<Tree, Diagnostic> {
    let Some(rest) = bytes.strip_prefix(BYTE_ORDER_MARK) else {
        return read_text(file, text_of(bytes)?);
    };
    let mut tree = read_text(file, text_of(rest)?)?;
    tree.yaml_1_1.push(begins_with_byte_order_mark());
    Ok(tree)
}

fn read_text(file: Option<&str>, text: &str) -> Result<Tree, Diagnostic> {
    let ends = |endings: &[&str]| {
        file.and_then(|file| file.rsplit_once('.')).is_some_and(|(_, ending)| {
            endings.iter().any(|known| ending.eq_ignore_ascii_case(known))
        })
    };
    if ends(&["json"]) {
        return json::read(text);
    }
    if ends(&["yaml", "yml"]) || !text.trim_start().starts_with(['{', '[']) {
        return yaml::read(text);
    }
    // YAML in flow style starts like JSON too. If the text is neither, the parser that got further
    // probably matches the author's intent.
    json::read(text).or_else(|no_json| {
        yaml::read(text).map_err(|no_yaml| {
            let place = |fault: &Diagnostic| (fault.line, fault.column);
            if place(&no_yaml) > place(&no_json) { no_yaml } else { no_json }
        })
    })
}

/// Reads JSON, such as a message body.
pub(crate) fn read_json(bytes: &[u8]) -> Result<Node, Diagnostic> {
    let (root, faults) = json::read(text_of(bytes)?)?.without_yaml_1_1();
    faults.into_iter().next().map_or(Ok(root), Err)
}

/// Decodes the text of a file and checks its size.
pub(crate) fn text_of(bytes: &[u8]) -> Result<&str, Diagnostic> {
    let start = Position::new(1, 1);
    if bytes.len() > MAX_BYTES {
        let message = "the text is larger than 1 MiB, the limit for a pipeline file";
        return Err(start.fault(message, None));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(start.fault("the text is UTF-16", Some(SAVE_AS_UTF8)));
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        return Err(begins_with_byte_order_mark());
    }
    let text = std::str::from_utf8(bytes).map_err(|cause| {
        let byte = cause.valid_up_to();
        let message = format!("byte 0x{:02x} is no UTF-8", bytes[byte]);
        Position::of_byte(bytes, byte).fault(message, Some("save it as UTF-8"))
    })?;
    if let Some(nul) = text.find('\0') {
        return Err(Position::of_byte(bytes, nul).fault("there is a NUL character", None));
    }
    if text.trim().is_empty() {
        return Err(start.fault("there is nothing in it", None));
    }
    Ok(text)
}

fn begins_with_byte_order_mark() -> Diagnostic {
    Position::new(1, 1).fault("the text begins with a byte order mark", Some(SAVE_AS_UTF8))
}

impl Node {
    /// Converts parsed JSON. The tree has no positions.
    pub(crate) fn from_json(value: &serde_json::Value) -> Result<Self, Diagnostic> {
        json::convert(value, 1, &mut Budget::default())
    }

    /// The type of the value, in words.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
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
struct Budget {
    nodes: usize,
    text: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { nodes: MAX_NODES, text: MAX_TEXT }
    }
}

impl Budget {
    fn spend(&mut self, nodes: usize, text: usize, at: Position) -> Result<(), Diagnostic> {
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

fn too_deep(at: Position) -> Diagnostic {
    at.fault(format!("lists and maps are nested deeper than {MAX_DEPTH}"), None)
}

fn duplicate(key: &str, first: Position, second: Position) -> Diagnostic {
    let mut message = format!("the key {} stands twice", quoted(key));
    if first.line != 0 {
        // Writing to a String cannot fail.
        let _infallible = write!(message, ", first in line {}", first.line);
    }
    second.fault(message, Some("remove one of them"))
}
