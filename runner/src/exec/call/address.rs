//! Builds request URLs. A filled-in value cannot change which API call is made.

use percent_encoding::percent_decode_str;
use reqwest::Url;
use serde_json::{Map, Value};

/// Parses an absolute URL. The error says what is wrong without showing the URL.
pub(super) fn base(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|cause| format!("is not an address: {cause}"))?;
    if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
        return Err("is not a web address, such as https://host".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("contains credentials, which belong in a secret".to_owned());
    }
    Ok(url)
}

/// Parses the base URL of a service. A query or a fragment is an error.
pub(super) fn service(text: &str) -> Result<Url, String> {
    let url = base(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a `?` or a `#`, which the address of a service has not".to_owned());
    }
    Ok(url)
}

/// Whether a text is exactly one path segment and cannot leave its parent.
pub(super) fn is_part(text: &str) -> bool {
    let plain = percent_decode_str(text).decode_utf8_lossy();
    !matches!(plain.as_ref(), "" | "." | "..") && !plain.contains(['/', '\\', '\0'])
}

/// Appends path segments to the URL of a service.
pub(super) fn below(service: &Url, parts: &[String]) -> Url {
    let mut url = service.clone();
    // Cannot fail: every service URL has a host.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty();
        for part in parts {
            path.push(&percent_decode_str(part).decode_utf8_lossy());
        }
    }
    url
}

/// Adds query parameters to a URL. The error names a parameter that cannot be encoded.
pub(super) fn add_query(url: &mut Url, params: &Map<String, Value>) -> Result<(), String> {
    if params.is_empty() {
        return Ok(());
    }
    let mut pairs = Vec::new();
    for (name, value) in params {
        flat(name, value, &mut pairs)?;
    }
    url.query_pairs_mut().extend_pairs(pairs);
    Ok(())
}

/// A list repeats its name; a map puts its keys in brackets.
fn flat(name: &str, value: &Value, pairs: &mut Vec<(String, String)>) -> Result<(), String> {
    let text = match value {
        Value::Null => return Ok(()),
        Value::Bool(true) => "1".to_owned(),
        Value::Bool(false) => "0".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            for item in items {
                if item.is_array() || item.is_object() {
                    return Err(format!("`{name}` is too deep for an address"));
                }
                flat(name, item, pairs)?;
            }
            return Ok(());
        }
        Value::Object(entries) if name.contains('[') && !entries.is_empty() => {
            return Err(format!("`{name}` is too deep for an address"));
        }
        Value::Object(entries) => {
            for (key, value) in entries {
                flat(&format!("{name}[{key}]"), value, pairs)?;
            }
            return Ok(());
        }
    };
    pairs.push((name.to_owned(), text));
    Ok(())
}

/// A URL as output shows it: without user, password, query and fragment, which can be secret.
pub(super) fn display_url(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Setting these fails only for a URL that cannot have them.
    url.set_username("").ok();
    url.set_password(None).ok();
    url.into()
}

/// The origin of a URL: scheme, host and port.
pub(super) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn what_is_filled_in_stays_one_part_of_the_path() {
        let service = service("https://h:8006/proxy/").unwrap();
        let url = below(&service, &parts(&["nodes", "a b?c#d", "UPID:x:root@pam!ci:", "a%2Eb"]));
        assert_eq!(
            url.as_str(),
            "https://h:8006/proxy/nodes/a%20b%3Fc%23d/UPID:x:root@pam!ci:/a.b"
        );
        for bad in ["", ".", "..", "%2e%2E", "a/b", "a%2fb", "a\\b"] {
            assert!(!is_part(bad), "{bad}");
        }
    }

    #[test]
    fn parameters_are_escaped_and_maps_are_written_in_brackets() {
        let mut url = base("http://h/x").unwrap();
        let params = serde_json::json!({
            "a": "x&y=z", "n": 12.5, "on": true, "none": null, "list": [1, "2"], "c": { "id": 7 }
        });
        add_query(&mut url, params.as_object().unwrap()).unwrap();
        assert_eq!(url.query(), Some("a=x%26y%3Dz&n=12.5&on=1&list=1&list=2&c%5Bid%5D=7"));
        let deep = serde_json::json!({ "a": { "b": { "c": 1 } } });
        assert!(add_query(&mut url, deep.as_object().unwrap()).unwrap_err().contains("`a[b]`"));
    }

    #[test]
    fn an_address_with_a_user_is_refused_and_not_shown() {
        let why = base("https://me:s3cret@h/").unwrap_err();
        assert!(why.contains("belong in a secret") && !why.contains("s3cret"), "{why}");
        for bad in ["", "x", "ftp://h", "https://"] {
            assert!(base(bad).is_err(), "{bad}");
        }
        assert!(service("https://h/?a=b").is_err());
    }
}
