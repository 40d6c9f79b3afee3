//! The settings of the original job runner: its file, flags and variables.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use protocol::pipeline::{Callback, Pipeline, Token};
use serde_json::{Map, Value};

use crate::cli::exit::{Exit, Failure};
use crate::config::{Environment, check_access};

/// How jobs run on this machine.
#[derive(Debug, Default, PartialEq)]
pub(in crate::cli) struct Settings {
    pub(in crate::cli) work_dir: PathBuf,
    pub(in crate::cli) log_dir: PathBuf,
    pub(in crate::cli) log_socket: Option<PathBuf>,
    /// Lines that run before every job of executor docker.
    before_script: Vec<String>,
    /// Callback of jobs that define none.
    callback: Option<Callback>,
}

/// Both names of each setting: the program's and its documentation's.
const LOG_DIR: [&str; 2] = ["default_log_dir", "logdir"];
const WORK_DIR: [&str; 2] = ["default_work_dir", "workdir"];
const BEFORE_SCRIPT: [&str; 2] = ["before_script", "global_before_script"];
/// Maximum size of a settings file, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;
/// The default settings file.
const USUAL_FILE: &str = "config.yaml";

/// Whether a map contains settings of job files. Their names are unique to this program.
fn is_ours(map: &Map<String, Value>) -> bool {
    let names = LOG_DIR.iter().chain(&WORK_DIR).chain(&BEFORE_SCRIPT);
    let others = ["callback", "default_callback_url", "default_callback_secret"];
    names.chain(&others).any(|name| map.contains_key(*name))
}

/// Reads settings for job files. Returns `None` if the file contains other settings.
pub(in crate::cli) fn read(path: &Path) -> Result<Option<Map<String, Value>>, Failure> {
    let found = parse(path)?;
    found.map(|found| found.checked(path)).transpose()
}

/// Settings, and the file that contains them.
struct SettingsFile {
    map: Map<String, Value>,
    file: File,
}

impl SettingsFile {
    /// Returns the settings if only this user and root can change them, because they contain
    /// commands.
    fn checked(self, path: &Path) -> Result<Map<String, Value>, Failure> {
        match check_access(&self.file, path) {
            Ok(()) => Ok(self.map),
            Err(why) => Err(Failure::new(Exit::Settings, format!("{} {why}", path.display()))),
        }
    }
}

fn parse(path: &Path) -> Result<Option<SettingsFile>, Failure> {
    let failed = |cause: &dyn std::fmt::Display| {
        Failure::new(Exit::Settings, format!("{}: {cause}", path.display()))
    };
    let file = File::open(path).map_err(|cause| failed(&cause))?;
    let mut bytes = Vec::new();
    (&file).take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|cause| failed(&cause))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(failed(&"is larger than 1 MiB, the limit for a settings file"));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let read = protocol::dialect::document(name.as_deref(), &bytes);
    let read = read.map_err(|cause| failed(&format!("line {}: {}", cause.line, cause.message)))?;
    match read {
        Value::Object(map) if is_ours(&map) => Ok(Some(SettingsFile { map, file })),
        Value::Object(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_) => Ok(None),
    }
}

/// Whether the file given as `--config` contains settings for job files.
pub(in crate::cli) fn is_named(path: &Path) -> bool {
    let is_yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
    is_yaml && matches!(read(path), Ok(Some(_)))
}

impl Settings {
    /// Resolves the settings. Flags override variables, which override the file and the defaults.
    pub(in crate::cli) fn find(
        file: Option<&Path>,
        (work_dir, log_dir): (Option<PathBuf>, Option<PathBuf>),
        environment: &Environment,
    ) -> Result<Self, Failure> {
        let usual = Path::new(USUAL_FILE);
        let map = match file {
            Some(file) => read(file)?,
            None if usual.is_file() => match parse(usual) {
                Ok(Some(found)) => Some(found.checked(usual)?),
                // The file belongs to another program.
                Ok(None) | Err(_) => None,
            },
            None => None,
        };
        let map = map.unwrap_or_default();
        let variable = |name| environment.get(name).map(PathBuf::from);
        let in_file = |names: [&str; 2]| text(&map, names).map(PathBuf::from);
        let dir = |flag: Option<PathBuf>, name, names, usual| {
            flag.or_else(|| variable(name))
                .or_else(|| in_file(names))
                .unwrap_or_else(|| PathBuf::from(usual))
        };
        Ok(Self {
            work_dir: dir(work_dir, "RUNNER_WORKDIR", WORK_DIR, "./workdir"),
            log_dir: dir(log_dir, "RUNNER_LOG_DIR", LOG_DIR, "./logs"),
            log_socket: variable("RUNNER_LOG_SOCKET"),
            before_script: lines(&map),
            callback: callback(&map),
        })
    }

