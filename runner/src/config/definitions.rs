//! Definitions of pipelines that are loaded from files.

use std::path::PathBuf;
use std::time::Duration;

/// The files from which `serve` loads definitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definitions {
    /// The directory, if it is set.
    pub dir: Option<PathBuf>,
    /// Glob for the files below the directory.
    pub pattern: String,
    /// How often the files are checked for changes. `None` means only on request.
    pub watch: Option<Duration>,
    /// The name of the set to which the definitions belong, if it is set.
    pub source: Option<String>,
}
