//! Tests the architecture: which room may import which, that no files depend on each other in a
//! cycle, and that no file is too long. Change the tables only on purpose.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "layers/dependencies.rs"]
mod dependencies;
#[path = "layers/modules.rs"]
mod modules;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use dependencies::Dependencies;

/// A room and the other rooms it may import. Future rooms are listed too, so that they are checked
/// from their first line.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("rules", &[]),
    ("ports", &[]),
    ("host", &["ports"]),
    ("worker", &["rules", "ports"]),
    ("cluster", &["ports"]),
    ("embedded", &["ports"]),
    ("client", &["ports", "config"]),
    ("egress", &[]),
    ("exec", &["ports", "egress"]),
    ("transfer", &["ports", "egress"]),
    ("http", &["ports", "client", "rules"]),
    ("config", &[]),
    ("telemetry", &[]),
    ("cli", &["app", "client", "config", "telemetry"]),
];

const FOREIGN_TO_RULES: &[&str] =
    &["tokio", "async ", ".await", "std::fs", "std::net", "Instant", "SystemTime"];

fn files_of(src: &Path, room: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![src.join(room), src.join(format!("{room}.rs"))];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn rooms_only_import_what_the_table_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for &(room, allowed) in MAY_IMPORT {
        for file in files_of(&src, room) {
            for (n, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
                for part in line.split("crate::").skip(1) {
                    let name: String =
                        part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    if name != room && !allowed.contains(&name.as_str()) {
                        wrong.push(format!("{}:{}: {room} imports {name}", file.display(), n + 1));
                    }
                }
                let test_code = file.ends_with("tests.rs");
                let foreign = FOREIGN_TO_RULES.iter().any(|word| line.contains(word));
                if room == "rules" && foreign && !test_code {
                    wrong.push(format!("{}:{}: I/O in rules: {line}", file.display(), n + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_is_in_the_table_and_in_the_architecture_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("../ARCHITECTURE.md")).unwrap();
    for entry in fs::read_dir(root.join("src")).unwrap() {
        let path = entry.unwrap().path();
        let room = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if ["main", "lib"].contains(&room.as_str()) {
            continue;
        }
        let in_table = room == "app" || MAY_IMPORT.iter().any(|(name, _)| *name == room);
        assert!(in_table, "room {room} is not in the layering table");
        assert!(page.contains(&format!("`{room}`")), "ARCHITECTURE.md does not name room {room}");
    }
}

#[test]
fn no_files_depend_on_each_other_in_a_cycle() {
    let mut faults = Vec::new();
    for name in ["protocol", "runner", "integration-tests/support"] {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src");
        let dependencies = Dependencies::read(&src);
        for cycle in dependencies.cycles() {
            faults.push(format!("cycle in {name}:\n{}", dependencies.describe(&cycle)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A reader can hold a file of this length in mind. Clippy limits the length of functions.
const MAX_LINES: usize = 450;

#[test]
fn no_file_is_too_long_to_keep_in_mind() {
    let root = &Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let crates = [
        "protocol",
        "runner",
        "integration-tests",
        "integration-tests/rig",
        "integration-tests/support",
    ];
    let files = crates.iter().flat_map(|name| {
        ["src", "tests"].into_iter().flat_map(move |part| files_of(&root.join(name), part))
    });
    let lines = |file: &PathBuf| fs::read_to_string(file).unwrap().lines().count();
    let long: Vec<PathBuf> = files.filter(|file| lines(file) > MAX_LINES).collect();
    assert!(long.is_empty(), "more than {MAX_LINES} lines: {long:#?}");
}

/// Writes the files of a crate and returns its cycles.
fn cycles_of(files: &[(&str, &str)]) -> Vec<BTreeSet<PathBuf>> {
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    Dependencies::read(dir.path()).cycles()
}

fn cycle(files: &[&str]) -> BTreeSet<PathBuf> {
    files.iter().map(PathBuf::from).collect()
}

#[test]
fn items_of_a_parent_and_its_child_make_a_cycle() {
    let child = ("a/b.rs", "use super::Parent; pub fn make() -> Parent { Parent }");
    let uses = "mod b; pub struct Parent; pub fn call() { b::make(); }";
    let expected = vec![cycle(&["a/b.rs", "a/mod.rs"])];
    assert_eq!(cycles_of(&[("lib.rs", "mod a;"), ("a/mod.rs", uses), child]), expected);
    let declares = "mod b; pub use b::make; pub struct Parent;";
    assert!(cycles_of(&[("lib.rs", "mod a;"), ("a/mod.rs", declares), child]).is_empty());
}

#[test]
fn a_reexport_leads_to_the_file_that_defines_the_item() {
    let root = ("lib.rs", "mod a; mod c;");
    let parent = ("a/mod.rs", "mod b; pub use self::b::*;");
    let child = ("a/b.rs", "pub struct Item; fn f() { crate::c::f() }");
    let expected = vec![cycle(&["a/b.rs", "c.rs"])];
    for user in [
        "pub fn f() { let _ = crate::a::Item; }",
        "pub fn f() { println!(\"{:?}\", crate::a::Item::new()) }",
        "pub fn f() { use crate::a; { let _: a::Item; } }",
        "use super::a::{Item as Other}; pub fn f() {}",
        "pub struct S { #[serde(with = \"crate::a::Item\")] s: u8 } pub fn f() {}",
    ] {
        assert_eq!(cycles_of(&[root, parent, child, ("c.rs", user)]), expected, "{user}");
    }
}

#[test]
fn tests_and_documentation_make_no_cycle() {
    let root = ("lib.rs", "mod a; mod b;");
    let named = ("a.rs", "pub fn f() { crate::b::f() }");
    for user in [
        "pub fn f() {} #[cfg(test)] mod tests { use crate::a::f; }",
        "#[cfg(test)] use crate::a; pub fn f() {}",
        "/// [`crate::a::f`]\npub fn f() {}",
        "use crate::a; pub fn f() { let a = 1; a.f(); }",
    ] {
        assert!(cycles_of(&[root, named, ("b.rs", user)]).is_empty(), "{user}");
    }
}
