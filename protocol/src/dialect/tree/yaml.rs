//! Parses YAML 1.2 with the core schema into the tree.
//!
//! Multiple documents, non-scalar keys and tags of other schemas are rejected: a pipeline does not
//! need them, and they are usually accidental. Merge keys (`<<`, from YAML 1.1) are resolved and
//! reported, so that each dialect can decide whether to allow them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag};

use super::node::{
    Budget, Entry, MAX_DEPTH, Node, Position, Tree, Value, duplicate, quoted, too_deep,
};
use crate::diagnostic::Diagnostic;

/// The error of saphyr-parser for a tab between a colon and a value that starts with a letter. YAML
/// allows such a tab, but the parser does not.
const TAB_AFTER_COLON: &str = "':' must be followed by a valid YAML whitespace";
/// Maximum number of such tabs per document. Each one costs another pass.
const MAX_TABS_AFTER_COLON: usize = 100;

pub(super) fn read(text: &str) -> Result<Tree, Diagnostic> {
    printable(text)?;
    let mut text = Cow::Borrowed(text);
    for _ in 0..MAX_TABS_AFTER_COLON {
        let cause = match events(&text)? {
            Ok(tree) => return Ok(tree),
            Err(cause) => cause,
        };
        let Some(replaced) = without_tabs_before(&text, &cause) else {
            return Err(invalid(&text, &cause));
        };
        text = Cow::Owned(replaced);
    }
    events(&text)?.map_err(|cause| invalid(&text, &cause))
}

/// Parses a text once. The outer error is a fault of the document, the inner one the parser's.
fn events(text: &str) -> Result<Result<Tree, ScanError>, Diagnostic> {
    let mut reader = Reader::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, span) = match next {
            Ok(next) => next,
            Err(cause) => return Ok(Err(cause)),
        };
        reader.event(event, span)?;
    }
    match reader.root {
        Some(root) => Ok(Ok(Tree { root, faults: reader.faults, yaml_1_1: reader.merge_keys })),
        None => Err(Position::new(1, 1).fault("the document is empty", None)),
    }
}

/// Replaces the tabs that the parser rejected by blanks. Returns `None` if it rejected something
/// else. Positions stay the same.
fn without_tabs_before(text: &str, cause: &ScanError) -> Option<String> {
    if cause.info() != TAB_AFTER_COLON {
        return None;
    }
    let (value, _) = text.char_indices().nth(cause.marker().index())?;
    let before = text[..value].trim_end_matches(['\t', ' ']);
    let blanks = " ".repeat(value - before.len());
    (before.ends_with(':') && !blanks.is_empty())
        .then(|| format!("{before}{blanks}{}", &text[value..]))
}

/// YAML allows no control characters, and the parser would treat some of them as line ends.
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

fn invalid(text: &str, cause: &ScanError) -> Diagnostic {
    let at = position(*cause.marker());
    let line = text.lines().nth(cause.marker().line().saturating_sub(1)).unwrap_or_default();
    let indented_by_tab = line.trim_start_matches(' ').starts_with('\t');
    let hint = if cause.info() == TAB_AFTER_COLON {
        Some("write blanks instead of tabs between a key and its value")
    } else {
        indented_by_tab.then_some("indent with blanks, YAML does not allow tabs for that")
    };
    at.fault(format!("not valid YAML: {}", cause.info()), hint)
}

fn position(marker: Marker) -> Position {
    Position::new(marker.line(), marker.col() + 1)
}

/// A list or map that is still open.
struct Open {
    at: Position,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        merges: Vec<Merge>,
        key: Option<Key>,
        seen: HashMap<String, Position>,
    },
}

/// A key whose value follows.
enum Key {
    Unique(String, Position),
    /// A duplicate key. The fault is already recorded, so the value is dropped.
    Duplicate,
    /// The merge key `<<`.
    Merge(Position),
}

/// Entries that a merge key adds to its map.
struct Merge {
    /// Number of entries of the map before the merge key.
    position: usize,
    entries: Vec<Entry>,
}

/// The node of an anchor, with its measures.
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
    merge_keys: Vec<Diagnostic>,
}

