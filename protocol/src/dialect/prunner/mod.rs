//! prunner's `pipelines.yml`: several pipelines, whose tasks are scripts that run on the host.
//!
//! `null` counts as absent. An unknown key is only a warning: prunner ignores such keys, so
//! existing files contain some.

mod duration;
mod load;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use self::duration::duration;
pub use self::load::{Loaded, load};
use super::reader::{Field, Fields, Keys, Reader, join};
use super::tree::{Node, Value, quoted};
use crate::diagnostic::Diagnostic;
use crate::id::{PipelineId, StepName, StepPosition};
use crate::pipeline::{
    Admission, EndSignal, ExecutorKind, FailureMode, Graph, Pipeline, Shell, Step, Strategy,
    Template, Vars, bad_variable, depths,
};
use crate::quantity::Span;

/// The group of every pipeline in such a file.
const GROUP: &str = "local";
/// Name of the task that runs if a job failed.
const ON_ERROR: &str = "on_error";
/// Grace period of a task.
const GRACE_MILLIS: u64 = 2_000;
/// Variable that holds the task's name.
const TASK_NAME: &str = "TASK_NAME";

const FILE: Keys = Keys { known: &["pipelines"], instead: &[] };
const PIPELINE: Keys = Keys {
    known: &[
        "concurrency",
        "queue_limit",
        "queue_strategy",
        "queue_partition_limit",
        "start_delay",
        "continue_running_tasks_after_failure",
        "retention_period",
        "retention_count",
        "env",
        "tasks",
        "on_error",
    ],
    instead: &[
        ("steps", "did you mean `tasks`?"),
        ("jobs", "did you mean `tasks`?"),
        ("vars", "did you mean `env`?"),
        ("environment", "did you mean `env`?"),
    ],
};
const TASK: Keys = Keys {
    known: &["script", "depends_on", "allow_failure", "env"],
    instead: &[
        ("needs", "did you mean `depends_on`?"),
        ("cmd", "did you mean `script`?"),
        ("vars", "did you mean `env`?"),
        ("environment", "did you mean `env`?"),
    ],
};
const LAST: Keys = Keys {
    known: &["script", "env"],
    instead: &[("depends_on", "it is run when all tasks have ended")],
};
const STRATEGIES: [(&str, Strategy); 3] = [
    ("append", Strategy::Append),
    ("replace", Strategy::Replace),
    ("partitioned_replace", Strategy::PartitionedReplace),
];

/// Reads all pipelines of a file, ordered by name.
///
/// # Errors
/// Every fault, at least one, followed by the warnings.
pub(super) fn read(root: &Node) -> Result<(Vec<Pipeline>, Vec<Diagnostic>), Vec<Diagnostic>> {
    let mut reader = Reader::default();
    let pipelines = reader.file(&Field::root(root));
    match pipelines {
        Some(pipelines) if reader.is_clean() => Ok((pipelines, reader.into_remarks())),
        Some(_) | None => Err(reader.into_diagnostics()),
    }
}

impl Reader {
    fn file(&mut self, field: &Field<'_>) -> Option<Vec<Pipeline>> {
        let fields = self.map_with_warnings(field, &FILE)?;
        let all = self.required(&fields, "pipelines", "the pipelines, each by its name")?;
        let mut read = BTreeMap::new();
        for (name, field) in self.named(&all)? {
            let before = self.count_of_faults();
            if let Some(pipeline) = self.definition(&name, &field) {
                read.insert(name.clone(), pipeline);
            }
            self.prefix_messages(before, &format!("invalid pipeline definition {name:?}: "));
        }
        Some(read.into_values().collect())
    }

