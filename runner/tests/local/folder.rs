//! Directories of prunner's files. Each test names the rows of prunner's table that it covers.

use super::*;

/// A directory with these files.
fn folder(files: &[(&str, &str)]) -> TestDir {
    let place = TestDir::new("not: read");
    for (name, text) in files {
        let path = place.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    place
}

/// The exit code, and the output on both streams.
fn said(place: &TestDir, typed: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let said = place.command(typed).envs(variables.iter().copied()).output().unwrap();
    let text = [said.stdout, said.stderr].concat();
    (said.status.code(), String::from_utf8(text).unwrap())
}

fn defining(name: &str) -> String {
    format!("pipelines: {{ {name}: {{ tasks: {{ t: {{ script: ['echo {name}'] }} }} }} }}")
}

// Rows: D1
#[test]
fn the_files_of_a_directory_are_found_by_a_glob_and_loaded_together() {
    let place = folder(&[
        ("pipelines.yml", &defining("top")),
        ("a/b/pipelines.yaml", &defining("deep")),
        ("a/other.yml", &defining("other")),
        ("linked/real.d/pipelines.yml", &defining("linked")),
    ]);
    std::fs::rename(place.path("linked/real.d"), place.path("real")).unwrap();
    std::os::unix::fs::symlink(place.path("real"), place.path("linked/to")).unwrap();
    std::os::unix::fs::symlink(place.path("a"), place.path("a/circle")).unwrap();
    std::os::unix::fs::symlink("nowhere", place.path("a/broken")).unwrap();
    std::fs::rename(place.path("real/pipelines.yml"), place.path("real/x")).unwrap();
    std::fs::rename(place.path("real/x"), place.path("real/pipelines.yaml")).unwrap();
    let (code, text) = said(&place, &["validate", "a"], &[]);
    assert!(code == Some(0) && text.contains("pipeline local/deep, 1 step"), "{text}");
    let (code, text) = said(&place, &["run", "a"], &[]);
    assert!(code == Some(0) && text.contains("deep\n"), "{text}");
    let (code, text) = said(&place, &["run", "."], &[]);
    assert_eq!(code, Some(65), "the target of a link is found twice: {text}");
    assert!(text.contains("was already declared in linked/to/pipelines.yaml"), "{text}");
    let other = ["plan", ".", "--pattern", "*/other.{yml,yaml}"];
    let (code, text) = said(&place, &other, &[]);
    assert!(code == Some(0) && text.contains("\"other\"") && !text.contains("deep"), "{text}");
    let variable = [("PRUNNER_PATTERN", "*/other.yml")];
    let (code, text) = said(&place, &["run", ".", "--pipeline", "other"], &variable);
    assert!(code == Some(0) && text.contains("other\n"), "{text}");
    let (code, text) = said(&place, &["plan", ".", "--pattern", "none"], &[]);
    assert!(code == Some(65) && text.contains("no file in ."), "{text}");
    assert_eq!(said(&place, &["plan", ".", "--pattern", "a["], &[]).0, Some(2));
    let for_a_file = ["plan", "pipelines.yml", "--pattern", "*"];
    assert_eq!(said(&place, &for_a_file, &[]).0, Some(2), "it is for a directory");
    let (code, text) = said(&place, &["run", ".", "--dialect", "bob"], &[]);
    assert!(code == Some(2) && text.contains("prunner"), "{text}");
}

// Rows: D1
#[test]
fn one_of_several_pipelines_must_be_named() {
    let place =
        folder(&[("b/pipelines.yml", &defining("b")), ("a/pipelines.yaml", &defining("a"))]);
    let (code, text) = said(&place, &["run", "."], &[]);
    assert!(code == Some(65) && text.contains("--pipeline: a, b"), "{text}");
    let (code, text) = said(&place, &["run", "./", "--pipeline", "b"], &[]);
    assert!(code == Some(0) && text.contains("b\n"), "{text}");
    let (code, text) = said(&place, &["submit", "."], &[]);
    assert!(code == Some(65) && text.contains("--pipeline: a, b"), "{text}");
}

// Rows: D1
#[test]
fn a_name_declared_twice_is_reported_with_the_first_file() {
    let place = folder(&[
        ("z/pipelines.yml", &defining("twice")),
        ("a/pipelines.yaml", &defining("twice")),
    ]);
    for command in ["validate", "plan", "run"] {
        let (code, text) = said(&place, &[command, "."], &[]);
        assert_eq!(code, Some(65), "{command}: {text}");
        let expected = "loading z/pipelines.yml: pipeline \"twice\" was already declared in \
                        a/pipelines.yaml";
        assert!(text.contains(expected), "{command}: {text}");
    }
}

// Rows: D2
#[test]
fn one_invalid_file_gives_the_error_of_prunner_and_nothing_is_loaded() {
    let partitions = "queue_strategy: partitioned_replace";
    let of_all = [
        ("concurrency: -1".to_owned(), "concurrency is -1, and must not be negative"),
        ("queue_limit: -2".to_owned(), "queue_limit is -2, and must not be negative"),
        (
            "queue_strategy: first".to_owned(),
            "expected one of append, replace, partitioned_replace",
        ),
        (format!("{partitions}, queue_limit: 1"), "queue_limit is not allowed"),
        (partitions.to_owned(), "needs a queue_partition_limit of at least 1"),
        ("queue_partition_limit: 1".to_owned(), "queue_partition_limit is allowed with"),
        ("start_delay: -1s".to_owned(), "must not be negative"),
        ("start_delay: 1s, queue_limit: 0".to_owned(), "start_delay needs a queue"),
        ("retention_count: -1".to_owned(), "retention_count is -1, and must not be negative"),
        ("tasks: { t: { depends_on: [u] } }".to_owned(), "task \"t\" depends on \"u\""),
        ("tasks: { t: { depends_on: [t] } }".to_owned(), "task \"t\" depends on itself"),
    ];
    for (keys, reason) in of_all {
        let bad = format!("pipelines: {{ x: {{ {keys} }} }}");
        let place = folder(&[("a/pipelines.yml", &defining("good")), ("b/pipelines.yml", &bad)]);
        let (code, text) = said(&place, &["validate", "."], &[]);
        assert_eq!(code, Some(65), "{keys}: {text}");
        let line = text.lines().next().unwrap();
        let begin = "loading b/pipelines.yml: invalid pipeline definition \"x\": ";
        assert!(line.starts_with(begin) && line.contains(reason), "{keys}: {text}");
        let (code, text) = said(&place, &["run", ".", "--pipeline", "good"], &[]);
        assert!(code == Some(65) && text.contains(begin), "{keys}: {text}");
    }
    for (text, reason) in [("", "the document is empty"), ("pipelines:", "is missing")] {
        let place = folder(&[("a/pipelines.yml", text)]);
        let (code, said) = said(&place, &["validate", "."], &[]);
        assert!(code == Some(65) && said.contains(reason), "{said}");
        assert!(said.contains("loading a/pipelines.yml: "), "{said}");
    }
}

// Rows: D26
#[test]
fn tasks_are_ordered_by_dependency_and_then_by_name() {
    let task = |name: &str, needs: &str| format!("{name}: {{ depends_on: [{needs}] }}");
    let tasks = [
        ("g", "c, f"),
        ("f", "b, e"),
        ("e", "a"),
        ("d", "a"),
        ("c", "d, b"),
        ("b", "a, e"),
        ("a", ""),
    ];
    let tasks = tasks.map(|(name, needs)| task(name, needs)).join(", ");
    let place = TestDir::new(&format!("pipelines: {{ p: {{ tasks: {{ {tasks} }} }} }}"));
    let order = ["a", "d", "e", "b", "c", "f", "g"];
    let plan = place.command(&["plan", "pipeline.yaml"]).output().unwrap();
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    let steps = plan["steps"].as_array().unwrap();
    let planned: Vec<_> = steps.iter().filter_map(|step| step["name"].as_str()).collect();
    assert_eq!(planned, order);
}
