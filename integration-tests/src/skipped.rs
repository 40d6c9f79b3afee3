//! Reports tests that do not run because something that they need is missing.
//!
//! The test programs of one `cargo test` have the same parent process. A file of that process
//! records each skipped test. The program that cargo runs last (`runner/tests/zz_skipped.rs`)
//! counts them.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

/// The environments in which a test must not be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// In CI and below `scripts/test`, which starts the service or installs the program.
    Provided,
    /// In CI.
    Ci,
    /// Nowhere: not every host can have it.
    Optional,
}

#[expect(clippy::disallowed_methods, reason = "a test's configuration is its environment")]
fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| !value.is_empty())
}

/// The services of the variables in `needed` that are not set, each once.
pub fn missing_services<'n>(needed: &[&'n str], is_set: impl Fn(&str) -> bool) -> Vec<&'n str> {
    let mut missing = Vec::new();
    for name in needed.iter().copied().filter(|name| !is_set(name)) {
        let service = service_of(name);
        if !missing.contains(&service) {
            missing.push(service);
        }
    }
    missing
}

/// The service that a variable of `scripts/services env` describes.
fn service_of(variable: &str) -> &str {
    const SERVICES: [(&str, &str); 9] = [
        ("BOB_QUEUE_", "RabbitMQ"),
        ("BOB_TEST_MANAGEMENT_", "RabbitMQ"),
        ("BOB_TEST_QUEUE_", "RabbitMQ"),
        ("BOB_TEST_STREAM_", "RabbitMQ"),
        ("BOB_STORAGE_", "etcd"),
        ("CONTAINER_ENGINE_", "podman"),
        ("BOB_TEST_IMAGE", "podman"),
        ("BOB_TEST_REGISTRY", "registry"),
        ("BOB_TEST_DOCKER_", "Docker"),
    ];
    let found = SERVICES.iter().find(|(prefix, _)| variable.starts_with(prefix));
    found.map_or(variable, |(_, service)| service)
}

/// Records that the current test, or a part of it, does not run because `missing` is missing.
///
/// # Panics
/// If it must not be skipped here.
#[expect(clippy::print_stderr, reason = "a skipped test must not look like one that passed")]
pub fn skip(missing: &[&str], need: Need) {
    let variables: &[&str] = match need {
        Need::Provided => &["CI", "BOB_CI", "BOB_TEST_SERVICES"],
        Need::Ci => &["CI", "BOB_CI"],
        Need::Optional => &[],
    };
    let names = missing.join(", ");
    if let Some(variable) = variables.iter().find(|name| is_set(name)) {
        panic!("missing: {names}. {variable} is set, so this test must not be skipped");
    }
    eprintln!("SKIPPED, missing: {names}");
    let Some(file) = record() else { return };
    let thread = std::thread::current();
    let test = format!("{}::{}", program(), thread.name().unwrap_or("main"));
    let lines: String = missing.iter().map(|name| format!("{test}\t{name}\n")).collect();
    let appended = OpenOptions::new().create(true).append(true).open(file);
    appended
        .and_then(|mut file| file.write_all(lines.as_bytes()))
        .expect("skipped tests are recorded");
}

/// Counts the tests that this `cargo test` has skipped, in one line. Removes the record.
#[must_use]
pub fn summary() -> String {
    let file = record();
    let text = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    if let Some(file) = file {
        drop(std::fs::remove_file(file));
    }
    summary_of(&text.unwrap_or_default())
}

/// The summary of a record: a test and what it misses per line.
pub(crate) fn summary_of(record: &str) -> String {
    let mut tests = BTreeMap::<&str, Vec<&str>>::new();
    for (test, missing) in record.lines().filter_map(|line| line.split_once('\t')) {
        let names = tests.entry(test).or_default();
        if !names.contains(&missing) {
            names.push(missing);
        }
    }
    let mut counts = BTreeMap::<&str, usize>::new();
    for missing in tests.values().flatten() {
        *counts.entry(missing).or_default() += 1;
    }
    match tests.len() {
        0 => "skipped: no test".to_owned(),
        skipped => {
            let counts: Vec<_> =
                counts.iter().map(|(name, count)| format!("{name} ({count})")).collect();
            format!(
                "SKIPPED: {skipped} tests, in whole or in part. Missing: {}. `scripts/test` runs all \
                 tests, with its own services",
                counts.join(", ")
            )
        }
    }
}

/// The record of this `cargo test`, in the target directory. `None` if this program is elsewhere.
fn record() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let deps = program.parent().filter(|dir| dir.ends_with("deps"))?;
    let parent = std::os::unix::process::parent_id();
    Some(deps.parent()?.join(format!("skipped-tests-{parent}")))
}

/// The name of this test program, without the hash that cargo appends.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('-').map_or_else(|| name.as_ref(), |(name, _)| name).to_owned()
}
