//! Tests the architecture: which room may import which. Change the table only on purpose.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

/// A room and the other rooms it may import. Future rooms are listed too, so that they are checked
/// from their first line.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("rules", &[]),
    ("ports", &[]),
    ("host", &["ports"]),
    ("worker", &["rules", "ports"]),
    ("cluster", &["ports"]),
    ("embedded", &["ports"]),
    ("egress", &[]),
    ("exec", &["ports", "egress"]),
    ("transfer", &["ports", "egress"]),
    ("http", &["ports", "telemetry"]),
    ("config", &[]),
    ("telemetry", &[]),
    ("cli", &["app", "config", "telemetry"]),
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
