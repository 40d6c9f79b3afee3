//! The Bob dialect: one pipeline per document, as JSON or YAML.
//!
//! `null` counts as absent. Keys of two words can be written with `-` or `_`.

mod resources;
pub(super) mod rules;
mod step;
pub(super) mod steps;

use super::container;
use super::reader::{Field, Fields, Keys, Reader};
use super::tree::Node;
use crate::diagnostic::Diagnostic;
use crate::id::PipelineId;
use crate::pipeline::{
    Admission, ExecutorKind, FailureMode, Limits, OnLost, Pipeline, Place, Quotas, Requests, Step,
    Strategy, bad_variable,
};

const PIPELINE: Keys = Keys {
    known: &[
        "group",
        "name",
        "image",
        "vars",
        "resources",
        "quotas",
        "network",
        "pull",
        "timeout",
        "on-lost",
        "retention",
        "retention-count",
        "failure",
        "on-error",
        "admission",
        "steps",
    ],
    instead: &[
        ("env", "did you mean `vars`?"),
        ("environment", "did you mean `vars`?"),
        ("variables", "did you mean `vars`?"),
        ("paused", "a pause is not part of a definition, see `bob-runner pause GROUP/NAME`"),
        ("paused-at", "a pause is not part of a definition, see `bob-runner pause GROUP/NAME`"),
        ("executor", "it belongs to a step"),
        ("cmd", "it belongs to a step"),
    ],
};

const QUOTAS: Keys = Keys { known: &["requests", "limits"], instead: &[] };
const MEMORY: (&str, &str) = ("memory", "did you mean `mem`?");
const REQUESTS: Keys = Keys { known: &["mem"], instead: &[MEMORY] };
const LIMITS: Keys = Keys { known: &["cpu", "mem"], instead: &[MEMORY] };
const ON_LOST: [(&str, OnLost); 3] =
    [("resume", OnLost::Resume), ("restart", OnLost::Restart), ("fail", OnLost::Fail)];
const FAILURE: [(&str, FailureMode); 2] =
    [("fail-fast", FailureMode::FailFast), ("continue", FailureMode::Continue)];
const STRATEGIES: [(&str, Strategy); 3] = [
    ("append", Strategy::Append),
    ("replace", Strategy::Replace),
    ("partitioned-replace", Strategy::PartitionedReplace),
];
const ADMISSION: Keys = Keys {
    known: &["concurrency", "limit", "strategy", "partition-limit", "start-delay"],
    instead: &[
        ("queue-limit", "did you mean `limit`?"),
        ("queue-strategy", "did you mean `strategy`?"),
        ("queue-partition-limit", "did you mean `partition-limit`?"),
    ],
};

/// Reads a pipeline.
///
/// # Errors
/// Every fault, at least one, in document order.
pub(super) fn read(root: &Node) -> Result<Pipeline, Vec<Diagnostic>> {
    let mut reader = Reader::default();
    let pipeline = reader.pipeline(&Field::root(root));
    match pipeline {
        Some(pipeline) if reader.is_clean() => Ok(pipeline),
        _ => Err(reader.into_faults()),
    }
}

impl Reader {
    fn pipeline(&mut self, field: &Field<'_>) -> Option<Pipeline> {
        let fields = self.map(field, &PIPELINE)?;
        let id_rule = "it is half of the name of the pipeline";
        let group = self.required(&fields, "group", id_rule).and_then(|field| {
            let text = self.text(&field)?;
            self.checked(&field, PipelineId::new(&text, "any")).map(|_| text)
        });
        let name = self.required(&fields, "name", id_rule).and_then(|field| {
            let text = self.text(&field)?;
            self.checked(&field, PipelineId::new("any", &text)).map(|_| text)
        });
        let resources = fields.get("resources").map(|field| self.resources(&field));
        let steps_rule = "a list of steps, `[]` for none";
        let steps = self
            .required(&fields, "steps", steps_rule)
            .and_then(|field| self.steps(&field, resources.as_ref()));
        let on_error = self.optional(&fields, "on-error", Self::last_step);
        let image = self.image(&fields, steps.as_deref(), on_error.as_ref());
        Some(Pipeline {
            vars: self
                .optional(&fields, "vars", |r, f| r.scalars(f, bad_variable))
                .unwrap_or_default(),
            quotas: self.optional(&fields, "quotas", Self::quotas),
            network: self.optional(&fields, "network", container::network),
            pull: self.optional(&fields, "pull", |r, f| r.word(f, &step::PULL)),
            timeout: self.optional(&fields, "timeout", Self::span),
            on_lost: self.optional(&fields, "on-lost", |r, f| r.word(f, &ON_LOST)),
            retention: self.optional(&fields, "retention", Self::span),
            retention_count: self
                .optional(&fields, "retention-count", |r, f| r.count(f, 1, u32::MAX)),
            failure: self
                .optional(&fields, "failure", |r, f| r.word(f, &FAILURE))
                .unwrap_or_default(),
            admission: self.optional(&fields, "admission", Self::admission),
            on_error: on_error.map(Box::new),
            resources: resources.map(|all| all.valid).unwrap_or_default(),
            group: group?,
            name: name?,
            image,
            steps: steps?,
        })
    }

