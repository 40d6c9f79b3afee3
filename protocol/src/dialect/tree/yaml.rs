//! YAML 1.2 with the core schema into the tree.
//!
//! Refused, because a pipeline has no use for it and it is more often an accident: a second
//! document, keys that are no scalars, merge keys, tags of other schemas.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};

use super::{Budget, Entry, MAX_DEPTH, Node, Position, Tree, Value, duplicate, too_deep};
use crate::diagnostic::Diagnostic;

pub(super) fn read(text: &str) -> Result<Tree, Diagnostic> {
    printable(text)?;
    let mut reader = Reader::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|cause| invalid(text, &cause))?;
        reader.event(event, span)?;
    }
    match reader.root {
        Some(root) => Ok(Tree { root, faults: reader.faults }),
        None => Err(Position::new(1, 1).fault("there is nothing in it", None)),
    }
}

/// YAML knows no control characters, and its reader would take some of them for ends of lines.
fn printable(text: &str) -> Result<(), Diagnostic> {
    let bad = text.char_indices().find(|(_, c)| {
        c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}') || *c == '\u{feff}'
    });
    match bad {
        None => Ok(()),
        Some((byte, c)) => {
            let message = format!("there is a control character, U+{:04X}", u32::from(c));
            let hint = "write it as an escape in double quotes, such as \"\\u001b\"";
            Err(Position::of_byte(text.as_bytes(), byte).fault(message, Some(hint)))
        }
    }
}

fn invalid(text: &str, cause: &saphyr_parser::ScanError) -> Diagnostic {
    let at = position(*cause.marker());
    let line = text.lines().nth(cause.marker().line().saturating_sub(1)).unwrap_or_default();
    let indented_by_tab = line.trim_start_matches(' ').starts_with('\t');
    let hint = indented_by_tab.then_some("indent with blanks, YAML takes no tabs for that");
    at.fault(format!("no valid YAML: {}", cause.info()), hint)
}

fn position(marker: Marker) -> Position {
    Position::new(marker.line(), marker.col() + 1)
}

/// A list or map that is not closed yet.
struct Open {
    at: Position,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        /// The key whose value comes next, and whether it is the first of its name.
        key: Option<(String, Position, bool)>,
        seen: HashMap<String, Position>,
    },
}

/// What an alias stands for, with its measures.
struct Anchored {
    node: Node,
    nodes: usize,
    text: usize,
    height: usize,
}

#[derive(Default)]
struct Reader {
    documents: usize,
    root: Option<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    budget: Budget,
    faults: Vec<Diagnostic>,
}

impl Reader {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Diagnostic> {
        let at = position(span.start);
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    let hint = "one file holds one document, remove the line `---`";
                    return Err(at.fault("a second document begins here", Some(hint)));
                }
                Ok(())
            }
            Event::Alias(anchor) => self.alias(anchor, at),
            Event::Scalar(text, style, anchor, tag) => {
                self.budget.spend(1, text.len(), at)?;
                if self.is_key_next() {
                    let key = key_of(&text, style, at)?;
                    let node = Node { value: Value::String(text.into_owned()), at };
                    self.remember(anchor, &node)?;
                    self.key(key, at);
                    return Ok(());
                }
                let value = self.scalar(text.into_owned(), style, tag.as_deref(), at);
                self.node(Node { value, at }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.collection_tag(tag.as_deref(), "seq", at);
                self.open(Open { at, anchor, content: Content::List(Vec::new()) })
            }
            Event::MappingStart(anchor, tag) => {
                self.collection_tag(tag.as_deref(), "map", at);
                let content = Content::Map { entries: Vec::new(), key: None, seen: HashMap::new() };
                self.open(Open { at, anchor, content })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn is_key_next(&self) -> bool {
        matches!(self.open.last(), Some(Open { content: Content::Map { key: None, .. }, .. }))
    }

    fn open(&mut self, open: Open) -> Result<(), Diagnostic> {
        if self.is_key_next() {
            return Err(open.at.fault("a key is a list or a map", Some("keys are plain texts")));
        }
        self.budget.spend(1, 0, open.at)?;
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(open.at));
        }
        self.open.push(open);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Diagnostic> {
        let Some(Open { at, anchor, content }) = self.open.pop() else {
            return Ok(());
        };
        let value = match content {
            Content::List(nodes) => Value::List(nodes),
            Content::Map { entries, .. } => Value::Map(entries),
        };
        self.node(Node { value, at }, anchor)
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Result<(), Diagnostic> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Err(at.fault("an alias stands inside of what it stands for", None));
        };
        self.budget.spend(anchored.nodes, anchored.text, at)?;
        if self.open.len() + anchored.height > MAX_DEPTH {
            return Err(too_deep(at));
        }
        let node = anchored.node.clone();
        if self.is_key_next() {
            let Some(key) = node.scalar() else {
                return Err(at.fault("a key is a list or a map", Some("keys are plain texts")));
            };
            self.key(key.to_owned(), at);
            return Ok(());
        }
        self.node(node, 0)
    }

    fn key(&mut self, name: String, at: Position) {
        if let Some(Open { content: Content::Map { key, seen, .. }, .. }) = self.open.last_mut() {
            let first = *seen.entry(name.clone()).or_insert(at);
            if first != at {
                self.faults.push(duplicate(&name, first, at));
            }
            *key = Some((name, at, first == at));
        }
    }

    /// Puts a finished node where it belongs.
    fn node(&mut self, node: Node, anchor: usize) -> Result<(), Diagnostic> {
        self.remember(anchor, &node)?;
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(Content::List(nodes)) => nodes.push(node),
            Some(Content::Map { entries, key, .. }) => {
                if let Some((key, at, true)) = key.take() {
                    entries.push(Entry { key, at, value: node });
                }
            }
        }
        Ok(())
    }

    /// Keeps a node that has an anchor, for the aliases that follow. The copy counts too.
    fn remember(&mut self, anchor: usize, node: &Node) -> Result<(), Diagnostic> {
        if anchor == 0 {
            return Ok(());
        }
        let (nodes, text, height) = measure(node);
        self.budget.spend(nodes, text, node.at)?;
        self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, text, height });
        Ok(())
    }

    /// A tag of a list or map says nothing new, or does not belong here.
    fn collection_tag(&mut self, tag: Option<&Tag>, own: &str, at: Position) {
        let Some(tag) = tag else {
            return;
        };
        if !(is_nonspecific(tag) || tag.is_yaml_core_schema() && tag.suffix == own) {
            self.faults.push(unknown_tag(tag, at));
        }
    }

    fn scalar(
        &mut self,
        text: String,
        style: ScalarStyle,
        tag: Option<&Tag>,
        at: Position,
    ) -> Value {
        let Some(tag) = tag else {
            return if style == ScalarStyle::Plain { plain(text) } else { Value::String(text) };
        };
        if is_nonspecific(tag) || tag.is_yaml_core_schema() && tag.suffix == "str" {
            return Value::String(text);
        }
        let value = plain(text);
        let fits = match &value {
            Value::Null => tag.suffix == "null",
            Value::Bool(_) => tag.suffix == "bool",
            Value::Number(_) => matches!(tag.suffix.as_str(), "int" | "float"),
            Value::String(_) | Value::List(_) | Value::Map(_) => false,
        };
        if !(fits && tag.is_yaml_core_schema()) {
            self.faults.push(unknown_tag(tag, at));
        }
        value
    }
}

