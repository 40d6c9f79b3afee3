//! Files of variables (`.env`) that are added to the environment of steps on this host.

use std::cell::Cell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use protocol::command::bad_variable;

use super::{Environment, Secret};

/// Default files, as in prunner.
const DEFAULT_FILES: [&str; 2] = [".env", ".env.local"];
/// Variable with the file names, used if the command line has none.
const VARIABLE: &str = "PRUNNER_ENV_FILES";
/// Prefix of variables for the program itself, which steps do not receive.
const OURS: &str = "BOB_";
/// Maximum size of a file, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// Variables in order. A later one overrides an earlier one. Values can be secrets.
pub type StepEnv = Vec<(String, Secret<String>)>;

/// The files to read: from the command line, otherwise from `PRUNNER_ENV_FILES`, otherwise the
/// default files. Empty names are ignored.
#[must_use]
pub fn named(typed: &[String], environment: &Environment) -> Vec<PathBuf> {
    let of = |names: &mut dyn Iterator<Item = &str>| {
        names.map(str::trim).filter(|name| !name.is_empty()).map(PathBuf::from).collect()
    };
    if !typed.is_empty() {
        return of(&mut typed.iter().map(String::as_str));
    }
    match environment.get_set(VARIABLE) {
        Some(names) => of(&mut names.split(',')),
        None => of(&mut DEFAULT_FILES.into_iter()),
    }
}

/// Reads the variables in these files, with a warning for each that steps do not receive. A missing
/// file counts as empty.
///
/// # Errors
/// The file and line of a fault. The message never contains a value.
pub fn read(files: &[PathBuf]) -> Result<(StepEnv, Vec<String>), String> {
    let (mut read, mut warnings) = (StepEnv::new(), Vec::new());
    for file in files {
        let Some(text) = text_of(file)? else { continue };
        for (name, value) in variables(&text).map_err(|why| format!("{}: {why}", file.display()))? {
            if name.starts_with(OURS) {
                warnings.push(format!(
                    "{}: {name} is left out: steps have nothing that begins with {OURS}",
                    file.display()
                ));
                continue;
            }
            read.push((name, Secret::new(value)));
        }
    }
    Ok((read, warnings))
}

/// The content of a file. `None` if it does not exist.
fn text_of(file: &Path) -> Result<Option<String>, String> {
    let unread = |cause: &dyn std::fmt::Display| format!("cannot read {}: {cause}", file.display());
    let mut bytes = Vec::new();
    let opened = match std::fs::File::open(file) {
        Ok(opened) => opened,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(unread(&cause)),
    };
    opened.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|cause| unread(&cause))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(unread(&format_args!("it has more than {MAX_BYTES} bytes")));
    }
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let text = std::str::from_utf8(bytes).map_err(|cause| unread(&cause))?;
    // Terminates the last line.
    Ok(Some(format!("{text}\n")))
}

fn variables(text: &str) -> Result<Vec<(String, String)>, String> {
    let text = equals_signs_for_colons(text);
    let begun = Rc::new(Cell::new(0));
    let lines = Lines { left: text.as_bytes(), begun: Rc::clone(&begun) };
    let mut found = Vec::new();
    for variable in dotenvy::Iter::new(lines) {
        let (name, value) = variable.map_err(|fault| {
            // The parser's own message quotes the line, which can contain a secret.
            if let dotenvy::Error::LineParse(text, _) = &fault {
                let line = begun.get().saturating_sub(text.lines().count().saturating_sub(1));
                return format!("line {line} is not NAME=VALUE, or has a quote that is left open");
            }
            fault.to_string()
        })?;
        if let Some(expected) = bad_variable(&name, &value) {
            return Err(format!("line {}: a variable must have {expected}", begun.get()));
        }
        found.push((name, value));
    }
    Ok(found)
}

/// Replaces `NAME: VALUE` by `NAME=VALUE`. prunner's parser, godotenv, accepts both.
fn equals_signs_for_colons(text: &str) -> String {
    let mut converted = String::with_capacity(text.len());
    let mut quote = None;
    for line in text.split_inclusive('\n') {
        // Inside a quoted value, a line is part of that value.
        let colon = if quote.is_none() { colon_after_name(line) } else { None };
        match colon {
            Some(colon) => {
                converted.push_str(&line[..colon]);
                converted.push('=');
                converted.push_str(&line[colon + 1..]);
            }
            None => converted.push_str(line),
        }
        quote = open_quote(quote, line);
    }
    converted
}

