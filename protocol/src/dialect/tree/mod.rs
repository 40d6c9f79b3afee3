//! One tree with positions for both JSON and YAML, with bounded size, depth and alias expansion.
//!
//! Dialects read only this tree, never the text. Therefore every fault has a position, and both
//! formats can express the same.

mod json;
mod node;
#[cfg(test)]
mod tests;
mod yaml;

pub(crate) use self::node::{Entry, MAX_BYTES, Node, Position, Tree, Value, quoted};
use crate::diagnostic::Diagnostic;

/// The UTF-8 byte order mark that some editors put at the start of a file.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
const SAVE_AS_UTF8: &str = "save it as UTF-8 without a byte order mark";
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
        let message = format!("byte 0x{:02x} is not UTF-8", bytes[byte]);
        Position::of_byte(bytes, byte).fault(message, Some("save it as UTF-8"))
    })?;
    if let Some(nul) = text.find('\0') {
        return Err(Position::of_byte(bytes, nul).fault("there is a NUL character", None));
    }
    if text.trim().is_empty() {
        return Err(start.fault("the document is empty", None));
    }
    Ok(text)
}

fn begins_with_byte_order_mark() -> Diagnostic {
    Position::new(1, 1).fault("the text begins with a byte order mark", Some(SAVE_AS_UTF8))
}
