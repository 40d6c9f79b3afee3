//! A queue of shell commands: one a line, each a job of its own.
//!
//! A command of several lines is one line too: a JSON object with the key `command`.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::tree::{Position, text_of};
use crate::diagnostic::Diagnostic;
use crate::id::StepName;
use crate::pipeline::{ExecutorKind, Pipeline, Shell, Step};

/// The group of every such job.
const GROUP: &str = "ci";
/// So many hex digits of the command's hash name it.
const NAME: usize = 12;
/// The most jobs of one file.
const MAX_LINES: usize = 10_000;

/// A command that does not fit into a line, in one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    command: String,
}

/// The line that stands for a command in such a file.
#[must_use]
pub fn line(command: &str) -> String {
    let is_plain = command.trim() == command
        && !command.contains(['\n', '\r'])
        // A text that begins with a byte order mark is not read.
        && !command.starts_with('\u{feff}')
        && serde_json::from_str::<Whole>(command).is_err();
    if is_plain {
        return command.to_owned();
    }
    // A text is always JSON.
    serde_json::to_string(&Whole { command: command.to_owned() }).unwrap_or_default()
}

/// Reads every job, first in, first out, each with its place.
///
/// # Errors
/// What is wrong with the text as a whole, or with a command.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(Position, Pipeline)>, Diagnostic> {
    let mut jobs = Vec::new();
    for (number, line) in text_of(bytes)?.lines().enumerate() {
        let at = Position { line: u32::try_from(number + 1).unwrap_or(u32::MAX), column: 1 };
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let command = match serde_json::from_str::<Whole>(line) {
            Ok(whole) => whole.command,
            Err(_) => line.to_owned(),
        };
        if command.trim().is_empty() || command.contains('\0') {
            return Err(at.fault("the command is empty, or has a NUL character", None));
        }
        if jobs.len() == MAX_LINES {
            let hint = Some("add the rest when these have ended");
            return Err(at.fault(format!("there are more than {MAX_LINES} jobs"), hint));
        }
        jobs.push((at, pipeline(command)));
    }
    Ok(jobs)
}

fn pipeline(command: String) -> Pipeline {
    let mut hash = String::with_capacity(64);
    for byte in Sha256::digest(&command) {
        // Writing to a String cannot fail.
        let _infallible = write!(hash, "{byte:02x}");
    }
    hash.truncate(NAME);
    let step = Step {
        script: vec![command],
        shell: Some(Shell::Sh),
        executor: ExecutorKind::Local,
        ..Step::new(StepName::position(0))
    };
    Pipeline { steps: vec![step], ..Pipeline::new(GROUP, &hash) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn commands(text: &str) -> Vec<String> {
        let jobs = read(text.as_bytes()).unwrap();
        jobs.into_iter().map(|(_, job)| job.steps[0].script[0].clone()).collect()
    }

    #[test]
    fn each_line_is_a_job_in_its_order() {
        let text = "echo a\n\n  make test  \n{\"command\": \"a\\nb\"}\n";
        assert_eq!(commands(text), ["echo a", "make test", "a\nb"]);
    }

    #[test]
    fn what_only_looks_like_json_is_a_command() {
        for plain in ["{ echo a; }", "\"/a b/c\" d", "{\"command\": 1}", "[ -f x ]"] {
            assert_eq!(commands(plain), [plain]);
        }
    }

    #[test]
    fn the_same_command_has_the_same_name_and_another_one_has_not() {
        let name = |text: &str| read(text.as_bytes()).unwrap()[0].1.name.clone();
        assert_eq!(name("echo a"), name("  echo a"));
        assert_ne!(name("echo a"), name("echo b"));
        assert_eq!(name("echo a").len(), NAME);
    }

    proptest! {
        #[test]
        fn a_command_comes_back_from_its_line(command in "[^\\x00]{1,40}") {
            prop_assume!(!command.trim().is_empty());
            let line = line(&command);
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(commands(&line), [command]);
        }
    }
}
