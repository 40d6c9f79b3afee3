//! Loads several files together, as prunner does: all of them or none.

use std::collections::BTreeMap;

use crate::diagnostic::{Class, Diagnostic};
use crate::dialect::{Dialect, parse_as};
use crate::pipeline::Pipeline;

/// The result of loading a directory of definitions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// Every pipeline and the path of its file, by name. Empty if there is an error.
    pub pipelines: BTreeMap<String, (String, Pipeline)>,
    /// The errors in prunner's format: `loading <path>: <why>`.
    pub errors: Vec<String>,
    /// Other diagnostics.
    pub warnings: Vec<Diagnostic>,
}

/// Reads files in the order of their paths. Any fault, or a name defined in two files, is an error.
#[must_use]
pub fn load<'f>(files: impl IntoIterator<Item = (&'f str, &'f [u8])>) -> Loaded {
    let files: BTreeMap<&str, &[u8]> = files.into_iter().collect();
    let mut loaded = Loaded::default();
    for (path, bytes) in files {
        let parsed = parse_as(Some(Dialect::Prunner), Some(path), bytes);
        for fault in parsed.diagnostics {
            if fault.class == Class::Error {
                loaded.errors.push(format!("loading {path}: {}", fault.message));
            } else {
                loaded.warnings.push(fault);
            }
        }
        for pipeline in parsed.pipelines {
            if let Some((first, _)) = loaded.pipelines.get(&pipeline.name) {
                loaded.errors.push(format!(
                    "loading {path}: pipeline {:?} was already declared in {first}",
                    pipeline.name
                ));
                continue;
            }
            loaded.pipelines.insert(pipeline.name.clone(), (path.to_owned(), pipeline));
        }
    }
    if !loaded.errors.is_empty() {
        loaded.pipelines.clear();
    }
    loaded
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &[u8] = b"pipelines: { build: { tasks: { x: { script: [make] } } } }";
    const B: &[u8] = b"pipelines: { test: {}, deploy: {} }";

    // Rows: D1
    #[test]
    fn files_are_loaded_together_and_each_pipeline_knows_its_file() {
        let loaded = load([("b/pipelines.yaml", B), ("a/pipelines.yml", A)]);
        let found: Vec<_> = loaded
            .pipelines
            .iter()
            .map(|(name, (path, _))| (name.as_str(), path.as_str()))
            .collect();
        let (a, b) = ("a/pipelines.yml", "b/pipelines.yaml");
        assert_eq!(found, [("build", a), ("deploy", b), ("test", b)]);
        assert_eq!(loaded.errors, [""; 0]);
    }

    // Rows: D1
    #[test]
    fn a_name_declared_twice_is_reported_with_the_first_file() {
        let loaded = load([("z.yml", A), ("b.yml", B), ("a.yml", A)]);
        let twice = "loading z.yml: pipeline \"build\" was already declared in a.yml";
        assert_eq!(loaded.errors, [twice]);
        assert_eq!(loaded.pipelines.len(), 0);
    }

    // Rows: D2
    #[test]
    fn one_invalid_file_prevents_loading_any() {
        for (bytes, error) in [
            (
                &b"pipelines: { x: { concurrency: -1 } }"[..],
                "loading b.yml: invalid pipeline definition \"x\": concurrency is -1, and must not be negative",
            ),
            (b"", "loading b.yml: the document is empty"),
            (b"pipelines:", "loading b.yml: `pipelines` is missing"),
        ] {
            let loaded = load([("a.yml", A), ("b.yml", bytes)]);
            assert_eq!(loaded.errors, [error]);
            assert_eq!(loaded.pipelines.len(), 0);
        }
    }
}
