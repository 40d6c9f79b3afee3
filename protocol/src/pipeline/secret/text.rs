//! Texts that are clear-text secrets, or that have some in their parameters.

use super::name::is_secret_text;

/// Replacement for a secret.
pub(super) const MASK: &str = "***";

/// Words that can precede a reference in the value of a header.
const SCHEMES: [&str; 3] = ["Bearer", "Basic", "token"];

/// Whether a text is a clear-text secret rather than a reference to an earlier result. A scheme
/// before the reference is allowed: `Bearer ${login.data.token}`.
pub(super) fn is_literal(text: &str) -> bool {
    let text = text.trim();
    let reference = match text.split_once(' ') {
        Some((scheme, rest)) if SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme)) => {
            rest.trim_start()
        }
        Some(_) | None => text,
    };
    let inside = reference.strip_prefix("${").and_then(|text| text.strip_suffix('}'));
    let is_reference = inside.is_some_and(|inside| !inside.contains(['{', '}']));
    !text.is_empty() && text != MASK && !is_reference
}

/// Masks the clear-text secrets in a URL or a form: the password of a URL's user, and the values of
/// parameters such as `api_key`. Returns `None` if there are none.
pub(super) fn without_parameters(text: &str) -> Option<String> {
    let mut ranges = Vec::new();
    let start = authority(text, &mut ranges);
    parameters(text, start, &mut ranges);
    if ranges.is_empty() {
        return None;
    }
    let mut masked = String::with_capacity(text.len());
    let mut at = 0;
    for (from, to) in ranges {
        masked.push_str(text.get(at..from)?);
        masked.push_str(MASK);
        at = to;
    }
    masked.push_str(text.get(at..)?);
    Some(masked)
}

/// The start and the end of a secret in a text, in bytes.
type Range = (usize, usize);

/// Finds the password in the authority of a URL. Returns the position of the rest of the URL.
fn authority(text: &str, found: &mut Vec<Range>) -> usize {
    let Some(scheme) = text.find("://") else { return 0 };
    let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    if scheme == 0 || !text[..scheme].chars().all(is_scheme) {
        return 0;
    }
    let start = scheme + "://".len();
    let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |end| start + end);
    if let Some(user) = text[start..end].rfind('@')
        && let Some(colon) = text[start..start + user].find(':')
    {
        let password = (start + colon + 1, start + user);
        if is_literal(&text[password.0..password.1]) {
            found.push(password);
        }
    }
    end
}

/// Finds the values of secret parameters: `name=value` after a `?`, `#` or `&`, or at the start of
/// a form.
fn parameters(text: &str, start: usize, found: &mut Vec<Range>) {
    const SEPARATORS: [char; 3] = ['?', '#', '&'];
    let mut from = start;
    while let Some(rest) = text.get(from..).filter(|rest| !rest.is_empty()) {
        let length = rest.find(SEPARATORS).unwrap_or(rest.len());
        if let Some((name, value)) = rest[..length].split_once('=')
            && !name.contains(char::is_whitespace)
            && is_secret_text(name)
            && is_literal(value)
        {
            found.push((from + length - value.len(), from + length));
        }
        from += length + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_reference_after_a_known_scheme_is_not_a_literal() {
        for reference in [
            "${login.token}",
            " ${login.token} ",
            "Bearer ${login.token}",
            "bearer ${login.token}",
            "Basic ${login.data.basic | quote}",
            "token ${login.token}",
            "",
            "  ",
            MASK,
        ] {
            assert!(!is_literal(reference), "{reference:?}");
        }
        for literal in [
            "s3cret",
            "s3cret ${a.b}",
            "Bearer s3cret",
            "Bearer s3cret ${a.b}",
            "${a.b} s3cret",
            "s3cret${a.b}",
            "${a.b}s3cret}",
            "${a.b}${a.c}",
            "${s3cret",
            "Digest ${a.b}",
        ] {
            assert!(is_literal(literal), "{literal:?}");
        }
    }

    #[test]
    fn secrets_in_urls_and_forms_are_masked_and_the_rest_is_kept() {
        for (text, masked) in [
            ("https://h/x?api_key=s3cret", "https://h/x?api_key=***"),
            ("https://h/x?a=1&apiKey=s3cret&b=2#top", "https://h/x?a=1&apiKey=***&b=2#top"),
            ("https://h/#access_token=s3cret", "https://h/#access_token=***"),
            ("/x?token=s3cret&password=s3cret", "/x?token=***&password=***"),
            ("https://bob:s3cret@h:8006/x", "https://bob:***@h:8006/x"),
            ("postgres://bob:s3cret@h/db?password=s3cret", "postgres://bob:***@h/db?password=***"),
            ("grant_type=x&client_secret=s3cret", "grant_type=x&client_secret=***"),
            ("client_secret=s3 cret&scope=all", "client_secret=***&scope=all"),
            ("token=s3cret=", "token=***"),
            ("https://h/?token=s3cret${a.b}", "https://h/?token=***"),
        ] {
            assert_eq!(without_parameters(text).as_deref(), Some(masked), "{text}");
            assert_eq!(without_parameters(masked), None, "{masked}");
        }
    }

    #[test]
    fn texts_without_secrets_are_not_changed() {
        for text in [
            "",
            "text",
            "https://h/x?token=${login.token}&page=2",
            "https://h/x?token=&max-tokens=5&token_url=https://i/token",
            "https://bob@h/x",
            "https://${a.user}:${a.password}@h/x",
            "${a.url}?page=1",
            "grant_type=password&username=bob&password=${ask.password}",
            "type=bind,source=/secret,target=/x",
            "a b password = x",
            "StrictHostKeyChecking=no",
            "is the token=x safe? no",
            "?",
            "&&=",
            "://:@",
            "ü=ü&ü",
        ] {
            assert_eq!(without_parameters(text), None, "{text}");
        }
    }
}
