//! A queue of shell commands: one per line, each a separate job.
//!
//! A command of several lines is written as a JSON object on one line, with the key `command`. Its
//! other keys are `run-id`, `attempts`, `delay` and `timeout`.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::tree::{Position, text_of};
use crate::diagnostic::Diagnostic;
use crate::id::{RunId, StepName};
use crate::pipeline::{Backoff, ExecutorKind, Pipeline, Retry, RetryOn, Shell, Step};
use crate::quantity::Span;

/// The group of pipelines made from such jobs.
pub const CI_GROUP: &str = "ci";
/// Number of hex digits of the command's hash that form the pipeline's name.
const NAME: usize = 12;
/// Maximum number of jobs in one file.
const MAX_LINES: usize = 10_000;
/// Maximum number of attempts of one job.
pub const MAX_ATTEMPTS: u32 = 100;
/// A line with this prefix is an object, possibly truncated. No shell command starts with it.
const OBJECT: &str = "{\"command\":";

/// One job: a shell command and its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Job {
    /// The command, possibly with several lines.
    pub command: String,
    /// The run id. A job with a run id runs once, however often the file is read.
    #[serde(default, alias = "run_id", skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// Maximum number of attempts. 0 and 1 both mean one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The constant delay between attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Span>,
    /// Time limit of one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

/// Why a job is invalid.
#[derive(Debug, Error)]
pub enum BadJob {
    /// An object that is truncated, or has unknown keys or invalid values.
    #[error(
        "the job is not a complete object of `command`, `run-id`, `attempts`, `delay` and `timeout`: {0}"
    )]
    Object(#[source] serde_json::Error),
    /// The command is empty or contains a NUL character.
    #[error("the command is empty, or has a NUL character")]
    Command,
    /// More attempts than a step can have.
    #[error("the job has {0} attempts, and at most {MAX_ATTEMPTS} are possible")]
    Attempts(u32),
}

impl Job {
    /// A job without options.
    #[must_use]
    pub fn new(command: String) -> Self {
        Self { command, run_id: None, attempts: None, delay: None, timeout: None }
    }

    /// Parses one line. A line that is not an object with the key `command` is itself the command.
    ///
    /// # Errors
    /// [`BadJob`] if the line is not a valid job.
    pub fn of_line(line: &str) -> Result<Self, BadJob> {
        let line = line.trim();
        let job = match serde_json::from_str::<Self>(line) {
            Ok(job) => job,
            Err(fault) if line.starts_with(OBJECT) => return Err(BadJob::Object(fault)),
            Err(_) => Self::new(line.to_owned()),
        };
        job.checked()
    }

    /// Returns the job if a worker would accept it.
    ///
    /// # Errors
    /// [`BadJob`] if it would not.
    pub fn checked(self) -> Result<Self, BadJob> {
        if self.command.trim().is_empty() || self.command.contains('\0') {
            return Err(BadJob::Command);
        }
        match self.attempts {
            Some(attempts) if attempts > MAX_ATTEMPTS => Err(BadJob::Attempts(attempts)),
            Some(_) | None => Ok(self),
        }
    }

