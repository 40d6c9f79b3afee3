//! The encoded forms in which a secret may appear.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::rows::FIRST;
use super::shell;

/// The minimum length of a masked value. Shorter ones would match everywhere.
pub const SHORTEST: usize = 3;
/// The minimum length of a single line of a value with several lines.
const SHORTEST_LINE: usize = 4;
/// The minimum length of the fixed part of a value inside a longer base64 text.
const SHORTEST_CORE: usize = 6;
/// The minimum length of a value searched for in files, which have far more bytes than output.
const SHORTEST_IN_FILES: usize = 6;
/// The minimum length of a single line that is searched for in files. It must also be one word.
/// Shorter lines, such as `-----BEGIN PRIVATE KEY-----`, occur in many programs.
const LONG_WORD: usize = 32;
/// The usual lengths of base64 lines: of `base64`, and of PEM files.
const ROWS: [usize; 2] = [76, 64];

/// Leaves the unreserved characters of RFC 3986 unescaped.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Leaves the characters unescaped that most programs permit in a path.
const PATH: &AsciiSet = &STRICT.remove(b'/');
/// Leaves the same characters unescaped as `encodeURIComponent`.
const SCRIPT: &AsciiSet = &STRICT.remove(b'!').remove(b'*').remove(b'\'').remove(b'(').remove(b')');

/// The forms of a set of values.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// Forms without inserted line breaks.
    pub(super) plain: BTreeSet<Vec<u8>>,
    /// Base64 forms, to be compared with joined rows.
    pub(super) rows: BTreeSet<Vec<u8>>,
}

/// Returns every form of the values that is masked in output.
pub(super) fn in_output<'a>(values: impl Iterator<Item = &'a [u8]>) -> Texts {
    let mut forms = Texts::default();
    for value in values.map(trimmed).filter(|value| value.len() >= SHORTEST) {
        forms.add(value);
        let lines = lines(value).filter(|line| line.len() >= SHORTEST_LINE);
        lines.for_each(|line| forms.add(line));
    }
    forms
}

/// Returns every form of the values that a stored or sent file must not contain.
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

/// Trims whitespace. A trailing line break would delay each line of output until the next.
fn trimmed(value: &[u8]) -> &[u8] {
    value.trim_ascii()
}

/// Returns the lines of a value, or nothing if it has only one.
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

    /// Adds the base64 forms: of the text alone, with and without padding, and of the text inside a
    /// longer one. There it starts at one of three offsets in a group of letters. Only letters that
    /// do not depend on the surrounding bytes are used.
    fn add_base64(&mut self, text: &[u8]) {
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let alone = engine.encode(text);
            for row in ROWS.into_iter().filter(|row| alone.len() > *row) {
                // A row may be printed without the others.
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

    /// Adds base64 that is broken into rows. A row may end with too few of its first letters to
    /// match.
    fn add_rows(&mut self, letters: &[u8]) {
        let ends = (0..FIRST).filter_map(|at| letters.get(at..));
        let certain = ends.filter(|end| end.len() >= SHORTEST_CORE);
        self.rows.extend(certain.map(<[u8]>::to_vec));
        // The remaining letters may fill a single row.
        let rest = letters.get(FIRST - 1..).filter(|rest| rest.len() >= SHORTEST_CORE);
        self.plain.extend(rest.map(<[u8]>::to_vec));
    }
}

fn add_percent(text: &[u8], forms: &mut BTreeSet<Vec<u8>>) {
    for kept in [STRICT, PATH, SCRIPT] {
        let upper = percent_encode(text, kept).to_string();
        // HTML forms encode a blank as a plus sign.
        let form = upper.replace("%20", "+");
        for encoded in [upper, form] {
            forms.insert(in_small_letters(&encoded).into_bytes());
            forms.insert(encoded.into_bytes());
        }
    }
}

/// Converts the hex digits of percent escapes to lower case.
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

/// Adds the forms inside a JSON string, as common encoders escape it.
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
