//! A value that must not be displayed.

use std::fmt;

/// A value that is neither displayed nor serialized. [`Secret::expose`] gives explicit access.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The wrapped value.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    /// Prints `***`, so that types that contain a secret can derive `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Removes everything between `://` and `@`, or everything before `@` if there is no scheme. Even a
/// malformed URL can contain a password.
#[must_use]
pub fn without_credentials(text: &str) -> String {
    text.split(',').map(one_without_credentials).collect::<Vec<_>>().join(",")
}

fn one_without_credentials(text: &str) -> String {
    let Some(at) = text.rfind('@') else { return text.to_owned() };
    let start = text.find("://").map_or(0, |scheme| scheme + 3).min(at);
    format!("{}***{}", &text[..start], &text[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_displayed_secret_does_not_contain_its_value() {
        assert_eq!(format!("{:?}", Some(Secret::new("hunter2"))), "Some(***)");
    }

    #[test]
    fn credentials_are_removed_from_valid_and_invalid_urls() {
        for (text, shown) in [
            ("amqp://u:p@ss@h:1/v", "amqp://***@h:1/v"),
            ("u:p@h", "***@h"),
            ("https://a:b@c,https://d", "https://***@c,https://d"),
            ("plain", "plain"),
            ("@://x", "***@://x"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }
}
