//! Limits that guarantee that template rendering terminates. The library has none: it nests and
//! loops as far as a program says, and copies values without counting.
//!
//! The estimate here rejects most expensive programs with a message about the program. It cannot
//! see every cost, such as a text that doubles with each action. Rendering therefore also runs in
//! its own process with a deadline and a memory limit.

use std::io;

use protocol::pipeline::Params;
use serde_json::Value as Json;

use super::action::action;

/// The maximum depth of nested actions, and of parentheses within an action.
const DEPTH: usize = 64;
/// The maximum number of bytes of all rendered programs of a step.
pub(super) const BYTES: usize = 4 << 20;
/// The maximum cost of all programs of a step. The cost of an action is its cost per execution
/// times the number of executions.
const COST: u64 = 4 << 30;
/// The cost of an action that copies nothing, in copied bytes. It takes about a microsecond.
const ACTION: u64 = 4096;
/// The cost of a value in addition to its text.
const VALUE: u64 = 64;

/// The remaining budget of the programs of one step.
#[derive(Debug)]
pub(super) struct Budget {
    cost: u64,
    /// The remaining bytes of output.
    pub(super) bytes: usize,
    /// The number of items in the longest list among the values.
    longest: u64,
    /// The size of all values, which the library copies for each `$.x`.
    size: u64,
}

impl Budget {
    pub(super) fn new(values: &Params) -> Self {
        let longest = values.values().map(longest).max().unwrap_or_default().max(1);
        let sizes = values.iter().map(|(name, value)| bytes_of(name.len()) + size(value));
        Self { cost: COST, bytes: BYTES, longest, size: sizes.sum() }
    }

    fn spend(&mut self, rounds: u64, each: u64) -> Result<(), String> {
        let left = rounds.checked_mul(each).and_then(|cost| self.cost.checked_sub(cost));
        self.cost = left.ok_or_else(|| {
            format!(
                "the script would take too long to render: it loops over lists of up to {} items \
                 and copies values of {} bytes in too many rounds; loop in the shell instead",
                self.longest, self.size
            )
        })?;
        Ok(())
    }

    /// Returns how often an action inside `loops` nested loops is executed.
    fn rounds(&self, loops: u32) -> u64 {
        self.longest.saturating_pow(loops)
    }

    /// Deducts a program's cost from the budget.
    ///
    /// # Errors
    /// A message, if the program exceeds a limit or uses an unsupported action.
    pub(super) fn admit(&mut self, program: &str) -> Result<(), String> {
        let mut open: Vec<Block> = Vec::new();
        // Inside a `with` and after an assignment, a short name can refer to all values.
        let mut assigns = false;
        let mut rest = program;
        while let Some((_, behind)) = rest.split_once("{{") {
            let (action, after) = action(behind)?;
            rest = after;
            let word = action.trim_start_matches('-').trim_start();
            let word = word.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
            let loops = open.iter().filter(|block| **block == Block::Range).count();
            let loops = u32::try_from(loops).unwrap_or(u32::MAX);
            let rounds = self.rounds(loops);
            let references = references(&action);
            let is_wide = references.root || assigns || open.contains(&Block::With);
            // All rounds of a loop together copy its items once.
            let copies = if is_wide { rounds } else { self.rounds(loops.saturating_sub(1)) };
            self.spend(rounds, ACTION)?;
            self.spend(copies.saturating_mul(references.count), self.size)?;
            match word {
                "define" | "template" | "block" => {
                    return Err(format!(
                        "the script has a `{word}`: nested templates are not supported; write a \
                         shell function"
                    ));
                }
                "range" => {
                    open.push(Block::Range);
                    self.spend(self.rounds(loops.saturating_add(1)), ACTION)?;
                }
                "if" => open.push(Block::If),
                "with" => open.push(Block::With),
                "end" => drop(open.pop()),
                // The library always renders the `else`; Go does so only for an empty list.
                "else" if open.last() == Some(&Block::Range) => {
                    return Err("the script has an `else` of a `range`, which is not supported: \
                                write an `if` around the `range`"
                        .to_owned());
                }
                _ => assigns |= action.contains(":="),
            }
            let parens = action.bytes().filter(|byte| *byte == b'(').count();
            if open.len() > DEPTH || parens > DEPTH {
                return Err(format!("the script has actions more than {DEPTH} deep in each other"));
            }
        }
        Ok(())
    }
}

/// An action that is closed by `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Range,
    If,
    With,
}

/// The values that an action refers to.
struct References {
    /// An upper bound on the values that it copies. Quoted text may increase it.
    count: u64,
    /// Whether it refers to the root: `$`, `$.x`.
    root: bool,
}

fn references(action: &str) -> References {
    let bytes = action.as_bytes();
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let mut references = References { count: 0, root: false };
    for (at, byte) in bytes.iter().enumerate() {
        references.count += u64::from(matches!(byte, b'.' | b'$' | b'|' | b'('));
        references.root |= *byte == b'$' && !bytes.get(at + 1).is_some_and(is_name);
    }
    references
}

fn bytes_of(text: usize) -> u64 {
    VALUE.saturating_add(u64::try_from(text).unwrap_or(u64::MAX))
}

/// Returns the length of the longest list in a value. A text counts as one item.
fn longest(value: &Json) -> u64 {
    let (inner, own) = match value {
        Json::Array(items) => (items.iter().map(longest).max(), items.len()),
        Json::Object(entries) => (entries.values().map(longest).max(), entries.len()),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => (None, 1),
    };
    inner.unwrap_or_default().max(u64::try_from(own).unwrap_or(u64::MAX))
}

/// Returns the approximate size of a copy of a value, in bytes.
fn size(value: &Json) -> u64 {
    match value {
        Json::Null | Json::Bool(_) | Json::Number(_) => VALUE,
        Json::String(text) => bytes_of(text.len()),
        Json::Array(items) => VALUE + items.iter().map(size).sum::<u64>(),
        Json::Object(entries) => {
            VALUE + entries.iter().map(|(name, of)| bytes_of(name.len()) + size(of)).sum::<u64>()
        }
    }
}

/// The output of a program, up to a limit.
#[derive(Debug)]
pub(super) struct Bounded {
    pub(super) bytes: Vec<u8>,
    limit: usize,
    /// Whether the output exceeded the limit.
    pub(super) is_full: bool,
}

impl Bounded {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, is_full: false }
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
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

/// Returns the message about a program whose output exceeds the limit.
pub(super) fn too_long() -> String {
    format!("the scripts of the step have more than {BYTES} bytes with their variables in them")
}
