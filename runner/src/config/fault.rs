//! Faults in settings.

use std::fmt;

/// A fault in one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The source: `BOB_QUEUE_URL`, `bob-runner.toml: queue.url`, `--set queue.url`.
    pub at: String,
    /// The value, masked if it is secret. `None` if the name itself is wrong.
    pub value: Option<String>,
    /// The expected value. If `value` is `None`, a complete sentence on what to do.
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

/// All faults in the settings, at least one.
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
