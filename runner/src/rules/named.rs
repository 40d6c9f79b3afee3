//! Resolves named secrets in an executor's settings: replaces `{secret-name: NAME}` by the value.

use serde_json::{Map, Value};

/// The key of a reference to a secret.
const KEY: &str = "secret-name";

/// Returns `with` with each reference replaced by its secret. The result must not be logged.
///
/// # Errors
/// The name of a secret for which `value_of` returns `None`.
pub fn filled(
    with: &Map<String, Value>,
    value_of: &dyn Fn(&str) -> Option<String>,
) -> Result<Map<String, Value>, String> {
    let filled = with.iter().map(|(key, value)| Ok((key.clone(), one(value, value_of)?)));
    filled.collect()
}

/// The recursion is bounded because the depth of a document is.
fn one(value: &Value, value_of: &dyn Fn(&str) -> Option<String>) -> Result<Value, String> {
    match value {
        Value::Object(entries) => match entries.get(KEY).and_then(Value::as_str) {
            Some(name) if entries.len() == 1 => {
                value_of(name).map(Value::String).ok_or_else(|| name.to_owned())
            }
            Some(_) | None => Ok(Value::Object(filled(entries, value_of)?)),
        },
        Value::Array(items) => items.iter().map(|item| one(item, value_of)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_is_replaced_by_its_secret_at_any_depth() {
        let with = json!({
            "token": {"secret-name": "pve"},
            "params": [{"password": {"secret-name": "root"}, "user": "secret-name"}],
            "count": 3,
        });
        let of = |name: &str| (name != "gone").then(|| format!("value of {name}"));
        let put = filled(with.as_object().unwrap(), &of).unwrap();
        assert_eq!(
            Value::Object(put),
            json!({
                "token": "value of pve",
                "params": [{"password": "value of root", "user": "secret-name"}],
                "count": 3,
            })
        );
        let gone = json!({"a": [{"secret-name": "gone"}]});
        assert_eq!(filled(gone.as_object().unwrap(), &of).unwrap_err(), "gone");
    }
}
