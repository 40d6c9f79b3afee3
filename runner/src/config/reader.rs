//! Reads settings from the merged layers, and collects every fault.

use super::Fault;
use super::key::Key;
use super::local::SettingValue;
use super::setting::{SETTINGS, Setting, Support, ValueForm, named};
use super::without_credentials;

/// The merged layers, and what was found wrong with them so far.
pub(super) struct Reader {
    pub(super) merged: config::Config,
    pub(super) faults: Vec<Fault>,
    pub(super) warnings: Vec<String>,
}

impl Reader {
    pub(super) fn lookup(&self, name: &str) -> Option<SettingValue> {
        let mut value = &self.merged.cache;
        for part in name.split('.') {
            let config::ValueKind::Table(table) = &value.kind else { return None };
            value = table.get(part)?;
        }
        let at = value.origin().map(str::to_owned);
        // Layers contain only text.
        let text = value.clone().into_string().ok()?;
        Some(SettingValue { text, at })
    }

    pub(super) fn fault(&mut self, setting: &Setting, found: &SettingValue, expected: String) {
        let value = Some(masked(setting, &found.text));
        let at = found.at.clone().unwrap_or_else(|| setting.name.to_owned());
        self.faults.push(Fault { at, value, expected });
    }

    /// A setting without a default.
    pub(super) fn optional<T: Clone>(&mut self, key: &Key<T>) -> Option<T> {
        debug_assert!(named(key.name()).is_some(), "{} is missing in SETTINGS", key.name());
        let found = self.lookup(key.name())?;
        match key.parse(&found.text) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.fault(key.setting(), &found, expected);
                None
            }
        }
    }

    /// A list. Empty if it is not set.
    pub(super) fn list<T: Clone>(&mut self, key: &Key<Vec<T>>) -> Vec<T> {
        self.optional(key).unwrap_or_default()
    }

    /// A setting with a default. After a fault, the result is the default, which is never used.
    pub(super) fn value<T: Clone>(&mut self, key: &Key<T>) -> T {
        self.optional(key).unwrap_or_else(|| Self::default_of(key))
    }

    pub(super) fn default_of<T: Clone>(key: &Key<T>) -> T {
        #[expect(clippy::expect_used, reason = "a test reads every default of the table")]
        key.default().expect("a setting with a default that is valid")
    }

    pub(super) fn check_support(&mut self) {
        for setting in SETTINGS {
            let Some(found) = self.lookup(setting.name) else { continue };
            let Some(at) = found.at else { continue };
            match setting.support {
                Support::Full => {}
                // An empty value requests nothing.
                Support::Refused if found.text.is_empty() => {}
                Support::Refused => self.faults.push(Fault {
                    at,
                    value: None,
                    expected: "is known, and not done by this version; leave it out".into(),
                }),
            }
        }
    }

    /// Reports that `given` requires `missing`.
    pub(super) fn missing<G, M, T>(&mut self, given: &Key<G>, missing: &Key<M>) -> Option<T> {
        let at = self.lookup(given.name()).and_then(|found| found.at);
        let at = at.unwrap_or_else(|| given.name().to_owned());
        let Setting { name, variable, .. } = missing.setting();
        let expected = format!("needs {name} too ({variable})");
        self.faults.push(Fault { at, value: None, expected });
        None
    }

    /// A set value takes precedence over the URL, and the URL over the default.
    pub(super) fn value_or_in_url<T: Clone>(&mut self, key: &Key<T>, in_url: Option<T>) -> T {
        let is_set = self.lookup(key.name()).is_some_and(|found| found.at.is_some());
        match in_url {
            Some(value) if !is_set => value,
            Some(_) | None => self.value(key),
        }
    }
}

/// The text of a value as it can be displayed.
pub(super) fn masked(setting: &Setting, text: &str) -> String {
    match setting.form {
        ValueForm::Secret => "***".to_owned(),
        ValueForm::Single | ValueForm::List => without_credentials(text),
    }
}
