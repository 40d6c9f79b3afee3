//! Compares loaded definitions with the stored ones. Pure.
//!
//! Each definition from a file belongs to a set, its *source*. A worker only changes and removes
//! definitions of its own source, and takes over one that a user has stored only if it is the same.

use std::collections::BTreeMap;
use std::fmt;

use protocol::id::PipelineId;
use protocol::run::StoredPipeline;

use super::loaded::Definition;

/// A stored definition.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// The revision of its key.
    pub(super) revision: i64,
    /// `None` if it cannot be read.
    pub(super) stored: Option<StoredPipeline>,
}

/// A change of the store.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// Stores a definition under a name that is free.
    Create(PipelineId, StoredPipeline),
    /// Replaces the definition of this revision.
    Replace(PipelineId, i64, StoredPipeline),
    /// Removes the definition of this revision, because its file no longer contains it.
    Remove(PipelineId, i64),
}

/// Why a loaded definition cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) id: PipelineId,
    pub(super) file: String,
    pub(super) holder: Holder,
}

/// What holds the name of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    /// A user has stored another definition.
    User,
    /// Another source contains another definition.
    Source { source: String, file: String },
    /// An entry that this version cannot read.
    Unreadable,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, file, holder } = self;
        write!(f, "{file}: pipeline {id} ")?;
        match holder {
            Holder::User => write!(
                f,
                "is already stored with another definition, which `pipeline apply` or the API \
                 has stored: delete it (`bob-runner pipeline delete {id}`), or rename one of them"
            ),
            Holder::Source { source, file } => write!(
                f,
                "is already defined in {file} of the definitions {source:?}: rename one of them; \
                 or set BOB_DEFINITIONS_SOURCE={source} if this directory takes their place"
            ),
            Holder::Unreadable => write!(
                f,
                "is already stored in a form that this version cannot read: delete it \
                 (`bob-runner pipeline delete {id}`), or use a later version"
            ),
        }
    }
}