    /// The base image, required if any step starts on it.
    fn image(
        &mut self,
        fields: &Fields<'_>,
        steps: Option<&[Step]>,
        on_error: Option<&Step>,
    ) -> Option<String> {
        let written = fields.get("steps").map(|field| field.items().into_iter().flatten());
        let written: Vec<_> = written.into_iter().flatten().collect();
        let is_needed = match steps.filter(|steps| steps.len() == written.len()) {
            Some(steps) => steps.iter().chain(on_error).any(Step::is_on_image),
            // Some steps have faults. Do not report a missing image that they might not need.
            None => written.iter().any(|step| may_begin_with_image(step.node)),
        };
        let field = if is_needed {
            let rule = "the image that the first step begins with, best with its registry";
            self.required(fields, "image", rule)?
        } else {
            fields.get("image")?
        };
        self.checked_text(&field, rules::image)
    }

    fn admission(&mut self, field: &Field<'_>) -> Option<Admission> {
        let fields = self.map(field, &ADMISSION)?;
        let count = |r: &mut Self, f: &Field<'_>| r.count(f, 1, u32::MAX);
        let admission = Admission {
            concurrency: self.optional(&fields, "concurrency", count),
            limit: self.optional(&fields, "limit", |r, f| r.count(f, 0, u32::MAX)),
            strategy: self
                .optional(&fields, "strategy", |r, f| r.word(f, &STRATEGIES))
                .unwrap_or_default(),
            partition_limit: self.optional(&fields, "partition-limit", count),
            start_delay: self.optional(&fields, "start-delay", Self::span),
        };
        if let Some(why) = rules::admission(&admission) {
            self.fault(field, why.to_owned(), None);
            return None;
        }
        Some(admission)
    }

    fn quotas(&mut self, field: &Field<'_>) -> Option<Quotas> {
        let fields = self.map(field, &QUOTAS)?;
        Some(Quotas {
            requests: self.optional(&fields, "requests", |r, f| {
                let fields = r.map(f, &REQUESTS)?;
                Some(Requests { mem: r.optional(&fields, "mem", Self::memory) })
            }),
            limits: self.optional(&fields, "limits", |r, f| {
                let fields = r.map(f, &LIMITS)?;
                Some(Limits {
                    cpu: r.optional(&fields, "cpu", |r, f| {
                        r.cpu(f).filter(|cpu| r.is_some_limit(f, cpu.share() > 0.0))
                    }),
                    mem: r.optional(&fields, "mem", |r, f| {
                        r.memory(f).filter(|mem| r.is_some_limit(f, mem.bytes() > 0))
                    }),
                })
            }),
        })
    }

    /// Rejects a limit of 0, which engines would interpret as unlimited.
    pub(in crate::dialect) fn is_some_limit(&mut self, field: &Field<'_>, is_some: bool) -> bool {
        if !is_some {
            let last = field.path.rsplit('.').next().unwrap_or_default();
            let message = format!("`{last}` of 0 lets nothing run");
            self.fault(field, message, Some("for no limit leave it out"));
        }
        is_some
    }
}

/// Whether a possibly faulty step starts on the pipeline's image, judged by its executor.
fn may_begin_with_image(step: &Node) -> bool {
    let Some(executor) = step.entry("executor") else {
        return true;
    };
    let word = executor.value.scalar();
    let executor = ExecutorKind::ALL.into_iter().find(|kind| Some(kind.as_str()) == word);
    let has_image = || step.entry("with").is_some_and(|with| with.value.entry("image").is_some());
    executor.map(ExecutorKind::capabilities).is_some_and(|executor| {
        executor.place == Place::Engine && !(executor.has_own_images && has_image())
    })
}
