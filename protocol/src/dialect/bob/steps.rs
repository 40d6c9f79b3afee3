//! The steps of a Bob pipeline.

use std::collections::HashMap;

use super::resources::Resources;
use super::rules;
use crate::dialect::reader::{Field, Fields, Keys, Reader};
use crate::dialect::tree::{Position, quoted};
use crate::id::StepName;
use crate::pipeline::{Graph, Step};

const STEP: Keys = Keys {
    known: &[
        "name",
        "cmd",
        "script",
        "shell",
        "entrypoint",
        "template",
        "vars",
        "needs_resource",
        "produces_artifact",
        "network",
        "pull",
        "timeout",
        "stop-signal",
        "kill-grace",
        "retry",
        "needs",
        "when",
        "allow-failure",
        "on-log-limit",
        "from",
        "executor",
        "secrets",
        "label",
        "with",
        "outputs",
        "callback",
    ],
    instead: &[
        ("command", "did you mean `cmd`?"),
        ("run", "did you mean `cmd`?"),
        ("before-script", "write its lines first in `script`"),
        ("env", "did you mean `vars`?"),
        ("environment", "did you mean `vars`?"),
        ("variables", "did you mean `vars`?"),
        ("resource", "did you mean `needs_resource`?"),
        ("artifact", "did you mean `produces_artifact`?"),
        ("artifacts", "did you mean `outputs`?"),
        ("depends-on", "did you mean `needs`?"),
        ("image", "all steps begin with the image of the pipeline"),
    ],
};

/// Maximum number of steps. Each adds a few hundred bytes to the run record, which must fit into
/// one etcd request (1.5 MiB) together with the definition.
pub(in crate::dialect) const MAX_STEPS: usize = 2000;

/// Maximum number of entries in the `needs` of all steps. The work for the graph of a pipeline
/// grows with their number times the number of steps.
const MAX_NEEDS: usize = 50_000;

/// Maximum number of step names in a message.
const SHOWN: usize = 8;

impl Reader {
    pub(super) fn steps(
        &mut self,
        field: &Field<'_>,
        resources: Option<&Resources>,
    ) -> Option<Vec<Step>> {
        let items = self.list(field)?;
        if items.len() > MAX_STEPS {
            let message = format!("there are {} steps, expected at most {MAX_STEPS}", items.len());
            self.fault(field, message, Some("let one step do more, or split the pipeline"));
            return None;
        }
        let maps: Vec<Option<Fields<'_>>> =
            items.iter().map(|item| self.map(item, &STEP)).collect();
        let names = self.step_names(&items, &maps);
        let mut steps = Vec::with_capacity(items.len());
        for (fields, name) in maps.iter().zip(&names) {
            if let Some(fields) = fields {
                steps.extend(self.step(fields, name.clone(), resources));
            }
        }
        self.needs(field, &maps, &names);
        if self.is_clean() {
            self.images(&items, &steps);
        }
        Some(steps)
    }

    /// Reads the `on-error` step.
    pub(super) fn last_step(&mut self, field: &Field<'_>) -> Option<Step> {
        let fields = self.map(field, &STEP)?;
        let name = match fields.get("name") {
            Some(field) => self.parsed(&field),
            None => StepName::try_from("on_error".to_owned()).ok(),
        };
        for key in ["needs", "when", "allow-failure", "from", "needs_resource"] {
            if let Some(field) = fields.get(key) {
                let message = format!("`{key}` is not for this step");
                self.fault(&field, message, Some("it is run when all others have ended"));
            }
        }
        let step = self.step(&fields, name, None)?;
        if step.is_join() {
            self.fault(field, "`cmd` is missing".to_owned(), Some("what the step runs"));
        }
        Some(step)
    }

