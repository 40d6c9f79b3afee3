//! Converts a job to a step.

use serde_json::{Map, Value as Json};

use super::product::{self, Read};
use super::{api, proxmox};
use crate::diagnostic::Class;
use crate::dialect::bob::rules;
use crate::dialect::handover;
use crate::dialect::reader::{Field, Fields, Keys, Reader};
use crate::id::StepName;
use crate::pipeline::{
    ExecutorKind, Layout, Missing, Output, RelativeTo, SecretUse, Shell, Step, Template, Vars,
    When, bad_variable,
};

pub(super) const JOB: Keys = Keys {
    known: &["id", "job_id", "executor", "type", "product", "artifacts", "variables", "callback"],
    instead: &[
        ("name", "did you mean `id`?"),
        ("env", "did you mean `variables`?"),
        ("vars", "did you mean `variables`?"),
        ("outputs", "did you mean `artifacts`?"),
        ("image", "it belongs to `product`"),
        ("host", "it belongs to `product`"),
        ("commands", "it belongs to `product`"),
        ("script", "it belongs to `product`"),
        ("before_script", "it belongs to `product`"),
        ("params", "it belongs to `product`"),
        ("needs", "each job waits for the one before it"),
        ("jobs", "a list of jobs"),
    ],
};

const EXECUTORS: [(&str, ExecutorKind); 7] = [
    ("docker", ExecutorKind::Docker),
    ("local", ExecutorKind::Local),
    ("ssh", ExecutorKind::Ssh),
    ("proxmox", ExecutorKind::Proxmox),
    ("lexware", ExecutorKind::Lexware),
    ("sevdesk", ExecutorKind::Sevdesk),
    ("custom", ExecutorKind::Custom),
];

/// The result file of a job, which later jobs can refer to.
const RESULT: &str = "result.json";

/// The executor as named in job files.
pub(super) fn word(executor: ExecutorKind) -> &'static str {
    EXECUTORS.iter().find(|(_, known)| *known == executor).map_or("job", |(word, _)| word)
}

/// The work of a step, as read from `product`.
#[derive(Default)]
struct StepWork {
    with: Map<String, Json>,
    script: Vec<String>,
    vars: Vars,
    entrypoint: Option<Vec<String>>,
}

pub(super) fn read(
    reader: &mut Reader,
    fields: &Fields<'_>,
    name: Option<StepName>,
    position: usize,
) -> Option<Step> {
    let executor = reader
        .required(fields, "executor", "docker, local, ssh, proxmox, lexware, sevdesk or custom")
        .and_then(|field| reader.word(&field, &EXECUTORS));
    let product = reader.required(fields, "product", "what the executor is to do");
    let mut vars =
        reader.optional(fields, "variables", |r, f| r.scalars(f, bad_variable)).unwrap_or_default();
    let label = reader.optional(fields, "job_id", |r, f| r.checked_text(f, rules::file_name));
    let outputs = outputs(reader, fields, executor);
    let callback = reader.optional(fields, "callback", handover::callback);
    let executor = executor?;
    special(reader, fields, executor, &vars);
    let work = work(reader, fields, &product?, executor, &vars)?;
    vars.extend(work.vars);
    let mut secrets = Vec::new();
    named(&Json::Object(work.with.clone()), &mut secrets);
    Some(Step {
        shell: (!work.script.is_empty()).then_some(Shell::Sh),
        script: work.script,
        entrypoint: work.entrypoint,
        template: Some(Template::Dollar),
        vars,
        when: if position == 0 { When::Passed } else { When::Ended },
        executor,
        secrets: secrets.into_iter().map(SecretUse::File).collect(),
        label,
        with: work.with,
        outputs,
        callback,
        ..Step::new(name?)
    })
}

/// The artifacts of a job. The result file is always one of them.
fn outputs(
    reader: &mut Reader,
    fields: &Fields<'_>,
    executor: Option<ExecutorKind>,
) -> Vec<Output> {
    // Every job of `docker` has an image of its own.
    let has_job_dir = executor.is_some_and(|executor| executor.capabilities().has_job_dir(true));
    let relative_to = if has_job_dir { RelativeTo::JobDir } else { RelativeTo::WorkDir };
    let artifacts = fields.get("artifacts");
    let artifacts = artifacts.and_then(|field| handover::artifacts(reader, &field, relative_to));
    let mut outputs = artifacts.unwrap_or_default();
    for output in &mut outputs {
        // Replaces the container's path of the results directory by its path on the host.
        if let Some(below) = output.path.strip_prefix("mnt/").filter(|below| !below.is_empty()) {
            output.path = below.to_owned();
        }
    }
    if !outputs.iter().any(|output| output.path == RESULT) {
        outputs.push(Output {
            path: RESULT.to_owned(),
            kind: None,
            missing: Missing::Ignore,
            layout: Layout::Flat,
            relative_to,
        });
    }
    outputs
}

