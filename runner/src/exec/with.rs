//! The keys of a step's `with`. Each is used by the step's executor or rejected, never ignored.

use protocol::pipeline::ExecutorKind;
use serde_json::{Map, Value};

/// Whether an executor knows every key.
///
/// # Errors
/// A sentence that names the step and the key.
pub(super) fn has_known_keys(
    name: &str,
    executor: ExecutorKind,
    with: &Map<String, Value>,
) -> Result<(), String> {
    let known = executor.capabilities().with_keys;
    let Some(odd) = with.keys().find(|key| !known.contains(&key.as_str())) else {
        return Ok(());
    };
    let near = known.iter().find(|known| strsim::damerau_levenshtein(known, odd) <= 2);
    let hint = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the keys are {}", known.join(", ")),
    };
    Err(format!("step {name}: `with` of executor {} has no key `{odd}`: {hint}", executor.as_str()))
}
