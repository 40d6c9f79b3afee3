//! The descendants of a process, read from `/proc`.

use std::collections::{BTreeMap, BTreeSet};

/// All descendants of a process.
pub(super) fn below(ancestor: i64) -> BTreeSet<i64> {
    let mut children: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    for entry in entries {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The process name in parentheses can contain anything, so parse after the last one.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut look) = (BTreeSet::new(), vec![ancestor]);
    while let Some(next) = look.pop() {
        for child in children.get(&next).into_iter().flatten() {
            if found.insert(*child) {
                look.push(*child);
            }
        }
    }
    found
}
