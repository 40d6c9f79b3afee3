//! A directory of prunner definitions: finds its files and loads them together.

use std::path::Path;

use protocol::diagnostic::{Class, Diagnostic};
use protocol::dialect::{Dialect, Parsed, load_prunner};

use super::exit::{Exit, Failure};
use super::input::bytes_of;
use crate::app::{FindError, find_files};
use crate::config::Environment;

/// prunner's default pattern for definition files.
const DEFAULT_FILES: &str = "**/pipelines.{yml,yaml}";
/// Variable with the pattern, used if the command line has none.
pub(super) const PATTERN_VARIABLE: &str = "PRUNNER_PATTERN";

/// Whether `file` is a directory.
pub(super) fn is_directory(file: &str) -> bool {
    file != "-" && Path::new(file).is_dir()
}

/// Reads all definitions in a directory. If one file has a fault, the whole directory is refused.
pub(super) fn parsed(
    dir: &str,
    typed: Option<&str>,
    environment: &Environment,
) -> Result<Parsed, Failure> {
    let pattern = typed.or_else(|| environment.get(PATTERN_VARIABLE)).unwrap_or(DEFAULT_FILES);
    let files = find_files(Path::new(dir), pattern).map_err(|cause| {
        let exit = match &cause {
            FindError::Pattern(_) => Exit::Usage,
            FindError::Directory { .. } | FindError::TooMany { .. } => Exit::Invalid,
        };
        Failure::new(exit, cause.to_string())
    })?;
    if files.is_empty() {
        let text = format!("no file in {dir} is one of {pattern:?}");
        return Err(Failure::new(Exit::Invalid, text));
    }
    let read = files.iter().map(|file| {
        let name = file.to_string_lossy().into_owned();
        bytes_of(&name).map(|bytes| (name, bytes))
    });
    let read: Vec<(String, Vec<u8>)> = read.collect::<Result<_, _>>()?;
    let loaded = load_prunner(read.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    let wrong = loaded.errors.into_iter().map(|message| Diagnostic {
        class: Class::Error,
        // The message already names the file.
        file: None,
        line: 0,
        column: 0,
        path: String::new(),
        message,
        hint: None,
    });
    let parsed = Parsed {
        diagnostics: wrong.chain(loaded.warnings).collect(),
        pipelines: loaded.pipelines.into_values().map(|(_, pipeline)| pipeline).collect(),
        dialect: Some(Dialect::Prunner),
    };
    Ok(parsed.checked())
}
