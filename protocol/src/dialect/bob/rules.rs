//! Rules for values of a pipeline beyond their type. Each rule returns how a value breaks it.

use crate::pipeline::{Admission, Strategy, depths};

/// A name used as a file name or part of a URL.
pub(in crate::dialect) fn file_name(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("is empty"),
        "." | ".." => Some("means a directory that exists already"),
        _ if name.contains('/') => Some("has a `/`, and must be usable as a file name"),
        _ if name.chars().any(char::is_control) => Some("has a control character"),
        _ if name.len() > 255 => Some("is longer than the 255 bytes of a file name"),
        _ => None,
    }
}

/// A shell variable name.
pub(in crate::dialect) fn variable(name: &str) -> Option<&'static str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_one = !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(fits);
    (name.is_empty() || !is_one).then_some("is not the name of a variable: letters, digits and `_`")
}

/// An image reference.
pub(in crate::dialect) fn image(image: &str) -> Option<&'static str> {
    if image.is_empty() {
        return Some("is empty");
    }
    let odd = image.chars().any(|c| c.is_control() || c.is_whitespace());
    odd.then_some("has a blank or a control character")
}

/// Whether an image includes its registry or is an image id.
pub(in crate::dialect) fn is_qualified(image: &str) -> bool {
    let is_id = |text: &str| text.len() >= 12 && text.bytes().all(|b| b.is_ascii_hexdigit());
    match image.split_once('/') {
        Some((registry, _)) => registry.contains(['.', ':']) || registry == "localhost",
        None => is_id(image.strip_prefix("sha256:").unwrap_or(image)),
    }
}

/// A path below the step's working directory.
pub(in crate::dialect) fn artifact_path(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("is empty");
    }
    if path.contains('\0') {
        return Some("has a NUL character");
    }
    if path.starts_with('/') {
        return Some("is absolute, and must be relative to the working directory of the step");
    }
    let mut depth = 0_usize;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match depth.checked_sub(1) {
                Some(up) => depth = up,
                None => return Some("leaves the working directory of the step"),
            },
            _ => depth += 1,
        }
    }
    None
}

/// Words that can start a process.
pub(in crate::dialect) fn command(words: &[String]) -> Option<&'static str> {
    match words.first() {
        None => Some("has no word in it"),
        Some(program) if program.is_empty() => Some("begins with a word of no characters"),
        Some(_) if words.iter().any(|word| word.contains('\0')) => Some("has a NUL character"),
        Some(_) => None,
    }
}

/// A parameter name of a resource.
pub(super) fn parameter(name: &str, _value: &str) -> Option<&'static str> {
    name.is_empty().then_some("a name that is not empty")
}

/// Incompatible settings of a wait list.
pub(in crate::dialect) fn admission(admission: &Admission) -> Option<&'static str> {
    let partitioned = admission.strategy == Strategy::PartitionedReplace;
    let delays = admission.start_delay.is_some_and(|delay| !delay.as_duration().is_zero());
    match (admission.limit, admission.partition_limit) {
        (Some(_), _) if partitioned => Some("`limit` and `partitioned-replace` exclude each other"),
        (_, None) if partitioned => Some("`partitioned-replace` needs a `partition-limit`"),
        (_, Some(_)) if !partitioned => {
            Some("`partition-limit` is for `partitioned-replace` alone")
        }
        (Some(0), _) if delays => Some("a run that may not wait cannot have a `start-delay`"),
        (_, _) => None,
    }
}

/// Finds a dependency cycle, in the order in which each step needs the next. Empty if there is
/// none. `needs[i]` are the steps that step `i` needs.
pub(super) fn cycle(needs: &[Vec<usize>]) -> Vec<usize> {
    let depths = depths(needs);
    // A step without a depth is on a cycle or needs one. Following its needs for as many hops as
    // there are steps ends on the cycle.
    let first = |needs: &Vec<usize>| needs.iter().copied().find(|step| depths[*step].is_none());
    let needed: Vec<Option<usize>> = needs.iter().map(first).collect();
    let Some(mut step) = (0..needs.len()).find(|step| depths[*step].is_none()) else {
        return Vec::new();
    };
    for _ in 0..needs.len() {
        step = needed[step].unwrap_or(step);
    }
    let mut cycle = vec![step];
    while let Some(next) = needed[cycle[cycle.len() - 1]].filter(|next| *next != step) {
        cycle.push(next);
    }
    cycle
}

/// A non-empty text without control characters.
pub(in crate::dialect) fn plain(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("is empty");
    }
    text.chars().any(char::is_control).then_some("has a control character")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_path_can_contain_dot_dot_but_must_not_escape() {
        for good in ["a", "a/b", "./a", "a/../b", "a/b/../../c", ".", "a//b", "..a", "a.."] {
            assert_eq!(artifact_path(good), None, "{good}");
        }
        for bad in ["", "/a", "..", "../a", "a/../../b", "./..", "a\0b"] {
            assert!(artifact_path(bad).is_some(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_image_is_qualified_by_a_registry_or_is_an_id() {
        for good in ["docker.io/library/x", "localhost/x", "localhost:5000/x:1", "0123456789ab"] {
            assert!(is_qualified(good), "{good}");
        }
        for short in ["alpine", "alpine:3", "library/alpine", "me/app:v1.0"] {
            assert!(!is_qualified(short), "{short}");
        }
    }

    #[test]
    fn a_dependency_cycle_of_any_length_is_found() {
        assert!(cycle(&[]).is_empty());
        assert!(cycle(&[vec![], vec![0], vec![0, 1]]).is_empty());
        assert_eq!(cycle(&[vec![0]]), [0]);
        assert!(matches!(cycle(&[vec![1], vec![2], vec![1]])[..], [1, 2] | [2, 1]));
        assert_eq!(cycle(&[vec![2], vec![0], vec![1], vec![]]).len(), 3);
    }
}
