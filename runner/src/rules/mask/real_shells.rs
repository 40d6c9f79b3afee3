//! Masks the output of real shells, which `scripts/setup` installs.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// Markers around a secret in the printed word. No secret contains a `Q`.
const BEGIN: &[u8] = b"QbeginQ";
const END: &[u8] = b"QendQ";
/// A part of every secret that no shell quotes.
const PART: &[u8] = b"k7z";
/// Characters that shells add when they quote.
const QUOTES: &[u8] = b"'\"\\$";

/// The shells, each with commands that only it has.
const SHELLS: [(&[&str], &str); 3] = [
    (&["dash"], ""),
    (&["busybox", "sh"], ""),
    (
        &["bash"],
        "printf '%q\\n' \"$T\" \"<$T>\"; declare -p T; printf '%s\\n' \"${T@Q}\" \"${T@A}\"; env printf '%q\\n' \"$T\" \"<$T>\"",
    ),
];

const PRINT: &str = "set -x; : \"$T\" \"<$T>\" <<X\n$T\nX\nset +x; export -p; set; printf '%s' \"$T\" | base64 -w \"$W\"; echo; printf '%s' \"$T\" | base64;";

/// Returns the output of a shell with the variable `T`.
fn printed(shell: &[&str], more: &str, locale: &str, value: &[u8], width: usize) -> Vec<u8> {
    let (program, words) = shell.split_first().unwrap();
    let output = Command::new(program)
        .args(words)
        .args(["-c", &format!("{{ {PRINT} {more}\n}} 2>&1")])
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", locale)
        .env("W", width.to_string())
        .env("T", OsStr::from_bytes(value))
        .output()
        .unwrap_or_else(|cause| panic!("{program} is needed: {cause}"));
    assert!(output.status.success(), "{program}: {output:?}");
    assert!(has(&output.stdout, b"T="), "{program} prints its variable");
    output.stdout
}

fn has(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn masked(secret: &[u8], text: &[u8]) -> Vec<u8> {
    let mask = Mask::new([secret].into_iter()).unwrap();
    let mut masker = Masker::new(Arc::new(mask));
    let mut out = masker.push(text);
    out.extend(masker.finish());
    out
}

/// Returns the texts between pairs of markers.
fn between(text: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = text;
    let at = |rest: &[u8], word: &[u8]| rest.windows(word.len()).position(|window| window == word);
    while let Some(begin) = at(rest, BEGIN) {
        rest = &rest[begin + BEGIN.len()..];
        let Some(end) = at(rest, END) else { break };
        found.push(rest[..end].to_vec());
        rest = &rest[end..];
    }
    found
}

/// Secrets with many characters that shells quote. They do not begin or end with a blank.
fn secrets() -> impl Strategy<Value = Vec<u8>> {
    let hard = prop::sample::select(vec![
        "'", "''", "\"", "\\", "$", "`", "!", "#", "~", ":~", "=~", "{", "}", "[", "]", "(", ")",
        "*", "?", "&", "|", ";", "<", ">", ",", "^", "%", "+", "/", "é", "€", "a", "Z9",
    ]);
    let inside = prop_oneof![
        6 => hard.clone().prop_map(|text| text.as_bytes().to_vec()),
        1 => Just(b" ".to_vec()),
        1 => Just(b"\t".to_vec()),
        1 => Just(b"\nline".to_vec()),
        1 => Just(b"\x1b[".to_vec()),
        1 => Just(b"\x01\x7f".to_vec()),
        1 => Just(b"\r\x0c\x07".to_vec()),
        1 => Just(b"\xff\xfe".to_vec()),
    ];
    let end = || prop::option::of(hard.clone().prop_map(|text| text.as_bytes().to_vec()));
    let (first, last) = (end(), end());
    (first, prop::collection::vec(inside.clone(), 0..5), prop::collection::vec(inside, 0..5), last)
        .prop_map(|(first, before, after, last)| {
            let parts = [first.unwrap_or_default(), before.concat(), PART.to_vec(), after.concat()];
            [parts.concat(), last.unwrap_or_default()].concat()
        })
        .prop_filter("no blank at an end", |secret| secret.trim_ascii() == secret.as_slice())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn secrets_printed_by_real_shells_are_masked(secret in secrets(), width in 1_usize..80) {
        let word = [BEGIN, &secret, END].concat();
        for (shell, more) in SHELLS {
            for locale in ["C", "C.UTF-8"] {
                let out = masked(&secret, &printed(shell, more, locale, &word, width));
                prop_assert!(
                    !has(&out, PART),
                    "{shell:?} {locale}: {}", String::from_utf8_lossy(&out)
                );
                let left = between(&out);
                prop_assert!(left.len() >= 4, "{shell:?}: {}", String::from_utf8_lossy(&out));
                for left in left {
                    // The shell closes and reopens `"` and `'` around the secret.
                    let bare: Vec<u8> = left.iter().copied().filter(|byte| !QUOTES.contains(byte)).collect();
                    prop_assert!(bare == MASK, "{shell:?} {locale}: {:?}", String::from_utf8_lossy(&left));
                }
                // The secret is the whole word.
                let out = masked(&secret, &printed(shell, more, locale, &secret, width));
                prop_assert!(
                    !has(&out, PART),
                    "{shell:?} {locale}: {}", String::from_utf8_lossy(&out)
                );
            }
        }
    }
}