    /// The entries of a map whose keys are names.
    fn named<'a>(&mut self, field: &Field<'a>) -> Option<Vec<(String, Field<'a>)>> {
        let Value::Map(entries) = &field.node.value else {
            let message = format!("`{}` is {}, expected a map", last(field), field.node.kind());
            self.fault(field, message, None);
            return None;
        };
        let entries = entries.iter().map(|entry| {
            let path = join(&field.path, &entry.key);
            (entry.key.clone(), Field { node: &entry.value, path })
        });
        Some(entries.collect())
    }

    fn definition(&mut self, name: &str, field: &Field<'_>) -> Option<Pipeline> {
        if let Err(bad) = PipelineId::new(GROUP, name) {
            self.fault(field, bad.to_string(), None);
        }
        let fields = self.map_with_warnings(field, &PIPELINE)?;
        let vars = self.env(&fields);
        let tasks = fields.get("tasks").and_then(|field| self.tasks(&field));
        let on_error = self.optional(&fields, "on_error", Self::on_error);
        if let (Some(field), Some(steps)) = (fields.get("on_error"), &tasks)
            && steps.iter().any(|step| step.name.as_str() == ON_ERROR)
        {
            let message = format!("there is a task {ON_ERROR:?} already");
            self.fault(&field, message, Some("give the task another name"));
        }
        let keeps_on = self
            .optional(&fields, "continue_running_tasks_after_failure", Self::switch)
            .unwrap_or_default();
        let retention = self.span_or_none(&fields, "retention_period");
        let retention_count = self.natural(&fields, "retention_count").filter(|count| *count > 0);
        let admission = self.queue(&fields, field);
        Some(Pipeline {
            vars,
            retention,
            retention_count,
            failure: if keeps_on { FailureMode::Continue } else { FailureMode::FailFast },
            on_error: on_error.map(Box::new),
            admission,
            steps: match fields.get("tasks") {
                Some(_) => tasks?,
                None => Vec::new(),
            },
            ..Pipeline::new(GROUP, name)
        })
    }

    /// The admission policy. The default concurrency is one.
    fn queue(&mut self, fields: &Fields<'_>, whole: &Field<'_>) -> Option<Admission> {
        let concurrency = self.natural(fields, "concurrency").unwrap_or(0).max(1);
        let limit = self.natural(fields, "queue_limit");
        let partition_limit = self.natural(fields, "queue_partition_limit");
        let strategy = self
            .optional(fields, "queue_strategy", |r, f| r.word(f, &STRATEGIES))
            .unwrap_or_default();
        let start_delay = self.span_or_none(fields, "start_delay");
        let why = match (strategy, limit, partition_limit) {
            (Strategy::PartitionedReplace, Some(_), _) => {
                Some("queue_limit is not allowed with queue_strategy partitioned_replace")
            }
            (Strategy::PartitionedReplace, None, None | Some(0)) => Some(
                "queue_strategy partitioned_replace needs a queue_partition_limit of at least 1",
            ),
            (Strategy::Append | Strategy::Replace, _, Some(_)) => Some(
                "queue_partition_limit is allowed with queue_strategy partitioned_replace alone",
            ),
            (Strategy::Append | Strategy::Replace, Some(0), None) if start_delay.is_some() => {
                Some("start_delay needs a queue, and queue_limit 0 allows none")
            }
            (_, _, _) => None,
        };
        if let Some(why) = why {
            self.fault(whole, why.to_owned(), None);
            return None;
        }
        // Without a limit, there would be no last entry to replace.
        let limit = limit.or_else(|| (strategy == Strategy::Replace).then_some(1));
        Some(Admission {
            concurrency: Some(concurrency),
            limit,
            strategy,
            partition_limit,
            start_delay,
        })
    }

    fn on_error(&mut self, field: &Field<'_>) -> Option<Step> {
        let fields = self.map_with_warnings(field, &LAST)?;
        let script = self.script_lines(&fields);
        if script.is_empty() {
            let message = "`script` is missing".to_owned();
            self.fault(field, message, Some("what is run for a job that failed"));
            return None;
        }
        let vars = self.env(&fields);
        Some(step(StepName::try_from(ON_ERROR.to_owned()).ok()?, script, vars))
    }

    /// The tasks, each after its dependencies and otherwise ordered by name.
    fn tasks(&mut self, field: &Field<'_>) -> Option<Vec<Step>> {
        let named = self.named(field)?;
        let names: BTreeSet<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        let mut read: BTreeMap<String, Step> = BTreeMap::new();
        for (name, field) in &named {
            if let Some(task) = self.task(name, field, &names) {
                read.insert(name.clone(), task);
            }
        }
        if read.len() < named.len() {
            return None;
        }
        let mut steps: Vec<Step> = read.into_values().collect();
        let graph = Graph::of(&steps);
        let indices = |needs: &[StepPosition]| needs.iter().map(|needed| needed.index()).collect();
        let needs: Vec<Vec<usize>> = graph.positions().map(|at| indices(graph.needs(at))).collect();
        let depths = depths(&needs);
        let circle = circle(&needs, &depths);
        if !circle.is_empty() {
            let shown: Vec<_> = circle.iter().map(|at| quoted(steps[*at].name.as_str())).collect();
            let message = match shown.as_slice() {
                [only] => format!("task {only} depends on itself"),
                all => format!("the tasks {} depend on each other in a circle", all.join(", ")),
            };
            self.fault(field, message, Some("break the circle"));
            return None;
        }
        // The sort is stable, and the steps are already ordered by name.
        let depth: HashMap<StepName, Option<usize>> =
            steps.iter().map(|step| step.name.clone()).zip(depths).collect();
        steps.sort_by_key(|step| depth.get(&step.name).copied().flatten());
        Some(steps)
    }

    fn task(&mut self, name: &str, field: &Field<'_>, names: &BTreeSet<&str>) -> Option<Step> {
        let own = StepName::try_from(name.to_owned());
        if let Err(bad) = &own {
            self.fault(field, format!("task {}: {bad}", quoted(name)), None);
        }
        let empty = Node { value: Value::Map(Vec::new()), at: field.node.at };
        let node = if field.node.value == Value::Null { &empty } else { field.node };
        let field = &Field { node, path: field.path.clone() };
        let fields = self.map_with_warnings(field, &TASK)?;
        let mut needs = Vec::new();
        for item in fields.get("depends_on").and_then(|f| self.list(&f)).into_iter().flatten() {
            let Some(needed) = self.scalar(&item) else { continue };
            if names.contains(needed.as_str()) {
                needs.extend(StepName::try_from(needed));
                continue;
            }
            let others = names.iter().copied().filter(|other| *other != name);
            let hint = self
                .nearest(&needed, others)
                .map(|known| format!("did you mean {}?", quoted(known)));
            let message =
                format!("task {} depends on {}, and there is none", quoted(name), quoted(&needed));
            self.fault(&item, message, hint.as_deref());
        }
        let script = self.script_lines(&fields);
        let mut vars = Vars::new();
        vars.insert(TASK_NAME.to_owned(), name.to_owned());
        vars.extend(self.env(&fields));
        let allow_failure =
            self.optional(&fields, "allow_failure", Self::switch).unwrap_or_default();
        let step = step(own.ok()?, script, vars);
        Some(Step { needs: Some(needs), allow_failure, ..step })
    }

    fn script_lines(&mut self, fields: &Fields<'_>) -> Vec<String> {
        let items = fields.get("script").and_then(|field| self.list(&field));
        items.into_iter().flatten().filter_map(|item| self.scalar(&item)).collect()
    }

    fn env(&mut self, fields: &Fields<'_>) -> Vars {
        self.optional(fields, "env", |r, f| r.scalars(f, bad_variable)).unwrap_or_default()
    }

    /// A scalar as text.
    fn scalar(&mut self, field: &Field<'_>) -> Option<String> {
        match field.node.scalar() {
            Some(text) => Some(text.to_owned()),
            None => self.text(field),
        }
    }

    /// A non-negative whole number.
    fn natural(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<u32> {
        let field = fields.get(key)?;
        if let Value::Number(text) = &field.node.value
            && let Some(positive) = text.strip_prefix('-')
            && !positive.is_empty()
            && positive.bytes().all(|b| b.is_ascii_digit())
        {
            self.fault(&field, format!("{key} is {text}, and must not be negative"), None);
            return None;
        }
        self.count(&field, 0, u32::MAX)
    }

    /// A duration. `None` if it is 0.
    fn span_or_none(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<Span> {
        let field = fields.get(key)?;
        let (Value::String(text) | Value::Number(text)) = &field.node.value else {
            let message = format!("{key} is {}, expected a duration", field.node.kind());
            self.fault(&field, message, Some("such as 500ms, 10s, 1h30m"));
            return None;
        };
        match duration(text) {
            Ok(0) => None,
            Ok(nanos) => {
                // Rounded up to a millisecond, because 0 would mean no limit.
                let millis = u64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(u64::MAX);
                let span = Span::from_millis(millis);
                span.map_err(|bad| self.fault(&field, format!("{key}: {bad}"), None)).ok()
            }
            Err(why) => {
                self.fault(&field, format!("{key} is {}, {why}", quoted(text)), None);
                None
            }
        }
    }
}

fn last(field: &Field<'_>) -> String {
    field.path.rsplit('.').next().unwrap_or_default().to_owned()
}

/// A script that runs on the host, with prunner's settings.
fn step(name: StepName, script: Vec<String>, vars: Vars) -> Step {
    let runs = !script.is_empty();
    Step {
        script,
        shell: runs.then_some(Shell::Bash),
        template: runs.then_some(Template::Go),
        stop_signal: runs.then_some(EndSignal::Int),
        kill_grace: Span::from_millis(GRACE_MILLIS).ok().filter(|_| runs),
        vars,
        executor: ExecutorKind::Local,
        ..Step::new(name)
    }
}

/// The tasks on cycles: those without a depth that others of them depend on.
fn circle(needs: &[Vec<usize>], depths: &[Option<usize>]) -> BTreeSet<usize> {
    let mut left: BTreeSet<usize> = (0..needs.len()).filter(|at| depths[*at].is_none()).collect();
    loop {
        let needed: BTreeSet<usize> = left.iter().flat_map(|at| needs[*at].clone()).collect();
        let before = left.len();
        left.retain(|at| needed.contains(at));
        if left.len() == before {
            return left;
        }
    }
}
