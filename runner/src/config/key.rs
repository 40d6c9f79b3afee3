//! The types of the settings table: a setting, and the conversion of its text to a value.

use std::time::Duration;

use super::parse::{Parsed, word};

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The name in the settings file and for `--set`, such as `storage.urls`.
    pub name: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    /// The default as text. `None` if the default depends on the environment, or if there is none.
    pub default: Option<&'static str>,
    /// Describes the default in the manual if its text alone is not enough.
    pub default_in_words: Option<&'static str>,
    /// The description, as one sentence.
    pub about: &'static str,
    /// The smallest and the largest value of a number.
    pub range: Option<(u64, u64)>,
    /// The form of the value.
    pub form: ValueForm,
    /// Whether this version supports the setting.
    pub support: Support,
}

impl Setting {
    /// The environment variable with the path of a file that contains the secret.
    #[must_use]
    pub fn file_variable(&self) -> String {
        format!("{}_FILE", self.variable)
    }

    /// The name in the settings file for the path of a file that contains the secret.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}-file", self.name)
    }
}

/// The form of a setting's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueForm {
    /// A single value.
    Single,
    /// Several values, separated by commas or as a list in the file.
    List,
    /// A value that is never displayed. It can also be read from the file that `<VARIABLE>_FILE`
    /// names.
    Secret,
}

/// Whether this version supports a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Supported.
    Full,
    /// Known but not supported: any value is rejected.
    Refused,
}

/// What text is valid for a setting, and how it is converted to a value.
#[derive(Debug)]
pub(super) enum Kind<T: 'static> {
    /// A whole number within inclusive bounds. Errors name the unit.
    Number { min: u64, max: u64, unit: Option<&'static str>, convert: fn(u64) -> Option<T> },
    /// One of several words.
    Choice(&'static [(&'static str, T)]),
    /// Any text that the function can parse.
    Text(fn(&str) -> Parsed<T>),
}

pub(super) const fn count(min: u32, max: u32) -> Kind<u32> {
    let convert = |number| u32::try_from(number).ok();
    Kind::Number { min: min as u64, max: max as u64, unit: None, convert }
}

pub(super) const fn percent(min: u8, max: u8) -> Kind<u8> {
    let convert = |number| u8::try_from(number).ok();
    Kind::Number { min: min as u64, max: max as u64, unit: None, convert }
}

pub(super) const fn seconds(min: u64, max: u64) -> Kind<Duration> {
    let convert = |number| Some(Duration::from_secs(number));
    Kind::Number { min, max, unit: Some("seconds"), convert }
}

pub(super) const fn millis(min: u64, max: u64) -> Kind<Duration> {
    let convert = |number| Some(Duration::from_millis(number));
    Kind::Number { min, max, unit: Some("milliseconds"), convert }
}

impl<T: Clone> Kind<T> {
    fn parse(&self, text: &str) -> Parsed<T> {
        match self {
            Self::Number { min, max, unit, convert } => {
                let number = text.parse().ok().filter(|number| (min..=max).contains(&number));
                number.and_then(convert).ok_or_else(|| {
                    let unit = unit.map(|unit| format!(" ({unit})")).unwrap_or_default();
                    format!("a whole number from {min} to {max}{unit}")
                })
            }
            Self::Choice(words) => word(text, words),
            Self::Text(parse) => parse(text),
        }
    }
}

/// A setting and the type of its value.
#[derive(Debug)]
pub struct Key<T: 'static> {
    setting: Setting,
    kind: Kind<T>,
}

/// A setting with a single value and without a default.
pub(super) const fn key<T>(
    name: &'static str,
    variable: &'static str,
    kind: Kind<T>,
    about: &'static str,
) -> Key<T> {
    let range = match &kind {
        Kind::Number { min, max, .. } => Some((*min, *max)),
        Kind::Choice(_) | Kind::Text(_) => None,
    };
    let setting = Setting {
        name,
        variable,
        default: None,
        default_in_words: None,
        about,
        range,
        form: ValueForm::Single,
        support: Support::Full,
    };
    Key { setting, kind }
}

impl<T> Key<T> {
    /// Sets the default.
    pub(super) const fn or(mut self, default: &'static str) -> Self {
        self.setting.default = Some(default);
        self
    }

    /// Sets the description of the default for the manual.
    pub(super) const fn or_in_words(mut self, default: &'static str) -> Self {
        self.setting.default_in_words = Some(default);
        self
    }

    pub(super) const fn list(mut self) -> Self {
        self.setting.form = ValueForm::List;
        self
    }

    pub(super) const fn secret(mut self) -> Self {
        self.setting.form = ValueForm::Secret;
        self
    }

    pub(super) const fn unsupported(mut self) -> Self {
        self.setting.support = Support::Refused;
        self
    }

    /// The setting, without the type of its value.
    #[must_use]
    pub const fn setting(&self) -> &Setting {
        &self.setting
    }

    /// The words that a choice permits. Empty for other kinds.
    #[cfg(test)]
    pub(super) fn words(&self) -> Vec<&'static str> {
        match self.kind {
            Kind::Choice(words) => words.iter().map(|(word, _)| *word).collect(),
            Kind::Number { .. } | Kind::Text(_) => Vec::new(),
        }
    }

    /// The environment variable of the setting.
    #[must_use]
    pub const fn variable(&self) -> &'static str {
        self.setting.variable
    }

    /// The name of the setting.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.setting.name
    }
}

impl<T: Clone> Key<T> {
    /// Parses a value of the setting.
    pub(super) fn parse(&self, text: &str) -> Parsed<T> {
        self.kind.parse(text)
    }

    /// The default. `None` if the setting has none.
    pub(super) fn default(&self) -> Option<T> {
        self.setting.default.and_then(|text| self.parse(text).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_bounds_and_a_unit() {
        assert_eq!(count(1, 5).parse("5"), Ok(5));
        for bad in ["0", "6", "-1", "1.5", "", "five", "1 "] {
            assert_eq!(count(1, 5).parse(bad), Err("a whole number from 1 to 5".into()));
        }
        assert_eq!(millis(0, 10).parse("7"), Ok(Duration::from_millis(7)));
        assert_eq!(seconds(1, 10).parse("11"), Err("a whole number from 1 to 10 (seconds)".into()));
        assert_eq!(percent(1, 100).parse("100"), Ok(100));
    }
}
