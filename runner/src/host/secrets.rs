//! Secrets of steps, from files in mounted directories and from the worker's variables.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::Scopes;
use crate::ports::{Purpose, Secret, Secrets, SecretsError};

/// Maximum size of a secret, in bytes.
const MOST: usize = 64 * 1024;
/// Prefix of the variables.
const VARIABLE: &str = "BOB_SECRET_";

/// Secrets provided to the worker.
///
/// Directories are searched first, with one file per secret, then the variables `BOB_SECRET_<NAME>`
/// and `BOB_SECRET_<NAME>_FILE` (the path of a file). A secret is read at each use, so a replaced
/// file takes effect from the next step on.
#[derive(Debug, Clone)]
pub struct MountedSecrets {
    /// The directories, in search order.
    pub dirs: Vec<PathBuf>,
    /// The variables, by the part of the name after `BOB_SECRET_`.
    pub variables: BTreeMap<String, Secret>,
    /// Access to the secrets.
    pub scopes: Scopes,
}

/// The variable suffix for a secret's name.
fn ending(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    name.chars().map(fits).collect()
}

/// Whether a name stays inside a directory. Names in pipelines are also validated by the parser.
fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// Reads a secret from a file, without the trailing newline that editors add. Returns `None` if the
/// file does not exist.
fn read(path: &Path, name: &str) -> Result<Option<Secret>, SecretsError> {
    let place = || path.display().to_string();
    let unreadable = |cause: String| {
        let (name, place) = (name.to_owned(), place());
        SecretsError::Unreadable { name, place, cause }
    };
    // Opening a pipe would block until its other end is open.
    match path.metadata() {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(unreadable("it is not a regular file".to_owned())),
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(unreadable(cause.to_string())),
    }
    let mut value = Vec::new();
    let file = std::fs::File::open(path).map_err(|cause| unreadable(cause.to_string()))?;
    let read = file.take(MOST as u64 + 2).read_to_end(&mut value);
    read.map_err(|cause| unreadable(cause.to_string()))?;
    if value.last() == Some(&b'\n') {
        value.pop();
    }
    if value.len() > MOST {
        return Err(SecretsError::TooLarge { name: name.to_owned(), place: place(), most: MOST });
    }
    Ok(Some(Secret::new(value)))
}

impl MountedSecrets {
    fn look(&self, name: &str) -> Result<Option<Secret>, SecretsError> {
        if !is_plain(name) {
            return Ok(None);
        }
        for dir in &self.dirs {
            if let Some(secret) = read(&dir.join(name), name)? {
                return Ok(Some(secret));
            }
        }
        let ending = ending(name);
        if let Some(secret) = self.variables.get(&ending) {
            return Ok(Some(secret.clone()));
        }
        let Some(path) = self.variables.get(&format!("{ending}_FILE")) else { return Ok(None) };
        let path = PathBuf::from(String::from_utf8_lossy(path.expose()).into_owned());
        let missing = SecretsError::Unreadable {
            name: name.to_owned(),
            place: format!("{}, which {VARIABLE}{ending}_FILE names", path.display()),
            cause: "there is no such file".to_owned(),
        };
        read(&path, name)?.map(Some).ok_or(missing)
    }
}

#[async_trait]
impl Secrets for MountedSecrets {
    async fn get(&self, name: &str, purpose: &Purpose) -> Result<Option<Secret>, SecretsError> {
        if !self.scopes.allow(name, purpose) {
            return Err(purpose.out_of_scope(name));
        }
        let (all, asked) = (self.clone(), name.to_owned());
        let looked = tokio::task::spawn_blocking(move || all.look(&asked)).await;
        looked.unwrap_or_else(|cause| {
            let (name, place) = (name.to_owned(), "its place".to_owned());
            Err(SecretsError::Unreadable { name, place, cause: cause.to_string() })
        })
    }