/// Reports variables that had a special meaning in the original runner.
fn special(reader: &mut Reader, fields: &Fields<'_>, executor: ExecutorKind, vars: &Vars) {
    let Some(field) = fields.get("variables") else {
        return;
    };
    if executor == ExecutorKind::Docker && vars.contains_key("NAMESPACE") {
        let message = "the variable NAMESPACE does not set the namespace of the container";
        let hint = Some("write `namespace` in `product`");
        reader.remark(Class::Warning, &field, message, hint);
    }
    if executor == ExecutorKind::Proxmox && vars.contains_key("WORKDIR") {
        let message =
            "the variable WORKDIR, as the place of results, is not supported by this version";
        reader.remark(Class::Unsupported, &field, message, None);
    }
}

fn work(
    reader: &mut Reader,
    fields: &Fields<'_>,
    product: &Field<'_>,
    executor: ExecutorKind,
    vars: &Vars,
) -> Option<StepWork> {
    let label = fields.get("type");
    match executor {
        ExecutorKind::Proxmox => {
            let with = proxmox::read(reader, product, label.as_ref())?;
            return Some(StepWork { with, ..StepWork::default() });
        }
        ExecutorKind::Sevdesk => {
            let with = api::read(reader, product, label.as_ref(), &api::SEVDESK)?;
            return Some(StepWork { with, ..StepWork::default() });
        }
        ExecutorKind::Lexware => {
            let with = api::read(reader, product, label.as_ref(), &api::LEXWARE)?;
            return Some(StepWork { with, ..StepWork::default() });
        }
        ExecutorKind::Docker
        | ExecutorKind::Local
        | ExecutorKind::Custom
        | ExecutorKind::Ssh
        | ExecutorKind::Podman
        | ExecutorKind::Http => {}
    }
    let table = match executor {
        ExecutorKind::Docker => &product::DOCKER,
        ExecutorKind::Ssh => &product::SSH,
        ExecutorKind::Custom => &product::CUSTOM,
        ExecutorKind::Local
        | ExecutorKind::Podman
        | ExecutorKind::Http
        | ExecutorKind::Proxmox
        | ExecutorKind::Lexware
        | ExecutorKind::Sevdesk => &product::LOCAL,
    };
    let mut read = product::read(reader, product, table)?;
    if executor == ExecutorKind::Docker && read.fields.get("tty").is_none() {
        let tty = vars.get("TTY").is_some_and(|text| text == "true" || text == "1");
        if tty {
            read.with.insert("tty".to_owned(), true.into());
        }
    }
    if let Some(label) = label.and_then(|field| reader.checked_text(&field, rules::plain)) {
        read.with.insert("label".to_owned(), label.into());
    }
    let script = program(&read, executor);
    // If its lines could not be read, those faults are enough.
    if script.is_empty() && reader.is_clean() {
        let keys = table.known.known.iter().filter(|key| matches!(**key, "commands" | "script"));
        let keys: Vec<_> = keys.map(|key| format!("`{key}`")).collect();
        let hint = format!("write what is run in {}", keys.join(" or "));
        reader.fault(product, "there is nothing to run".to_owned(), Some(&hint));
    }
    let script = if script.is_empty() { Vec::new() } else { vec![script] };
    Some(StepWork { with: read.with, script, vars: read.vars, entrypoint: read.entrypoint })
}

/// Joins the lines of a job into one program.
fn program(read: &Read<'_>, executor: ExecutorKind) -> String {
    let texts = read.texts.iter().flatten();
    if executor != ExecutorKind::Docker {
        let texts: Vec<&str> = texts.map(String::as_str).collect();
        let program = texts.join("\n");
        return if program.trim().is_empty() { String::new() } else { program };
    }
    // In a single line, a comment would hide everything after it.
    let lines: Vec<&str> = texts
        .flat_map(|text| text.lines())
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    lines.join(" && ")
}

/// Collects the names of secrets in a value. Recursion is bounded by the depth limit for documents.
fn named(value: &Json, names: &mut Vec<String>) {
    match value {
        Json::Object(entries) => {
            for (key, value) in entries {
                match value.as_str().filter(|_| key == "secret-name") {
                    Some(name) if names.iter().any(|known| known == name) => {}
                    Some(name) => names.push(name.to_owned()),
                    None => named(value, names),
                }
            }
        }
        Json::Array(items) => items.iter().for_each(|item| named(item, names)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_executor_of_job_files_has_a_name() {
        for (word, executor) in EXECUTORS {
            assert_eq!(super::word(executor), word);
        }
    }
}
