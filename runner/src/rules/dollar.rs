//! Resolves `${...}` references in jobs: the ID of the preceding job, and parts of earlier jobs'
//! results. Any other `${...}` is left for the shell.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use protocol::shell;
use serde_json::{Map, Value};

/// A job at or before the current one.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The job's name in its file.
    pub name: &'a str,
    /// The job's ID at run time, which is also the name of its files.
    pub id: &'a str,
    /// The job's result, if it reported one.
    pub result: Option<&'a Value>,
}

/// The values that a job can refer to.
#[derive(Debug, Default)]
pub struct KnownValues<'a> {
    previous: Option<Job<'a>>,
    by_name: HashMap<&'a str, Job<'a>>,
    /// The number of bytes substituted so far.
    filled: AtomicUsize,
    /// The number of bytes searched for references so far.
    searched: AtomicUsize,
}

/// Refer to the preceding job, whatever its name.
const PREVIOUS_ID: &str = "PREVIOUS_JOB_ID";
const PREVIOUS_RESULT: &str = "PREVIOUS_RESULT";
/// The maximum length of a reference in bytes. Longer text is left unchanged.
const LONGEST: usize = 4096;
/// The maximum size of results substituted in one step, because each can be repeated.
const MOST: usize = 8 << 20;
/// The maximum number of bytes searched in all texts of a step. Each `${` without a reference can
/// cost [`LONGEST`] bytes, and a text may contain many.
const SEARCHED: usize = 64 << 20;
/// The filter that quotes a value as one shell word.
const QUOTE: &str = "quote";
/// An optional first segment of a path that denotes the result itself.
const RESULT: &str = "result";

impl<'a> KnownValues<'a> {
    /// Creates the context of a job from all jobs before it, in their order.
    #[must_use]
    pub fn before(jobs: impl IntoIterator<Item = Job<'a>>) -> Self {
        let mut known = Self::default();
        for job in jobs {
            known.by_name.insert(job.id, job);
            known.by_name.insert(job.name, job);
            known.previous = Some(job);
        }
        known
    }

    /// Returns a text with its references replaced.
    ///
    /// # Errors
    /// A message, if a job's result lacks the requested value, or the limits are exceeded.
    pub fn fill(&self, text: &str) -> Result<String, String> {
        let mut filled = String::with_capacity(text.len());
        let (mut at, mut close) = (0, 0);
        while let Some(open) = text[at..].find("${") {
            filled.push_str(&text[at..at + open]);
            at += open + "${".len();
            if close < at {
                // Search for `}` once per closing brace: a text may contain very many `${`.
                let Some(next) = text[at..].find('}') else {
                    filled.push_str("${");
                    break;
                };
                close = at + next;
            }
            let inside = &text[at..close];
            match if inside.len() > LONGEST { None } else { self.looked_up(inside)? } {
                Some(value) => {
                    let before = self.filled.fetch_add(value.len(), Ordering::Relaxed);
                    if before.saturating_add(value.len()) > MOST {
                        return Err(format!(
                            "it asks for more than {MOST} bytes of the results of earlier jobs"
                        ));
                    }
                    filled.push_str(&value);
                    at = close + 1;
                }
                // Skip only the `${`, because the text behind it may contain a reference.
                None => filled.push_str("${"),
            }
        }
        filled.push_str(&text[at..]);
        Ok(filled)
    }

    /// Applies [`KnownValues::fill`] to every text in a value.
    ///
    /// # Errors
    /// Same as [`KnownValues::fill`].
    pub fn fill_value(&self, value: &Value) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) => Value::String(self.fill(text)?),
            Value::Array(items) => {
                let items = items.iter().map(|item| self.fill_value(item));
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            Value::Object(entries) => Value::Object(self.fill_map(entries)?),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        })
    }

    /// Applies [`KnownValues::fill`] to every text in a map.
    ///
    /// # Errors
    /// Same as [`KnownValues::fill`].
    pub fn fill_map(&self, map: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        let entries = map.iter().map(|(key, value)| Ok((key.clone(), self.fill_value(value)?)));
        entries.collect()
    }

    fn looked_up(&self, inside: &str) -> Result<Option<String>, String> {
        let before = self.searched.fetch_add(inside.len(), Ordering::Relaxed);
        if before.saturating_add(inside.len()) > SEARCHED {
            return Err("it opens too many `${` that are not closed".to_owned());
        }
        self.value(inside)
    }

    /// Returns the value of `${inside}`, or `None` if it is not a reference.
    fn value(&self, inside: &str) -> Result<Option<String>, String> {
        let (asked, filter) = match inside.split_once('|') {
            Some((asked, filter)) => (asked.trim(), Some(filter.trim())),
            None => (inside, None),
        };
        if filter.is_some_and(|filter| filter != QUOTE) {
            return Ok(None);
        }
        let value = if asked == PREVIOUS_ID {
            Some(self.previous.map(|job| job.id.to_owned()).unwrap_or_default())
        } else {
            self.part(asked)?
        };
        Ok(value.map(|value| if filter.is_some() { shell::join(&[value]) } else { value }))
    }

    fn part(&self, asked: &str) -> Result<Option<String>, String> {
        let Some(end) = asked.find(['.', '[']) else { return Ok(None) };
        let (name, path) = asked.split_at(end);
        let job =
            if name == PREVIOUS_RESULT { self.previous } else { self.by_name.get(name).copied() };
        let Some(job) = job else { return Ok(None) };
        let Some(result) = job.result else {
            return Err(format!("${{{asked}}}: job {} has left no result", job.name));
        };
        let steps = steps(path);
        let found = steps.as_ref().and_then(|steps| find(result, steps));
        let Some(found) = found else {
            return Err(format!("${{{asked}}}: that is not in the result of job {}", job.name));
        };
        Ok(Some(match found {
            Value::String(text) => text.clone(),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => found.to_string(),
        }))
    }
}