    fn places(&self, name: &str) -> Vec<String> {
        let dirs = self.dirs.iter().map(|dir| dir.display().to_string());
        let variable = format!("{VARIABLE}{}", ending(name));
        dirs.chain([variable.clone(), format!("{variable}_FILE")]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Destination;

    fn variables(said: &[(&str, &str)]) -> BTreeMap<String, Secret> {
        let said = said.iter();
        said.map(|(name, value)| ((*name).to_owned(), Secret::new(value.as_bytes()))).collect()
    }

    fn none() -> MountedSecrets {
        MountedSecrets { dirs: Vec::new(), variables: BTreeMap::new(), scopes: Scopes::All }
    }

    fn text(from: &MountedSecrets, name: &str) -> Option<String> {
        let secret = from.look(name).unwrap()?;
        Some(String::from_utf8(secret.expose().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_secret_is_the_file_of_its_name_in_the_first_directory_that_has_one() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(one.path().join("a"), "first\n").unwrap();
        std::fs::write(two.path().join("a"), "second").unwrap();
        std::fs::write(two.path().join("b"), "two\nlines\n\n").unwrap();
        let dirs = vec![one.path().to_owned(), two.path().to_owned()];
        let from = MountedSecrets { dirs, ..none() };
        assert_eq!(text(&from, "a").as_deref(), Some("first"));
        assert_eq!(text(&from, "b").as_deref(), Some("two\nlines\n"), "one newline is the file's");
        assert_eq!(text(&from, "c"), None);
        assert_eq!(text(&from, "../b"), None);
        std::fs::write(one.path().join("a"), "replaced").unwrap();
        let purpose = Purpose {
            group: "g".into(),
            pipeline: "p".into(),
            trusted: true,
            to: Destination::Anywhere,
        };
        let value = from.get("a", &purpose).await.unwrap().unwrap();
        assert_eq!(value.expose(), b"replaced");
        let closed = MountedSecrets { scopes: Scopes::Only(Vec::new()), ..from };
        for name in ["a", "never-there"] {
            let said = closed.get(name, &purpose).await.unwrap_err().to_string();
            assert!(said.contains("BOB_SECRETS_SCOPES") && said.contains("g:p"), "{said}");
        }
    }

    #[test]
    fn a_secret_is_the_variable_of_its_name_if_no_directory_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "in a file\n").unwrap();
        let said = [
            ("DEPLOY_TOKEN", "value"),
            ("OTHER_FILE", file.to_str().unwrap()),
            ("GONE_FILE", "/nowhere/at-all"),
        ];
        let from = MountedSecrets { variables: variables(&said), ..none() };
        assert_eq!(text(&from, "deploy-token").as_deref(), Some("value"));
        assert_eq!(text(&from, "deploy.token").as_deref(), Some("value"));
        assert_eq!(text(&from, "other").as_deref(), Some("in a file"));
        let gone = from.look("gone").unwrap_err().to_string();
        assert!(
            gone.contains("/nowhere/at-all") && gone.contains("BOB_SECRET_GONE_FILE"),
            "{gone}"
        );
        assert_eq!(from.places("deploy-token")[0], "BOB_SECRET_DEPLOY_TOKEN");
    }

    #[test]
    fn an_oversized_or_irregular_secret_file_is_named_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        std::fs::write(dir.path().join("most"), vec![b'x'; MOST]).unwrap();
        std::fs::write(dir.path().join("large"), vec![b'x'; MOST + 1]).unwrap();
        let from = MountedSecrets { dirs: vec![dir.path().to_owned()], ..none() };
        assert_eq!(text(&from, "most").unwrap().len(), MOST);
        let said = |name: &str| from.look(name).unwrap_err().to_string();
        assert!(said("dir").contains("it is not a regular file"), "{}", said("dir"));
        let large = said("large");
        assert!(large.contains("larger than 65536 bytes") && !large.contains("xx"), "{large}");
    }
}
