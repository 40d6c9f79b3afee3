//! Steps whose output is hard to carry.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// A shell line that writes these texts to standard output (1) or standard error (2).
pub(crate) fn writes(texts: &[(u8, Vec<u8>)]) -> String {
    let mut script = String::new();
    for (to, bytes) in texts {
        script.push_str("printf '");
        for byte in bytes {
            write!(script, "\\{byte:03o}").unwrap();
        }
        writeln!(script, "' >&{to}").unwrap();
    }
    script
}

/// The texts for one of the two streams.
pub(crate) fn written(texts: &[(u8, Vec<u8>)], to: u8) -> Vec<u8> {
    texts.iter().filter(|text| text.0 == to).flat_map(|text| text.1.clone()).collect()
}

pub(crate) fn step(name: &str, script: &str) -> Value {
    json!({ "name": name, "cmd": ["sh", "-c", script] })
}

/// Lines with leading blanks and punctuation, empty lines, and lines of length 10, 13 and 65 with
/// and without newline. The last line has no newline.
pub(crate) fn odd_lines() -> Vec<(u8, Vec<u8>)> {
    let mut texts: Vec<(u8, Vec<u8>)> = Vec::new();
    for line in ["   blanks", "\ttab", "--- dashes", "...", "", "{\"a\": 1}", "trailing  ", "\r"] {
        texts.push((1, format!("{line}\n").into_bytes()));
        texts.push((2, format!("{line} on standard error\n").into_bytes()));
    }
    for length in [10, 13, 65] {
        for letters in [length - 1, length] {
            texts.push((1, format!("{}\n", "m".repeat(letters)).into_bytes()));
            texts.push((2, format!("{}\n", "n".repeat(letters)).into_bytes()));
        }
    }
    texts.push((1, b"the last line of this".to_vec()));
    texts.push((2, b"and of that".to_vec()));
    texts
}

/// Every byte value, some of them alone on a line.
pub(crate) fn binary() -> Vec<(u8, Vec<u8>)> {
    let mut texts = vec![(1, (0..=255).collect())];
    for byte in [0_u8, 1, 2, 10, 13, 127, 128, 192, 255] {
        texts.push((1, vec![byte, b'\n']));
        texts.push((2, vec![b'x', byte]));
    }
    texts
}
