//! Finds settings by name, suggests corrections of misspelt names, and generates the manual.

use std::fmt::Write as _;

pub use super::key::{Key, Setting, Support, ValueForm};
pub use super::table::SETTINGS;

/// Finds a setting by name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().copied().find(|setting| setting.name == name)
}

/// The known name that was probably meant by `given`.
pub(super) fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .min()
        .filter(|(distance, name)| *distance <= (name.len() / 4).clamp(1, 3))
        .map(|(_, name)| name)
}

/// Generates the settings table of the manual, as Markdown.
#[must_use]
pub fn manual() -> String {
    let mut text =
        String::from("| variable | in the file | default | meaning |\n|---|---|---|---|\n");
    for setting in SETTINGS {
        let default = match (setting.default_in_words, setting.default) {
            (Some(words), _) => words.to_owned(),
            (None, Some(value)) => format!("`{value}`"),
            (None, None) => "not set".to_owned(),
        };
        let file = if setting.form == ValueForm::Secret {
            format!(" Or `{}`: a file that contains it.", setting.file_variable())
        } else {
            String::new()
        };
        let support = match setting.support {
            Support::Full => "",
            Support::Refused => " **Not supported by this version: any value is rejected.**",
        };
        let range = match setting.range {
            Some((min, max)) => format!(" From {min} to {max}."),
            None => String::new(),
        };
        // Writing to a String cannot fail.
        let _infallible = writeln!(
            text,
            "| `{}` | `{}` | {default} | {}{range}{file}{support} |",
            setting.variable, setting.name, setting.about
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    #[test]
    fn every_name_and_every_variable_is_unique() {
        for (position, setting) in SETTINGS.iter().enumerate() {
            for other in &SETTINGS[position + 1..] {
                assert_ne!(setting.name, other.name);
                assert_ne!(setting.variable, other.variable);
            }
        }
    }

    #[test]
    fn a_misspelt_name_gives_a_suggestion() {
        let names = || SETTINGS.iter().map(|setting| setting.name);
        assert_eq!(nearest("storage.url", names()), Some("storage.urls"));
        assert_eq!(nearest("queue.pasword", names()), Some("queue.password"));
        assert_eq!(nearest("something-else", names()), None);
    }

    /// Checks that the description of a setting names every word that its value can be.
    fn assert_names_its_words<T>(key: &Key<T>) {
        assert!(!key.words().is_empty(), "{} is not a choice", key.name());
        for word in key.words() {
            let is_named = key.setting().about.contains(&format!("`{word}`"));
            assert!(is_named, "{} does not name {word}", key.name());
        }
    }

    #[test]
    fn a_description_names_every_permitted_word() {
        assert_names_its_words(&table::MODE);
        assert_names_its_words(&table::ENGINE_PULL_POLICY);
        assert_names_its_words(&table::WORKER_LITERAL_SECRETS);
        assert_names_its_words(&table::LOG_LEVEL);
        assert_names_its_words(&table::LOG_FORMAT);
    }

    #[test]
    fn the_manual_contains_the_current_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/settings.md");
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(file.contains(&manual()), "put this into docs/settings.md:\n{}", manual());
    }
}
