//! The text of an error with its causes, without repetitions.

use std::error::Error;

/// Returns the message of an error and of its causes, joined by colons.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    append_causes(error.to_string(), error)
}

/// Returns the messages of an error's causes, without its own. Empty if it has no cause.
#[must_use]
pub fn causes(error: &dyn Error) -> String {
    append_causes(String::new(), error)
}

/// Appends the causes of an error to a text about it. Omits a message that the text already
/// contains, because some errors repeat their cause.
#[must_use]
pub fn append_causes(mut text: String, error: &dyn Error) -> String {
    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
        let message = cause.to_string();
        if text.contains(&message) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&message);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let (text, inner) = texts.split_first().unwrap();
        let source = (!inner.is_empty()).then(|| Box::new(layers(inner)));
        Layer { text, source }
    }

    #[test]
    fn causes_follow_the_error_and_are_not_repeated() {
        let error = layers(&["request", "connect: refused", "refused", "os error 1"]);
        assert_eq!(with_causes(&error), "request: connect: refused: os error 1");
        assert_eq!(causes(&error), "connect: refused: os error 1");
        assert_eq!(append_causes("call".to_owned(), &layers(&["x"])), "call");
        assert_eq!(causes(&layers(&["x"])), "");
    }
}
