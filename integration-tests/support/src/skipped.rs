//! Reports tests that are skipped because a service or program that they need is missing.
//!
//! The test programs of one `cargo test` have the same parent process. They list their skipped
//! tests in one file, whose name contains the ID of that process. The program that cargo runs last
//! (`tests/zz_skipped.rs`) prints a summary of the list.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

/// The environments in which a test must not be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// In CI and under `scripts/test`, which starts the service or installs the program.
    Provided,
    /// In CI.
    Ci,
    /// None. Not every host can provide what the test needs.
    Optional,
}

#[expect(clippy::disallowed_methods, reason = "a test's configuration is its environment")]
fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| !value.is_empty())
}

/// The services whose `variables` are not set. Each service is listed once.
pub fn missing_services<'n>(variables: &[&'n str], is_set: impl Fn(&str) -> bool) -> Vec<&'n str> {
    let mut missing = Vec::new();
    for name in variables.iter().copied().filter(|name| !is_set(name)) {
        let service = service_of(name);
        if !missing.contains(&service) {
            missing.push(service);
        }
    }
    missing
}

/// The service that a variable from `scripts/services env` belongs to. An unknown variable stands
/// for itself.
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
    let service = SERVICES.iter().find(|(prefix, _)| variable.starts_with(prefix));
    service.map_or(variable, |(_, name)| name)
}

/// Records that the current test, or a part of it, is skipped because of the `missing` services.
///
/// # Panics
/// Panics if the test must not be skipped in this environment.
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
    let Some(path) = list_path() else { return };
    let thread = std::thread::current();
    let test = format!("{}::{}", program_name(), thread.name().unwrap_or("main"));
    let lines: String = missing.iter().map(|name| format!("{test}\t{name}\n")).collect();
    let appended = OpenOptions::new().create(true).append(true).open(path);
    appended
        .and_then(|mut file| file.write_all(lines.as_bytes()))
        .expect("a skipped test can be added to the list");
}

/// Summarizes the tests skipped by this `cargo test` in one line, and deletes their list.
#[must_use]
pub fn summary() -> String {
    let path = list_path();
    let list = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
    if let Some(path) = path {
        drop(std::fs::remove_file(path));
    }
    summary_of(&list.unwrap_or_default())
}

/// Summarizes a list. Each line holds a test, a tab and a missing service.
fn summary_of(list: &str) -> String {
    let mut tests = BTreeMap::<&str, Vec<&str>>::new();
    for (test, missing) in list.lines().filter_map(|line| line.split_once('\t')) {
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

/// The path of the list for this `cargo test`, in the target directory. `None` if this program is
/// not in a `deps` directory.
fn list_path() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let deps = program.parent().filter(|dir| dir.ends_with("deps"))?;
    let parent = std::os::unix::process::parent_id();
    Some(deps.parent()?.join(format!("skipped-tests-{parent}")))
}

/// The name of this test program, without the hash that cargo appends.
fn program_name() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('-').map_or_else(|| name.as_ref(), |(name, _)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::summary_of;

    #[test]
    fn skipped_tests_are_counted_once_and_for_each_missing_service() {
        assert_eq!(summary_of(""), "skipped: no test");
        let list = "a::x\tRabbitMQ\na::x\tetcd\nb::x\tetcd\nb::x\tetcd\n";
        let summary = summary_of(list);
        assert!(summary.starts_with("SKIPPED: 2 tests"), "{summary}");
        assert!(summary.contains("Missing: RabbitMQ (1), etcd (2)."), "{summary}");
    }
}
