//! Where files are read from, and in which formats.

use super::*;

const LINE: &str = "echo of a line\n";

#[test]
fn a_file_can_be_read_from_standard_input() {
    let place = TestDir::new();
    let valid = place.say_to(&["validate", "-"], GOOD);
    assert_eq!((valid.code, valid.out.contains("dev/hello")), (0, true), "{}", valid.out);
    let bad = place.say_to(&["plan", "-"], BAD);
    assert_eq!((bad.code, bad.out.as_str()), (65, ""));
    assert!(bad.err.contains("standard input:2:"), "{}", bad.err);
}

#[test]
fn an_ambiguous_dialect_can_be_named() {
    let place = TestDir::new();
    // As YAML it is a text; as a queue file it is a command.
    place.file("lines", LINE);
    assert_eq!(place.say(&["validate", "lines"]).code, 65);
    let valid = place.say(&["validate", "--dialect", "ci", "lines"]);
    assert!(valid.code == 0 && valid.out.contains(": valid: pipeline ci/"), "{}", valid.out);
    let plan = place.say_to(&["plan", "--dialect", "ci", "-"], LINE);
    let model: Value = serde_json::from_str(&plan.out).unwrap();
    assert_eq!(model["steps"][0]["executor"], "local");
    let submit = place.say_with(&["submit", "lines", "--dialect", "ci"], &NOWHERE);
    assert_eq!(submit.code, 69, "it was understood: {}", submit.err);
}

#[test]
fn a_file_of_another_dialect_cannot_be_stored_as_a_pipeline() {
    let place = TestDir::new();
    let said = place.say_with(&["submit", "dev/hello", "--dialect", "bob"], &NOWHERE);
    assert!(said.code == 65 && said.err.contains("cannot read dev/hello"), "{}", said.err);
}

#[test]
fn an_unknown_dialect_is_a_usage_error() {
    let place = TestDir::new();
    place.file("lines", LINE);
    for command in ["run", "validate", "plan", "submit"] {
        let said = place.say(&[command, "--dialect", "perl", "lines"]);
        assert!(said.code == 2 && said.err.contains("bob, prunner, job and ci"), "{}", said.err);
    }
}
