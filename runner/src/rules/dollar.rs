//! Resolves `${...}` references in jobs: the ID of the preceding job, and parts of earlier jobs'
//! results. Any other `${...}` is left for the shell.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use protocol::shell;
use serde_json::{Map, Value};

/// A job before the current one.
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
    substituted_bytes: AtomicUsize,
    /// The number of bytes searched for references so far.
    searched_bytes: AtomicUsize,
}

/// The reference to the ID of the preceding job.
const PREVIOUS_ID: &str = "PREVIOUS_JOB_ID";
/// The name that stands for the preceding job in references to its result.
const PREVIOUS_RESULT: &str = "PREVIOUS_RESULT";
/// The maximum length of a reference in bytes. Longer text is left unchanged.
const MAX_REFERENCE_BYTES: usize = 4096;
/// The maximum number of bytes substituted in one step, because a step can refer to the same result
/// many times.
const MAX_SUBSTITUTED_BYTES: usize = 8 << 20;
/// The maximum number of bytes searched in all texts of a step. Each `${` that does not open a
/// reference can cost [`MAX_REFERENCE_BYTES`] bytes, and a text can contain many.
const MAX_SEARCHED_BYTES: usize = 64 << 20;
/// The filter that quotes a value as one shell word.
const QUOTE: &str = "quote";
/// An optional first segment of a path that denotes the result itself.
const RESULT: &str = "result";

