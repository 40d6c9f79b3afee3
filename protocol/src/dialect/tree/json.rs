//! Parses JSON into the tree. `serde_json` decides whether the text is valid. Positions come from a
//! second, more lenient parser that sees only valid text.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use jsonc_parser::ast;
use jsonc_parser::common::Ranged as _;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use super::node::{Budget, Entry, MAX_DEPTH, Node, Position, Tree, Value, duplicate, too_deep};
use crate::diagnostic::Diagnostic;

pub(super) fn read(text: &str) -> Result<Tree, Diagnostic> {
    if let Err(cause) = serde_json::from_str::<serde_json::Value>(text) {
        return Err(syntax_error(text, &cause));
    }
    let strict = ParseOptions {
        allow_comments: false,
        allow_loose_object_property_names: false,
        allow_trailing_commas: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let parsed = parse_to_ast(text, &CollectOptions::default(), &strict).map_err(|cause| {
        Position::new(cause.line_display(), cause.column_display())
            .fault(format!("not valid JSON: {}", cause.kind()), None)
    })?;
    let Some(root) = parsed.value else {
        return Err(Position::new(1, 1).fault("the document is empty", None));
    };
    let mut reader =
        Reader { lines: Lines::new(text), budget: Budget::default(), faults: Vec::new() };
    Ok(Tree { root: reader.node(root, 1)?, faults: reader.faults, yaml_1_1: Vec::new() })
}

fn syntax_error(text: &str, cause: &serde_json::Error) -> Diagnostic {
    let mut message = cause.to_string();
    // `serde_json` appends the position, which a diagnostic has in fields of its own.
    if let Some(end) = message.rfind(" at line ") {
        message.truncate(end);
    }
    // `serde_json` counts the column in bytes, and reports 0 directly after a newline.
    let line = text.split('\n').nth(cause.line().saturating_sub(1)).unwrap_or_default();
    let prefix = &line.as_bytes()[..cause.column().saturating_sub(1).min(line.len())];
    let position = Position::new(cause.line(), String::from_utf8_lossy(prefix).chars().count() + 1);
    if message.contains("recursion limit") {
        return too_deep(position);
    }
    position.fault(format!("not valid JSON: {message}"), None)
}

struct Reader<'a> {
    lines: Lines<'a>,
    budget: Budget,
    faults: Vec<Diagnostic>,
}

impl Reader<'_> {
    /// Converts a value. `depth` counts this node and limits the recursion.
    fn node(&mut self, value: ast::Value<'_>, depth: usize) -> Result<Node, Diagnostic> {
        let at = self.lines.position(value.start());
        // The text needs no budget: a document is smaller than the limit for text.
        self.budget.spend(1, 0, at)?;
        let value = match value {
            ast::Value::NullKeyword(_) => Value::Null,
            ast::Value::BooleanLit(flag) => Value::Bool(flag.value.to_string()),
            ast::Value::NumberLit(number) => Value::Number(number.value.to_owned()),
            ast::Value::StringLit(text) => Value::String(text.value.into_owned()),
            ast::Value::Array(_) | ast::Value::Object(_) if depth > MAX_DEPTH => {
                return Err(too_deep(at));
            }
            ast::Value::Array(list) => {
                let nodes = list.elements.into_iter().map(|element| self.node(element, depth + 1));
                Value::List(nodes.collect::<Result<_, _>>()?)
            }
            ast::Value::Object(map) => Value::Map(self.entries(map, depth)?),
        };
        Ok(Node { value, at })
    }

    fn entries(&mut self, map: ast::Object<'_>, depth: usize) -> Result<Vec<Entry>, Diagnostic> {
        let mut entries = Vec::with_capacity(map.properties.len());
        let mut positions = HashMap::new();
        for property in map.properties {
            let at = self.lines.position(property.name.start());
            let key = property.name.as_str().to_owned();
            let value = self.node(property.value, depth + 1)?;
            match positions.entry(key.clone()) {
                Slot::Occupied(first) => self.faults.push(duplicate(&key, *first.get(), at)),
                Slot::Vacant(slot) => {
                    slot.insert(at);
                    entries.push(Entry { key, at, value });
                }
            }
        }
        Ok(entries)
    }
}

/// Converts byte offsets to lines and columns. The offsets must not decrease, so each byte is
/// scanned once.
struct Lines<'a> {
    /// The text after the last offset.
    rest: &'a str,
    /// The last offset.
    byte: usize,
    line: usize,
    column: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text, byte: 0, line: 1, column: 1 }
    }

    fn position(&mut self, byte: usize) -> Position {
        let (scanned, rest) = self.rest.split_at(byte.saturating_sub(self.byte));
        for c in scanned.chars() {
            if c == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.rest = rest;
        self.byte += scanned.len();
        Position::new(self.line, self.column)
    }
}

impl Node {
    /// Converts a parsed JSON value. The nodes have no positions.
    pub(crate) fn from_json(value: &serde_json::Value) -> Result<Self, Diagnostic> {
        convert(value, 1, &mut Budget::default())
    }
}

/// `depth` counts this node and limits the recursion.
fn convert(
    value: &serde_json::Value,
    depth: usize,
    budget: &mut Budget,
) -> Result<Node, Diagnostic> {
    let at = Position::default();
    let value = match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(flag) => Value::Bool(flag.to_string()),
        serde_json::Value::Number(number) => Value::Number(number.to_string()),
        serde_json::Value::String(text) => {
            budget.spend(0, text.len(), at)?;
            Value::String(text.clone())
        }
        serde_json::Value::Array(_) | serde_json::Value::Object(_) if depth > MAX_DEPTH => {
            return Err(too_deep(at));
        }
        serde_json::Value::Array(list) => Value::List(
            list.iter()
                .map(|element| convert(element, depth + 1, budget))
                .collect::<Result<_, _>>()?,
        ),
        serde_json::Value::Object(map) => {
            let mut entries = Vec::with_capacity(map.len());
            for (key, value) in map {
                budget.spend(0, key.len(), at)?;
                let value = convert(value, depth + 1, budget)?;
                entries.push(Entry { key: key.clone(), at, value });
            }
            Value::Map(entries)
        }
    };
    budget.spend(1, 0, at)?;
    Ok(Node { value, at })
}