impl Reader {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Diagnostic> {
        let at = position(span.start);
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    let hint = "a file holds one document: move this one to a file of its own, or \
                                remove the line `---` or `...` before it";
                    return Err(at.fault("a second document begins here", Some(hint)));
                }
                Ok(())
            }
            Event::Alias(anchor) => self.alias(anchor, at),
            Event::Scalar(text, style, anchor, tag) => {
                self.budget.spend(1, text.len(), at)?;
                if self.is_key_next() {
                    return self.scalar_key(text.into_owned(), style, anchor, at);
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
                let (entries, merges, seen) = (Vec::new(), Vec::new(), HashMap::new());
                let content = Content::Map { entries, merges, key: None, seen };
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
            Content::Map { entries, merges, .. } => Value::Map(merged(entries, merges)),
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

    fn scalar_key(
        &mut self,
        text: String,
        style: ScalarStyle,
        anchor: usize,
        at: Position,
    ) -> Result<(), Diagnostic> {
        if text.is_empty() && style == ScalarStyle::Plain {
            return Err(at.fault("a key is empty", None));
        }
        let node = Node { value: Value::String(text.clone()), at };
        self.remember(anchor, &node)?;
        if text != "<<" || style != ScalarStyle::Plain {
            self.key(text, at);
            return Ok(());
        }
        let hint = "write out what it would merge, or use an alias for the whole value";
        self.merge_keys.push(at.fault("the merge key `<<` is not supported", Some(hint)));
        if let Some(Open { content: Content::Map { key, .. }, .. }) = self.open.last_mut() {
            *key = Some(Key::Merge(at));
        }
        Ok(())
    }

    fn key(&mut self, name: String, at: Position) {
        if let Some(Open { content: Content::Map { key, seen, .. }, .. }) = self.open.last_mut() {
            let first = *seen.entry(name.clone()).or_insert(at);
            if first == at {
                *key = Some(Key::Unique(name, at));
            } else {
                self.faults.push(duplicate(&name, first, at));
                *key = Some(Key::Duplicate);
            }
        }
    }

    /// Adds a finished node to its parent.
    fn node(&mut self, node: Node, anchor: usize) -> Result<(), Diagnostic> {
        self.remember(anchor, &node)?;
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(Content::List(nodes)) => nodes.push(node),
            Some(Content::Map { entries, merges, key, .. }) => match key.take() {
                Some(Key::Unique(key, at)) => entries.push(Entry { key, at, value: node }),
                Some(Key::Merge(at)) => {
                    let position = entries.len();
                    merges.push(Merge { position, entries: merge_sources(node, at)? });
                }
                Some(Key::Duplicate) | None => {}
            },
        }
        Ok(())
    }

    /// Keeps a node with an anchor for later aliases. The copy counts against the budget.
    fn remember(&mut self, anchor: usize, node: &Node) -> Result<(), Diagnostic> {
        if anchor == 0 {
            return Ok(());
        }
        let (nodes, text, height) = measure(node);
        self.budget.spend(nodes, text, node.at)?;
        self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, text, height });
        Ok(())
    }

    /// Checks the tag of a list or map. Only `!` and the tag of its own type are allowed.
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

/// Number of nodes, bytes of text, and depth. Recursion is bounded by the depth limit.
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

/// The entries that a merge key adds, in order of precedence.
fn merge_sources(value: Node, at: Position) -> Result<Vec<Entry>, Diagnostic> {
    let sources = match value.value {
        Value::List(sources) => sources,
        Value::Map(entries) => return Ok(entries),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => vec![value],
    };
    let mut all = Vec::new();
    for source in sources {
        let kind = source.kind();
        let Value::Map(entries) = source.value else {
            let message = format!("`<<` merges {kind}, expected a map or a list of maps");
            return Err(at.fault(message, None));
        };
        all.extend(entries);
    }
    Ok(all)
}

/// Combines a map's own entries with those of its merge keys. Own keys take precedence.
fn merged(own: Vec<Entry>, merges: Vec<Merge>) -> Vec<Entry> {
    if merges.is_empty() {
        return own;
    }
    let mut known: HashSet<String> = own.iter().map(|entry| entry.key.clone()).collect();
    let mut all = Vec::with_capacity(own.len());
    let mut own = own.into_iter();
    let mut taken = 0;
    for Merge { position, entries } in merges {
        all.extend(own.by_ref().take(position - taken));
        taken = position;
        all.extend(entries.into_iter().filter(|entry| known.insert(entry.key.clone())));
    }
    all.extend(own);
    all
}

/// Whether the tag is `!` alone, which makes a scalar a text.
fn is_nonspecific(tag: &Tag) -> bool {
    format!("{}{}", tag.handle, tag.suffix) == "!"
}

fn unknown_tag(tag: &Tag, at: Position) -> Diagnostic {
    let shown = quoted(&format!("{}{}", tag.handle, tag.suffix));
    at.fault(format!("the tag {shown} does not belong here"), Some("remove the tag"))
}

/// Resolves a plain scalar by the YAML 1.2 core schema, in which `yes` and `no` are texts.
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
