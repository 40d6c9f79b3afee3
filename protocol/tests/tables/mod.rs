//! Tables of `docs/wire.md` whose first columns come from the types.
//!
//! A table is between `<!-- table: CRATE/NAME -->` and `<!-- end -->`. Its first columns are
//! compared with the types, in any order of the rows. Its last column is a description by hand.
//! With `BOB_GOLDEN=write` (`just golden`), the first columns are rewritten, and descriptions are
//! kept.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::fs;

const BEGIN: &str = "<!-- table: ";
const END: &str = "<!-- end -->";

/// The columns of a table that come from the types.
pub(crate) struct Table {
    name: String,
    rows: Vec<Vec<String>>,
}

/// A table of several columns. The first one identifies a row.
pub(crate) fn table(name: &str, rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    Table { name: name.to_owned(), rows: rows.into_iter().collect() }
}

/// A table of names alone.
pub(crate) fn names(name: &str, names: impl IntoIterator<Item = String>) -> Table {
    table(name, names.into_iter().map(|name| vec![name]))
}

/// A name as a table shows it.
pub(crate) fn code(name: &str) -> String {
    format!("`{}`", name.replace('|', "\\|"))
}

/// Several names in one cell.
pub(crate) fn list<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| code(name.as_ref())).collect();
    names.join(", ")
}

/// The page.
pub(crate) fn page() -> String {
    fs::read_to_string(path()).unwrap()
}

fn path() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/wire.md")
}

/// Compares the tables of a crate with the page, or writes them.
pub(crate) fn check(of_crate: &str, tables: &[Table]) {
    let mut page = page();
    let mut wrong = Vec::new();
    for name in page.lines().filter_map(|line| line.strip_prefix(BEGIN)) {
        let name = name.trim_end_matches(" -->");
        if name.starts_with(of_crate) && !tables.iter().any(|table| table.name == name) {
            wrong.push(format!("table {name}: no type is compared with it"));
        }
    }
    for table in tables {
        let (before, own, after) = parts(&page, &table.name);
        let (written, problems) = table.against(&own);
        wrong.extend(problems);
        page = format!("{before}{written}{after}");
    }
    if std::env::var_os("BOB_GOLDEN").is_some_and(|value| value == "write") {
        fs::write(path(), &page).unwrap();
        wrong.retain(|problem| problem.ends_with(NO_DESCRIPTION));
    }
    assert!(wrong.is_empty(), "docs/wire.md, see `just golden`:\n{}", wrong.join("\n"));
}

const NO_DESCRIPTION: &str = "has no description";

/// The page up to a table, the table, and the rest.
fn parts(page: &str, name: &str) -> (String, String, String) {
    let begin = format!("{BEGIN}{name} -->\n");
    let Some((before, rest)) = page.split_once(&begin) else { panic!("no table {name}") };
    let Some((own, after)) = rest.split_once(END) else { panic!("table {name} has no end") };
    (format!("{before}{begin}"), own.to_owned(), format!("{END}{after}"))
}

/// The cells of a row.
fn cells(row: &str) -> Vec<String> {
    let row = row.replace("\\|", "\0");
    let row = row.trim().trim_start_matches('|').strip_suffix('|').unwrap_or_default();
    row.split('|').map(|cell| cell.trim().replace('\0', "\\|")).collect()
}

/// Identifies a row, whether its name is marked as optional or not.
fn key(cell: &str) -> &str {
    cell.trim_end_matches('`').trim_end_matches('?')
}

impl Table {
    /// The table as it should be, and its differences from `own`.
    fn against(&self, own: &str) -> (String, Vec<String>) {
        let Self { name, rows } = self;
        let mut lines = own.lines();
        let head: Vec<&str> = lines.by_ref().take(2).collect();
        let width = head.first().map_or(0, |head| cells(head).len());
        let mut wrong = Vec::new();
        let mut written: Vec<Vec<String>> = Vec::new();
        for found in lines.map(cells) {
            let Some(expected) = rows.iter().find(|row| key(&row[0]) == key(&found[0])) else {
                wrong.push(format!("table {name}: {} is not in the types", found[0]));
                continue;
            };
            if !found.starts_with(expected) {
                let found = &found[..expected.len().min(found.len())];
                wrong.push(format!("table {name}: {found:?} should be {expected:?}"));
            }
            let rest = found.into_iter().skip(expected.len());
            written.push(expected.iter().cloned().chain(rest).collect());
        }
        for expected in rows {
            if !written.iter().any(|row| row[0] == expected[0]) {
                wrong.push(format!("table {name}: {} is missing", expected[0]));
                written.push(expected.clone());
            }
        }
        for row in &mut written {
            row.resize(width, String::new());
            if row.last().is_none_or(String::is_empty) {
                wrong.push(format!("table {name}: {} {NO_DESCRIPTION}", row[0]));
            }
        }
        let head = head.into_iter().map(str::to_owned);
        let cell = |cell: &String| if cell.is_empty() { " |".into() } else { format!(" {cell} |") };
        let rows =
            written.iter().map(|row| format!("|{}", row.iter().map(cell).collect::<String>()));
        let lines: Vec<String> = head.chain(rows).collect();
        (lines.join("\n") + "\n", wrong)
    }
}
