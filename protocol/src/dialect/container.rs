//! Keys of a step that runs in a container: `network` and `with`.

use serde_json::{Map, Value as Json};

use super::bob::rules;
use super::reader::{Field, Keys, Reader};
use super::tree::quoted;
use crate::pipeline::{BadMount, ExecutorKind, Mount, Network, ProcessLimits};

/// The hint for limits on a container.
const LIMITS: (&str, &str) =
    (ProcessLimits::KEY, "the limits of a container belong to `quotas.limits` of the pipeline");

/// The keys of a step on its run's image, with hints for keys that belong elsewhere.
const PODMAN: Keys = Keys {
    known: ExecutorKind::Podman.capabilities().with_keys,
    instead: &[
        LIMITS,
        ("image", "only a step of executor docker can have an image of its own"),
        ("mounts", "only a step of executor docker with an `image` of its own has mounts"),
        ("volumes", "only a step of executor docker with an `image` of its own has mounts"),
        ("env", "did you mean `vars` of the step?"),
        ("network", "it belongs to the step"),
    ],
};

const DOCKER: Keys = Keys {
    known: ExecutorKind::Docker.capabilities().with_keys,
    instead: &[
        LIMITS,
        ("volumes", "did you mean `mounts`?"),
        ("env", "did you mean `vars` of the step?"),
        ("network", "it belongs to the step"),
        ("privileged", "a step has no more rights than its container"),
    ],
};

/// Reads the network of a step or of a whole pipeline.
pub(super) fn network(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let text = reader.text(field)?;
    match text.parse::<Network>() {
        Ok(_) => Some(text),
        Err(why) => {
            reader.fault(field, format!("{} {} {why}", field.name(), quoted(&text)), None);
            None
        }
    }
}

/// Reads `with` of a step on its run's image, or of one with its own image.
pub(super) fn with(
    reader: &mut Reader,
    field: &Field<'_>,
    executor: ExecutorKind,
) -> Option<Map<String, Json>> {
    let keys = if executor.capabilities().has_own_images { &DOCKER } else { &PODMAN };
    let fields = reader.map(field, keys)?;
    if fields.get("image").is_none() {
        for key in ["namespace", "mounts", "tty"] {
            if let Some(field) = fields.get(key) {
                let message = format!("`{key}` is for a step with an image of its own");
                let hint = "add `image` to `with`, or leave it out";
                reader.fault(&field, message, Some(hint));
            }
        }
    }
    let image = reader.optional(&fields, "image", |r, f| r.checked_text(f, rules::image));
    let namespace = reader.optional(&fields, "namespace", |r, f| r.checked_text(f, rules::plain));
    let label = reader.optional(&fields, "label", |r, f| r.checked_text(f, rules::plain));
    let all = [
        ("image", image.map(Json::from)),
        ("namespace", namespace.map(Json::from)),
        ("mounts", reader.optional(&fields, "mounts", mounts)),
        ("tty", reader.optional(&fields, "tty", Reader::switch).map(Json::from)),
        ("label", label.map(Json::from)),
    ];
    Some(all.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
}

/// Reads the mounts of a step with its own image.
pub(super) fn mounts(reader: &mut Reader, field: &Field<'_>) -> Option<Json> {
    let items = reader.list(field)?;
    Some(items.iter().filter_map(|item| mount(reader, item)).collect())
}

fn mount(reader: &mut Reader, field: &Field<'_>) -> Option<String> {
    let text = reader.text(field)?;
    // The executor validates it once the results of earlier jobs are filled in.
    if text.contains("${") && !text.chars().any(char::is_control) {
        return Some(text);
    }
    match text.parse::<Mount>() {
        Ok(_) => Some(text),
        Err(why) => {
            let hint =
                (why == BadMount::Form).then_some("such as /host/folder:/folder or name:/data:ro");
            let name = field.path.rsplit('.').next().unwrap_or_default();
            reader.fault(field, format!("`{name}` {} {why}", quoted(&text)), hint);
            None
        }
    }
}
