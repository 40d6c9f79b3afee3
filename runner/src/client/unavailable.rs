//! A service that cannot be used, as the reason to exit.

/// A required service cannot be used. The program exits with 69.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}")]
pub struct Unavailable {
    /// The error message.
    pub what: String,
    /// The kind of the fault.
    pub why: ServiceFault,
}

/// Why a service cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceFault {
    /// It does not answer.
    Unreachable,
    /// It answers and denies access.
    Refuses,
    /// It answers, and a wrong object there must be deleted first. The program exits with 78.
    WrongKind,
}

/// The maximum number of characters quoted from others' messages, which can be a whole page.
const MAX_SAID: usize = 500;

impl Unavailable {
    /// A service that an error shows to be unreachable.
    #[must_use]
    pub fn because(cause: &dyn std::error::Error) -> Self {
        Self::new(&cause.to_string())
    }

    /// Whether an object must be deleted there before the program can work.
    #[must_use]
    pub fn needs_a_change(&self) -> bool {
        self.why == ServiceFault::WrongKind
    }

    /// A service that is unreachable. Line breaks are removed from the message, and a long one is
    /// cut.
    #[must_use]
    pub fn new(what: &str) -> Self {
        let mut words = what.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((end, _)) = words.char_indices().nth(MAX_SAID) {
            words.truncate(end);
            words.push_str("...");
        }
        Self { what: words, why: ServiceFault::Unreachable }
    }
}
