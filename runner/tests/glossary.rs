//! Tests the glossary: every name in its code column must exist in the code.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Adds every word of the Rust files below a directory.
fn collect_words(dir: &Path, words: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_words(&path, words);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let split = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            words.extend(split.map(str::to_owned));
        }
    }
}

#[test]
fn every_name_in_the_glossary_exists_in_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("../docs/glossary.md")).unwrap();
    let mut words = BTreeSet::new();
    collect_words(&root.join("src"), &mut words);
    collect_words(&root.join("../protocol/src"), &mut words);
    collect_words(&root.join("../integration-tests/support/src"), &mut words);

    let mut count = 0;
    let mut missing = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let term = cells.next().unwrap();
        let code = cells.nth(1).unwrap();
        for name in code.split('`').skip(1).step_by(2) {
            count += 1;
            if !words.contains(name) {
                missing.push(format!("{term}: {name}"));
            }
        }
    }
    assert!(count > 50, "found only {count} names in docs/glossary.md: has its table changed?");
    assert!(missing.is_empty(), "not in the code:\n{}", missing.join("\n"));
}
