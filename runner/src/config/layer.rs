//! One source of values by setting name, and faults in the names.

use std::collections::BTreeMap;

use config::{ConfigError, Map, Source, Value};

use super::file::{FileValue, Text};
use super::setting::{SETTINGS, Setting, ValueForm, named, nearest};
use super::{Environment, Fault, environment, table};

/// Maximum size of a file that contains a secret.
const MAX_SECRET_BYTES: usize = 64 * 1024;

/// The values of one source. Each value records its origin.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    values: BTreeMap<&'static str, Value>,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }
}

impl Layer {
    /// The defaults.
    pub(super) fn of_defaults() -> Self {
        let values = SETTINGS.iter().filter_map(|setting| {
            Some((setting.name, Value::new(None, setting.default?.to_owned())))
        });
        Self { values: values.collect() }
    }

    fn put(&mut self, setting: &'static Setting, at: &str, text: String) {
        self.values.insert(setting.name, Value::new(Some(&at.to_owned()), text));
    }

    /// Sets a secret to the content of the file at `path`.
    fn put_secret_of(
        &mut self,
        setting: &'static Setting,
        at: String,
        path: &str,
        faults: &mut Vec<Fault>,
    ) {
        match secret_in(path) {
            Ok(text) => self.put(setting, &at, text),
            Err(expected) => faults.push(Fault { at, value: Some(path.to_owned()), expected }),
        }
    }

    /// The environment variables. An empty variable counts as not set, except for the metrics
    /// address, which is off when empty.
    pub(super) fn of_variables(
        environment: &Environment,
        faults: &mut Vec<Fault>,
        warnings: &mut Vec<String>,
    ) -> Self {
        let mut layer = Self::default();
        for &setting in SETTINGS {
            let variable = setting.variable;
            if environment.is_unreadable(variable) {
                let expected = "is not valid UTF-8; set it again".to_owned();
                faults.push(Fault { at: variable.to_owned(), value: None, expected });
            }
            let empty_says_something = setting.name == table::METRICS_ADDRESS.name();
            let value = environment
                .get_set(variable)
                .filter(|value| !value.is_empty() || empty_says_something);
            let file_variable = setting.file_variable();
            let file =
                environment.get(&file_variable).filter(|_| setting.form == ValueForm::Secret);
            match (value, file) {
                (Some(_), Some(_)) => faults.push(both(variable, &file_variable)),
                (Some(value), None) => layer.put(setting, variable, value.to_owned()),
                (None, Some(path)) => layer.put_secret_of(setting, file_variable, path, faults),
                (None, None) => {}
            }
        }
        warnings.extend(misspelt(environment));
        layer
    }

    /// The values given by `--set NAME=VALUE`.
    pub(super) fn of_flags(given: &[String], faults: &mut Vec<Fault>) -> Self {
        let mut layer = Self::default();
        for pair in given {
            let Some((name, value)) = pair.split_once('=') else {
                let expected = "expected NAME=VALUE, such as queue.url=amqp://localhost".to_owned();
                faults.push(Fault { at: format!("--set {pair}"), value: None, expected });
                continue;
            };
            let at = format!("--set {name}");
            let name = name.replace('_', "-");
            match named(&name) {
                Some(setting) if setting.form == ValueForm::Secret => faults.push(Fault {
                    at,
                    value: None,
                    expected: format!(
                        "is a password, and arguments can be seen by everyone on this machine; use {}",
                        setting.file_variable()
                    ),
                }),
                Some(setting) => layer.put(setting, &at, value.to_owned()),
                None => faults.push(unknown(at, &name)),
            }
        }
        layer
    }

    /// The values of a settings file.
    pub(super) fn of_file(label: &str, leaves: Vec<FileValue>, faults: &mut Vec<Fault>) -> Self {
        let mut layer = Self::default();
        for FileValue { name, value } in leaves {
            let at = format!("{label}: {name}");
            let secret_file = || {
                let secret = named(name.strip_suffix("-file")?)?;
                (secret.form == ValueForm::Secret).then_some(secret)
            };
            let (setting, is_path) = match (named(&name), secret_file()) {
                (Some(setting), _) => (setting, false),
                (None, Some(setting)) => (setting, true),
                (None, None) => {
                    faults.push(unknown(at, &name));
                    continue;
                }
            };
            let text = match value {
                Text::One(text) => text,
                Text::Many(items) if setting.form == ValueForm::List => items.join(","),
                Text::Many(_) => {
                    let value = None;
                    faults.push(Fault {
                        at,
                        value,
                        expected: "is a list; expected one value".into(),
                    });
                    continue;
                }
            };
            if layer.values.contains_key(setting.name) {
                faults.push(both(&format!("{label}: {}", setting.name), &setting.file_name()));
            } else if is_path {
                layer.put_secret_of(setting, at, &text, faults);
            } else {
                layer.put(setting, &at, text);
            }
        }
        layer
    }
}

/// Reads a secret from a file, without the trailing newline that editors add.
fn secret_in(path: &str) -> Result<String, String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_SECRET_BYTES as u64 + 1).read_to_string(&mut text))
        .map_err(|cause| format!("the path of a file that holds the value ({cause})"))?;
    if text.len() > MAX_SECRET_BYTES {
        return Err("the path of a file that holds one line".into());
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.contains(['\n', '\r']) {
        return Err("the path of a file that holds one line, and this one holds more".into());
    }
    Ok(line.to_owned())
}

fn both(one: &str, other: &str) -> Fault {
    let expected = format!("is said twice, also with {other}; keep one of them");
    Fault { at: one.to_owned(), value: None, expected }
}

fn unknown(at: String, name: &str) -> Fault {
    let is_table = SETTINGS
        .iter()
        .any(|setting| setting.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
    let expected = if is_table {
        "is a group of settings, not a setting".to_owned()
    } else {
        match nearest(name, SETTINGS.iter().map(|setting| setting.name)) {
            Some(meant) => format!("unknown setting; did you mean {meant}?"),
            None => "unknown setting; `bob-runner settings` lists all settings".to_owned(),
        }
    };
    Fault { at, value: None, expected }
}

/// Warnings about variables that look like misspelt settings. They are not faults, because other
/// programs can use the prefix `BOB_` too.
fn misspelt(environment: &Environment) -> Vec<String> {
    let known = || SETTINGS.iter().map(|setting| setting.variable).chain(["BOB_CONFIG"]);
    let is_file = |name: &str| {
        let mut secrets = SETTINGS.iter().filter(|setting| setting.form == ValueForm::Secret);
        secrets.any(|setting| setting.file_variable() == name)
    };
    let strange = |name: &&str| {
        let is_secret = name.starts_with(environment::SECRET);
        name.starts_with("BOB_")
            && !is_secret
            && !known().any(|known| known == *name)
            && !is_file(name)
    };
    environment
        .names()
        .filter(strange)
        .filter_map(|name| {
            let meant =
                nearest(name, known()).filter(|meant| !environment.names().any(|n| n == *meant))?;
            Some(format!("{name} is not a setting; did you mean {meant}?"))
        })
        .collect()
}
