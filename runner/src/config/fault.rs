//! What is wrong with a setting.

use std::fmt;

/// One wrong value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where it was said: `BOB_QUEUE_URL`, `bob-runner.toml: queue.url`, `--set queue.url`.
    pub at: String,
    /// What was said, masked where it is secret; nothing where the name itself is wrong.
    pub value: Option<String>,
    /// What belongs there; without a value a sentence of its own, which says what to do.
    pub expected: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {value:?}: expected {}", self.at, self.expected),
            None => write!(f, "{}: {}", self.at, self.expected),
        }
    }
}

/// Everything that is wrong with the settings; at least one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("a setting is wrong")?,
            many => write!(f, "{many} settings are wrong")?,
        }
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for Faults {}
