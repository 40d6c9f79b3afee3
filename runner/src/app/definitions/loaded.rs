//! Turns files into definitions, all of them or none. Pure.

use std::collections::BTreeMap;

use protocol::diagnostic::{Class, Diagnostic};
use protocol::dialect::parse_as;
use protocol::id::PipelineId;
use serde_json::{Map, Value};

use super::files::SourceFile;

/// A definition and the file that contains it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Definition {
    pub(super) file: String,
    /// The definition as it is stored.
    pub(super) pipeline: Map<String, Value>,
}

/// The result of reading files.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The definitions, or none if one of the files has a fault.
    pub(super) definitions: Result<BTreeMap<PipelineId, Definition>, Vec<Diagnostic>>,
    /// Remarks that do not prevent the use of the files.
    pub(super) warnings: Vec<Diagnostic>,
}

/// Whether definitions can contain secrets in clear text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Literals {
    Allowed,
    Rejected,
}

/// Parses files of any dialect. Reports every fault of all files.
pub(super) fn load(files: &[SourceFile], literals: Literals) -> Loaded {
    let mut definitions: BTreeMap<PipelineId, Definition> = BTreeMap::new();
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    for SourceFile { path, bytes } in files {
        let mut parsed = parse_as(None, Some(path), bytes);
        if literals == Literals::Rejected {
            parsed.refuse_literal_secrets("set BOB_LITERAL_SECRETS=allow here and on the workers");
        }
        for fault in parsed.diagnostics {
            if fault.class.is_refusal() { faults.push(fault) } else { warnings.push(fault) }
        }
        for pipeline in parsed.pipelines {
            let id = match pipeline.id() {
                Ok(id) => id,
                Err(bad) => {
                    faults.push(fault(path, String::new(), bad.to_string(), None));
                    continue;
                }
            };
            if let Some(first) = definitions.get(&id) {
                let message = format!("pipeline {id} was already declared in {}", first.file);
                let hint = "rename one of them";
                faults.push(fault(path, format!("pipelines.{}", id.name()), message, Some(hint)));
                continue;
            }
            match serde_json::to_value(&pipeline) {
                Ok(Value::Object(pipeline)) => {
                    definitions.insert(id, Definition { file: path.clone(), pipeline });
                }
                Ok(_) | Err(_) => {
                    let message = format!("pipeline {id} cannot be written as JSON");
                    faults.push(fault(path, String::new(), message, None));
                }
            }
        }
    }
    let definitions = if faults.is_empty() { Ok(definitions) } else { Err(faults) };
    Loaded { definitions, warnings }
}

fn fault(file: &str, path: String, message: String, hint: Option<&str>) -> Diagnostic {
    Diagnostic {
        class: Class::Error,
        file: Some(file.to_owned()),
        line: 0,
        column: 0,
        path,
        message,
        hint: hint.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: &str = "pipelines: { build: { tasks: { x: { script: [make] } } } }";
    const BOB: &str =
        "group: dev\nname: hello\nimage: docker.io/library/busybox\nsteps: [{ cmd: 'true' }]";

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile { path: path.into(), bytes: text.into() }
    }

    fn faults(files: &[SourceFile]) -> Vec<String> {
        let faults = load(files, Literals::Rejected).definitions.unwrap_err();
        faults.iter().map(ToString::to_string).collect()
    }

    // Rows: D1
    #[test]
    fn files_of_several_dialects_are_loaded_together() {
        let files = [file("a/pipelines.yml", BUILD), file("b/pipelines.yml", BOB)];
        let found = load(&files, Literals::Rejected).definitions.unwrap();
        let found: Vec<_> =
            found.iter().map(|(id, found)| (id.to_string(), found.file.as_str())).collect();
        let expected = [("dev/hello", "b/pipelines.yml"), ("local/build", "a/pipelines.yml")];
        assert_eq!(found, expected.map(|(id, file)| (id.to_owned(), file)));
    }

    #[test]
    fn every_fault_of_every_file_is_reported_with_its_place() {
        let bad = "pipelines:\n  x: { concurrency: -1 }\n  y: { queue_strategy: never }";
        let found = faults(&[file("a.yml", bad), file("b.yml", ""), file("c.yml", BUILD)]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("a.yml:2:") && found[1].starts_with("a.yml:3:"), "{found:?}");
        assert!(found[2].starts_with("b.yml:"), "{found:?}");
    }

    // Rows: D1
    #[test]
    fn a_name_that_two_files_declare_is_reported_with_the_first_file() {
        let found = faults(&[file("a.yml", BUILD), file("b.yml", BUILD)]);
        let expected = "b.yml: pipelines.build: pipeline local/build was already declared in \
                        a.yml (rename one of them)";
        assert_eq!(found, [expected]);
    }

    #[test]
    fn a_secret_in_clear_text_is_a_fault_unless_it_is_allowed() {
        let text = "group: dev\nname: x\nsteps: [{ executor: http, with: { url: 'https://h', \
                    headers: { Authorization: Bearer hunter2 } } }]";
        let files = [file("a.yml", text)];
        let found = faults(&files);
        assert!(found[0].contains("BOB_LITERAL_SECRETS=allow"), "{found:?}");
        assert!(load(&files, Literals::Allowed).definitions.is_ok());
    }
}
