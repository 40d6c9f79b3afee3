//! The forms in which a secret may come along.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::rows::FIRST;
use super::shell;

/// A value of fewer bytes is not looked for: it would be found everywhere.
pub const SHORTEST: usize = 3;
/// The same of one line of several.
const SHORTEST_LINE: usize = 4;
/// The same of what is certain of a value inside a longer base64 text.
const SHORTEST_CORE: usize = 6;
/// The same of a value among files, of which there are many more bytes than of output.
const SHORTEST_IN_FILES: usize = 6;
/// Of the lines of a value, one that is a word of so many bytes is looked for among files: a shorter one,
/// as `-----BEGIN PRIVATE KEY-----`, stands in many a program.
const LONG_WORD: usize = 32;
/// The usual lengths of the rows of base64 texts: of `base64`, and of PEM files.
const ROWS: [usize; 2] = [76, 64];

/// What RFC 3986 leaves as it is.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// What most programs leave as it is in a path.
const PATH: &AsciiSet = &STRICT.remove(b'/');
/// What `encodeURIComponent` leaves as it is.
const SCRIPT: &AsciiSet = &STRICT.remove(b'!').remove(b'*').remove(b'\'').remove(b'(').remove(b')');

/// The forms of some values.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// Forms that appear without line breaks added.
    pub(super) plain: BTreeSet<Vec<u8>>,
    /// Base64 forms, to be compared with rows that are joined again.
    pub(super) rows: BTreeSet<Vec<u8>>,
}

/// Every form of these values that is masked in output.
pub(super) fn in_output<'a>(values: impl Iterator<Item = &'a [u8]>) -> Texts {
    let mut forms = Texts::default();
    for value in values.map(trimmed).filter(|value| value.len() >= SHORTEST) {
        forms.add(value);
        let lines = lines(value).filter(|line| line.len() >= SHORTEST_LINE);
        lines.for_each(|line| forms.add(line));
    }
    forms
}

/// Every form of these values that a stored or sent file must not contain.
pub(super) fn in_files<'a>(values: impl Iterator<Item = &'a [u8]>) -> Texts {
    let mut forms = Texts::default();
    for value in values.map(trimmed).filter(|value| value.len() >= SHORTEST_IN_FILES) {
        forms.add(value);
        let is_long_word = |line: &&[u8]| {
            line.len() >= LONG_WORD && !line.iter().any(|byte| byte.is_ascii_whitespace())
        };
        lines(value).filter(is_long_word).for_each(|line| forms.add(line));
    }
    forms.plain.retain(|form| form.len() >= SHORTEST_IN_FILES);
    forms.rows.retain(|form| form.len() >= SHORTEST_IN_FILES);
    forms
}

/// A line break at its end is no part of it: without it no line of a step waits for the next one.
fn trimmed(value: &[u8]) -> &[u8] {
    value.trim_ascii()
}

/// The lines of a value that has several.
fn lines(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let several = value.contains(&b'\n');
    value.split(|byte| *byte == b'\n').map(trimmed).filter(move |_| several)
}

impl Texts {
    fn add(&mut self, text: &[u8]) {
        self.plain.insert(text.to_vec());
        self.plain.extend(shell::forms(text));
        self.add_base64(text);
        add_percent(text, &mut self.plain);
        if let Ok(text) = std::str::from_utf8(text) {
            add_json(text, &mut self.plain);
        }
    }

    /// By itself, with and without padding, and inside a longer text: there it begins at one of three
    /// places in a group of four letters, and only the letters that it alone makes are certain.
    fn add_base64(&mut self, text: &[u8]) {
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let alone = engine.encode(text);
            for row in ROWS.into_iter().filter(|row| alone.len() > *row) {
                // One row may be printed without the others.
                let rows = alone.as_bytes().chunks(row).filter(|row| row.len() >= SHORTEST_CORE);
                self.plain.extend(rows.map(<[u8]>::to_vec));
            }
            if alone.len() >= SHORTEST_LINE {
                let padding = "=".repeat(alone.len().next_multiple_of(4) - alone.len());
                self.plain.insert(format!("{alone}{padding}").into_bytes());
                self.plain.insert(alone.clone().into_bytes());
                self.add_rows(alone.as_bytes());
            }
            for before in 0..3 {
                let shifted = engine.encode([&[0; 2][..before], text].concat());
                let first = (8 * before).div_ceil(6);
                let end = 8 * (before + text.len()) / 6;
                let core = shifted.as_bytes().get(first..end).unwrap_or_default();
                if core.len() >= SHORTEST_CORE {
                    self.plain.insert(core.to_vec());
                    self.add_rows(core);
                }
            }
        }
    }

    /// Base64 that is broken into rows. Its first letters may be at the end of a row, too few to be
    /// recognized there.
    fn add_rows(&mut self, letters: &[u8]) {
        let ends = (0..FIRST).filter_map(|at| letters.get(at..));
        let certain = ends.filter(|end| end.len() >= SHORTEST_CORE);
        self.rows.extend(certain.map(<[u8]>::to_vec));
        // The rest may then fill a single row.
        let rest = letters.get(FIRST - 1..).filter(|rest| rest.len() >= SHORTEST_CORE);
        self.plain.extend(rest.map(<[u8]>::to_vec));
    }
}

fn add_percent(text: &[u8], forms: &mut BTreeSet<Vec<u8>>) {
    for kept in [STRICT, PATH, SCRIPT] {
        let upper = percent_encode(text, kept).to_string();
        // A form has a plus for a blank.
        let form = upper.replace("%20", "+");
        for encoded in [upper, form] {
            forms.insert(in_small_letters(&encoded).into_bytes());
            forms.insert(encoded.into_bytes());
        }
    }
}

/// With the digits of its escapes in small letters.
fn in_small_letters(encoded: &str) -> String {
    let mut digits = 0;
    let lower = encoded.chars().map(|c| {
        if c == '%' {
            digits = 2;
        } else if digits > 0 {
            digits -= 1;
            return c.to_ascii_lowercase();
        }
        c
    });
    lower.collect()
}

/// Inside the quotes of a JSON text, as the usual writers escape it.
fn add_json(text: &str, forms: &mut BTreeSet<Vec<u8>>) {
    let quoted = serde_json::Value::from(text).to_string();
    let Some(plain) = quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return;
    };
    let escaped = |unit: u16| format!("\\u{unit:04x}");
    let ascii = plain.chars().fold(String::new(), |mut ascii, c| {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            ascii.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| escaped(*unit)));
        }
        ascii
    });
    for form in [plain, &ascii] {
        forms.insert(form.as_bytes().to_vec());
        forms.insert(form.replace('/', "\\/").into_bytes());
        let html = ['<', '>', '&']
            .iter()
            .fold(form.to_owned(), |html, c| html.replace(*c, &escaped(*c as u16)));
        forms.insert(html.into_bytes());
    }
}
