//! The dialects, and the result of parsing a file.

use super::handover::LITERAL_SECRET;
use super::tree::Position;
use crate::budget;
use crate::diagnostic::{Class, Diagnostic};
use crate::pipeline::{Params, Pipeline, Vars};

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A Bob pipeline.
    Bob,
    /// A Bob pipeline in the envelope used by Bob's command line.
    Wendy,
    /// prunner's `pipelines.yml`.
    Prunner,
    /// The job files of the modular job runner.
    Job,
    /// Shell commands, one per line.
    CiLines,
}

/// The result of parsing a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The pipelines. Empty if there is an error.
    pub pipelines: Vec<Pipeline>,
    /// Faults and warnings, in document order.
    pub diagnostics: Vec<Diagnostic>,
    /// The dialect, if it could be determined.
    pub dialect: Option<Dialect>,
}

impl Dialect {
    /// The dialects that a user can select, by name.
    pub const NAMED: [(&'static str, Self); 4] =
        [("bob", Self::Bob), ("prunner", Self::Prunner), ("job", Self::Job), ("ci", Self::CiLines)];
}

impl Parsed {
    /// Whether there is an error or a part that this version does not support.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.diagnostics.iter().any(|fault| fault.class.is_refusal())
    }

    /// Whether a definition contains a secret in clear text.
    #[must_use]
    pub fn has_literal_secrets(&self) -> bool {
        self.diagnostics.iter().any(is_literal_secret)
    }

    /// Turns the warnings about secrets in clear text into errors, so that nobody else can read
    /// them where the definitions are stored. `or`: the alternative to each warning's hint.
    pub fn refuse_literal_secrets(&mut self, or: &str) {
        for fault in self.diagnostics.iter_mut().filter(|fault| is_literal_secret(fault)) {
            fault.class = Class::Error;
            let hint = fault.hint.take().unwrap_or_default();
            fault.hint = Some(format!("{hint}; or {or}"));
        }
    }

    /// Adds an error for each pipeline that every worker would reject, because its start command
    /// would be too large.
    #[must_use]
    pub fn checked(mut self) -> Self {
        let several = self.pipelines.len() > 1;
        let too_large = |pipeline: &Pipeline| {
            let why = budget::too_large(Some(pipeline), &Vars::new(), &Params::new())?;
            let path = if several { format!("pipelines.{}", pipeline.name) } else { String::new() };
            let hint = "move large texts to files that a resource or the image provides";
            let at = Position::default();
            Some(Diagnostic { path, ..at.fault(why, Some(hint)) })
        };
        let faults: Vec<_> = self.pipelines.iter().filter_map(too_large).collect();
        if !faults.is_empty() {
            self.pipelines.clear();
            self.diagnostics.extend(faults);
        }
        self
    }
}

fn is_literal_secret(fault: &Diagnostic) -> bool {
    fault.message.ends_with(LITERAL_SECRET)
}

/// Sorts faults by their position.
pub(super) fn in_order(faults: impl Iterator<Item = Diagnostic>) -> Vec<Diagnostic> {
    let mut faults: Vec<_> = faults.collect();
    faults.sort_by_key(|fault| (fault.line, fault.column));
    faults
}
