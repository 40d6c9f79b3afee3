//! One step of a Bob pipeline.

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::resources::Resources;
use super::rules;
use crate::dialect::reader::{Field, Fields, Keys, Reader};
use crate::dialect::tree::{Value, quoted};
use crate::dialect::{container, handover, limits};
use crate::id::StepName;
use crate::pipeline::{
    Artifact, Backoff, Cmd, EndSignal, ExecutorKind, OnLogLimit, Place, PullPolicy, Retry, RetryOn,
    Shell, Step, Template, When, bad_variable,
};
use crate::quantity::Span;

const ARTIFACT: Keys = Keys { known: &["name", "path", "store"], instead: &[] };
const RETRY: Keys = Keys { known: &["attempts", "delay", "on", "backoff"], instead: &[] };

const RETRY_ON: [(&str, RetryOn); 2] = [("failure", RetryOn::Failure), ("lost", RetryOn::Lost)];

const BACKOFFS: [(&str, Backoff); 2] =
    [("exponential", Backoff::Exponential), ("constant", Backoff::Constant)];

const SHELLS: [(&str, Shell); 2] = [("sh", Shell::Sh), ("bash", Shell::Bash)];
const TEMPLATES: [(&str, Template); 2] = [("go", Template::Go), ("dollar", Template::Dollar)];
const ON_LOG_LIMIT: [(&str, OnLogLimit); 2] =
    [("discard", OnLogLimit::Discard), ("fail", OnLogLimit::Fail)];
const WHEN: [(&str, When); 2] = [("passed", When::Passed), ("ended", When::Ended)];

pub(super) const PULL: [(&str, PullPolicy); 3] = [
    ("always", PullPolicy::Always),
    ("missing", PullPolicy::Missing),
    ("never", PullPolicy::Never),
];

/// Maximum grace period of a step. A worker that shuts down waits for it.
const MAX_GRACE_MILLIS: u64 = 3_600_000;

impl Reader {
    /// Reads a step. `name`: its name, if it is valid.
    pub(super) fn step(
        &mut self,
        fields: &Fields<'_>,
        name: Option<StepName>,
        resources: Option<&Resources>,
    ) -> Option<Step> {
        let script = self.optional(fields, "script", Self::script).unwrap_or_default();
        if let (Some(field), None) = (fields.get("shell"), fields.get("script")) {
            let message = "`shell` is for a `script`, and there is none".to_owned();
            self.fault(&field, message, Some("write what the shell runs in `script`"));
        }
        let executor = self
            .optional(fields, "executor", |r, f| r.word(f, &ExecutorKind::named()))
            .unwrap_or_default();
        let cmd = self.command(fields, executor);
        let needs_resource = fields.get("needs_resource").and_then(|field| {
            let name = self.text(&field)?;
            self.declared(&field, name, resources)
        });
        let with = fields.get("with").and_then(|f| self.with(&f, executor)).unwrap_or_default();
        let has_job_dir = executor.capabilities().has_job_dir(with.contains_key("image"));
        Some(Step {
            vars: self
                .optional(fields, "vars", |r, f| r.scalars(f, bad_variable))
                .unwrap_or_default(),
            needs_resource,
            produces_artifact: self.optional(fields, "produces_artifact", Self::artifact),
            network: self.network(fields, executor),
            pull: self.optional(fields, "pull", |r, f| r.word(f, &PULL)),
            timeout: self.optional(fields, "timeout", Self::span),
            stop_signal: self.stop_signal(fields, executor),
            kill_grace: self.kill_grace(fields, executor),
            retry: self.optional(fields, "retry", Self::retry),
            needs: self.optional(fields, "needs", |r, f| {
                // Malformed names are reported when they are resolved.
                r.list(f).map(|items| {
                    items.iter().filter_map(|item| item.node.scalar()?.parse().ok()).collect()
                })
            }),
            executor,
            secrets: self.optional(fields, "secrets", handover::secrets).unwrap_or_default(),
            label: self.optional(fields, "label", |r, f| r.checked_text(f, rules::file_name)),
            outputs: fields
                .get("outputs")
                .and_then(|field| handover::outputs(self, &field, has_job_dir))
                .unwrap_or_default(),
            with,
            callback: self.optional(fields, "callback", handover::callback),
            script,
            shell: self.optional(fields, "shell", |r, f| r.word(f, &SHELLS)),
            entrypoint: self.entrypoint(fields, executor),
            template: self.optional(fields, "template", |r, f| r.word(f, &TEMPLATES)),
            when: self.optional(fields, "when", |r, f| r.word(f, &WHEN)).unwrap_or_default(),
            allow_failure: self.optional(fields, "allow-failure", Self::switch).unwrap_or_default(),
            on_log_limit: self
                .optional(fields, "on-log-limit", |r, f| r.word(f, &ON_LOG_LIMIT))
                .unwrap_or_default(),
            from: self.optional(fields, "from", Self::parsed),
            name: name?,
            cmd: cmd?,
        })
    }

