//! Compares the plans and faults of input files with the golden files next to them.
//!
//! `just golden` (`BOB_GOLDEN=write`) rewrites the golden files. Review the difference.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use protocol::dialect::parse;
use protocol::schema::{SchemaName, schema};

fn is_writing() -> bool {
    std::env::var_os("BOB_GOLDEN").is_some_and(|value| value == "write")
}

/// Every input file below `golden/`.
fn inputs() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut inputs = Vec::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                folders.push(path);
            } else if !name.ends_with(".plan.json") && !name.ends_with(".faults.txt") {
                inputs.push(path);
            }
        }
    }
    inputs.sort();
    inputs
}

/// The plan and the faults of a file.
fn outputs(input: &Path) -> (Option<String>, Option<String>) {
    let name = input.file_name().unwrap().to_str().unwrap();
    let parsed = parse(Some(name), &fs::read(input).unwrap());
    let lines = |text: Vec<String>| (!text.is_empty()).then(|| text.join("\n") + "\n");
    // As displayed to people, with clear-text secrets masked.
    let plan = parsed.pipelines.iter().map(|p| serde_json::to_string_pretty(&p.masked()).unwrap());
    let plan = plan.collect();
    let faults = parsed.diagnostics.iter().map(|d| format!("{:?} {d} [{}]", d.class, d.path));
    (lines(plan), lines(faults.collect()))
}

#[test]
fn every_golden_file_gives_its_recorded_plan_and_faults() {
    let write = is_writing();
    let inputs = inputs();
    assert!(inputs.len() > 10, "the golden files are missing");
    let mut wrong = Vec::new();
    for input in inputs {
        let (plan, faults) = outputs(&input);
        for (ending, found) in [("plan.json", plan), ("faults.txt", faults)] {
            let golden = PathBuf::from(format!("{}.{ending}", input.display()));
            if write {
                match found {
                    Some(text) => fs::write(&golden, text).unwrap(),
                    None if golden.exists() => fs::remove_file(&golden).unwrap(),
                    None => {}
                }
                continue;
            }
            let expected = golden.exists().then(|| fs::read_to_string(&golden).unwrap());
            if expected != found {
                wrong.push(format!(
                    "{}\n--- expected\n{}\n--- found\n{}",
                    golden.display(),
                    expected.unwrap_or_default(),
                    found.unwrap_or_default()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_golden_file_has_an_input() {
    let inputs = inputs();
    let inputs: Vec<_> = inputs.iter().map(|input| input.display().to_string()).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for folder in fs::read_dir(root).unwrap() {
        for entry in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = entry.unwrap().path().display().to_string();
            for ending in [".plan.json", ".faults.txt"] {
                if let Some(input) = path.strip_suffix(ending) {
                    assert!(
                        inputs.iter().any(|known| known == input),
                        "{path} does not belong to an input file"
                    );
                }
            }
        }
    }
}

#[test]
fn every_plan_round_trips() {
    for input in inputs() {
        let name = input.file_name().unwrap().to_str().unwrap();
        for pipeline in parse(Some(name), &fs::read(&input).unwrap()).pipelines {
            let plan = serde_json::to_vec(&pipeline).unwrap();
            let again = parse(Some("plan.json"), &plan);
            assert_eq!(again.pipelines, [pipeline], "{}", input.display());
        }
    }
}

#[test]
fn no_output_contains_a_secret_of_a_golden_file() {
    let mut seen = 0;
    for input in inputs() {
        let text = fs::read(&input).unwrap();
        if !String::from_utf8_lossy(&text).contains("s3cret") {
            continue;
        }
        seen += 1;
        let (plan, faults) = outputs(&input);
        for shown in [plan, faults].into_iter().flatten() {
            assert!(!shown.contains("s3cret"), "{}: {shown}", input.display());
        }
    }
    assert!(seen >= 3, "the files with secrets are missing");
}

#[test]
fn the_three_forms_of_a_job_file_give_the_same_steps() {
    let steps = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/job");
        let mut parsed = parse(Some(name), &fs::read(folder.join(name)).unwrap());
        assert_eq!(parsed.pipelines.len(), 1, "{name}");
        parsed.pipelines.remove(0).steps
    };
    assert_eq!(steps("form-one.yml"), steps("form-list.yml"));
    assert_eq!(steps("form-one.yml"), steps("form-jobs.yml"));
}

/// Published names must not be removed or given another meaning. Review a difference accordingly.
#[test]
fn the_published_schemas_match_the_recorded_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/published");
    for what in SchemaName::ALL {
        let golden = folder.join(format!("{what}.json"));
        let found = format!("{:#}\n", schema(what));
        if is_writing() {
            fs::write(&golden, found).unwrap();
        } else {
            let expected = fs::read_to_string(&golden).unwrap_or_default();
            assert!(expected == found, "{} is not what `schema {what}` gives", golden.display());
        }
    }
}
