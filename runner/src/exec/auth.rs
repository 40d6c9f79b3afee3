//! Registry credentials from `auth.json`, the file format of podman and docker.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use serde::{Deserialize, Serialize};

/// The registry of an image name that does not name one.
const HUB: &str = "docker.io";
/// The key of that registry in docker's files.
const HUB_KEY: &str = "https://index.docker.io/v1/";

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: HashMap<String, Login>,
}

#[derive(Clone, Deserialize)]
struct Login {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
}

/// Credentials in the form of the header sent to the engine. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials(String);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    /// The value of `X-Registry-Auth`.
    pub(super) fn header(&self) -> String {
        self.0.clone()
    }

    /// The JSON fields of the header value.
    pub(super) fn fields(&self) -> Option<serde_json::Map<String, serde_json::Value>> {
        serde_json::from_slice(&BASE64_URL_SAFE.decode(&self.0).ok()?).ok()
    }

    /// The user name and password, if the credentials are of this kind and not a token.
    pub(super) fn login(&self) -> Option<(String, String)> {
        let json = BASE64_URL_SAFE.decode(&self.0).ok()?;
        let login: NameAndPassword = serde_json::from_slice(&json).ok()?;
        (!login.username.is_empty()).then_some((login.username, login.password))
    }
}

#[derive(Deserialize)]
struct NameAndPassword {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

#[derive(Serialize)]
struct Header<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    password: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    identitytoken: Option<&'a str>,
}

impl Login {
    fn credentials(&self) -> Result<Option<Credentials>, String> {
        let decoded;
        let (mut name, mut password) =
            (self.username.as_deref().unwrap_or(""), self.password.as_deref().unwrap_or(""));
        if let Some(auth) = self.auth.as_deref().filter(|auth| !auth.is_empty()) {
            let bytes = BASE64_STANDARD.decode(auth).map_err(|cause| cause.to_string())?;
            // docker pads passwords with zero bytes.
            decoded = String::from_utf8(bytes).map_err(|cause| cause.to_string())?;
            let pair = decoded.trim_end_matches('\0').split_once(':');
            (name, password) = pair.ok_or("its auth is no NAME:PASSWORD")?;
        }
        let token = self.identitytoken.as_deref().filter(|token| !token.is_empty());
        if name.is_empty() && token.is_none() {
            // The file leaves this entry to a credential helper, which the engine might know.
            return Ok(None);
        }
        let header = Header { username: name, password, identitytoken: token };
        let json = serde_json::to_vec(&header).map_err(|cause| cause.to_string())?;
        Ok(Some(Credentials(BASE64_URL_SAFE.encode(json))))
    }
}

/// The registry of an image reference, and the full reference up to but not including its tag.
pub(super) fn registry_of(image: &str) -> (&str, String) {
    // Engines accept this transport prefix and it is their default.
    let image = image.strip_prefix("docker://").unwrap_or(image);
    let repository = image.split('@').next().unwrap_or(image);
    let repository = match repository.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        Some(_) | None => repository,
    };
    match repository.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => {
            (image.split('/').next().unwrap_or(host), repository.to_owned())
        }
        Some(_) => (HUB, format!("{HUB}/{repository}")),
        None => (HUB, format!("{HUB}/library/{repository}")),
    }
}

/// Reads the credentials for an image from the first file that has an entry for it. The longest
/// matching prefix of the image name wins.
///
/// # Errors
/// A sentence that names the file. A missing file is an error only if it is the first and
/// `asked_for` says that the user named it.
pub(super) fn find(
    files: &[PathBuf],
    asked_for: bool,
    image: &str,
) -> Result<Option<Credentials>, String> {
    let (_, repository) = registry_of(image);
    for (n, path) in files.iter().enumerate() {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(cause)
                if cause.kind() == std::io::ErrorKind::NotFound && !(asked_for && n == 0) =>
            {
                continue;
            }
            Err(cause) => return Err(unreadable(path, &cause)),
        };
        let file: File =
            serde_json::from_slice(&bytes).map_err(|cause| unreadable(path, &cause))?;
        let best = file
            .auths
            .iter()
            .filter(|(key, _)| covers(key, &repository))
            .max_by_key(|(key, _)| key.len());
        if let Some((key, login)) = best {
            let found = login.credentials();
            return found.map_err(|cause| {
                format!("the entry {key:?} of {} cannot be used: {cause}", path.display())
            });
        }
    }
    Ok(None)
}

