//! A directory of prunner definitions: finds its files and loads them together.

use std::path::{Path, PathBuf};

use globset::GlobBuilder;
use protocol::diagnostic::{Class, Diagnostic};
use protocol::dialect::{Dialect, Parsed, load_prunner};
use walkdir::WalkDir;

use super::exit::{Exit, Failure};
use super::input::bytes_of;
use crate::config::Environment;

/// prunner's default pattern for definition files.
const DEFAULT_FILES: &str = "**/pipelines.{yml,yaml}";
/// Variable with the pattern, used if the command line has none.
const VARIABLE: &str = "PRUNNER_PATTERN";

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
    let pattern = typed.or_else(|| environment.get(VARIABLE)).unwrap_or(DEFAULT_FILES);
    let files = find_files(dir, pattern)?;
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

/// Finds the files below a directory that match a pattern, sorted by path. Links are followed.
/// Dangling and cyclic links are skipped.
fn find_files(dir: &str, pattern: &str) -> Result<Vec<PathBuf>, Failure> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    let glob =
        glob.map_err(|cause| Failure::new(Exit::Usage, cause.to_string()))?.compile_matcher();
    let mut found = Vec::new();
    for entry in WalkDir::new(dir).follow_links(true) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(cause) if is_dangling(&cause) => continue,
            Err(cause) => {
                return Err(Failure::new(Exit::Invalid, format!("cannot read {dir}: {cause}")));
            }
        };
        let inside = entry.path().strip_prefix(dir).unwrap_or_else(|_| entry.path());
        if entry.file_type().is_file() && glob.is_match(inside) {
            let is_here = Path::new(dir) == Path::new(".");
            found.push(if is_here { inside.to_owned() } else { entry.path().to_owned() });
        }
    }
    found.sort();
    Ok(found)
}

fn is_dangling(cause: &walkdir::Error) -> bool {
    let is_gone = cause.io_error().is_some_and(|io| io.kind() == std::io::ErrorKind::NotFound);
    cause.loop_ancestor().is_some() || (is_gone && cause.depth() > 0)
}
