//! The fuzzer's findings and seeds are processed without a panic.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

mod targets;

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        if !path.exists() {
            // The fuzzer has found nothing for this target.
        } else if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn inputs_that_once_failed_are_handled() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/cases");
    for (name, target) in targets::TARGETS {
        for case in files(&cases.join(name)) {
            target(&fs::read(&case).unwrap());
        }
    }
}

#[test]
fn every_fuzz_target_handles_every_example_and_golden_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let seeds = [root.join("examples"), root.join("protocol/tests/golden")];
    let seeds: Vec<PathBuf> = seeds.iter().flat_map(|dir| files(dir)).collect();
    assert!(seeds.len() > 50, "too few files: has a directory moved?");
    for seed in seeds {
        let bytes = fs::read(&seed).unwrap();
        for (_, target) in targets::TARGETS {
            for first in 0..5 {
                let mut all = vec![first];
                all.extend_from_slice(&bytes);
                target(&all);
            }
        }
    }
}