fn unreadable(path: &Path, cause: &dyn fmt::Display) -> String {
    format!(
        "the registry credentials in {} cannot be read: {cause}; set BOB_REGISTRY_AUTH_FILE",
        path.display()
    )
}

/// Whether an entry covers a repository. An entry is `host`, `host/path` or a URL.
fn covers(key: &str, repository: &str) -> bool {
    let key = if key == HUB_KEY { HUB } else { key };
    let bare = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    repository.strip_prefix(bare).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_credentials(json: &str, image: &str) -> Result<Option<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        std::fs::write(&file, json).unwrap();
        let found = find(&[dir.path().join("none.json"), file], false, image)?;
        Ok(found.map(|credentials| {
            String::from_utf8(BASE64_URL_SAFE.decode(credentials.header()).unwrap()).unwrap()
        }))
    }

    #[test]
    fn the_registry_is_the_first_part_where_that_looks_like_a_host() {
        for (image, registry, repository) in [
            ("busybox", "docker.io", "docker.io/library/busybox"),
            ("busybox:1", "docker.io", "docker.io/library/busybox"),
            ("me/app:1", "docker.io", "docker.io/me/app"),
            ("localhost/app", "localhost", "localhost/app"),
            ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000", "127.0.0.1:5000/a/b"),
            ("quay.io/a/b@sha256:00", "quay.io", "quay.io/a/b"),
            ("docker://quay.io/a/b:1", "quay.io", "quay.io/a/b"),
        ] {
            assert_eq!(registry_of(image), (registry, repository.to_owned()), "{image}");
        }
    }

    #[test]
    fn the_most_particular_entry_wins() {
        // a:b, c:d
        let json = r#"{"auths":{"h:5":{"auth":"YTpi"},"h:5/team":{"auth":"YzpkOmU="},
            "h:55":{"auth":"YTpi"}}}"#;
        let of = |image| find_credentials(json, image).unwrap();
        assert_eq!(of("h:5/x:t").as_deref(), Some(r#"{"username":"a","password":"b"}"#));
        assert_eq!(of("h:5/team/x").as_deref(), Some(r#"{"username":"c","password":"d:e"}"#));
        assert_eq!(of("h:5/teams/x").as_deref(), Some(r#"{"username":"a","password":"b"}"#));
        assert_eq!(of("other/x"), None);
    }

    #[test]
    fn dockers_own_key_is_for_dockers_registry() {
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"}}}"#;
        assert!(find_credentials(json, "busybox").unwrap().is_some());
        assert!(find_credentials(json, "quay.io/x").unwrap().is_none());
    }

    #[test]
    fn an_entry_of_a_helper_program_is_left_to_the_engine() {
        let json = r#"{"auths":{"h.x":{}},"credHelpers":{"h.x":"secretservice"}}"#;
        assert_eq!(find_credentials(json, "h.x/a").unwrap(), None);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_and_nothing_secret_is_shown() {
        for json in
            ["{", r#"{"auths":{"h.x":{"auth":"%"}}}"#, r#"{"auths":{"h.x":{"auth":"YQ=="}}}"#]
        {
            let said = find_credentials(json, "h.x/a").unwrap_err();
            assert!(said.contains("auth.json"), "{said}");
        }
        let missing = [PathBuf::from("/nowhere/auth.json")];
        assert!(find(&missing, true, "h.x/a").unwrap_err().contains("BOB_REGISTRY_AUTH_FILE"));
        assert_eq!(find(&missing, false, "h.x/a"), Ok(None));
        assert_eq!(format!("{:?}", Credentials("secret".into())), "Credentials(..)");
    }
}
