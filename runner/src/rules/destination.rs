//! Determines the host to which a step sends its secrets.

use protocol::pipeline::Step;
use serde_json::Value;
use url::Url;

/// Returns host and port of a URL in the form used by secret scopes, or `None` if it has no host.
#[must_use]
pub fn of_url(url: &str) -> Option<(String, u16)> {
    let url = Url::parse(url).ok()?;
    Some((url.host_str()?.to_owned(), url.port_or_known_default()?))
}

/// Returns the only host to which a step sends its secrets. Returns `None` if it could send them
/// anywhere. This applies to commands, and to calls whose address is itself a secret.
#[must_use]
pub fn of_step(step: &Step) -> Option<(String, u16)> {
    let executor = step.executor.capabilities();
    let url = step.with.get(executor.address_key?).filter(|value| !value.is_null());
    match url {
        Some(Value::String(text)) if !text.is_empty() => of_url(text),
        None | Some(Value::String(_)) => of_url(executor.default_address?),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(executor: &str, with: &Value) -> Step {
        let step = serde_json::json!({ "name": "a", "executor": executor, "with": with });
        serde_json::from_value(step).unwrap()
    }

    #[test]
    fn a_call_sends_only_to_its_host_and_a_command_anywhere() {
        let to = |executor, with| of_step(&step(executor, &with));
        let host = |host: &str, port| Some((host.to_owned(), port));
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(to("http", json(r#"{"url": "https://H.org/x"}"#)), host("h.org", 443));
        assert_eq!(to("proxmox", json(r#"{"host": "https://pve:8006"}"#)), host("pve", 8006));
        assert_eq!(to("sevdesk", json("{}")), host("my.sevdesk.de", 443));
        assert_eq!(to("lexware", json(r#"{"base_url": ""}"#)), host("api.lexware.io", 443));
        assert_eq!(to("http", json(r#"{"url": {"secret-name": "x"}}"#)), None);
        assert_eq!(to("http", json("{}")), None);
        assert_eq!(to("local", json(r#"{"url": "https://h"}"#)), None);
    }
}
