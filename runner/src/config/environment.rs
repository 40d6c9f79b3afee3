//! The environment variables, read once, and paths derived from them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use protocol::pipeline::Vars;

use super::Secret;

/// Prefix of variables that contain secrets for steps.
pub(super) const SECRET: &str = "BOB_SECRET_";

/// The environment variables at program start.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, OsString>,
}

impl Environment {
    /// Reads the environment of this process. Nothing else reads it.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
                .collect(),
        }
    }

    /// The value of a variable that is set and not empty. Invalid UTF-8 counts as empty here, and
    /// is reported as a fault if the variable is a setting.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.get_set(name).filter(|value| !value.is_empty())
    }

    /// The value of a variable that is set, possibly to the empty string.
    pub(super) fn get_set(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.to_str()
    }

    /// Whether a variable is set to invalid UTF-8.
    pub(super) fn is_unreadable(&self, name: &str) -> bool {
        self.variables.get(name).is_some_and(|value| value.to_str().is_none())
    }

    /// The names of all variables, for hints about misspelt ones.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }

    /// The directory of systemd service credentials.
    pub(super) fn credentials_dir(&self) -> Option<PathBuf> {
        self.absolute("CREDENTIALS_DIRECTORY")
    }

    /// Variables that describe the runner to jobs, by the names used in job files.
    pub(super) fn job_variables(&self) -> Vars {
        let told = [
            ("RUNNER_ID", "unknown"),
            ("RUNNER_HOSTNAME", "localhost"),
            ("RUNNER_WORKDIR", "/runner/workdir"),
            ("RUNNER_LOG_DIR", "/runner/logs"),
        ];
        told.map(|(name, usual)| (name.to_owned(), self.get(name).unwrap_or(usual).to_owned()))
            .into()
    }

    /// The variables with the prefix `BOB_SECRET_`, by the rest of the name.
    pub(super) fn secrets(&self) -> BTreeMap<String, Secret<Vec<u8>>> {
        let secrets = self.variables.iter().filter_map(|(name, value)| {
            let name = name.strip_prefix(SECRET).filter(|name| !name.is_empty())?;
            Some((name.to_owned(), Secret::new(value.as_encoded_bytes().to_vec())))
        });
        secrets.collect()
    }

    /// The user's state directory: `$XDG_STATE_HOME`, or `~/.local/state`, or `/var/lib` for
    /// services without a home directory.
    #[must_use]
    pub fn state_home(&self) -> PathBuf {
        self.absolute("XDG_STATE_HOME")
            .or_else(|| self.absolute("HOME").map(|home| home.join(".local/state")))
            .unwrap_or_else(|| PathBuf::from("/var/lib"))
    }

    /// The user's settings directory.
    #[must_use]
    pub fn config_home(&self) -> Option<PathBuf> {
        self.absolute("XDG_CONFIG_HOME")
            .or_else(|| self.absolute("HOME").map(|home| home.join(".config")))
    }

    /// The user's runtime directory, for sockets.
    #[must_use]
    pub fn runtime_dir(&self) -> Option<PathBuf> {
        self.absolute("XDG_RUNTIME_DIR")
    }

    /// Finds a program on the path.
    #[must_use]
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let is_program = |path: &Path| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        std::env::split_paths(self.variables.get("PATH")?)
            .map(|directory| directory.join(name))
            .find(|path| is_program(path))
    }

    /// The registry credentials file given by podman's variable.
    pub(super) fn podman_auth_file(&self) -> Option<PathBuf> {
        self.absolute("REGISTRY_AUTH_FILE")
    }

    /// Default registry credentials files of podman and Docker. The first that contains a registry
    /// applies.
    pub(super) fn podman_auth_places(&self) -> Vec<PathBuf> {
        let podmans = self.runtime_dir().into_iter().chain(self.config_home());
        let podmans = podmans.map(|base| base.join("containers/auth.json"));
        let dockers = self.absolute("HOME").map(|home| home.join(".docker/config.json"));
        podmans.chain(dockers).collect()
    }

    fn absolute(&self, name: &str) -> Option<PathBuf> {
        self.variables.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self {
            variables: variables
                .into_iter()
                .map(|(name, value)| (name.to_owned(), OsString::from(value)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_stored_below_the_home_directory_by_default() {
        let home = Environment::from([("HOME", "/home/x")]);
        assert_eq!(home.state_home(), Path::new("/home/x/.local/state"));
        let said = Environment::from([("HOME", "/home/x"), ("XDG_STATE_HOME", "/s")]);
        assert_eq!(said.state_home(), Path::new("/s"));
        assert_eq!(Environment::default().state_home(), Path::new("/var/lib"));
        // The XDG specification requires relative paths to be ignored.
        let relative = Environment::from([("XDG_STATE_HOME", "s")]);
        assert_eq!(relative.state_home(), Path::new("/var/lib"));
    }

    #[test]
    fn an_empty_variable_counts_as_not_set() {
        let environment = Environment::from([("BOB_MODE", "")]);
        assert_eq!(environment.get("BOB_MODE"), None);
        assert_eq!(environment.get_set("BOB_MODE"), Some(""));
    }

    #[test]
    fn credentials_are_searched_in_the_places_of_podman() {
        let user = Environment::from([("XDG_RUNTIME_DIR", "/run/u"), ("HOME", "/home/u")]);
        let places = [
            "/run/u/containers/auth.json",
            "/home/u/.config/containers/auth.json",
            "/home/u/.docker/config.json",
        ];
        assert_eq!(user.podman_auth_places(), places.map(PathBuf::from));
        assert_eq!(user.podman_auth_file(), None);
        assert!(Environment::default().podman_auth_places().is_empty());
        let named = Environment::from([("REGISTRY_AUTH_FILE", "/a.json")]);
        assert_eq!(named.podman_auth_file().as_deref(), Some(Path::new("/a.json")));
    }

    #[test]
    fn programs_are_searched_on_the_path() {
        let environment = Environment::from([("PATH", "/nonexistent:/bin:/usr/bin")]);
        assert!(environment.program("sh").is_some());
        assert!(environment.program("no-such-program").is_none());
        assert!(Environment::default().program("sh").is_none());
    }
}
