//! Reads a file or standard input.

use std::io::Read as _;

use super::exit::{Exit, Failure};

/// Slightly above the size limit, so that the parser reports a file that is too large.
const MAX_BYTES: u64 = 1024 * 1024 + 1;

/// Name of standard input in diagnostics.
pub(super) const STDIN: &str = "standard input";

/// Reads a file, or standard input for `-`.
pub(super) fn bytes_of(file: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if file == "-" {
        std::io::stdin().lock().take(MAX_BYTES).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|open| open.take(MAX_BYTES).read_to_end(&mut bytes))
    };
    match read {
        Ok(_) => Ok(bytes),
        Err(cause) => {
            Err(Failure::new(Exit::Invalid, format!("cannot read {}: {cause}", shown_name(file))))
        }
    }
}

pub(super) fn shown_name(file: &str) -> &str {
    if file == "-" { STDIN } else { file }
}