impl<'a> KnownValues<'a> {
    /// Creates the values known to a job from all jobs before it, in order.
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
    /// A message, if a job has no result, its result lacks the requested value, or a limit is
    /// exceeded.
    pub fn fill(&self, text: &str) -> Result<String, String> {
        let mut filled = String::with_capacity(text.len());
        let (mut position, mut close) = (0, 0);
        while let Some(open) = text[position..].find("${") {
            filled.push_str(&text[position..position + open]);
            position += open + "${".len();
            if close < position {
                // Search for `}` once per closing brace: a text can contain very many `${`.
                let Some(next) = text[position..].find('}') else {
                    filled.push_str("${");
                    break;
                };
                close = position + next;
            }
            let reference = &text[position..close];
            match if reference.len() > MAX_REFERENCE_BYTES {
                None
            } else {
                self.look_up(reference)?
            } {
                Some(value) => {
                    let before = self.substituted_bytes.fetch_add(value.len(), Ordering::Relaxed);
                    if before.saturating_add(value.len()) > MAX_SUBSTITUTED_BYTES {
                        return Err(format!(
                            "it asks for more than {MAX_SUBSTITUTED_BYTES} bytes of the results of \
                             earlier jobs"
                        ));
                    }
                    filled.push_str(&value);
                    position = close + 1;
                }
                // Skip only the `${`, because the text after it can contain a reference.
                None => filled.push_str("${"),
            }
        }
        filled.push_str(&text[position..]);
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

    fn look_up(&self, reference: &str) -> Result<Option<String>, String> {
        let before = self.searched_bytes.fetch_add(reference.len(), Ordering::Relaxed);
        if before.saturating_add(reference.len()) > MAX_SEARCHED_BYTES {
            return Err("it opens too many `${` that are not closed".to_owned());
        }
        self.resolve(reference)
    }

    /// Returns the value of `${reference}`, or `None` if it is not a reference.
    fn resolve(&self, reference: &str) -> Result<Option<String>, String> {
        let (expression, filter) = match reference.split_once('|') {
            Some((expression, filter)) => (expression.trim(), Some(filter.trim())),
            None => (reference, None),
        };
        if filter.is_some_and(|filter| filter != QUOTE) {
            return Ok(None);
        }
        let value = if expression == PREVIOUS_ID {
            Some(self.previous.map(|job| job.id.to_owned()).unwrap_or_default())
        } else {
            self.result_part(expression)?
        };
        Ok(value.map(|value| if filter.is_some() { shell::join(&[value]) } else { value }))
    }

    /// Returns a part of an earlier job's result, or `None` if the expression does not name
    /// a job and a path.
    fn result_part(&self, expression: &str) -> Result<Option<String>, String> {
        let Some(end) = expression.find(['.', '[']) else { return Ok(None) };
        let (name, path) = expression.split_at(end);
        let job =
            if name == PREVIOUS_RESULT { self.previous } else { self.by_name.get(name).copied() };
        let Some(job) = job else { return Ok(None) };
        let Some(result) = job.result else {
            return Err(format!("${{{expression}}}: job {} has left no result", job.name));
        };
        let segments = parse_path(path);
        let value = segments.as_ref().and_then(|segments| find_value(result, segments));
        let Some(value) = value else {
            return Err(format!(
                "${{{expression}}}: that is not in the result of job {}",
                job.name
            ));
        };
        Ok(Some(match value {
            Value::String(text) => text.clone(),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => value.to_string(),
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
fn parse_path(path: &str) -> Option<Vec<PathSegment<'_>>> {
    let mut segments = Vec::new();
    for segment in path.split('.') {
        let (key, mut rest) = segment.split_at(segment.find('[').unwrap_or(segment.len()));
        if !key.is_empty() {
            segments.push(PathSegment::Key(key));
        }
        while let Some(bracket) = rest.strip_prefix('[') {
            let (index, remainder) = bracket.split_once(']')?;
            segments.push(PathSegment::Index(index.parse().ok()?));
            rest = remainder;
        }
        if !rest.is_empty() {
            return None;
        }
    }
    Some(segments)
}

/// Returns the value at a path into a result.
fn find_value<'v>(result: &'v Value, segments: &[PathSegment<'_>]) -> Option<&'v Value> {
    let segments = match segments.split_first() {
        // Paths with and without `result` are both in use.
        Some((PathSegment::Key(RESULT), rest)) if result.get(RESULT).is_none() => rest,
        Some(_) | None => segments,
    };
    segments.iter().try_fold(result, |value, segment| match segment {
        PathSegment::Key(key) => value.get(key),
        PathSegment::Index(index) => value.get(index),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fill(text: &str) -> Result<String, String> {
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
            assert_eq!(fill(text).as_deref(), Ok(expected), "{text}");
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
            assert_eq!(fill(text), Err(expected.to_owned()), "{text}");
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
        let result = json!({ "data": "${PREVIOUS_JOB_ID}" });
        let known = KnownValues::before([Job { name: "a", id: "i", result: Some(&result) }]);
        let template = json!({ "x": ["${a.data}", { "y": "${PREVIOUS_JOB_ID}" }], "n": 1 });
        let expected = json!({ "x": ["${PREVIOUS_JOB_ID}", { "y": "i" }], "n": 1 });
        assert_eq!(known.fill_value(&template).unwrap(), expected);
    }

    #[test]
    fn substitution_terminates_on_deeply_nested_references() {
        let long_text = Value::from("x".repeat(60_000));
        let known = KnownValues::before([Job { name: "a", id: "i", result: Some(&long_text) }]);
        for open in ["${".repeat(500_000), "${".repeat(500_000) + "}"] {
            assert_eq!(known.fill(&open).unwrap(), open);
        }
        let open = format!("{}{}}}", "${".repeat(2000), "x".repeat(90)).repeat(120);
        let error = KnownValues::before([]).fill(&open).unwrap_err();
        assert!(error.contains("opens too many"), "{error}");
        let result = serde_json::json!({ "t": "x".repeat(60_000) });
        let known = KnownValues::before([Job { name: "a", id: "i", result: Some(&result) }]);
        assert_eq!(known.fill("${a.t}${a.t}").unwrap().len(), 120_000);
        let error = known.fill(&"${a.t}".repeat(100_000)).unwrap_err();
        assert!(error.contains("more than"), "{error}");
    }
}
