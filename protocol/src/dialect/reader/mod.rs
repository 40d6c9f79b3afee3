//! Reads typed values from the tree and collects faults. Independent of pipelines.

mod values;

use std::collections::HashMap;

use super::tree::{Entry, Node, Position, Value, quoted};
use crate::diagnostic::{Class, Diagnostic};

/// Maximum length of a fault's message, in characters. The quoted input can be a megabyte long.
const MAX_MESSAGE: usize = 300;

/// Maximum number of known words that are compared with unknown ones to find hints for a document.
/// A comparison can take some microseconds, and a document can have 100,000 unknown words.
const MAX_COMPARISONS: usize = 10_000;

/// Collects faults. A reading method that returns `None` has added at least one.
#[derive(Default)]
pub(super) struct Reader {
    faults: Vec<Diagnostic>,
    /// Diagnostics that do not prevent reading.
    remarks: Vec<Diagnostic>,
    /// The comparisons made for hints.
    comparisons: usize,
}

/// A value and its path in the document.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
}

/// A map with validated keys.
pub(super) struct Fields<'a> {
    at: Position,
    path: String,
    /// Entries by the known spelling of their key.
    found: HashMap<&'static str, &'a Entry>,
}

/// Alternative names of keys: `(alternative, known)`.
pub(super) type Aliases = &'static [(&'static str, &'static str)];

/// The keys that a map accepts, and common mistakes.
pub(super) struct Keys {
    pub(super) known: &'static [&'static str],
    /// Unknown keys with a hint for each.
    pub(super) instead: &'static [(&'static str, &'static str)],
}

impl<'a> Field<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self { node, path: String::new() }
    }

    /// The last part of the path, as shown in faults.
    pub(super) fn name(&self) -> String {
        let last = self.path.rsplit_once('.').map_or(self.path.as_str(), |(_, last)| last);
        if last.is_empty() { "the document".to_owned() } else { format!("`{last}`") }
    }

    pub(super) fn items(&self) -> Option<impl Iterator<Item = Self> + use<'a>> {
        let Value::List(nodes) = &self.node.value else {
            return None;
        };
        let path = self.path.clone();
        Some(
            nodes
                .iter()
                .enumerate()
                .map(move |(index, node)| Self { node, path: format!("{path}[{index}]") }),
        )
    }
}