/// Returns the changes that make the store hold the loaded definitions.
///
/// # Errors
/// All conflicts. Nothing is to be changed then.
pub(super) fn compare(
    loaded: &BTreeMap<PipelineId, Definition>,
    stored: &BTreeMap<PipelineId, Entry>,
    source: &str,
) -> Result<Vec<Change>, Vec<Conflict>> {
    let (mut changes, mut conflicts) = (Vec::new(), Vec::new());
    for (id, definition) in loaded {
        match change_of(id, definition, stored.get(id), source) {
            Ok(change) => changes.extend(change),
            Err(holder) => {
                conflicts.push(Conflict { id: id.clone(), file: definition.file.clone(), holder });
            }
        }
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    let is_of_source = |entry: &Entry| {
        entry.stored.as_ref().is_some_and(|stored| stored.source.as_deref() == Some(source))
    };
    let gone = stored.iter().filter(|(id, entry)| !loaded.contains_key(*id) && is_of_source(entry));
    changes.extend(gone.map(|(id, entry)| Change::Remove(id.clone(), entry.revision)));
    Ok(changes)
}

/// Returns the change of one definition, if there is one.
fn change_of(
    id: &PipelineId,
    definition: &Definition,
    entry: Option<&Entry>,
    source: &str,
) -> Result<Option<Change>, Holder> {
    let with = |paused, paused_at| StoredPipeline {
        pipeline: definition.pipeline.clone(),
        paused,
        paused_at,
        file: Some(definition.file.clone()),
        source: Some(source.to_owned()),
    };
    let Some(entry) = entry else {
        return Ok(Some(Change::Create(id.clone(), with(false, None))));
    };
    let Some(stored) = &entry.stored else { return Err(Holder::Unreadable) };
    let is_same = stored.pipeline == definition.pipeline;
    match stored.source.as_deref() {
        Some(owner) if owner != source => {
            if is_same {
                return Ok(None);
            }
            let file = stored.file.clone().unwrap_or_else(|| "a file".to_owned());
            return Err(Holder::Source { source: owner.to_owned(), file });
        }
        None if !is_same => return Err(Holder::User),
        Some(_) | None => {}
    }
    // A paused pipeline stays paused.
    let new = with(stored.paused, stored.paused_at);
    Ok((new != *stored).then(|| Change::Replace(id.clone(), entry.revision, new)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    fn id(name: &str) -> PipelineId {
        PipelineId::new("local", name).unwrap()
    }

    fn definition(steps: u32) -> Map<String, Value> {
        json!({ "group": "local", "steps": steps }).as_object().cloned().unwrap()
    }

    fn loaded(pipelines: &[(&str, u32)]) -> BTreeMap<PipelineId, Definition> {
        let definition = |steps| Definition { file: "a.yml".into(), pipeline: definition(steps) };
        pipelines.iter().map(|(name, steps)| (id(name), definition(*steps))).collect()
    }

    /// A stored definition. `source`: its set, if a file contains it.
    fn stored(steps: u32, source: Option<&str>) -> StoredPipeline {
        StoredPipeline {
            pipeline: definition(steps),
            paused: false,
            paused_at: None,
            file: source.map(|_| "a.yml".to_owned()),
            source: source.map(str::to_owned),
        }
    }

    fn store(entries: &[(&str, StoredPipeline)]) -> BTreeMap<PipelineId, Entry> {
        let entry = |stored: &StoredPipeline| Entry { revision: 7, stored: Some(stored.clone()) };
        entries.iter().map(|(name, stored)| (id(name), entry(stored))).collect()
    }

    #[test]
    fn definitions_are_created_replaced_and_removed_with_their_files() {
        let loaded = loaded(&[("new", 1), ("same", 1), ("other", 2)]);
        let own = |steps| stored(steps, Some("here"));
        let stored = store(&[("same", own(1)), ("other", own(1)), ("gone", own(1))]);
        let expected = [
            Change::Create(id("new"), own(1)),
            Change::Replace(id("other"), 7, own(2)),
            Change::Remove(id("gone"), 7),
        ];
        assert_eq!(compare(&loaded, &stored, "here").unwrap(), expected);
    }

    #[test]
    fn a_moved_definition_names_its_new_file_and_a_paused_one_stays_paused() {
        let old = StoredPipeline {
            paused: true,
            paused_at: Some(protocol::time::Millis(9)),
            file: Some("old.yml".into()),
            ..stored(1, Some("here"))
        };
        let new = StoredPipeline { file: Some("a.yml".into()), ..old.clone() };
        let changes = compare(&loaded(&[("x", 1)]), &store(&[("x", old)]), "here").unwrap();
        assert_eq!(changes, [Change::Replace(id("x"), 7, new)]);
    }

    #[test]
    fn definitions_of_users_and_of_other_sources_are_not_touched() {
        let entries = [("user", stored(1, None)), ("foreign", stored(1, Some("there")))];
        assert_eq!(compare(&loaded(&[]), &store(&entries), "here").unwrap(), []);
        let same = compare(&loaded(&[("foreign", 1)]), &store(&entries), "here").unwrap();
        assert_eq!(same, [], "two directories can contain the same definition");
    }

    #[test]
    fn the_same_definition_of_a_user_is_taken_over() {
        let changes = compare(&loaded(&[("x", 1)]), &store(&[("x", stored(1, None))]), "here");
        let expected = [Change::Replace(id("x"), 7, stored(1, Some("here")))];
        assert_eq!(changes.unwrap(), expected);
    }

    #[test]
    fn every_conflict_is_reported_and_nothing_is_changed() {
        let mut entries =
            store(&[("user", stored(1, None)), ("foreign", stored(1, Some("there")))]);
        entries.insert(id("later"), Entry { revision: 7, stored: None });
        let loaded = loaded(&[("user", 2), ("foreign", 2), ("later", 2), ("new", 2)]);
        let conflicts = compare(&loaded, &entries, "here").unwrap_err();
        let told: Vec<String> = conflicts.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("BOB_DEFINITIONS_SOURCE=there"), "{told:?}");
        assert!(told[1].contains("cannot read"), "{told:?}");
        assert!(told[2].contains("pipeline delete local/user"), "{told:?}");
    }
}
