use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use proptest::prelude::*;

fn mask(values: &[&str]) -> Arc<Mask> {
    Arc::new(Mask::new(values.iter().map(|value| value.as_bytes())).unwrap())
}

/// Returns the masked output of a stream that arrives in chunks of `size` bytes.
fn streamed(mask: &Arc<Mask>, bytes: &[u8], size: usize) -> Vec<u8> {
    let mut masker = Masker::new(Arc::clone(mask));
    let mut out: Vec<u8> = bytes.chunks(size).flat_map(|piece| masker.push(piece)).collect();
    out.extend(masker.finish());
    out
}

fn has(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

const TOKEN: &str = "s3cr3t/t0ken \"q\"&x+y=ü";

#[test]
fn a_secret_is_masked_at_any_position() {
    let mask = mask(&[TOKEN]);
    assert_eq!(mask.text(&format!("a {TOKEN} b{TOKEN}")), "a *** b***");
    assert_eq!(mask.text("nothing of it"), "nothing of it");
    assert_eq!(mask.text(""), "");
}

#[test]
fn a_secret_is_masked_in_its_common_encodings() {
    let mask = mask(&[TOKEN]);
    let percent = "s3cr3t%2Ft0ken%20%22q%22%26x%2By%3D%C3%BC";
    for form in [
        STANDARD.encode(TOKEN),
        URL_SAFE.encode(TOKEN),
        STANDARD.encode(TOKEN).trim_end_matches('=').to_owned(),
        percent.to_owned(),
        percent
            .replace("%2F", "%2f")
            .replace("%2B", "%2b")
            .replace("%3D", "%3d")
            .replace("%C3%BC", "%c3%bc"),
        percent.replace("%20", "+"),
        percent.replace("%2F", "/"),
        r#"s3cr3t/t0ken \"q\"&x+y=ü"#.to_owned(),
        r#"s3cr3t\/t0ken \"q\"&x+y=\u00fc"#.to_owned(),
        r#"s3cr3t/t0ken \"q\"\u0026x+y=ü"#.to_owned(),
    ] {
        assert_eq!(mask.text(&format!("<{form}>")), "<***>", "{form}");
    }
    assert_eq!(super::tests::mask(&["it's me"]).text(r"+ echo 'it'\''s me'"), "+ echo '***'");
}

#[test]
fn a_secret_is_masked_inside_a_longer_base64_text() {
    let secret = "correct horse battery";
    let mask = mask(&[secret]);
    for before in ["", "u", "us", "use", "user"] {
        for after in ["", "!", "!!", "\n"] {
            let text = STANDARD.encode(format!("{before}:{secret}{after}"));
            let masked = mask.text(&text);
            assert!(masked.contains("***"), "{text} -> {masked}");
            // The rest encodes the surrounding bytes, and a few bits at both ends of the secret.
            let left = masked.replace("***", "").len();
            let around = (before.len() + after.len() + 1) * 4 / 3 + 8;
            assert!(left <= around, "{text} -> {masked}");
        }
    }
}

/// Returns the unmasked letters of base64 with rows of this length.
fn left_in_rows(mask: &Arc<Mask>, text: &str, row: usize, end: &str) -> String {
    let rows: Vec<&str> =
        text.as_bytes().chunks(row).map(|row| std::str::from_utf8(row).unwrap()).collect();
    mask.text(&rows.join(end)).replace("***", "").replace(['\r', '\n'], "")
}

#[test]
fn a_secret_is_masked_in_base64_with_lines_of_any_length() {
    let long = "k3y".repeat(100);
    for secret in ["correct horse battery", "t0p/s3cret+value", &long] {
        let mask = mask(&[secret]);
        for row in 1..=100 {
            for end in ["\n", "\r\n"] {
                let left = left_in_rows(&mask, &STANDARD.encode(secret), row, end);
                assert!(left.replace('=', "").is_empty(), "{secret}, rows of {row}: {left:?}");
                for before in ["u", "us", "user:", "a user of some length: "] {
                    let text = STANDARD.encode(format!("{before}{secret}!"));
                    let left = left_in_rows(&mask, &text, row, end);
                    // The text around the secret, a few bits at its ends, and FIRST letters at the
                    // end of a row.
                    let around = before.len().div_ceil(3) * 4 + 8 + rows::FIRST;
                    assert!(left.len() <= around, "{secret}, rows of {row}: {left:?}");
                }
            }
        }
    }
}

#[test]
fn a_line_is_not_held_back_because_of_a_few_matching_last_letters() {
    let secret = "correct horse battery";
    let encoded = STANDARD.encode(secret);
    let mut masker = Masker::new(mask(&[secret]));
    for letters in 1..rows::FIRST {
        let line = format!("a line that ends with {}\n", &encoded[..letters]);
        assert_eq!(masker.push(line.as_bytes()), line.as_bytes());
    }
    let line = format!("a line that ends with {}\n", &encoded[..rows::FIRST]);
    assert_eq!(masker.push(line.as_bytes()), b"a line that ends with ");
    assert_eq!(masker.push(b"\n\n"), [&encoded.as_bytes()[..rows::FIRST], b"\n\n\n"].concat());
}

#[test]
fn a_stream_is_masked_with_secrets_added_while_it_runs() {
    let mut masker = Masker::new(mask(&["first-secret"]));
    assert_eq!(masker.push(b"first-secret second-secret first-"), b"*** second-secret ");
    masker.renew(&mask(&["first-secret", "second-secret"]));
    assert_eq!(masker.push(b"secret second-secret"), b"*** ***");
    assert_eq!(masker.finish(), b"");
}

#[test]
fn a_secret_of_the_largest_size_is_masked() {
    let secret: String = (0..8 * 1024).map(|n| format!("{:08x}", n * 7919)).collect();
    let mask = mask(&[&secret]);
    assert_eq!(mask.text(&format!("<{secret}>")), "<***>");
    let left = left_in_rows(&mask, &STANDARD.encode(&secret), 20, "\n");
    assert!(left.replace('=', "").is_empty(), "{} bytes are left", left.len());
}

#[test]
fn each_line_of_a_secret_is_masked_separately() {
    let mask = mask(&["-----BEGIN KEY-----\nMIIEow\r\nab\n-----END KEY-----\n"]);
    assert_eq!(mask.text("1 MIIEow\n2 ab\n-----END KEY-----\n"), "1 ***\n2 ab\n***\n");
    assert_eq!(
        mask.text("-----BEGIN KEY-----\nMIIEow\r\nab\n-----END KEY-----\n"),
        "***\n",
        "the whole is one"
    );
}

#[test]
fn a_trailing_line_break_is_not_part_of_a_secret() {
    let mut masker = Masker::new(mask(&["\ntoken-1\n"]));
    assert_eq!(masker.push(b"a line\n"), b"a line\n", "a whole line waits for nothing");
    assert_eq!(masker.push(b"token-1\n"), b"***\n");
}

#[test]
fn a_value_of_two_letters_is_not_masked() {
    assert_eq!(mask(&["ab", ""]).text("ab abc"), "ab abc");
}

#[test]
fn overlapping_secrets_are_masked_completely() {
    let mask = mask(&["abcdef", "defghi", "abc"]);
    assert_eq!(mask.text("xabcdefghix"), "x***x");
    for size in 1..11 {
        assert_eq!(streamed(&mask, b"xabcdefghix", size), b"x***x", "pieces of {size}");
    }
}

#[test]
fn only_a_possible_beginning_of_a_secret_is_held_back() {
    let mut masker = Masker::new(mask(&["password-1"]));
    assert_eq!(masker.push(b"the pass"), b"the ");
    assert_eq!(masker.push(b"ing"), b"passing");
    assert_eq!(masker.push(b" passwor"), b" ");
    assert_eq!(masker.push(b"d-1 is it"), b"*** is it");
    assert_eq!(masker.push(b" password-"), b" ");
    assert_eq!(masker.finish(), b"password-", "the end of the stream is not a secret");
}

#[test]
fn the_debug_output_of_a_mask_contains_no_secret() {
    let mask = mask(&["hunter2-hunter2"]);
    assert!(!format!("{mask:?}").contains("hunter2"));
}

#[test]
fn a_secret_is_found_across_chunks() {
    let mask = mask(&[TOKEN]);
    let rows: Vec<String> = STANDARD
        .encode(TOKEN)
        .as_bytes()
        .chunks(5)
        .map(|row| format!("{}\n", String::from_utf8_lossy(row)))
        .collect();
    for form in [TOKEN.to_owned(), STANDARD.encode(TOKEN), rows.concat()] {
        let file = format!("{}{form}{}", "x".repeat(100), "y".repeat(100));
        for size in [1, 7, 64, 1000] {
            let mut finder = SecretSearch::new(Arc::clone(&mask));
            let found = file.as_bytes().chunks(size).any(|piece| finder.finds(piece));
            assert!(found, "{form} in pieces of {size}");
        }
    }
    let mut finder = SecretSearch::new(mask);
    assert!(!finder.finds(b"nothing of it") && !finder.finds(b"s3cr3t/"));
    assert_eq!(finder.pending(), b"s3cr3t/".len());
}

#[test]
fn a_line_that_is_common_in_programs_is_not_a_match() {
    let word = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSj";
    let mask = mask(&[&format!("-----BEGIN PRIVATE KEY-----\n{word}\n-----END PRIVATE KEY-----")]);
    let finds = |text: &str| SecretSearch::new(Arc::clone(&mask)).finds(text.as_bytes());
    assert!(!finds("-----BEGIN PRIVATE KEY-----"));
    assert!(finds(word));
}

/// Texts that are likely to contain secrets, parts of them, and overlaps.
fn texts() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just("abcab".to_owned()),
        Just("bcabd".to_owned()),
        Just(STANDARD.encode("abcabd")),
        Just("%2F".to_owned()),
        Just("\n".to_owned()),
        Just("\r\n".to_owned()),
        "[abcd/]{0,4}",
        "[YWJjZGFi\n]{0,5}",
        "\\PC{0,3}",
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat().into_bytes())
}

