//! A step with its references to earlier results resolved.

use std::borrow::Cow;
use std::collections::HashMap;

use protocol::id::{RunId, StepName, StepPosition};
use protocol::pipeline::{Cmd, Step, Template, Vars};
use protocol::run::RunRecord;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::dollar::{Job, KnownValues};

/// Returns the ID of a step outside its run, which is also the name of its files. This is the label
/// from its file, or else ten characters derived from the run ID and the step's name.
#[must_use]
pub fn id(run: &RunId, step: &Step) -> String {
    step.label.clone().unwrap_or_else(|| {
        let of_it = Sha256::digest(format!("{run}/{}", step.name));
        hex::encode(&of_it[..ID_BYTES])
    })
}

const ID_BYTES: usize = 5;

/// Returns the step at a position with references to earlier steps replaced, or `None` if there is
/// no such step.
///
/// # Errors
/// A message, if a referenced value does not exist.
pub fn filled(record: &RunRecord, position: StepPosition) -> Option<Result<Cow<'_, Step>, String>> {
    let pipeline = record.pipeline.as_ref()?;
    let step = pipeline.step(position)?;
    if step.template != Some(Template::Dollar) {
        return Some(Ok(Cow::Borrowed(step)));
    }
    let before: Vec<(&Step, String)> = pipeline
        .steps
        .iter()
        .take(position.index())
        .map(|step| (step, id(&record.run_id, step)))
        .collect();
    let results: HashMap<&StepName, &Value> =
        record.steps.iter().filter_map(|it| Some((&it.name, it.result.as_ref()?))).collect();
    let jobs = before.iter().map(|(step, id)| Job {
        name: step.name.as_str(),
        id,
        result: results.get(&step.name).copied(),
    });
    Some(fill(step, &KnownValues::before(jobs)).map(Cow::Owned))
}

fn fill(step: &Step, known: &KnownValues<'_>) -> Result<Step, String> {
    let mut filled = step.clone();
    for program in &mut filled.script {
        *program = known.fill(program)?;
    }
    if let Some(cmd) = &mut filled.cmd {
        // Each value stays within its word.
        let words = cmd.words();
        let words = words.iter().map(|word| known.fill(word)).collect::<Result<_, _>>()?;
        *cmd = Cmd::Words(words);
    }
    let vars = filled.vars.iter().map(|(name, value)| Ok((name.clone(), known.fill(value)?)));
    filled.vars = vars.collect::<Result<Vars, String>>()?;
    filled.with = known.fill_map(&filled.with)?;
    if let Some(callback) = &mut filled.callback {
        callback.url = known.fill(&callback.url)?;
    }
    Ok(filled)
}

/// The maximum size of a result in a record, in bytes of JSON.
pub const MAX_RESULT: usize = 64 * 1024;

/// The file to which a step writes its result.
pub const RESULT_FILE: &str = "result.json";

/// Parses a step's result file.
///
/// # Errors
/// A message, if it is too large or is not a JSON object.
pub fn result_of(bytes: &[u8]) -> Result<Value, String> {
    if bytes.len() > MAX_RESULT {
        return Err(format!(
            "{RESULT_FILE} is larger than {MAX_RESULT} bytes, so the step has no result"
        ));
    }
    match serde_json::from_slice(bytes) {
        Ok(result @ Value::Object(_)) => Ok(result),
        Ok(_) => Err(format!("{RESULT_FILE} is not a JSON object, so the step has no result")),
        Err(cause) => Err(format!("{RESULT_FILE} is not JSON, so the step has no result: {cause}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(steps: &serde_json::Value) -> RunRecord {
        let mut pipeline = protocol::pipeline::Pipeline::new("g", "n");
        for (name, label) in [("a", Some("nightly")), ("b", None)] {
            let mut step = Step::new(name.parse().unwrap());
            step.template = Some(Template::Dollar);
            step.script = vec!["echo ${PREVIOUS_JOB_ID} ${a.data.x} ${HOME}".to_owned()];
            step.vars.insert("X".to_owned(), "${a.data.x}".to_owned());
            step.with.insert("image".to_owned(), "${a.data.x}:1".into());
            step.label = label.map(str::to_owned);
            pipeline.steps.push(step);
        }
        let record = serde_json::json!({
            "group": "g", "name": "n", "run-id": "r-1", "status": "running", "attempt": 1,
            "scheduled-at": "2026-01-01T00:00:00.000Z", "pipeline": pipeline, "steps": steps,
        });
        serde_json::from_value(record).unwrap()
    }

    #[test]
    fn all_texts_of_a_step_can_refer_to_earlier_results() {
        let found = serde_json::json!([{
            "name": "a", "status": "passed", "attempt": 1, "result": { "data": { "x": 7 } },
        }]);
        let record = record(&found);
        let step = filled(&record, StepPosition::new(1)).unwrap().unwrap();
        assert_eq!(step.script, ["echo nightly 7 ${HOME}"]);
        assert_eq!(step.vars.get("X").map(String::as_str), Some("7"));
        assert_eq!(step.with.get("image"), Some(&"7:1".into()));
    }

    #[test]
    fn a_step_with_an_unresolved_reference_gets_the_reason() {
        let record = record(&serde_json::json!([]));
        assert!(
            filled(&record, StepPosition::new(1))
                .unwrap()
                .unwrap_err()
                .contains("job a has left no result")
        );
        assert!(filled(&record, StepPosition::new(2)).is_none());
    }

    #[test]
    fn a_job_without_a_name_has_the_same_id_throughout_its_run() {
        let record = record(&serde_json::json!([]));
        let steps = &record.pipeline.as_ref().unwrap().steps;
        assert_eq!(id(&record.run_id, &steps[0]), "nightly");
        let own = id(&record.run_id, &steps[1]);
        assert_eq!((own.len(), own.clone()), (10, id(&record.run_id, &steps[1])));
        assert_ne!(own, id(&"r-2".parse().unwrap(), &steps[1]));
    }

    #[test]
    fn only_an_object_of_limited_size_is_a_result() {
        assert_eq!(result_of(br#"{"a":1}"#).unwrap(), serde_json::json!({ "a": 1 }));
        for bad in [&b"[1]"[..], b"{", b"", &vec![b' '; MAX_RESULT + 1]] {
            assert!(result_of(bad).is_err());
        }
    }
}
