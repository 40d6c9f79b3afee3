//! Documents other than pipelines: settings and registrations. They are read from the same tree.

use serde_json::Value as Json;

use super::tree::{self, Node, Value};
use crate::diagnostic::Diagnostic;

/// Reads a JSON or YAML document within the same size limits as a pipeline. Every scalar keeps its
/// text, so `1.50` stays `1.50`. `file` is the file's name, whose extension selects the format.
///
/// # Errors
/// The first fault in the text.
pub fn document(file: Option<&str>, bytes: &[u8]) -> Result<Json, Diagnostic> {
    let (root, faults) = tree::read(file, bytes)?.without_yaml_1_1();
    match faults.into_iter().next() {
        Some(fault) => Err(fault),
        None => Ok(as_text(root)),
    }
}

/// Recursion is bounded by the depth limit of the tree.
fn as_text(node: Node) -> Json {
    match node.value {
        Value::Null => Json::Null,
        Value::Bool(text) | Value::Number(text) | Value::String(text) => Json::String(text),
        Value::List(items) => items.into_iter().map(as_text).collect(),
        Value::Map(entries) => {
            entries.into_iter().map(|entry| (entry.key, as_text(entry.value))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_of_a_document_keep_their_source_text() {
        let read = document(None, b"a: 1.50\nb: [true, x]\nc:\n").unwrap();
        assert_eq!(read, serde_json::json!({ "a": "1.50", "b": ["true", "x"], "c": null }));
        assert_eq!(document(Some("x.json"), b"{\"a\": 1}").unwrap()["a"], "1");
        for bad in ["", "a: [", "a: 1\na: 2\n"] {
            assert!(document(None, bad.as_bytes()).is_err(), "{bad:?} was taken");
        }
    }
}
