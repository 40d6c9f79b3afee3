//! Finds and parses the settings file.

use std::path::{Path, PathBuf};

use super::sources::Sources;
use super::{Fault, access};

const NAMES: [&str; 3] = ["bob-runner.toml", "bob-runner.yaml", "bob-runner.yml"];
/// Maximum size of a settings file, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// One value in a file, by its full name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FileValue {
    pub(super) name: String,
    pub(super) value: Text,
}

/// A value as written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Text {
    One(String),
    Many(Vec<String>),
}

/// A settings file, and how it was selected.
#[derive(Debug)]
pub(super) struct ChosenFile {
    pub(super) path: PathBuf,
    /// Whether it was found in the working directory, so that the user did not select it.
    pub(super) is_local: bool,
}

/// Finds the settings file: given by the flag, otherwise by the variable, otherwise the first that
/// exists.
pub(super) fn find(sources: &Sources) -> Result<Option<ChosenFile>, Fault> {
    let named = sources.flags.config.as_deref();
    let named = named.or_else(|| sources.environment.get("BOB_CONFIG").map(Path::new));
    if let Some(path) = named {
        return Ok(Some(ChosenFile { path: sources.working_dir.join(path), is_local: false }));
    }
    let own = sources.environment.config_home().map(|home| home.join("bob-runner"));
    let usual = [own, Some(sources.system_dir.clone())];
    let directories = [Some(sources.working_dir.clone())].into_iter().chain(usual.clone());
    for directory in directories.flatten() {
        let found: Vec<PathBuf> =
            NAMES.iter().map(|name| directory.join(name)).filter(|path| path.is_file()).collect();
        if let [first, second, ..] = found.as_slice() {
            return Err(Fault {
                at: first.display().to_string(),
                value: None,
                expected: format!("{} is beside it; keep one of them", second.display()),
            });
        }
        if let Some(path) = found.into_iter().next() {
            let whole = |dir: &PathBuf| dir.canonicalize().ok();
            let is_usual = usual
                .iter()
                .flatten()
                .any(|dir| dir == &directory || whole(dir) == whole(&directory));
            return Ok(Some(ChosenFile { path, is_local: !is_usual }));
        }
    }
    Ok(None)
}

/// Parses a file, as YAML or TOML depending on its extension.
pub(super) fn read(path: &Path) -> Result<Vec<FileValue>, Fault> {
    let fault = |expected: String| Fault { at: path.display().to_string(), value: None, expected };
    let bytes = bytes_of(path).map_err(fault)?;
    let is_yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
    let mut leaves = Vec::new();
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(leaves);
    }
    if is_yaml {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let value = protocol::dialect::document(name.as_deref(), &bytes)
            .map_err(|cause| fault(format!("line {}: {}", cause.line, cause.message)))?;
        let serde_json::Value::Object(map) = value else {
            return Err(fault("no map of settings".into()));
        };
        for (name, value) in map {
            from_yaml(&name, value, &mut leaves);
        }
    } else {
        let text = String::from_utf8(bytes).map_err(|_bytes| fault("is not UTF-8".into()))?;
        let file = config::File::from_str(&text, config::FileFormat::Toml);
        let map = config::Source::collect(&file)
            .map_err(|cause| fault(without_excerpt(&cause.to_string())))?;
        for (name, value) in map {
            from_toml(&name, value, &mut leaves);
        }
    }
    // The TOML parser does not preserve order.
    leaves.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(leaves)
}

/// Reads a file that only this user and root can change. An error completes a sentence.
fn bytes_of(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let unreadable = |cause: std::io::Error| format!("cannot be read: {cause}");
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    access::check(&file, path)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err("is larger than 1 MiB, the limit for a settings file".into());
    }
    Ok(bytes)
}

/// The parser's message on one line, without its excerpt of the file, which can contain a password.
fn without_excerpt(message: &str) -> String {
    let told: Vec<&str> = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.contains('|'))
        .collect();
    told.join(": ")
}

fn kebab(name: &str) -> String {
    name.replace('_', "-")
}

fn from_yaml(name: &str, value: serde_json::Value, leaves: &mut Vec<FileValue>) {
    use serde_json::Value;
    let scalar = |value: Value| match value {
        Value::String(text) => text,
        other @ (Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::Array(_)
        | Value::Object(_)) => other.to_string(),
    };
    let value = match value {
        // A key without a value counts as absent.
        Value::Null => return,
        Value::Object(map) => {
            for (key, value) in map {
                from_yaml(&format!("{name}.{key}"), value, leaves);
            }
            return;
        }
        Value::Array(items) => Text::Many(items.into_iter().map(scalar).collect()),
        one @ (Value::Bool(_) | Value::Number(_) | Value::String(_)) => Text::One(scalar(one)),
    };
    leaves.push(FileValue { name: kebab(name), value });
}

fn from_toml(name: &str, value: config::Value, leaves: &mut Vec<FileValue>) {
    use config::ValueKind;
    let value = match value.kind {
        ValueKind::Nil => return,
        ValueKind::Table(map) => {
            for (key, value) in map {
                from_toml(&format!("{name}.{key}"), value, leaves);
            }
            return;
        }
        ValueKind::Array(items) => Text::Many(items.iter().map(ToString::to_string).collect()),
        scalar @ (ValueKind::Boolean(_)
        | ValueKind::I64(_)
        | ValueKind::I128(_)
        | ValueKind::U64(_)
        | ValueKind::U128(_)
        | ValueKind::Float(_)
        | ValueKind::String(_)) => Text::One(scalar.to_string()),
    };
    leaves.push(FileValue { name: kebab(name), value });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves_of(name: &str, text: &str) -> Result<Vec<FileValue>, Fault> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn toml_and_yaml_settings_are_equivalent() {
        let toml = "mode = \"embedded\"\n[storage]\nurls = [\"http://a\", \"http://b\"]\n[worker]\nmax_parallel_runs = 3\n";
        let yaml = "mode: embedded\nstorage:\n  urls: [http://a, http://b]\nworker:\n  max_parallel_runs: 3\n";
        let read = leaves_of("x.toml", toml).unwrap();
        assert_eq!(read, leaves_of("x.yaml", yaml).unwrap());
        assert_eq!(read[0], FileValue { name: "mode".into(), value: Text::One("embedded".into()) });
        assert_eq!(read[2].name, "worker.max-parallel-runs");
        assert_eq!(leaves_of("x.yaml", "\n").unwrap(), leaves_of("x.toml", "").unwrap());
    }

    #[test]
    fn an_unreadable_file_gives_one_sentence_without_its_content() {
        let fault = leaves_of("x.toml", "[queue]\npassword = hunter2\n").unwrap_err();
        assert!(fault.expected.contains("line 2"), "{fault}");
        assert!(!fault.to_string().contains("hunter2"), "{fault}");
        assert!(!fault.to_string().contains('\n'), "{fault}");
        for text in ["a: [", "- a", "just text"] {
            let fault = leaves_of("x.yaml", text).unwrap_err();
            assert!(!fault.to_string().contains('\n'), "{fault}");
        }
        assert!(read(Path::new("/nonexistent/x.toml")).is_err());
    }
}