    /// The command of a step. `Some(None)` for a step that has a script instead, or needs no command.
    fn command(&mut self, fields: &Fields<'_>, executor: ExecutorKind) -> Option<Option<Cmd>> {
        match (fields.get("cmd"), fields.get("script")) {
            (Some(_), Some(second)) => {
                let hint = Some("what one shell runs belongs to `script`");
                self.fault(&second, "there is a `cmd` already".to_owned(), hint);
                None
            }
            (Some(field), None) => self.cmd(&field).map(Some),
            // A step without a command that only groups its dependencies.
            (None, None)
                if fields.get("needs").is_some()
                    || (executor.capabilities().is_call() && fields.get("with").is_some()) =>
            {
                Some(None)
            }
            (None, Some(_)) => Some(None),
            (None, None) => {
                drop(self.required(fields, "cmd", "what the step runs"));
                None
            }
        }
    }

    /// The words before a container's command.
    fn entrypoint(&mut self, fields: &Fields<'_>, executor: ExecutorKind) -> Option<Vec<String>> {
        let field = fields.get("entrypoint")?;
        if executor.capabilities().place != Place::Engine {
            let message = format!("a step of executor {} has no image", executor.as_str());
            self.fault(&field, message, Some("leave `entrypoint` out"));
            return None;
        }
        if fields.get("cmd").is_none() && fields.get("script").is_none() {
            let message = "`entrypoint` has no command".to_owned();
            self.fault(&field, message, Some("write the command in `cmd` or `script`"));
            return None;
        }
        handover::entrypoint(self, &field)
    }

    fn stop_signal(&mut self, fields: &Fields<'_>, executor: ExecutorKind) -> Option<EndSignal> {
        let field = fields.get("stop-signal")?;
        if !executor.capabilities().has_signals {
            let message = format!("a step of executor {} takes no signal", executor.as_str());
            self.fault(&field, message, Some("leave `stop-signal` out"));
            return None;
        }
        self.word(&field, &EndSignal::NAMED)
    }

    fn kill_grace(&mut self, fields: &Fields<'_>, executor: ExecutorKind) -> Option<Span> {
        let field = fields.get("kill-grace")?;
        if executor.capabilities().is_call() {
            let message = format!("a step of executor {} is not killed", executor.as_str());
            self.fault(&field, message, Some("leave `kill-grace` out"));
            return None;
        }
        let grace = self.span(&field)?;
        if grace.as_millis() > MAX_GRACE_MILLIS {
            self.fault(&field, format!("{grace} is too long"), Some("an hour at most"));
            return None;
        }
        Some(grace)
    }

    /// The network of a step. A step without its own container would ignore it.
    fn network(&mut self, fields: &Fields<'_>, executor: ExecutorKind) -> Option<String> {
        let field = fields.get("network")?;
        if executor.capabilities().place != Place::Engine {
            let message =
                format!("a step of executor {} has the network of its host", executor.as_str());
            self.fault(&field, message, Some("leave `network` out"));
            return None;
        }
        container::network(self, &field)
    }

    /// The settings for the executor. Every key is either used or rejected.
    fn with(&mut self, field: &Field<'_>, executor: ExecutorKind) -> Option<Map<String, Json>> {
        match executor.capabilities().place {
            Place::Engine => return container::with(self, field, executor),
            Place::Host => return limits::with(self, field),
            Place::RemoteHost | Place::Service => {}
        }
        let known = executor.capabilities().with_keys;
        let fields = self.map(field, &Keys { known, instead: &[] })?;
        let there = known.iter().filter_map(|key| Some((*key, fields.get(key)?)));
        Some(there.map(|(key, field)| (key.to_owned(), handover::json(field.node))).collect())
    }

