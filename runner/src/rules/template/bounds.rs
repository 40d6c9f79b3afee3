//! What of Go's templates is rendered: no more than what surely comes to an end, with an end of its
//! size. The library itself goes as deep as a program says, and as long.

use std::io;

use protocol::pipeline::Params;
use serde_json::Value as Json;

/// Actions stand in each other, and parentheses in an action, so deep at most.
const DEPTH: usize = 64;
/// All that a program ranges over is gone through so often at most.
const ROUNDS: usize = 1_000_000;
/// A rendered program has so many bytes at most.
const BYTES: usize = 4 << 20;

/// That a program is one that can be rendered.
///
/// # Errors
/// A sentence: what it has that is not rendered.
pub(super) fn within(program: &str, values: &Params) -> Result<(), String> {
    let longest = values.values().map(longest).max().unwrap_or_default().max(1);
    // Whether each open action is a range.
    let (mut open, mut ranges): (Vec<bool>, u32) = (Vec::new(), 0);
    let mut rest = program;
    while let Some((_, behind)) = rest.split_once("{{") {
        let (action, after) = super::action(behind)?;
        rest = after;
        let word = action.trim_start_matches('-').trim_start();
        let word = word.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        match word {
            "define" | "template" | "block" => {
                return Err(format!(
                    "the script has a `{word}`: templates within it are not supported; write a \
                     function of the shell"
                ));
            }
            "range" | "if" | "with" => open.push(word == "range"),
            "end" => drop(open.pop()),
            // The library renders it always, and Go only for an empty list.
            "else" if open.last() == Some(&true) => {
                return Err(
                    "the script has an `else` of a `range`, which is not supported: write \
                            an `if` around the `range`"
                        .to_owned(),
                );
            }
            _ => {}
        }
        let parens = action.bytes().filter(|byte| *byte == b'(').count();
        if open.len() > DEPTH || parens > DEPTH {
            return Err(format!("the script has actions more than {DEPTH} deep in each other"));
        }
        let now = open.iter().filter(|is_range| **is_range).count();
        ranges = ranges.max(u32::try_from(now).unwrap_or(u32::MAX));
    }
    if longest.checked_pow(ranges).is_none_or(|rounds| rounds > ROUNDS) {
        return Err(format!(
            "the script ranges over lists of {longest} items {ranges} deep, which may be more than \
             {ROUNDS} rounds"
        ));
    }
    Ok(())
}

/// The most items of any list in a value; a text counts as one, as nothing ranges over it.
fn longest(value: &Json) -> usize {
    match value {
        Json::Array(items) => items.iter().map(longest).max().unwrap_or_default().max(items.len()),
        Json::Object(entries) => {
            entries.values().map(longest).max().unwrap_or_default().max(entries.len())
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => 1,
    }
}

/// What is rendered, up to its bound.
#[derive(Debug, Default)]
pub(super) struct Bounded {
    pub(super) bytes: Vec<u8>,
    /// There was more.
    pub(super) is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > BYTES {
            self.is_full = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is said of a program that grows beyond its bound.
pub(super) fn too_long() -> String {
    format!("the script has more than {BYTES} bytes with its variables in it")
}