impl<'a> Fields<'a> {
    /// The value of a key. `null` counts as absent.
    pub(super) fn get(&self, key: &'static str) -> Option<Field<'a>> {
        let entry = self.found.get(key).filter(|entry| entry.value.value != Value::Null)?;
        Some(Field { node: &entry.value, path: join(&self.path, &entry.key) })
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Compares keys, with `-` and `_` equivalent: `needs_resource` equals `needs-resource`.
fn same(one: &str, other: &str) -> bool {
    let unify = |b: u8| if b == b'_' { b'-' } else { b };
    one.bytes().map(unify).eq(other.bytes().map(unify))
}

impl Reader {
    /// The known word that was probably meant. `None` if none is similar, or if the document has
    /// used up its comparisons.
    pub(super) fn nearest<'k>(
        &mut self,
        word: &str,
        known: impl IntoIterator<Item = &'k str>,
    ) -> Option<&'k str> {
        // Comparison takes quadratic time, and no known word is longer.
        if word.len() > 64 {
            return None;
        }
        let lower = word.to_lowercase().replace('_', "-");
        let length = lower.chars().count();
        let mut nearest: Option<(usize, &str)> = None;
        for known in known {
            if self.comparisons >= MAX_COMPARISONS {
                return None;
            }
            self.comparisons += 1;
            let most = known.len().max(3) / 3;
            if known.chars().count().abs_diff(length) > most {
                continue;
            }
            let distance = strsim::damerau_levenshtein(&lower, &known.replace('_', "-"));
            if distance <= most && nearest.is_none_or(|(least, _)| distance < least) {
                nearest = Some((distance, known));
            }
        }
        nearest.map(|(_, known)| known)
    }

    /// Every fault, in document order.
    pub(super) fn into_faults(mut self) -> Vec<Diagnostic> {
        self.faults.sort_by_key(|fault| (fault.line, fault.column));
        self.faults
    }

    /// Every fault and every remark.
    pub(super) fn into_diagnostics(self) -> Vec<Diagnostic> {
        self.faults.into_iter().chain(self.remarks).collect()
    }

    /// Every remark.
    pub(super) fn into_remarks(self) -> Vec<Diagnostic> {
        self.remarks
    }

    /// Adds a remark, which does not prevent reading.
    pub(super) fn remark(
        &mut self,
        class: Class,
        field: &Field<'_>,
        message: &str,
        hint: Option<&str>,
    ) {
        let remark = field.node.at.fault(message, hint);
        self.remarks.push(Diagnostic { class, path: field.path.clone(), ..remark });
    }

    pub(super) fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    pub(super) fn count_of_faults(&self) -> usize {
        self.faults.len()
    }

    /// Prefixes the messages of all faults starting at index `from`.
    pub(super) fn prefix_messages(&mut self, from: usize, words: &str) {
        for fault in self.faults.iter_mut().skip(from) {
            fault.message.insert_str(0, words);
        }
    }

    pub(super) fn fault_at(
        &mut self,
        at: Position,
        path: &str,
        message: String,
        hint: Option<&str>,
    ) {
        let message = match message.char_indices().nth(MAX_MESSAGE) {
            Some((end, _)) => format!("{}...", &message[..end]),
            None => message,
        };
        let fault = at.fault(message, hint);
        self.faults.push(Diagnostic { path: path.to_owned(), ..fault });
    }

    pub(super) fn fault(&mut self, field: &Field<'_>, message: String, hint: Option<&str>) {
        self.fault_at(field.node.at, &field.path, message, hint);
    }

    pub(super) fn mismatch(&mut self, field: &Field<'_>, expected: &str, hint: Option<&str>) {
        let message = format!("{} is {}, expected {expected}", field.name(), field.node.kind());
        self.fault_at(field.node.at, &field.path, message, hint);
    }

    /// Reads a map, with a fault for each unknown key and each key in both spellings.
    pub(super) fn map<'a>(&mut self, field: &Field<'a>, keys: &Keys) -> Option<Fields<'a>> {
        self.map_of(field, keys, &[], Class::Error)
    }

    /// Like [`Self::map`], with a warning for each unknown key.
    pub(super) fn map_with_warnings<'a>(
        &mut self,
        field: &Field<'a>,
        keys: &Keys,
    ) -> Option<Fields<'a>> {
        self.map_of(field, keys, &[], Class::Warning)
    }

    /// Like [`Self::map`], with alternative names for some keys: `(alternative, known)`.
    pub(super) fn map_by<'a>(
        &mut self,
        field: &Field<'a>,
        keys: &Keys,
        aliases: Aliases,
    ) -> Option<Fields<'a>> {
        self.map_of(field, keys, aliases, Class::Error)
    }

    fn map_of<'a>(
        &mut self,
        field: &Field<'a>,
        keys: &Keys,
        aliases: Aliases,
        unknown: Class,
    ) -> Option<Fields<'a>> {
        let Value::Map(entries) = &field.node.value else {
            self.mismatch(field, "a map", None);
            return None;
        };
        let mut found: HashMap<&'static str, &Entry> = HashMap::new();
        for entry in entries {
            let path = join(&field.path, &entry.key);
            let alias = aliases.iter().find(|(second, _)| same(second, &entry.key));
            let known = keys.known.iter().find(|known| same(known, &entry.key));
            let Some(known) = known.or_else(|| alias.map(|(_, known)| known)) else {
                let hint = self.hint_for(&entry.key, keys);
                let message = format!("the key {} is not known here", quoted(&entry.key));
                self.fault_at(entry.at, &path, message, Some(&hint));
                if unknown != Class::Error
                    && let Some(fault) = self.faults.pop()
                {
                    self.remarks.push(Diagnostic { class: unknown, ..fault });
                }
                continue;
            };
            if let Some(first) = found.insert(known, entry) {
                let message = format!("`{}` stands there as `{}` already", entry.key, first.key);
                self.fault_at(entry.at, &path, message, Some("remove one of them"));
            }
        }
        Some(Fields { at: field.node.at, path: field.path.clone(), found })
    }

    fn hint_for(&mut self, key: &str, keys: &Keys) -> String {
        if let Some((_, hint)) = keys.instead.iter().find(|(wrong, _)| same(wrong, key)) {
            return (*hint).to_owned();
        }
        match self.nearest(key, keys.known.iter().copied()) {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!("the keys here are {}", keys.known.join(", ")),
        }
    }

    /// A required key.
    pub(super) fn required<'a>(
        &mut self,
        fields: &Fields<'a>,
        key: &'static str,
        what: &str,
    ) -> Option<Field<'a>> {
        let field = fields.get(key);
        if field.is_none() {
            // A key without a value is reported at its own position.
            let at = fields.found.get(key).map_or(fields.at, |entry| entry.at);
            let path = join(&fields.path, key);
            self.fault_at(at, &path, format!("`{key}` is missing"), Some(what));
        }
        field
    }

    /// An optional key. If its value has a fault, the result is `None` and the document is refused.
    pub(super) fn optional<T>(
        &mut self,
        fields: &Fields<'_>,
        key: &'static str,
        read: fn(&mut Self, &Field<'_>) -> Option<T>,
    ) -> Option<T> {
        read(self, &fields.get(key)?)
    }
}
