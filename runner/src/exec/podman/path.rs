//! Paths and queries of the engine's API.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

const IN_QUERY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/').remove(b':');
const IN_NAME: &AsciiSet = &IN_QUERY.remove(b'@');

/// Encodes pairs as a query, without the question mark.
pub(super) fn query(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, IN_QUERY)))
        .collect();
    pairs.join("&")
}

/// Encodes an image's name or id as a part of a path. The slashes of a name stay.
pub(super) fn name(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, IN_NAME)
}

/// A filter for a list or prune call.
pub(super) fn filter(by: &str, value: &str) -> String {
    query(&[("filters", &serde_json::json!({by: [value]}).to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_meaning_in_an_address_is_encoded() {
        assert_eq!(
            query(&[("path", "/a b&c=d?#%ä"), ("x", "1")]),
            "path=/a%20b%26c%3Dd%3F%23%25%C3%A4&x=1"
        );
        assert_eq!(name("h:5/a/b@sha256:0").to_string(), "h:5/a/b@sha256:0");
        assert_eq!(name("a?b").to_string(), "a%3Fb");
        assert_eq!(filter("label", "a=b"), "filters=%7B%22label%22:%5B%22a%3Db%22%5D%7D");
    }
}