    /// Images cannot be merged, so a step that needs several must select one with `from`.
    fn images(&mut self, items: &[Field<'_>], steps: &[Step]) {
        let graph = Graph::of(steps);
        for (position, (item, step)) in graph.positions().zip(items.iter().zip(steps)) {
            let images = || {
                let mut images = graph.images_before(position).map(|at| &steps[at.index()].name);
                let shown: Vec<_> =
                    images.by_ref().take(SHOWN).map(|name| quoted(name.as_str())).collect();
                let more = if images.next().is_some() { ", …" } else { "" };
                (!shown.is_empty()).then(|| format!("{}{more}", shown.join(", ")))
            };
            let begins_on = graph.begins_on(position);
            if step.from.is_some() {
                if begins_on.is_some_and(|from| graph.is_image_before(position, from)) {
                    continue;
                }
                let message = match images() {
                    None => "no step before it leaves an image".to_owned(),
                    Some(names) => format!("the images before it are those of {names}"),
                };
                self.fault(item, message, Some("say in `from` which one it continues from"));
            } else if step.is_on_image()
                && begins_on.is_none()
                && let Some(names) = images()
            {
                let message = format!(
                    "the step continues from one image, and those of {names} are before it"
                );
                self.fault(item, message, Some("say in `from` which one"));
            }
        }
    }

    /// The names of all steps. `None` for a malformed one.
    fn step_names(
        &mut self,
        items: &[Field<'_>],
        maps: &[Option<Fields<'_>>],
    ) -> Vec<Option<StepName>> {
        let mut taken: HashMap<StepName, Position> = HashMap::new();
        let mut names = Vec::with_capacity(items.len());
        for (position, (item, fields)) in items.iter().zip(maps).enumerate() {
            let own = fields.as_ref().and_then(|fields| fields.get("name"));
            let name = match &own {
                Some(field) => self.parsed(field),
                None => Some(StepName::position(position)),
            };
            let place = own.unwrap_or_else(|| item.clone());
            if let Some(name) = &name
                && let Some(first) = taken.insert(name.clone(), place.node.at)
            {
                let message = if place.path.ends_with("name") {
                    format!("there is a step {name:?} already", name = name.as_str())
                } else {
                    format!(
                        "a step without a name is called by its position, and there is a step \"{name}\" already"
                    )
                };
                self.fault(&place, message, Some(&first.in_line("give each a name of its own")));
            }
            names.push(name);
        }
        names
    }

    /// Resolves the steps' dependencies and reports unknown names and cycles.
    fn needs(
        &mut self,
        steps: &Field<'_>,
        maps: &[Option<Fields<'_>>],
        names: &[Option<StepName>],
    ) {
        let of_step = maps.iter().flatten().filter_map(|fields| fields.get("needs"));
        let count: usize = of_step.filter_map(|needs| Some(needs.items()?.count())).sum();
        if count > MAX_NEEDS {
            let message = format!("the steps have {count} `needs`, expected at most {MAX_NEEDS}");
            let hint = "add a step with `needs` alone, and let others need it";
            return self.fault(steps, message, Some(hint));
        }
        let position: HashMap<&str, usize> = names
            .iter()
            .enumerate()
            .filter_map(|(position, name)| Some((name.as_ref()?.as_str(), position)))
            .collect();
        let mut edges = vec![Vec::new(); names.len()];
        let mut places = vec![None; names.len()];
        for (step, fields) in maps.iter().enumerate() {
            let Some(field) = fields.as_ref().and_then(|fields| fields.get("needs")) else {
                continue;
            };
            for item in field.items().into_iter().flatten() {
                let Some(name) = self.text(&item) else {
                    continue;
                };
                match position.get(name.as_str()) {
                    Some(needed) => edges[step].push(*needed),
                    None => {
                        let known = names.iter().flatten().map(StepName::as_str);
                        let hint = self
                            .nearest(&name, known)
                            .map(|known| format!("did you mean {}?", quoted(known)));
                        let message = format!("there is no step {}", quoted(&name));
                        self.fault(&item, message, hint.as_deref());
                    }
                }
            }
            places[step] = Some(field);
        }
        let cycle = rules::cycle(&edges);
        if let Some(field) = cycle.first().and_then(|step| places[*step].clone()) {
            let message = match cycle.as_slice() {
                [_] => "the step needs itself".to_owned(),
                _ => format!("steps need each other in a circle: {}", circle(&cycle, names)),
            };
            self.fault(&field, message, Some("remove one of these needs"));
        }
    }
}

/// Formats a cycle as `a → b → a`. The middle of a long cycle is left out.
fn circle(cycle: &[usize], names: &[Option<StepName>]) -> String {
    let name = |step: &usize| {
        names[*step].as_ref().map_or_else(|| step.to_string(), |name| name.as_str().to_owned())
    };
    let mut shown: Vec<String> = cycle.iter().take(SHOWN).map(name).collect();
    if cycle.len() > SHOWN {
        shown.push(format!("… ({} more)", cycle.len() - SHOWN));
    }
    shown.extend(cycle.first().map(name));
    shown.join(" → ")
}