    /// Formats the job as a line of such a file: the command alone, if that is unambiguous.
    #[must_use]
    pub fn line(&self) -> String {
        let command = &self.command;
        let is_plain = *self == Self::new(command.clone())
            && command.trim() == command
            && !command.contains(['\n', '\r'])
            // A leading byte order mark would be dropped when the file is read.
            && !command.starts_with('\u{feff}')
            && !command.starts_with(OBJECT)
            && serde_json::from_str::<Self>(command).is_err();
        if is_plain {
            return command.clone();
        }
        // Text and numbers always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Converts the job to the pipeline `ci/<hash of the command>`, with one step on the worker's
    /// host.
    #[must_use]
    pub fn pipeline(self) -> Pipeline {
        let mut hash = hex::encode(Sha256::digest(&self.command));
        hash.truncate(NAME);
        let retry = self.attempts.filter(|attempts| *attempts > 1).map(|attempts| Retry {
            attempts,
            on: RetryOn::defaults(),
            delay: self.delay,
            backoff: Backoff::Constant,
        });
        let step = Step {
            script: vec![self.command],
            shell: Some(Shell::Sh),
            executor: ExecutorKind::Local,
            timeout: self.timeout,
            retry,
            ..Step::new(StepName::position(0))
        };
        Pipeline { steps: vec![step], ..Pipeline::new(CI_GROUP, &hash) }
    }
}

/// Reads every job in order, each with its position.
///
/// # Errors
/// If the text as a whole or one of its commands is invalid.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(Position, Pipeline)>, Diagnostic> {
    let mut jobs = Vec::new();
    for (number, line) in text_of(bytes)?.lines().enumerate() {
        let at = Position { line: u32::try_from(number + 1).unwrap_or(u32::MAX), column: 1 };
        if line.trim().is_empty() {
            continue;
        }
        let job = Job::of_line(line).map_err(|fault| at.fault(fault.to_string(), None))?;
        if jobs.len() == MAX_LINES {
            let hint = Some("add the rest when these have ended");
            return Err(at.fault(format!("there are more than {MAX_LINES} jobs"), hint));
        }
        jobs.push((at, job.pipeline()));
    }
    Ok(jobs)
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
    fn each_line_is_a_job_and_their_order_is_kept() {
        let text = "echo a\n\n  make test  \n{\"command\": \"a\\nb\"}\n";
        assert_eq!(commands(text), ["echo a", "make test", "a\nb"]);
    }

    #[test]
    fn a_line_that_only_looks_like_json_is_a_command() {
        for plain in ["{ echo a; }", "\"/a b/c\" d", "[ -f x ]"] {
            assert_eq!(commands(plain), [plain]);
        }
    }

    #[test]
    fn equal_commands_have_equal_names_and_different_ones_do_not() {
        let name = |text: &str| read(text.as_bytes()).unwrap()[0].1.name.clone();
        assert_eq!(name("echo a"), name("  echo a"));
        assert_ne!(name("echo a"), name("echo b"));
        assert_eq!(name("echo a").len(), NAME);
    }

    #[test]
    fn an_object_can_set_options_of_its_job_and_a_truncated_one_is_not_a_command() {
        let whole = r#"{"command":"a\nb","run-id":"r-1","attempts":3,"delay":"5s","timeout":60}"#;
        let job = Job::of_line(whole).unwrap();
        assert_eq!(Job::of_line(&job.line()).unwrap(), job);
        assert_eq!(job.run_id.as_ref().unwrap().as_str(), "r-1");
        let step = &job.pipeline().steps[0];
        let retry = step.retry.as_ref().unwrap();
        assert_eq!((retry.attempts, retry.backoff), (3, Backoff::Constant));
        assert_eq!(retry.delay.unwrap().as_millis(), 5_000);
        assert_eq!(step.timeout.unwrap().as_millis(), 60_000);
        for end in 11..whole.len() {
            assert!(matches!(Job::of_line(&whole[..end]), Err(BadJob::Object(_))), "{end}");
        }
        for bad in [r#"{"command":1}"#, r#"{"command":"a","atempts":3}"#] {
            assert!(matches!(Job::of_line(bad), Err(BadJob::Object(_))), "{bad}");
        }
        assert!(matches!(Job::of_line(r#"{"command":" "}"#), Err(BadJob::Command)));
        let often = r#"{"command":"a","attempts":101}"#;
        assert!(matches!(Job::of_line(often), Err(BadJob::Attempts(101))));
    }

    #[test]
    fn zero_attempts_and_one_attempt_both_mean_one() {
        for attempts in [0, 1] {
            let job = Job { attempts: Some(attempts), ..Job::new("a".to_owned()) };
            assert_eq!(job.pipeline().steps[0].retry, None);
        }
    }

    proptest! {
        #[test]
        fn a_command_round_trips_through_its_line(command in "[^\\x00]{1,40}") {
            prop_assume!(!command.trim().is_empty());
            let line = Job::new(command.clone()).line();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(commands(&line), [command]);
        }
    }
}