/// How many nodes, how many bytes of text, how deep. The depth is bounded, and so is the recursion.
fn measure(node: &Node) -> (usize, usize, usize) {
    let children: Box<dyn Iterator<Item = (usize, &Node)>> = match &node.value {
        Value::Null => return (1, 0, 0),
        Value::Bool(text) | Value::Number(text) | Value::String(text) => {
            return (1, text.len(), 0);
        }
        Value::List(nodes) => Box::new(nodes.iter().map(|node| (0, node))),
        Value::Map(entries) => {
            Box::new(entries.iter().map(|entry| (entry.key.len(), &entry.value)))
        }
    };
    children.fold((1, 0, 1), |(nodes, text, height), (key, child)| {
        let (more_nodes, more_text, below) = measure(child);
        (nodes + more_nodes, text + key + more_text, height.max(below + 1))
    })
}

fn key_of(text: &str, style: ScalarStyle, at: Position) -> Result<String, Diagnostic> {
    match (text, style) {
        ("<<", ScalarStyle::Plain) => {
            let hint = "write out what it would merge, or use an alias for the whole value";
            Err(at.fault("the merge key `<<` is not supported", Some(hint)))
        }
        ("", ScalarStyle::Plain) => Err(at.fault("a key is empty", None)),
        _ => Ok(text.to_owned()),
    }
}

/// `!` alone: take the value as what it is, and a scalar as a text.
fn is_nonspecific(tag: &Tag) -> bool {
    format!("{}{}", tag.handle, tag.suffix) == "!"
}

fn unknown_tag(tag: &Tag, at: Position) -> Diagnostic {
    let shown = super::quoted(&format!("{}{}", tag.handle, tag.suffix));
    at.fault(format!("the tag {shown} does not belong here"), Some("remove the tag"))
}

/// The core schema of YAML 1.2: `yes` and `no` are texts.
fn plain(text: String) -> Value {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Value::Bool(text),
        _ if is_number(&text) => Value::Number(text),
        _ => Value::String(text),
    }
}

fn is_number(text: &str) -> bool {
    let all =
        |digits: &str, belongs: fn(u8) -> bool| !digits.is_empty() && digits.bytes().all(belongs);
    if let Some(digits) = text.strip_prefix("0x") {
        return all(digits, |b| b.is_ascii_hexdigit());
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return all(digits, |b| matches!(b, b'0'..=b'7'));
    }
    if matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return true;
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let digit = |b: u8| b.is_ascii_digit();
    let exponent_fits = exponent
        .is_none_or(|exponent| all(exponent.strip_prefix(['-', '+']).unwrap_or(exponent), digit));
    let mantissa_fits = match mantissa.split_once('.') {
        None => all(mantissa, digit),
        Some(("", fraction)) => all(fraction, digit),
        Some((whole, fraction)) => all(whole, digit) && fraction.bytes().all(digit),
    };
    exponent_fits && mantissa_fits
}
