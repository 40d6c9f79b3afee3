//! Checks that every finished row of three tables has a test named after it: job runner (A), CI
//! runner (C) and prunner (D). A row needs a test in embedded mode, and one in a cluster if it is
//! about running something.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::Path;

/// Rows about files, about flags of `run`, or about checks before a run. They do not apply to a
/// cluster.
const OF_FILES: [&str; 6] = ["a3", "a4", "a6", "d1", "d2", "d26"];

/// prunner's rows about files and tasks. The others are about many runs.
const OF_PRUNNER: [u8; 11] = [1, 2, 3, 4, 5, 6, 13, 14, 15, 16, 26];

/// All rows except those about metrics and the unit file.
fn rows() -> BTreeSet<String> {
    let jobs = (1..=21).map(|row| format!("a{row}"));
    let ci = (1..=12).filter(|row| ![6, 7].contains(row)).map(|row| format!("c{row}"));
    let prunner = OF_PRUNNER.iter().map(|row| format!("d{row}"));
    jobs.chain(ci).chain(prunner).collect()
}

/// The function names in the sources below a directory.
fn functions(dir: &Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().map(|line| line.trim().trim_start_matches("async "));
            let names = lines.filter_map(|line| line.strip_prefix("fn ")?.split('(').next());
            into.extend(names.map(str::to_owned));
        }
    }
}

/// The rows at the beginning of a name.
fn named(function: &str) -> impl Iterator<Item = &str> {
    let is_row = |word: &&str| {
        let number = word.strip_prefix(['a', 'c', 'd']);
        number.is_some_and(|number| number.parse::<u8>().is_ok())
    };
    function.split('_').take_while(is_row)
}

fn all_named<'f>(functions: impl Iterator<Item = &'f String>) -> BTreeSet<String> {
    functions.flat_map(|function| named(function)).map(str::to_owned).collect()
}

#[test]
fn every_row_that_is_done_has_a_test_that_names_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut here, mut cluster) = (Vec::new(), Vec::new());
    for dir in ["src", "tests"] {
        functions(&root.join(dir), &mut here);
    }
    functions(&root.join("../integration-tests/tests/serve"), &mut cluster);
    // These need an engine but no cluster.
    here.extend(cluster.extract_if(.., |name| name.contains("_here_and_now_")));

    let left = |named: &BTreeSet<String>| -> Vec<String> {
        rows().into_iter().filter(|row| !named.contains(row)).collect()
    };
    assert_eq!(left(&all_named(here.iter())), [""; 0], "in embedded mode");
    assert_eq!(left(&all_named(cluster.iter())), OF_FILES, "in a cluster");
}
