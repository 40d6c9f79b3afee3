//! The two dialects in which engines read the instructions of a commit, and the instructions that
//! restore a base image's configuration in each of them.

use std::sync::atomic::{AtomicBool, Ordering};

use super::image::Base;

/// How an engine reads the instructions of a commit, such as `ENV` and `STOPSIGNAL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Like a Containerfile (observed in podman 5.4). A backslash in a quoted value escapes the next
    /// character. The image has a stop signal only if an instruction sets it.
    Containerfile,
    /// Literally (observed in podman 4.3). A value is the text between the first and the last quote.
    /// The image keeps its stop signal without an instruction. An instruction would store the
    /// signal's number instead of its name.
    Literal,
}

/// The dialect that an engine is assumed to use: a Containerfile's until commits show otherwise.
#[derive(Debug, Default)]
pub(super) struct ConfigDialect {
    is_literal: AtomicBool,
}

impl ConfigDialect {
    pub(super) fn get(&self) -> Dialect {
        if self.is_literal.load(Ordering::Relaxed) {
            Dialect::Literal
        } else {
            Dialect::Containerfile
        }
    }

    pub(super) fn learn(&self, dialect: Dialect) {
        self.is_literal.store(dialect == Dialect::Literal, Ordering::Relaxed);
    }
}

impl Dialect {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Containerfile => Self::Literal,
            Self::Literal => Self::Containerfile,
        }
    }

    fn quote(self, value: &str) -> String {
        match self {
            Self::Literal => format!("\"{value}\""),
            Self::Containerfile => {
                let mut quoted = String::from('"');
                for c in value.chars() {
                    if AMBIGUOUS.contains(&c) {
                        quoted.push('\\');
                    }
                    quoted.push(c);
                }
                quoted.push('"');
                quoted
            }
        }
    }
}

/// Characters that the dialects read differently in a quoted value.
const AMBIGUOUS: [char; 3] = ['"', '\\', '$'];

impl Base {
    /// The variables that an instruction can set. No instruction can set a multi-line value.
    fn settable(&self) -> impl Iterator<Item = &(String, String)> {
        self.env.iter().filter(|(_, value)| !value.contains('\n'))
    }

    /// Returns the instructions that give a committed image this configuration.
    pub(super) fn changes(&self, dialect: Dialect) -> Vec<String> {
        let list = |words: &[String]| serde_json::json!(words).to_string();
        let sets_signal = dialect == Dialect::Containerfile && !self.stop_signal.is_empty();
        let env = self.settable();
        [
            format!("ENTRYPOINT {}", list(&self.entrypoint)),
            format!("CMD {}", list(&self.cmd)),
            format!("WORKDIR {}", self.work_dir),
        ]
        .into_iter()
        .chain(sets_signal.then(|| format!("STOPSIGNAL {}", self.stop_signal)))
        .chain(env.map(|(name, value)| format!("ENV {name}={}", dialect.quote(value))))
        .collect()
    }

    /// Whether the dialects read the instructions for this configuration differently.
    pub(super) fn depends_on_dialect(&self) -> bool {
        !self.stop_signal.is_empty() || self.settable().any(|(_, value)| value.contains(AMBIGUOUS))
    }

    /// Whether `image` has those settings of this configuration that can depend on the dialect.
    pub(super) fn is_restored_in(&self, image: &Self) -> bool {
        image.stop_signal == self.stop_signal
            && self.settable().all(|variable| image.env.contains(variable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::podman::create::tests::base;

    fn base_with(value: &str, signal: &str) -> Base {
        Base {
            env: vec![("A".to_owned(), value.to_owned())],
            stop_signal: signal.to_owned(),
            ..base()
        }
    }

    #[test]
    fn the_dialects_differ_in_escapes_and_in_the_stop_signal() {
        let env = [("PATH", "/bin"), ("EMPTY", ""), ("ODD", r#"a "b" \ $c"#), ("LINES", "a\nb")];
        let base = Base {
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            entrypoint: vec!["/e".to_owned()],
            cmd: vec!["a b".to_owned()],
            work_dir: "/w".to_owned(),
            stop_signal: "SIGINT".to_owned(),
            ..base()
        };
        let common = [r#"ENTRYPOINT ["/e"]"#, r#"CMD ["a b"]"#, "WORKDIR /w"];
        let plain_env = [r#"ENV PATH="/bin""#, r#"ENV EMPTY="""#];
        let literal = [&common[..], &plain_env, &[r#"ENV ODD="a "b" \ $c""#]].concat();
        assert_eq!(base.changes(Dialect::Literal), literal);
        let escaped = r#"ENV ODD="a \"b\" \\ \$c""#;
        let containerfile = [&common[..], &["STOPSIGNAL SIGINT"], &plain_env, &[escaped]].concat();
        assert_eq!(base.changes(Dialect::Containerfile), containerfile);
    }

    #[test]
    fn the_dialect_matters_for_special_characters_and_stop_signals() {
        assert!(!base_with("it's a  b", "").depends_on_dialect());
        assert!(base_with("$a", "").depends_on_dialect());
        assert!(base_with("", "SIGINT").depends_on_dialect());
    }

    #[test]
    fn an_image_with_another_variable_or_stop_signal_is_not_restored() {
        assert!(!base_with("a", "SIGINT").is_restored_in(&base_with("a", "2")));
        assert!(!base_with("a", "").is_restored_in(&base_with("b", "")));
        assert!(base_with("a", "2").is_restored_in(&base_with("a", "2")));
    }
}
