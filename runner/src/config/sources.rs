//! The sources of settings.

use std::path::PathBuf;

use super::Environment;

/// Sources of settings.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Settings from the command line.
    pub flags: Flags,
    /// Environment variables of the process.
    pub environment: Environment,
    /// Base of relative paths, and the first directory in which a settings file is searched.
    pub working_dir: PathBuf,
    /// The last directory in which a settings file is searched.
    pub system_dir: PathBuf,
}

impl Sources {
    /// The standard sources with the given flags.
    #[must_use]
    pub fn with_default_sources(flags: Flags, environment: Environment) -> Self {
        Self {
            flags,
            environment,
            working_dir: PathBuf::from("."),
            system_dir: PathBuf::from("/etc/bob-runner"),
        }
    }
}

/// Settings from the command line.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// The settings file.
    pub config: Option<PathBuf>,
    /// `NAME=VALUE` pairs, with names as in the settings file.
    pub set: Vec<String>,
}
