//! Percent-encodes the variable parts of paths and queries for the engine's API.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The characters to encode in the value of a query parameter.
const QUERY_ENCODE_SET: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/').remove(b':');
/// The characters to encode in a name in a path.
const NAME_ENCODE_SET: &AsciiSet = &QUERY_ENCODE_SET.remove(b'@');

/// Builds a query string without the question mark. Only the values are encoded.
pub(super) fn query(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, QUERY_ENCODE_SET)))
        .collect();
    pairs.join("&")
}

/// Encodes the name or ID of an image or volume for use in a path. Slashes are kept.
pub(super) fn name(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, NAME_ENCODE_SET)
}

/// Builds the `filters` query of a list or prune call.
pub(super) fn filter(key: &str, value: &str) -> String {
    query(&[("filters", &serde_json::json!({key: [value]}).to_string())])
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