fn secrets() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(prop_oneof!["[abc]{3,8}", "[abcd/\n]{3,12}", Just("abcabd".into())], 1..4)
}

proptest! {
    #[test]
    fn the_result_does_not_depend_on_the_chunking(
        secrets in secrets(), text in texts(), sizes in prop::collection::vec(1usize..20, 1..20)
    ) {
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        let mask = mask(&secrets);
        let whole = streamed(&mask, &text, text.len().max(1));
        let mut masker = Masker::new(Arc::clone(&mask));
        let (mut out, mut rest, mut sizes) = (Vec::new(), &text[..], sizes.into_iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
            out.extend(masker.push(piece));
            let most = mask.output.plain.longest().max(3 * mask.output.rows.longest());
            prop_assert!(masker.held.bytes.len() <= most, "more is held than may be one");
            rest = after;
        }
        out.extend(masker.finish());
        prop_assert_eq!(out, whole);
    }

    #[test]
    fn no_part_of_a_secret_is_published(secrets in secrets(), text in texts(), size in 1usize..20) {
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        let mask = mask(&secrets);
        let out = streamed(&mask, &text, size);
        for secret in secrets.iter().map(|secret| secret.trim()).filter(|s| s.len() >= SHORTEST) {
            // The text between two masks does not contain a secret.
            prop_assert!(!has(&out, secret.as_bytes()), "{:?}", String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn a_text_without_secrets_is_not_changed(
        text in prop::collection::vec(any::<u8>(), 0..2000), size in 1usize..600
    ) {
        let mask = mask(&["a secret that no text of chance holds\nor its second line"]);
        prop_assert_eq!(streamed(&mask, &text, size), text);
    }
}