/// The position of the colon that separates a name from its value.
fn colon_after_name(line: &str) -> Option<usize> {
    let end = line.find([':', '='])?;
    let name = line[..end].trim();
    let name = name.strip_prefix("export ").map_or(name, str::trim_start);
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
    (is_name && line[end..].starts_with(':')).then_some(end)
}

/// The quote that is open at the end of a line, given the one that was open at its start.
fn open_quote(mut quote: Option<char>, line: &str) -> Option<char> {
    let mut chars = line.chars();
    let mut previous = ' ';
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None | Some('"'), '\\') => {
                chars.next();
            }
            (None, '#') if previous.is_whitespace() => return None,
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            (None | Some(_), _) => {}
        }
        previous = c;
    }
    quote
}

/// Reads a text line by line and counts the lines, to know how far the parser has read.
struct Lines<'t> {
    left: &'t [u8],
    begun: Rc<Cell<usize>>,
}

impl Read for Lines<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let end = self.left.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let line = end.unwrap_or(self.left.len()).min(into.len());
        let (now, later) = self.left.split_at(line);
        into[..line].copy_from_slice(now);
        if now.ends_with(b"\n") {
            self.begun.set(self.begun.get() + 1);
        }
        self.left = later;
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.env");
        std::fs::write(&file, text).unwrap();
        (dir, file)
    }

    fn plain(read: &StepEnv) -> Vec<(&str, &str)> {
        read.iter().map(|(name, value)| (name.as_str(), value.expose().as_str())).collect()
    }

    // Rows: D6
    #[test]
    fn variable_files_come_from_the_flag_the_variable_or_the_defaults() {
        let none = Environment::default();
        assert_eq!(named(&[], &none), [".env", ".env.local"].map(PathBuf::from));
        let variable = Environment::from([("PRUNNER_ENV_FILES", "a, b")]);
        assert_eq!(named(&[], &variable), ["a", "b"].map(PathBuf::from));
        assert_eq!(
            named(&["c".to_owned(), "d".to_owned()], &variable),
            ["c", "d"].map(PathBuf::from)
        );
        assert!(named(&[String::new()], &variable).is_empty());
        assert!(named(&[], &Environment::from([("PRUNNER_ENV_FILES", "")])).is_empty());
    }

    #[test]
    fn variables_are_read_in_order_and_a_missing_file_is_ignored() {
        let text = "\u{feff}# of the team\nA=1\nexport B=\"two\nlines\"\n\nC='$A' # so\nA=2 ";
        let (dir, file) = written(text);
        let (read, warnings) = read(&[dir.path().join("missing"), file]).unwrap();
        assert_eq!(plain(&read), [("A", "1"), ("B", "two\nlines"), ("C", "$A"), ("A", "2")]);
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn a_colon_separates_a_name_from_its_value_as_in_godotenv() {
        let text =
            "A: 1\nexport B : two\nC=\"three\nD: 4\"\nURL=http://x # it's: here\nE: 'f: g'\n";
        let (_dir, file) = written(text);
        let (read, _) = read(&[file]).unwrap();
        let expected =
            [("A", "1"), ("B", "two"), ("C", "three\nD: 4"), ("URL", "http://x"), ("E", "f: g")];
        assert_eq!(plain(&read), expected);
    }

    #[test]
    fn an_invalid_line_is_reported_by_number_without_its_value() {
        for (text, line) in [
            ("A=1\n\n# c\nhunter2 hunter2\nB=1", "line 4"),
            ("A=1\nPASSWORD=\"hunter2\nB=1\nC=1\n", "line 2"),
            ("A=1\nP=hunter2\0\n", "line 2"),
        ] {
            let (_dir, file) = written(text);
            let why = read(&[file]).unwrap_err();
            assert!(why.contains("x.env") && why.contains(line), "{why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
        let (_dir, file) = written("");
        std::fs::write(&file, [b'A', b'=', 0xff]).unwrap();
        assert!(read(&[file]).unwrap_err().contains("cannot read"));
    }

    #[test]
    fn variables_of_the_program_itself_are_skipped_and_reported() {
        let (_dir, file) = written("BOB_QUEUE_PASSWORD=hunter2\nA=1\n");
        let (read, warnings) = read(&[file]).unwrap();
        assert_eq!(plain(&read), [("A", "1")]);
        assert!(warnings[0].contains("BOB_QUEUE_PASSWORD") && !warnings[0].contains("hunter2"));
    }
}
