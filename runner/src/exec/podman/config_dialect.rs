//! The dialects in which engines read the instructions of a commit, and a base image's
//! configuration in them.

use std::sync::atomic::{AtomicBool, Ordering};

use super::image::Base;

/// How an engine reads the instructions of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// As a Containerfile (seen in podman 5.4): values have escapes, and a stop signal is kept only
    /// if it is set.
    Containerfile,
    /// Literally (seen in podman 4.3): a value is the text between its first and its last quote. A
    /// stop signal is kept. If an instruction sets it, the engine writes its number.
    Literal,
}

/// The dialect of an engine, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct ConfigDialect(AtomicBool);

impl ConfigDialect {
    pub(super) fn get(&self) -> Dialect {
        if self.0.load(Ordering::Relaxed) { Dialect::Literal } else { Dialect::Containerfile }
    }

    pub(super) fn learn(&self, dialect: Dialect) {
        self.0.store(dialect == Dialect::Literal, Ordering::Relaxed);
    }
}

impl Dialect {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Containerfile => Self::Literal,
            Self::Literal => Self::Containerfile,
        }
    }

    fn quoted(self, value: &str) -> String {
        match self {
            Self::Literal => format!("\"{value}\""),
            Self::Containerfile => {
                let mut quoted = String::from('"');
                for c in value.chars() {
                    if DIFFERS.contains(&c) {
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

/// Characters that the dialects read differently between quotes.
const DIFFERS: [char; 3] = ['"', '\\', '$'];

impl Base {
    /// The variables that an instruction can set. None can set a value of several lines.
    fn settable(&self) -> impl Iterator<Item = &(String, String)> {
        self.env.iter().filter(|(_, value)| !value.contains('\n'))
    }

    /// The instructions that give an image the configuration of this one.
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
        .chain(env.map(|(name, value)| format!("ENV {name}={}", dialect.quoted(value))))
        .collect()
    }

    pub(super) fn depends_on_dialect(&self) -> bool {
        !self.stop_signal.is_empty() || self.settable().any(|(_, value)| value.contains(DIFFERS))
    }

    /// Whether an image has the settings of this one that depend on the dialect.
    pub(super) fn is_restored_in(&self, image: &Self) -> bool {
        image.stop_signal == self.stop_signal
            && self.settable().all(|variable| image.env.contains(variable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::podman::create::tests::base;

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
        let both = [r#"ENTRYPOINT ["/e"]"#, r#"CMD ["a b"]"#, "WORKDIR /w"];
        let plain = [r#"ENV PATH="/bin""#, r#"ENV EMPTY="""#];
        let literal = [&both[..], &plain, &[r#"ENV ODD="a "b" \ $c""#]].concat();
        assert_eq!(base.changes(Dialect::Literal), literal);
        let escaped = r#"ENV ODD="a \"b\" \\ \$c""#;
        let file = [&both[..], &["STOPSIGNAL SIGINT"], &plain, &[escaped]].concat();
        assert_eq!(base.changes(Dialect::Containerfile), file);
    }

    #[test]
    fn an_image_is_looked_at_only_if_the_dialect_matters() {
        let with = |value: &str, signal: &str| Base {
            env: vec![("A".to_owned(), value.to_owned())],
            stop_signal: signal.to_owned(),
            ..base()
        };
        assert!(!with("it's a  b", "").depends_on_dialect());
        assert!(with("$a", "").depends_on_dialect() && with("", "SIGINT").depends_on_dialect());
        assert!(!with("a", "SIGINT").is_restored_in(&with("a", "2")));
        assert!(!with("a", "").is_restored_in(&with("b", "")));
        assert!(with("a", "2").is_restored_in(&with("a", "2")));
    }
}
