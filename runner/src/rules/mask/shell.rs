//! The forms in which shells print a word: with `set -x`, `export -p`, `set` and `printf %q`.
//!
//! A secret is often only a part of the printed word. Each form is therefore how the secret appears
//! inside a word, without the quotes around that word.

/// The characters that `printf %q` of bash escapes with a backslash.
const META: &[u8] = b" !\"$&'()*,;<>?[\\]^`{|}";

/// Which non-ASCII bytes are printed unescaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnescapedBytes {
    /// Valid UTF-8 except control characters, as in a UTF-8 locale.
    Utf8,
    /// None, as in the C locale.
    Nothing,
}

/// Returns every form of a text that dash, busybox, bash and coreutils print inside a word.
pub(super) fn forms(text: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![
        reopened(text),
        almquist(text),
        escaped(text, |_, byte| b"\"$\\`".contains(&byte)),
        escaped(text, |_, byte| META.contains(&byte)),
        escaped(text, |before, byte| {
            let begins_home = byte == b'~' && matches!(before, Some(b':' | b'='));
            META.contains(&byte) || begins_home
        }),
    ];
    for beyond in [UnescapedBytes::Utf8, UnescapedBytes::Nothing] {
        forms.push(ansi(text, beyond));
        forms.push(coreutils(text, beyond));
    }
    forms
}

/// Single quotes, closed and reopened around each quote: `it'\''s`.
fn reopened(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        if *byte == b'\'' {
            out.extend_from_slice(br"'\''");
        } else {
            out.push(*byte);
        }
    }
    out
}

/// Single quotes, with each row of quotes in double quotes: `it'"'"'s`.
fn almquist(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let rows = text.chunk_by(|a, b| (*a == b'\'') == (*b == b'\'')).collect::<Vec<_>>();
    for (at, row) in rows.iter().enumerate() {
        let is_quoted = row.first() == Some(&b'\'');
        // The ends are unknown: quotes there may belong to a longer row of quotes in the word.
        if is_quoted && at > 0 {
            out.extend_from_slice(b"'\"");
        }
        out.extend_from_slice(row);
        if is_quoted && at + 1 < rows.len() {
            out.extend_from_slice(b"\"'");
        }
    }
    out
}

/// Backslash escapes. The closure receives the preceding byte and the byte itself.
fn escaped(text: &[u8], is_escaped: impl Fn(Option<u8>, u8) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut before = None;
    for byte in text {
        if is_escaped(before, *byte) {
            out.push(b'\\');
        }
        out.push(*byte);
        before = Some(*byte);
    }
    out
}

/// `$'…'` as printed by bash.
fn ansi(text: &[u8], beyond: UnescapedBytes) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for part in parts(text, beyond) {
        match part {
            Part::Shown(b'\'') => out.extend_from_slice(br"\'"),
            Part::Shown(b'\\') => out.extend_from_slice(br"\\"),
            Part::Shown(byte) => out.push(byte),
            Part::Escaped(0x1b) => out.extend_from_slice(br"\E"),
            Part::Escaped(byte) => out.extend(escape(byte)),
        }
    }
    out
}

/// Single quotes with unprintable bytes in `$'…'`, as printed by `printf` of coreutils.
fn coreutils(text: &[u8], beyond: UnescapedBytes) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut is_escaping = None;
    for part in parts(text, beyond) {
        let escapes = matches!(part, Part::Escaped(_));
        match is_escaping.replace(escapes) {
            Some(false) if escapes => out.extend_from_slice(b"'$'"),
            // Before a quote, the `'` of `'\\''` closes the escaped text.
            Some(true) if !escapes && !matches!(part, Part::Shown(b'\'')) => {
                out.extend_from_slice(b"''");
            }
            Some(_) | None => {}
        }
        match part {
            Part::Shown(b'\'') => out.extend_from_slice(br"'\''"),
            Part::Shown(byte) => out.push(byte),
            Part::Escaped(byte) => out.extend(escape(byte)),
        }
    }
    out
}

/// A byte of a text.
#[derive(Debug, Clone, Copy)]
enum Part {
    Shown(u8),
    Escaped(u8),
}

fn parts(text: &[u8], beyond: UnescapedBytes) -> impl Iterator<Item = Part> {
    text.utf8_chunks().flat_map(move |chunk| {
        let valid = chunk.valid().chars().flat_map(move |c| {
            let is_shown = !c.is_control() && (c.is_ascii() || beyond == UnescapedBytes::Utf8);
            let part = if is_shown { Part::Shown } else { Part::Escaped };
            let mut bytes = [0; 4];
            let len = c.encode_utf8(&mut bytes).len();
            bytes.into_iter().take(len).map(part)
        });
        valid.chain(chunk.invalid().iter().copied().map(Part::Escaped))
    })
}

/// Returns the escape of a byte in `$'…'`.
fn escape(byte: u8) -> Vec<u8> {
    let letter = match byte {
        0x07 => b'a',
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0b => b'v',
        0x0c => b'f',
        b'\r' => b'r',
        other => return format!("\\{other:03o}").into_bytes(),
    };
    vec![b'\\', letter]
}