/// One segment of a path into a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathSegment<'a> {
    Key(&'a str),
    Index(usize),
}

/// Parses a path such as `.data[0].id`. Returns `None` if an index is not a number.
fn steps(path: &str) -> Option<Vec<PathSegment<'_>>> {
    let mut steps = Vec::new();
    for segment in path.split('.') {
        let (key, mut rest) = segment.split_at(segment.find('[').unwrap_or(segment.len()));
        if !key.is_empty() {
            steps.push(PathSegment::Key(key));
        }
        while let Some(inside) = rest.strip_prefix('[') {
            let (index, behind) = inside.split_once(']')?;
            steps.push(PathSegment::Index(index.parse().ok()?));
            rest = behind;
        }
        if !rest.is_empty() {
            return None;
        }
    }
    Some(steps)
}

fn find<'v>(result: &'v Value, steps: &[PathSegment<'_>]) -> Option<&'v Value> {
    let steps = match steps.split_first() {
        // Paths with and without `result` are both in use.
        Some((PathSegment::Key(RESULT), rest)) if result.get(RESULT).is_none() => rest,
        Some(_) | None => steps,
    };
    steps.iter().try_fold(result, |value, step| match step {
        PathSegment::Key(key) => value.get(key),
        PathSegment::Index(index) => value.get(index),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filled(text: &str) -> Result<String, String> {
        let login = json!({ "success": true, "error": "", "data": {
            "id": 7, "name": "it's", "rows": [[1, 2], ["x"]], "none": null,
        } });
        let odd = json!({ "result": { "a": "own" } });
        let job = |name, id, result| Job { name, id, result };
        KnownValues::before([
            job("login", "k3x", Some(&login)),
            job("plain", "p4y", None),
            job("odd", "o5z", Some(&odd)),
        ])
        .fill(text)
    }

    // Rows: A9
    #[test]
    fn every_form_is_substituted_and_unknown_ones_are_left_unchanged() {
        for (text, expected) in [
            ("a ${PREVIOUS_JOB_ID} b", "a o5z b"),
            ("${PREVIOUS_RESULT.result.a}", "own"),
            ("${login.data.id}", "7"),
            ("${k3x.data.id}", "7"),
            ("${login.result.data.id}", "7"),
            ("${login.data.rows[1][0]}-${login.data.rows[0]}", "x-[1,2]"),
            ("${login.data..rows[0][1]}", "2"),
            ("${login.data}", r#"{"id":7,"name":"it's","rows":[[1,2],["x"]],"none":null}"#),
            ("${login.data.none}", "null"),
            ("echo ${login.data.name | quote}", r"echo 'it'\''s'"),
            ("${HOME} ${x.y} $HOME ${login} ${} ${", "${HOME} ${x.y} $HOME ${login} ${} ${"),
            ("${a:-${login.data.id}}", "${a:-7}"),
            ("${login.data.id | upper}", "${login.data.id | upper}"),
            ("", ""),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_missing_result_of_a_job_is_reported() {
        for (text, expected) in [
            ("${login.data.key}", "${login.data.key}: that is not in the result of job login"),
            (
                "${login.data.rows[-1]}",
                "${login.data.rows[-1]}: that is not in the result of job login",
            ),
            (
                "${login.data.rows[x]}",
                "${login.data.rows[x]}: that is not in the result of job login",
            ),
            ("${plain.data}", "${plain.data}: job plain has left no result"),
        ] {
            assert_eq!(filled(text), Err(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_first_job_has_no_previous_one() {
        let known = KnownValues::default();
        assert_eq!(known.fill("<${PREVIOUS_JOB_ID}>").unwrap(), "<>");
        assert_eq!(known.fill("${PREVIOUS_RESULT.data}").unwrap(), "${PREVIOUS_RESULT.data}");
    }

    #[test]
    fn values_are_substituted_once_and_at_every_depth() {
        let trap = json!({ "data": "${PREVIOUS_JOB_ID}" });
        let known = KnownValues::before([Job { name: "a", id: "i", result: Some(&trap) }]);
        let with = json!({ "x": ["${a.data}", { "y": "${PREVIOUS_JOB_ID}" }], "n": 1 });
        let expected = json!({ "x": ["${PREVIOUS_JOB_ID}", { "y": "i" }], "n": 1 });
        assert_eq!(known.fill_value(&with).unwrap(), expected);
    }

    #[test]
    fn substitution_terminates_on_deeply_nested_references() {
        let much = Value::from("x".repeat(60_000));
        let known = KnownValues::before([Job { name: "a", id: "i", result: Some(&much) }]);
        for open in ["${".repeat(500_000), "${".repeat(500_000) + "}"] {
            assert_eq!(known.fill(&open).unwrap(), open);
        }
        let open = format!("{}{}}}", "${".repeat(2000), "x".repeat(90)).repeat(120);
        let said = KnownValues::before([]).fill(&open).unwrap_err();
        assert!(said.contains("opens too many"), "{said}");
        let result = serde_json::json!({ "t": "x".repeat(60_000) });
        let known = KnownValues::before([Job { name: "a", id: "i", result: Some(&result) }]);
        assert_eq!(known.fill("${a.t}${a.t}").unwrap().len(), 120_000);
        let said = known.fill(&"${a.t}".repeat(100_000)).unwrap_err();
        assert!(said.contains("more than"), "{said}");
    }
}
