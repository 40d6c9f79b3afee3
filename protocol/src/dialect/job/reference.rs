//! Finds `${...}` references that can never have a value, because the job they name has not run
//! yet.

use std::collections::HashMap;

use crate::diagnostic::Class;
use crate::dialect::reader::{Field, Fields, Reader, join};
use crate::dialect::tree::{Value, quoted};

/// Checks that each job refers only to earlier jobs.
pub(super) fn check(reader: &mut Reader, maps: &[Option<Fields<'_>>]) {
    let mut position: HashMap<&str, usize> = HashMap::new();
    for (own, fields) in maps.iter().enumerate() {
        let keys = ["id", "job_id"].into_iter();
        let names = fields.iter().flat_map(|fields| keys.clone().filter_map(|key| fields.get(key)));
        for name in names {
            // The first of two jobs with the same name is the target. The duplicate is a separate
            // fault.
            position.entry(name.node.scalar().unwrap_or_default()).or_insert(own);
        }
    }
    for (own, fields) in maps.iter().enumerate() {
        for key in ["product", "variables"] {
            if let Some(field) = fields.as_ref().and_then(|fields| fields.get(key)) {
                Check { reader, own, position: &position }.look(&field);
            }
        }
    }
}

struct Check<'a, 'r> {
    reader: &'r mut Reader,
    own: usize,
    position: &'r HashMap<&'a str, usize>,
}

impl Check<'_, '_> {
    /// Recursion is bounded by the depth limit of the tree.
    fn look(&mut self, field: &Field<'_>) {
        match &field.node.value {
            Value::String(text) => {
                for name in names(text) {
                    self.name(field, name);
                }
            }
            Value::List(_) => {
                for item in field.items().into_iter().flatten() {
                    self.look(&item);
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    let path = join(&field.path, &entry.key);
                    self.look(&Field { node: &entry.value, path });
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn name(&mut self, field: &Field<'_>, name: &str) {
        if name == "PREVIOUS_RESULT" {
            if self.own == 0 {
                let message = "there is no job before this one, so PREVIOUS_RESULT stays as it is";
                self.reader.remark(Class::Warning, field, message, None);
            }
            return;
        }
        // A name that is not a job belongs to the shell.
        if let Some(asked) = self.position.get(name)
            && *asked >= self.own
        {
            let when = if *asked == self.own { "is this one" } else { "comes later" };
            let message = format!("a result of job {} is asked for, which {when}", quoted(name));
            let hint = "only jobs before this one have a result";
            self.reader.fault(field, message, Some(hint));
        }
    }
}

/// The name before the path in each `${name.path}`.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split("${").skip(1).filter_map(|rest| {
        let (inside, _) = rest.split_once('}')?;
        let end = inside.find(['.', '['])?;
        Some(&inside[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_text_with_a_path_is_a_reference() {
        let found = |text| names(text).collect::<Vec<_>>();
        assert_eq!(found("${a.b} ${c[0].d}-${e}${f.} $g.h {i.j} ${k.l"), ["a", "c", "f"]);
        assert!(found("").is_empty());
    }
}
