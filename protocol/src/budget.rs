//! The size limits of a start and a run record, and how a larger record is cut.
//!
//! etcd accepts at most 1.5 MiB in one request. If a record reached that size, even the end of the
//! run could not be recorded.

use serde::Serialize;

use crate::pipeline::{Params, Pipeline, Vars};
use crate::quantity;
use crate::run::RunRecord;

/// The maximum size of a start's definition, variables and values as JSON, in bytes. etcd accepts
/// requests of up to 1.5 MiB, and a request holds the definition once.
pub const MAX_START_BYTES: usize = 512 * 1024;
/// The maximum size of a record as JSON, in bytes. The rest of a request is for the transaction's
/// other keys.
pub const MAX_RECORD_BYTES: usize = 1280 * 1024;
/// The share of the limit reserved for ending a run: its ending event, and the ends of running
/// steps.
pub const ENDING_RESERVE_BYTES: usize = 64 * 1024;
/// The maximum size of a step's entry without its name, message and result, in bytes.
pub const STEP_BYTES: usize = 1024;

/// The length to which a long message is cut, in bytes.
const CUT_MESSAGE: usize = 160;

/// The size of a value as JSON, in bytes.
#[must_use]
pub fn json_bytes(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Writing the value later reports the same error.
    serde_json::to_writer(&mut count, value).ok();
    count.0
}

/// The bytes of a start that count against [`MAX_START_BYTES`]: its inline definition, if any, its
/// variables and its values, as JSON.
#[must_use]
pub fn start_bytes(definition: Option<&Pipeline>, vars: &Vars, params: &Params) -> usize {
    let definition = definition.map_or(0, json_bytes);
    definition + json_bytes(&(vars, params))
}

/// The rejection message if a start is too large.
#[must_use]
pub fn too_large(definition: Option<&Pipeline>, vars: &Vars, params: &Params) -> Option<String> {
    let bytes = start_bytes(definition, vars, params);
    let readable = |bytes: usize| quantity::readable(u64::try_from(bytes).unwrap_or(u64::MAX));
    (bytes > MAX_START_BYTES).then(|| {
        format!(
            "the definition, variables and values of a start take {} as JSON, more than the limit of {}",
            readable(bytes),
            readable(MAX_START_BYTES)
        )
    })
}

/// Cuts a text at a character boundary and appends `…`.
#[must_use]
pub fn shortened(mut text: String, most: usize) -> String {
    if text.len() > most {
        let mut end = most;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

/// How much of a record was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CutSizes {
    /// Number of shortened step messages.
    pub messages: usize,
    /// Number of dropped step results.
    pub results: usize,
    /// Number of dropped step entries.
    pub steps: usize,
}

impl RunRecord {
    /// Cuts the record until it fits into `most` bytes. Messages are cut first, then results (the
    /// largest first), then the oldest step entries. Returns `None` if the record already fits.
    pub fn cut_to(&mut self, most: usize) -> Option<CutSizes> {
        let mut size = json_bytes(self);
        if size <= most {
            return None;
        }
        let mut cut = CutSizes::default();
        for step in &mut self.steps {
            if let Some(message) = step.message.take_if(|message| message.len() > CUT_MESSAGE) {
                step.message = Some(shortened(message, CUT_MESSAGE));
                cut.messages += 1;
            }
        }
        size = size.min(json_bytes(self));
        let results = self.steps.iter().enumerate();
        let results =
            results.filter_map(|(at, step)| Some((json_bytes(step.result.as_ref()?), at)));
        let mut results: Vec<(usize, usize)> = results.collect();
        results.sort_unstable();
        while size > most
            && let Some((bytes, at)) = results.pop()
        {
            self.steps[at].result = None;
            size = size.saturating_sub(bytes);
            cut.results += 1;
        }
        let over = size.saturating_sub(most);
        let mut dropped = 0;
        while dropped < over
            && let Some(step) = self.steps.get(cut.steps)
        {
            // The entry and the comma that follows it.
            dropped += json_bytes(step) + 1;
            cut.steps += 1;
        }
        self.steps.drain(..cut.steps);
        Some(cut)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn record(steps: &[Value]) -> RunRecord {
        let record = json!({
            "group": "g", "name": "n", "run-id": "r-1", "status": "passed", "attempt": 1,
            "scheduled-at": "2026-01-01T00:00:00.000Z", "steps": steps,
        });
        serde_json::from_value(record).unwrap()
    }

    fn step(at: usize, result: usize, message: usize) -> Value {
        json!({
            "name": at.to_string(), "status": "passed", "attempt": 1,
            "message": "m".repeat(message), "result": { "t": "r".repeat(result) },
        })
    }

    #[test]
    fn a_record_that_fits_is_not_changed() {
        let mut small = record(&[step(0, 10, 10)]);
        let before = small.clone();
        assert_eq!(small.cut_to(MAX_RECORD_BYTES), None);
        assert_eq!(small, before);
    }

    #[test]
    fn messages_are_shortened_before_results_and_the_largest_results_first() {
        let steps = [step(0, 1000, 4000), step(1, 3000, 0), step(2, 2000, 4000)];
        let mut cut = record(&steps);
        assert_eq!(cut.cut_to(8000), Some(CutSizes { messages: 2, results: 0, steps: 0 }));
        let mut cut = record(&steps);
        assert_eq!(cut.cut_to(4500), Some(CutSizes { messages: 2, results: 1, steps: 0 }));
        let kept: Vec<bool> = cut.steps.iter().map(|step| step.result.is_some()).collect();
        assert_eq!(kept, [true, false, true]);
        assert!(json_bytes(&cut) <= 4500);
    }

    #[test]
    fn any_record_can_be_made_to_fit() {
        let steps: Vec<Value> = (0..500).map(|at| step(at, 100, 200)).collect();
        for most in [100_000, 20_000, 2_000] {
            let mut cut = record(&steps);
            assert!(cut.cut_to(most).is_some());
            assert!(json_bytes(&cut) <= most, "{} bytes of {most}", json_bytes(&cut));
        }
    }

    #[test]
    fn a_text_is_cut_at_a_character_boundary() {
        assert_eq!(shortened("äöü".to_owned(), 3), "ä…");
        assert_eq!(shortened("abc".to_owned(), 3), "abc");
    }
}