    /// Applies the settings as defaults for the jobs.
    pub(in crate::cli) fn apply_defaults(&self, pipeline: &mut Pipeline) {
        for step in &mut pipeline.steps {
            if step.callback.as_ref().is_none_or(|callback| callback.url.is_empty()) {
                step.callback.clone_from(&self.callback);
            }
            if step.executor.capabilities().has_own_images
                && let Some(program) = step.script.first_mut()
            {
                let all = self.before_script.iter().map(String::as_str).chain([program.as_str()]);
                *program = all.collect::<Vec<_>>().join(" && ");
            }
        }
    }
}

fn text<'m>(map: &'m Map<String, Value>, names: [&str; 2]) -> Option<&'m str> {
    let found = names.iter().find_map(|name| map.get(*name)?.as_str());
    found.filter(|text| !text.is_empty())
}

fn lines(map: &Map<String, Value>) -> Vec<String> {
    let found = BEFORE_SCRIPT.iter().find_map(|name| map.get(*name));
    let texts: Vec<&str> = match found {
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => {
            Vec::new()
        }
    };
    let lines = texts.into_iter().flat_map(str::lines).map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

fn callback(map: &Map<String, Value>) -> Option<Callback> {
    let inner = map.get("callback").and_then(Value::as_object);
    let one = |key, other| {
        let found = inner.and_then(|inner| inner.get(key)).or_else(|| map.get(other));
        found.and_then(Value::as_str).filter(|text| !text.is_empty())
    };
    let url = one("url", "default_callback_url")?.to_owned();
    let secret = one("secret", "default_callback_secret");
    Some(Callback { url, secret: secret.map(|secret| Token::Literal(secret.to_owned())) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<const N: usize>(
        yaml: &str,
        flags: (Option<&str>, Option<&str>),
        variables: [(&str, &str); N],
    ) -> Settings {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("any.yaml");
        std::fs::write(&file, yaml).unwrap();
        let flags = (flags.0.map(PathBuf::from), flags.1.map(PathBuf::from));
        let environment = Environment::from(variables);
        Settings::find(Some(&file), flags, &environment).unwrap()
    }

    // Rows: A2
    #[test]
    fn both_spellings_of_the_settings_are_equivalent() {
        let code = "default_log_dir: /l\ndefault_work_dir: /w\nbefore_script: [one, two]\n\
                    callback: { url: 'http://h', secret: s }\nelse: 1\n";
        let doc = "logdir: /l\nworkdir: /w\nglobal_before_script: \"one\\n\\ntwo\"\n\
                   default_callback_url: http://h\ndefault_callback_secret: s\n";
        let settings = of(code, (None, None), []);
        assert_eq!(settings, of(doc, (None, None), []));
        assert_eq!(settings.work_dir, Path::new("/w"));
        assert_eq!(settings.before_script, ["one", "two"]);
        assert_eq!(settings.callback.unwrap().url, "http://h");
    }

    // Rows: A3
    #[test]
    fn flags_override_variables_which_override_the_file_and_the_defaults() {
        let yaml = "logdir: /file\n";
        let variables = [("RUNNER_LOG_DIR", "/variable"), ("RUNNER_LOG_SOCKET", "/s")];
        let all = of(yaml, (None, Some("/flag")), variables);
        assert_eq!((all.log_dir, all.log_socket), ("/flag".into(), Some("/s".into())));
        assert_eq!(of(yaml, (None, None), variables).log_dir, Path::new("/variable"));
        assert_eq!(of(yaml, (None, None), []).log_dir, Path::new("/file"));
        let none = of("other: 1\n", (None, None), []);
        assert_eq!((none.work_dir, none.log_dir), ("./workdir".into(), "./logs".into()));
    }

    // Rows: A8
    #[test]
    fn a_job_without_a_callback_uses_that_of_the_settings() {
        let file = "- { executor: docker, product: { image: i, script: a }, callback: { url: 'http://own' } }\n\
                    - { executor: local, product: { commands: b } }\n";
        let parsed = protocol::dialect::parse(Some("j.yml"), file.as_bytes());
        let mut pipeline = parsed.pipelines.into_iter().next().unwrap();
        of("before_script: x\ncallback: { url: 'http://all', secret: s }\n", (None, None), [])
            .apply_defaults(&mut pipeline);
        let told: Vec<_> =
            pipeline.steps.iter().map(|step| step.callback.clone().unwrap()).collect();
        assert_eq!((told[0].url.as_str(), &told[0].secret), ("http://own", &None));
        assert_eq!(told[1].url, "http://all");
        assert!(told[1].secret.is_some());
        assert_eq!(pipeline.steps[0].script, ["x && a"]);
        assert_eq!(pipeline.steps[1].script, ["b"]);
    }
}
