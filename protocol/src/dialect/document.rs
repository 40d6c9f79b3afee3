//! Documents that are no pipelines: settings, registrations. They are read from the same tree.

use serde_json::Value as Json;

use super::tree::{self, Node, Value};
use crate::diagnostic::Diagnostic;

/// Reads a JSON or YAML document within the bounds that hold for pipelines. Every scalar is the text
/// that was written, so that `1.50` stays `1.50`. `file` is its name, for what its ending tells.
///
/// # Errors
/// The first fault of the text.
pub fn document(file: Option<&str>, bytes: &[u8]) -> Result<Json, Diagnostic> {
    let (root, faults) = tree::read(file, bytes)?.strict();
    match faults.into_iter().next() {
        Some(fault) => Err(fault),
        None => Ok(texts(root)),
    }
}

/// The depth of a tree is bounded, and so is this.
fn texts(node: Node) -> Json {
    match node.value {
        Value::Null => Json::Null,
        Value::Bool(text) | Value::Number(text) | Value::String(text) => Json::String(text),
        Value::List(items) => items.into_iter().map(texts).collect(),
        Value::Map(entries) => {
            entries.into_iter().map(|entry| (entry.key, texts(entry.value))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_of_a_document_are_the_text_that_was_written() {
        let read = document(None, b"a: 1.50\nb: [true, x]\nc:\n").unwrap();
        assert_eq!(read, serde_json::json!({ "a": "1.50", "b": ["true", "x"], "c": null }));
        assert_eq!(document(Some("x.json"), b"{\"a\": 1}").unwrap()["a"], "1");
        for bad in ["", "a: [", "a: 1\na: 2\n"] {
            assert!(document(None, bad.as_bytes()).is_err(), "{bad:?} was taken");
        }
    }
}
