//! The values that a field can hold.

use std::str::FromStr;

use super::{Field, Reader, join};
use crate::dialect::tree::{Value, quoted};
use crate::quantity::{Cpu, Memory, Span};

impl Reader {
    /// A text. Numbers and booleans are rejected: an unquoted `1.10` is meant as "1.10", but
    /// another reader could take it for 1.1.
    pub(in crate::dialect) fn text(&mut self, field: &Field<'_>) -> Option<String> {
        match &field.node.value {
            Value::String(text) => Some(text.clone()),
            Value::Bool(text) | Value::Number(text) => {
                let hint = format!("write it in quotes: \"{text}\"");
                self.mismatch(field, "a string", Some(&hint));
                None
            }
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.mismatch(field, "a string", None);
                None
            }
        }
    }

    /// A text that is parsed into a value.
    pub(in crate::dialect) fn parsed<T>(&mut self, field: &Field<'_>) -> Option<T>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let text = self.text(field)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(bad) => {
                self.fault(field, bad.to_string(), None);
                None
            }
        }
    }

    /// A text that must satisfy a rule.
    pub(in crate::dialect) fn checked_text(
        &mut self,
        field: &Field<'_>,
        rule: fn(&str) -> Option<&'static str>,
    ) -> Option<String> {
        let text = self.text(field)?;
        match rule(&text) {
            None => Some(text),
            Some(why) => {
                let last = field.path.rsplit('.').next().unwrap_or_default();
                self.fault(field, format!("`{last}` {} {why}", quoted(&text)), None);
                None
            }
        }
    }

    /// The value of a result, or a fault with its error.
    pub(in crate::dialect) fn checked<T, E: std::fmt::Display>(
        &mut self,
        field: &Field<'_>,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|bad| self.fault(field, bad.to_string(), None)).ok()
    }

    /// One of a set of words.
    pub(in crate::dialect) fn word<T: Copy>(
        &mut self,
        field: &Field<'_>,
        words: &[(&str, T)],
    ) -> Option<T> {
        let text = self.text(field)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let message =
            format!("{} is {}, expected one of {}", field.name(), quoted(&text), known.join(", "));
        let hint = self.nearest(&text, known).map(|word| format!("did you mean `{word}`?"));
        self.fault(field, message, hint.as_deref());
        None
    }

    /// A time span such as `90s` or `1h30m`, or a number of seconds.
    pub(in crate::dialect) fn span(&mut self, field: &Field<'_>) -> Option<Span> {
        let hint = "such as 90s, 10m, 1h30m or 500ms";
        let (Value::String(text) | Value::Number(text)) = &field.node.value else {
            self.mismatch(field, "a time span", Some(hint));
            return None;
        };
        text.parse().map_err(|bad| self.fault(field, format!("{bad}"), Some(hint))).ok()
    }

    /// An amount of memory such as `512M`.
    pub(in crate::dialect) fn memory(&mut self, field: &Field<'_>) -> Option<Memory> {
        if let Value::Number(text) = &field.node.value {
            let hint = if text.bytes().all(|b| b.is_ascii_digit()) {
                format!("give it a unit, such as {text}M")
            } else {
                "write digits alone and a unit, such as 512M".to_owned()
            };
            self.mismatch(field, "memory with a unit", Some(&hint));
            return None;
        }
        self.parsed(field)
    }

    /// A share of all processor cores.
    pub(in crate::dialect) fn cpu(&mut self, field: &Field<'_>) -> Option<Cpu> {
        let Value::Number(text) = &field.node.value else {
            self.mismatch(field, "a number", Some("write it without quotes, such as 0.5"));
            return None;
        };
        text.parse().map_err(|bad| self.fault(field, format!("{bad}"), None)).ok()
    }

    /// A boolean.
    pub(in crate::dialect) fn switch(&mut self, field: &Field<'_>) -> Option<bool> {
        match &field.node.value {
            Value::Bool(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::Bool(_) => Some(false),
            Value::Null | Value::Number(_) | Value::String(_) | Value::List(_) | Value::Map(_) => {
                self.mismatch(field, "true or false", None);
                None
            }
        }
    }

    /// A whole number within bounds.
    pub(in crate::dialect) fn count(
        &mut self,
        field: &Field<'_>,
        least: u32,
        most: u32,
    ) -> Option<u32> {
        let Value::Number(text) = &field.node.value else {
            self.mismatch(field, "a whole number", None);
            return None;
        };
        // Malformed numbers and numbers beyond 32 bits get the same message.
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        if number.is_none() {
            let found = field.node.shown();
            let message = format!(
                "{} is {found}, expected a whole number from {least} to {most}",
                field.name()
            );
            self.fault(field, message, None);
        }
        number
    }

    /// The items of a list.
    pub(in crate::dialect) fn list<'a>(&mut self, field: &Field<'a>) -> Option<Vec<Field<'a>>> {
        let items = field.items().map(Iterator::collect);
        if items.is_none() {
            self.mismatch(field, "a list", None);
        }
        items
    }

    /// A map of scalars, each converted to text as written. `check` returns the expected form if a
    /// name or value is invalid.
    pub(in crate::dialect) fn scalars(
        &mut self,
        field: &Field<'_>,
        check: fn(&str, &str) -> Option<&'static str>,
    ) -> Option<crate::pipeline::Vars> {
        let Value::Map(entries) = &field.node.value else {
            self.mismatch(field, "a map of names and values", None);
            return None;
        };
        let mut all = crate::pipeline::Vars::with_capacity(entries.len());
        for entry in entries {
            let path = join(&field.path, &entry.key);
            let Some(text) = entry.value.scalar() else {
                let (message, hint) = if entry.value.value == Value::Null {
                    let hint = "give it a value, or leave it out; the empty text is \"\"";
                    (format!("`{path}` is null"), Some(hint))
                } else {
                    let kind = entry.value.kind();
                    let message =
                        format!("`{path}` is {kind}, expected a string, a number or a boolean");
                    (message, None)
                };
                self.fault_at(entry.value.at, &path, message, hint);
                continue;
            };
            if let Some(expected) = check(&entry.key, text) {
                let message =
                    format!("{} in {}: expected {expected}", quoted(&entry.key), field.name());
                self.fault_at(entry.at, &path, message, None);
                continue;
            }
            all.insert(entry.key.clone(), text.to_owned());
        }
        Some(all)
    }
}
