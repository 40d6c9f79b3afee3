//! Commits that give an image the configuration of the base image: a commit takes over that of the
//! step's container.
//!
//! Engines read the instructions of a commit in two dialects. Both were measured, but not the version
//! in which podman changed. So the committed image is inspected if the dialect matters for it, and
//! committed again in the other dialect if it is not as it should be.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Podman;
use super::api::Commit;
use super::call::EngineCall;
use super::http::Link;
use super::image::Base;
use crate::ports::ExecError;

/// How an engine reads the instructions of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// As a Containerfile (seen in podman 5.4): values have escapes, and a stop signal is kept only if
    /// it is set.
    Containerfile,
    /// Literally (seen in podman 4.3): a value is what stands between its first and its last quote. A
    /// stop signal is kept; if it is set, the engine writes its number.
    Literal,
}

/// The dialect of an engine, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct ConfigDialect(AtomicBool);

impl ConfigDialect {
    fn get(&self) -> Dialect {
        if self.0.load(Ordering::Relaxed) { Dialect::Literal } else { Dialect::Containerfile }
    }

    fn learn(&self, dialect: Dialect) {
        self.0.store(dialect == Dialect::Literal, Ordering::Relaxed);
    }
}

impl Dialect {
    fn other(self) -> Self {
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

    fn depends_on_dialect(&self) -> bool {
        !self.stop_signal.is_empty() || self.settable().any(|(_, value)| value.contains(DIFFERS))
    }

    /// Whether an image has what depends on the dialect from this one.
    fn is_restored_in(&self, image: &Self) -> bool {
        image.stop_signal == self.stop_signal
            && self.settable().all(|variable| image.env.contains(variable))
    }
}

impl Podman {
    /// Commits a container with the configuration of a base image; the image's id. `commit` has no
    /// changes yet.
    pub(super) async fn commit_configured(
        &self,
        link: &mut Link,
        base: &Base,
        commit: Commit<'_>,
    ) -> Result<String, ExecError> {
        let first = self.dialect.get();
        let made = self.commit(link, &Commit { changes: &base.changes(first), ..commit }).await;
        if !base.depends_on_dialect() {
            return made;
        }
        let wrong = match made {
            Ok(id) if self.is_restored(link, base, &id).await? => return Ok(id),
            Ok(id) => Some(id),
            // The other dialect might not be able to read the instructions at all.
            Err(ExecError::Engine { .. }) if first == Dialect::Literal => None,
            Err(cause) => return Err(cause),
        };
        let second = first.other();
        let changes = base.changes(second);
        let id = self.commit(link, &Commit { changes: &changes, ..commit }).await?;
        if let Some(wrong) = wrong.filter(|wrong| *wrong != id) {
            // Its name is on the second one. What is left of it goes with the run.
            link.call(EngineCall::delete(format!("/images/{wrong}"))).await.ok();
        }
        if self.is_restored(link, base, &id).await? {
            self.dialect.learn(second);
        }
        Ok(id)
    }

    async fn is_restored(&self, link: &mut Link, base: &Base, id: &str) -> Result<bool, ExecError> {
        let looked = link.image(id).await;
        let image = looked.map_err(|fault| fault.at("looking for an image", &self.http))?;
        Ok(image.is_some_and(|image| base.is_restored_in(&image.as_base())))
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
