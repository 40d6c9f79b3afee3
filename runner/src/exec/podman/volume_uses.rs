//! Named volumes as the engine describes them, and the order of their last use.

use std::collections::HashMap;

use parking_lot::Mutex;
use protocol::names;
use serde::Deserialize;
use serde_json::Value;

/// An inspected volume.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Described {
    #[serde(default)]
    pub(super) name: String,
    /// In RFC 3339, with the time zone of the engine.
    #[serde(default)]
    created_at: String,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
    #[serde(default)]
    options: Option<HashMap<String, Value>>,
}

impl Described {
    /// Whether a step created it, so that nothing else on the host backs it.
    pub(super) fn is_of_steps(&self) -> bool {
        let labels = self.labels.as_ref();
        let is_ours = labels.and_then(|labels| labels.get(names::LABEL_ROLE));
        is_ours.is_some_and(|role| role == SHARED)
            && self.options.as_ref().is_none_or(HashMap::is_empty)
    }
}

/// The role label of named volumes that steps created and share.
pub(super) const SHARED: &str = "shared";

/// The order in which this process last used volumes. The engine stores only their creation.
#[derive(Debug, Default)]
pub(super) struct VolumeUses(Mutex<HashMap<String, u64>>);

impl VolumeUses {
    pub(super) fn note(&self, name: &str) {
        let mut uses = self.0.lock();
        let next = uses.values().max().map_or(1, |last| last + 1);
        uses.insert(name.to_owned(), next);
    }

    /// Sorts volumes by their last use, or by their creation if this process has not used them.
    /// Forgets all others.
    pub(super) fn sort(&self, volumes: &mut [Described]) {
        let mut uses = self.0.lock();
        uses.retain(|name, _| volumes.iter().any(|volume| volume.name == *name));
        let used = |volume: &Described| uses.get(&volume.name).copied();
        volumes.sort_by(|one, other| {
            (used(one), &one.created_at).cmp(&(used(other), &other.created_at))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_volume_is_the_steps_only_with_their_label_and_nothing_behind_it() {
        let is_of_steps =
            |json: Value| serde_json::from_value::<Described>(json).unwrap().is_of_steps();
        assert!(is_of_steps(json!({ "Labels": { "bob.role": "shared" }, "Options": {} })));
        assert!(is_of_steps(json!({ "Labels": { "bob.role": "shared" } })));
        for other in [
            json!({}),
            json!({ "Labels": {} }),
            json!({ "Labels": { "bob.run": "r-1" } }),
            json!({ "Labels": { "bob.role": "shared" }, "Options": { "device": "/etc" } }),
        ] {
            assert!(!is_of_steps(other.clone()), "{other}");
        }
    }

    #[test]
    fn volumes_are_sorted_by_their_last_use_and_else_by_their_creation() {
        let volume = |name: &str, created: &str| -> Described {
            serde_json::from_value(json!({ "Name": name, "CreatedAt": created })).unwrap()
        };
        let all = || {
            vec![
                volume("used-last", "2026-01-01T00:00:00Z"),
                volume("used-first", "2026-01-04T00:00:00Z"),
                volume("new", "2026-01-03T00:00:00Z"),
                volume("old", "2026-01-02T00:00:00Z"),
            ]
        };
        let uses = VolumeUses::default();
        for name in ["used-last", "gone", "used-first", "used-last"] {
            uses.note(name);
        }
        let mut sorted = all();
        uses.sort(&mut sorted);
        let names: Vec<&str> = sorted.iter().map(|volume| &*volume.name).collect();
        assert_eq!(names, ["old", "new", "used-first", "used-last"]);
        assert_eq!(uses.0.lock().len(), 2, "the rest is forgotten");
    }
}