    fn cmd(&mut self, field: &Field<'_>) -> Option<Cmd> {
        let cmd = match &field.node.value {
            Value::List(_) => {
                let items = self.list(field)?;
                let words: Vec<_> = items.iter().map(|item| self.cmd_word(item)).collect();
                Cmd::Words(words.into_iter().collect::<Option<_>>()?)
            }
            Value::String(line) => Cmd::Line(line.clone()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Map(_) => {
                let message = format!(
                    "`cmd` is {}, expected a string or a list of strings",
                    field.node.kind()
                );
                self.fault(field, message, None);
                return None;
            }
        };
        match rules::command(&cmd.words()) {
            None => Some(cmd),
            Some(why) => {
                self.fault(field, format!("`cmd` {why}"), Some("name a program to run"));
                None
            }
        }
    }

    fn script(&mut self, field: &Field<'_>) -> Option<Vec<String>> {
        if let Value::String(text) = &field.node.value {
            return Some(vec![text.clone()]);
        }
        let items = self.list(field)?;
        if items.is_empty() {
            self.fault(field, "`script` is empty".to_owned(), Some("what the step runs"));
            return None;
        }
        items.iter().map(|item| self.cmd_word(item)).collect()
    }

    /// A word of a command. A scalar such as in `[sleep, 5]` is unambiguous.
    fn cmd_word(&mut self, field: &Field<'_>) -> Option<String> {
        match field.node.scalar() {
            Some(text) => Some(text.to_owned()),
            None => self.text(field),
        }
    }

    fn declared(
        &mut self,
        field: &Field<'_>,
        name: String,
        resources: Option<&Resources>,
    ) -> Option<String> {
        let declared = match resources {
            None => None,
            // If `resources` is not a list, that fault is enough.
            Some(resources) => Some(resources.declared.as_ref()?),
        };
        if declared.is_some_and(|declared| declared.contains_key(&name)) {
            return Some(name);
        }
        let known = declared.into_iter().flat_map(IndexMap::keys);
        let hint = match self.nearest(&name, known.map(String::as_str)) {
            Some(known) => format!("did you mean {}?", quoted(known)),
            None => "declare it in `resources` of the pipeline".to_owned(),
        };
        self.fault(field, format!("there is no resource {}", quoted(&name)), Some(&hint));
        None
    }

    fn artifact(&mut self, field: &Field<'_>) -> Option<Artifact> {
        let fields = self.map(field, &ARTIFACT)?;
        let name = self
            .required(&fields, "name", "what the store calls it")
            .and_then(|field| self.checked_text(&field, rules::file_name));
        let path = self
            .required(&fields, "path", "where it lies, relative to the step's working directory")
            .and_then(|field| self.checked_text(&field, rules::artifact_path));
        let store = self
            .required(&fields, "store", "a registered artifact store")
            .and_then(|field| self.parsed(&field));
        Some(Artifact { name: name?, path: path?, store: store? })
    }

    fn retry(&mut self, field: &Field<'_>) -> Option<Retry> {
        let fields = self.map(field, &RETRY)?;
        let delay = self.optional(&fields, "delay", Self::span);
        let attempts = self
            .required(&fields, "attempts", "how often the step is run at most")
            .and_then(|field| self.count(&field, 1, 100));
        let on = fields.get("on").map_or_else(|| Some(RetryOn::defaults()), |f| self.retry_on(&f));
        let backoff = self.optional(&fields, "backoff", |r, field| r.word(field, &BACKOFFS));
        Some(Retry { attempts: attempts?, delay, on: on?, backoff: backoff.unwrap_or_default() })
    }

    /// A word or a list of words.
    fn retry_on(&mut self, field: &Field<'_>) -> Option<Vec<RetryOn>> {
        let Some(items) = field.items() else {
            return self.word(field, &RETRY_ON).map(|one| vec![one]);
        };
        let words: Vec<_> = items.map(|item| self.word(&item, &RETRY_ON)).collect();
        let on: Vec<RetryOn> = words.into_iter().collect::<Option<_>>()?;
        if on.is_empty() {
            let hint = "leave `on` out to try it again after a failure";
            self.fault(field, "`on` is empty".to_owned(), Some(hint));
            return None;
        }
        Some(on)
    }
}
