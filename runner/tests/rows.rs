//! Checks that a test covers each finished row of three tables: job runner (A), CI runner (C) and
//! prunner (D). A row needs a test in embedded mode, and one in a cluster if it is about running
//! something.
//!
//! A comment directly above a test lists its rows: `// Rows: A12, C3`. Tests that need an engine
//! but no cluster are next to the cluster tests. Their comment starts with `// Rows (embedded):`.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::Path;

/// Rows about files, about flags of `run`, or about checks before a run. They do not apply to a
/// cluster.
const OF_FILES: [&str; 6] = ["A3", "A4", "A6", "D1", "D2", "D26"];

/// prunner's rows about files and tasks. The others are about many runs.
const OF_PRUNNER: [u8; 11] = [1, 2, 3, 4, 5, 6, 13, 14, 15, 16, 26];

/// All rows except those about metrics and the unit file.
fn rows() -> BTreeSet<String> {
    let jobs = (1..=21).map(|row| format!("A{row}"));
    let ci = (1..=12).filter(|row| ![6, 7].contains(row)).map(|row| format!("C{row}"));
    let prunner = OF_PRUNNER.iter().map(|row| format!("D{row}"));
    jobs.chain(ci).chain(prunner).collect()
}

/// Adds the rows listed in the sources below a directory, in comments that start with `marker`.
///
/// # Panics
/// If such a comment is not directly above a test.
fn add_rows(dir: &Path, marker: &str, rows: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_rows(&path, marker, rows);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut lines = text.lines().map(str::trim);
            while let Some(line) = lines.next() {
                let Some(listed) = line.strip_prefix(marker) else { continue };
                let next = lines.next().unwrap_or_default();
                let is_above_test =
                    next.starts_with("#[test]") || next.starts_with("#[tokio::test");
                assert!(is_above_test, "{}: {line} is not above a test", path.display());
                rows.extend(listed.split(',').map(|row| row.trim().to_owned()));
            }
        }
    }
}

#[test]
fn every_finished_row_is_named_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let serve = root.join("../integration-tests/tests/serve");
    let (mut embedded, mut cluster) = (BTreeSet::new(), BTreeSet::new());
    for dir in [root.join("src"), root.join("tests")] {
        add_rows(&dir, "// Rows: ", &mut embedded);
    }
    add_rows(&serve, "// Rows (embedded): ", &mut embedded);
    add_rows(&serve, "// Rows: ", &mut cluster);

    let missing = |named: &BTreeSet<String>| -> Vec<String> {
        rows().into_iter().filter(|row| !named.contains(row)).collect()
    };
    assert_eq!(missing(&embedded), [""; 0], "in embedded mode");
    assert_eq!(missing(&cluster), OF_FILES, "in a cluster");
}
