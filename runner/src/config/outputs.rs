//! Parsers for the settings of the output store.

use std::path::PathBuf;

use protocol::id::RegisteredName;
use url::Url;

use super::parse::Parsed;

/// The value of `outputs.store`. Other settings of a bucket are separate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoreSetting {
    Directory(PathBuf),
    Bucket { bucket: String, prefix: String },
    ArtifactStore(RegisteredName),
}

const EXPECTED: &str =
    "a directory, s3://bucket/prefix or bob-artifact:NAME (a registered artifact store)";

pub(super) fn parse_store(text: &str) -> Parsed<StoreSetting> {
    if let Some(name) = text.strip_prefix("bob-artifact:") {
        let name = name.parse().map_err(|cause| format!("{EXPECTED}; {cause}"))?;
        return Ok(StoreSetting::ArtifactStore(name));
    }
    if let Some(place) = text.strip_prefix("s3://") {
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if bucket.is_empty() || !bucket.chars().all(fits) || prefix.chars().any(char::is_control) {
            return Err("s3://bucket/prefix, the bucket of letters, digits, - and .".into());
        }
        let prefix = prefix.trim_matches('/').to_owned();
        return Ok(StoreSetting::Bucket { bucket: bucket.to_owned(), prefix });
    }
    // Probably another form, misspelt, rather than a path.
    if text.is_empty() || text.contains("://") || text.contains('\0') || text.starts_with("s3:") {
        return Err(EXPECTED.into());
    }
    Ok(StoreSetting::Directory(PathBuf::from(text)))
}

pub(super) fn endpoint(text: &str) -> Parsed<String> {
    let expected = || "http://host:port or https://host:port, without user and query".to_owned();
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .filter(|url| url.username().is_empty() && url.password().is_none())
        .filter(|url| url.query().is_none() && url.fragment().is_none())
        .map(|url| url.as_str().trim_end_matches('/').to_owned())
        .ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_stored_in_a_directory_a_bucket_or_a_registered_store() {
        assert_eq!(parse_store("/srv/out"), Ok(StoreSetting::Directory("/srv/out".into())));
        assert_eq!(parse_store("out"), Ok(StoreSetting::Directory("out".into())));
        let bucket =
            |prefix: &str| StoreSetting::Bucket { bucket: "b-1".into(), prefix: prefix.into() };
        assert_eq!(parse_store("s3://b-1"), Ok(bucket("")));
        assert_eq!(parse_store("s3://b-1/a/b/"), Ok(bucket("a/b")));
        assert_eq!(
            parse_store("bob-artifact:x"),
            Ok(StoreSetting::ArtifactStore("x".parse().unwrap()))
        );
        for bad in ["", "s3:b", "s3://", "s3:///x", "s3://u:p@b/x", "http://h/x", "bob-artifact:"] {
            assert!(parse_store(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_endpoint_is_a_url_without_a_user() {
        assert_eq!(endpoint("http://127.0.0.1:9000/").as_deref(), Ok("http://127.0.0.1:9000"));
        for bad in ["", "h:1", "s3://h", "https://u:p@h", "https://h?x=1"] {
            assert!(endpoint(bad).is_err(), "{bad:?} was taken");
        }
    }
}
